"""Many threads, begun over a few moments: all at once would fight for Python's lock, and for the processors.

Nothing waits for another's end. A few begin at once. A thread whose work is done takes on the next that
waits, which so has what the one before left to the thread: its id, its root. And whatever ends or not, more
begin after a short while: twice as many each time where those that have begun sleep, so that the last of a
thousand begins after a tenth of a second; one each time where they keep a processor busy, for then another
is no help, but only for so long: what is busy may be something else.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from kmodd.broker import threads
from kmodd.broker.threads import Settle

T = TypeVar("T")

AT_ONCE = 2 * (os.cpu_count() or 1)
WHILE, BUSY_WHILE = 0.01, 0.05
"""Seconds until more begin: while those that have begun sleep, and while they are busy."""
BUSY_AT_MOST = 3.0
"""Seconds for which it counts that they are busy."""
_BUSY = 0.75
"""Processors that are busy with them: of what is Python's no more than one can be."""


@dataclass(slots=True)
class _Piece(Generic[T]):
    """A piece of work, and who is told how it ended."""

    work: Callable[[], T]
    settle: Settle[T]
    result: T | None = None
    error: BaseException | None = None

    def do(self) -> None:
        try:
            self.result = self.work()
        except BaseException as err:  # noqa: BLE001 - it is raised where it is awaited
            self.error = err

    def tell(self) -> None:
        self.settle(self.result, self.error)


class Pace(Generic[T]):
    """Runs pieces of blocking work in threads, in order. All calls on the event loop.

    `used` and `clock`, in seconds: the processor time of this process, and the time.
    """

    def __init__(
        self,
        name: str,
        at_once: int = AT_ONCE,
        *,
        used: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._at_once = at_once
        self._used = used
        self._clock = clock
        self._then = 0.0, 0.0
        self._since = 0.0
        self._going = 0
        self._waiting: deque[_Piece[T]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, work: Callable[[], T], settle: Settle[T]) -> None:
        """Run `work` now or soon; call `settle` later with what it returned or raised, on the event loop.

        It is told an OSError, EAGAIN, where no thread can be started.
        """
        piece = _Piece(work, settle)
        if self._going < self._at_once:
            self._start(piece)
            return
        self._waiting.append(piece)
        if self._timer is None:
            self._since = self._clock()
            self._arm(WHILE, self._at_once)

    def _start(self, piece: _Piece[T]) -> None:
        loop = asyncio.get_running_loop()
        try:
            threads.start_thread(self._name, partial(self._run, loop, piece), partial(self._over, piece))
        except Exception as err:  # noqa: BLE001 - it is raised where it is awaited
            piece.error = err
            # Not now: who is told may begin the next, and is told of that, and so on.
            loop.call_soon(piece.tell)
        else:
            self._going += 1

    def _next(self) -> _Piece[T] | None:
        """Return the next that waits, to whoever asks first: threads do, too."""
        try:
            return self._waiting.popleft()
        except IndexError:
            return None

    def _run(self, loop: asyncio.AbstractEventLoop, piece: _Piece[T]) -> _Piece[T]:
        """In a thread: do a piece, and those that wait then; return the last, which is still to be told."""
        piece.do()
        while (following := self._next()) is not None:
            try:
                loop.call_soon_threadsafe(piece.tell)
            except Exception:  # noqa: BLE001 - the daemon has stopped without waiting for us, or no memory
                self._waiting.appendleft(following)
                break
            piece = following
            piece.do()
        return piece

    def _over(self, first: _Piece[T], last: _Piece[T] | None, error: BaseException | None) -> None:
        """A thread has ended, maybe before it could do anything."""
        self._going -= 1
        if last is None:
            last, first.error = first, error
        try:
            if self._going < self._at_once and (following := self._next()) is not None:
                self._start(following)
        finally:
            last.tell()

    def _arm(self, after: float, count: int) -> None:
        self._then = self._clock(), self._used()
        self._timer = asyncio.get_running_loop().call_later(after, self._more, count)

    def _more(self, count: int) -> None:
        self._timer = None
        (then, used), now = self._then, self._clock()
        busy = self._used() - used >= _BUSY * (now - then) and now - self._since < BUSY_AT_MOST
        for _ in range(1 if busy else count):
            if (piece := self._next()) is None:
                return
            self._start(piece)
        if self._waiting and self._timer is None:
            self._arm(BUSY_WHILE if busy else WHILE, count if busy else 2 * count)
