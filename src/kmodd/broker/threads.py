"""A thread for one piece of blocking work, as `kmod_loader` was in 1998 (S3, S5): never a bounded pool."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import signal
from collections.abc import Callable
from typing import TypeVar

from kmodd.kernel import libc

T = TypeVar("T")
Settle = Callable[[T | None, BaseException | None], None]
"""Told what a piece of work returned, or raised."""

_ALL_SIGNALS = tuple(map(int, signal.valid_signals()))
"""As numbers: to make enums of them takes longer than all else at a thread's start."""


async def in_own_thread(name: str, work: Callable[[], T]) -> T:
    """Run blocking `work` in a new thread of that name with all signals blocked; return what it returns.

    If the caller is cancelled the thread goes on by itself and what it returns is dropped: a load cannot
    be taken back.

    Raises:
        OSError: EAGAIN, no thread can be started; or what `work` raised.
    """
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # None only where T is

    start_thread(name, work, settle)
    return await future


def start_thread(name: str, work: Callable[[], T], settle: Settle[T]) -> None:
    """Run `work` as `in_own_thread` does; call `settle` with what it returned or raised, on the event loop.

    Raises:
        OSError: EAGAIN, no thread can be started; `settle` is not called then.
    """
    loop = asyncio.get_running_loop()

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _ALL_SIGNALS)
        result: T | None = None
        error: BaseException | None = None
        try:
            libc.set_thread_name(name)
            result = work()
        except BaseException as err:  # noqa: BLE001 - it is raised where it is awaited
            error = err
        # The loop is closed where the daemon has stopped without waiting for us.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, error)

    try:
        # Not threading.Thread: its start() waits until the new thread has had Python's lock, behind all the
        # others that want it. With 45 loads at once on a slow machine the event loop was late by a second.
        _thread.start_new_thread(run, ())
    except RuntimeError as err:
        raise BlockingIOError(11, "Resource temporarily unavailable", "thread") from err
