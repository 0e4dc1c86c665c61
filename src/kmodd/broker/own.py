"""What the daemon's own threads and children do: when, so that it is not taken for what others do.

A thread that loads or unloads says so itself, before and after: nothing here waits for the event loop, which
may be told of a module's load by the kernel before it is told by the thread.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator

from kmodd.broker.foreign import Work

ByOthers = Callable[[int], Collection[str]]
"""Returns the modules that are known to have been brought in by others since a time (CLOCK_MONOTONIC, ns)."""

_KEPT = 1024
"""Pieces of work that have ended and are remembered; the kernel's records come within milliseconds."""
_SLACK = 1_000_000_000
"""ns by which threads may be late to say that they have ended."""


class Own:
    """The work in progress and the newest that has ended. The methods may be called from any thread."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._running: dict[int, Work] = {}
        self._ended: deque[Work] = deque(maxlen=_KEPT)
        self._numbers = itertools.count()

    @contextlib.contextmanager
    def thread(self) -> Iterator[None]:
        """The calling thread itself loads or unloads, inside this context."""
        with self._work(threading.get_native_id(), is_child=False):
            yield

    @contextlib.contextmanager
    def child(self) -> Iterator[Callable[[int], None]]:
        """The calling thread runs a program that may; to be told its pid, also its session id, at once."""
        with self._work(None, is_child=True) as started:
            yield started

    @contextlib.contextmanager
    def _work(self, tid: int | None, *, is_child: bool) -> Iterator[Callable[[int], None]]:
        number = next(self._numbers)
        begin = self._clock()

        def known(pid: int) -> None:
            self._running[number] = Work(pid, begin, None, is_child)

        self._running[number] = Work(tid, begin, None, is_child)
        try:
            yield known
        finally:
            work = self._running[number]
            # In this order: at any moment it is in one of the two.
            self._ended.append(Work(work.tid, begin, self._clock(), is_child))
            del self._running[number]

    def has(self, tid: int, moment: int) -> bool:
        """Whether a task was at work for us at a moment (CLOCK_MONOTONIC, ns): thread or child."""
        for work in list(self._running.values()):
            if work.tid == tid and work.covers(moment):
                return True
        for work in reversed(list(self._ended)):
            if work.tid == tid and work.covers(moment):
                return True
            if work.end is not None and work.end < moment - _SLACK:
                break
        return False

    def at(self, moment: int) -> list[Work]:
        """Return what was in progress at a moment (CLOCK_MONOTONIC, ns)."""
        found = [work for work in list(self._running.values()) if work.covers(moment)]
        for work in reversed(list(self._ended)):
            if work.covers(moment):
                found.append(work)
            elif work.end is not None and work.end < moment - _SLACK:
                break
        return found


def nothing(_since: int) -> Collection[str]:
    """What others are known to have brought in where nobody looks."""
    return ()
