"""Many starts, spread over a few moments: threads that all begin at once fight for Python's lock.

No pool: nothing waits for another's end. A few begin at once, one more at each end, and whatever ends or not,
twice as many each time after a short while; so the last of a thousand begins after a tenth of a second.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable

AT_ONCE = 2 * (os.cpu_count() or 1)
WHILE = 0.01
"""Seconds."""


class Pace:
    """Calls what it is given, in order; all on the event loop."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = at_once
        self._going = 0
        self._waiting: deque[Callable[[], None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, start: Callable[[], None]) -> None:
        """Call `start`, now or soon; `ended` is to be called once for each when what it began is over."""
        if self._going < self._at_once:
            self._going += 1
            start()
            return
        self._waiting.append(start)
        if self._timer is None:
            self._arm(self._at_once)

    def ended(self) -> None:
        """One of those that have begun is over."""
        self._going -= 1
        if self._waiting and self._going < self._at_once:
            self._next()

    def _arm(self, count: int) -> None:
        self._timer = asyncio.get_running_loop().call_later(WHILE, self._more, count)

    def _more(self, count: int) -> None:
        self._timer = None
        for _ in range(min(count, len(self._waiting))):
            self._next()
        if self._waiting:
            self._arm(2 * count)

    def _next(self) -> None:
        self._going += 1
        self._waiting.popleft()()
