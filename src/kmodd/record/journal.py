"""The journal: every event on disk, written behind the daemon's back and never in its way.

Events wait in memory for a moment, so that many are one write. A disk that is full, a file that is locked or
damaged costs nothing but the events that no longer fit in memory, and is told. While the setting `journal` is
off the newest events stay in memory, and are written once it is on again.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import islice

from kmodd.errors import KmoddError
from kmodd.model import Event
from kmodd.record.database import Database, NewerJournal, last_without_writing
from kmodd.record.history import History, words
from kmodd.record.select import Selection

log = logging.getLogger(__name__)

InThread = Callable[[str, Callable[[], None]], Awaitable[None]]
"""Runs blocking work in a thread of its own."""

DELAY = 0.25
"""Seconds that an event waits for others to be written with it, behind a write in progress if there is one.

What a daemon that is killed loses is what has come in that time.
"""
WAITING_MAX = 10_000
"""Events that wait while nothing can or shall be written: about 35 MB, as names and messages are bounded."""
_BATCH = 2_000
_RETRIES = (1.0, 2.0, 5.0, 15.0, 60.0)
_EXPIRE_EVERY = 600.0


class Journal:
    """Writes each event that it is told of. All calls on the event loop."""

    def __init__(
        self,
        path: str,
        keep: Callable[[], float],
        in_thread: InThread,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """`keep`: how old an event may become, in seconds; `wanted`: whether to write. Asked each time."""
        self.path = path
        self._keep = keep
        self._wanted = wanted
        self._in_thread = in_thread
        self._database = Database(path)
        self._waiting: deque[Event] = deque()
        self._held: deque[Event] = deque(maxlen=WAITING_MAX)
        self._on = wanted()
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self._failures = 0
        self._until = 0
        self._expired = float("-inf")
        self._closed = False
        self._unread: str | None = None
        self.problem: str | None = None
        """Why nothing is written at the moment, in a sentence; None where all is well."""
        self.lost = 0
        """How many events were dropped since the start."""

    async def open(self) -> int:
        """Open the file; return the highest number of an event of an earlier daemon, 0 for none.

        Where it cannot be opened that is `problem`, and it is tried again with the first event. While nothing
        shall be written it is only read.
        """
        found: list[tuple[int, int]] = []

        def look() -> None:
            found.append(self._database.last() if self._on else last_without_writing(self.path))

        self._unread = f"cannot read {self.path}: it is still being opened"
        try:
            await self._in_thread("kmod_journal", look)
        except (sqlite3.Error, OSError, KmoddError) as err:
            self._unread = self._sentence("read", err)
            if self._on:
                self._failed(err)
            else:
                log.error("journal: %s", self._unread)
            return 0
        number, self._until = found[0]
        self._unread = None
        return number

    def history(self, selection: Selection, count: int | None) -> History:
        """Return the events so far that match, the newest `count` of them; in the file or not yet."""
        in_memory = [*self._waiting, *self._held]
        return History(self.path, self._until, in_memory, selection, count, self._in_thread, self._unread)

    def note(self, event: Event) -> None:
        """Have an event written soon."""
        if self._closed:
            return
        was_on, self._on = self._on, self._wanted()
        if not self._on and not was_on:
            self._held.append(event)
            return
        # The first event after it was switched off says so: the last one in the file.
        while self._held:
            self._add(self._held.popleft())
        self._add(event)
        if self._timer is None and self._writing is None:
            self._arm(DELAY)

    def _add(self, event: Event) -> None:
        if len(self._waiting) >= WAITING_MAX:
            self.lost += 1
        else:
            self._waiting.append(event)

    @property
    def on(self) -> bool:
        """Whether events are written."""
        return self._wanted()

    @property
    def waiting(self) -> int:
        """How many events are not in the file yet."""
        return len(self._waiting)

    async def flush(self, patience: float) -> bool:
        """Write what waits now; return whether that was done within `patience` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        while self._writing is not None or self._waiting:
            if self._writing is None:
                if self._timer is not None:
                    self._timer.cancel()
                self._begin()
            assert self._writing is not None
            done, _late = await asyncio.wait([self._writing], timeout=deadline - loop.time())
            if not done or self._failures:
                break
        return not self._waiting

    async def close(self, patience: float) -> None:
        """Write what waits, and no more."""
        await self.flush(patience)
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._waiting:
            log.error("%d events are not in the journal: %s", len(self._waiting), self.problem or "no time")
        if self._writing is None:
            self._database.close()

    def _arm(self, delay: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay, self._begin)

    def _begin(self) -> None:
        self._timer = None
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write())
            self._writing.add_done_callback(self._written)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        more = bool(self._waiting)
        while more:
            batch = list(islice(self._waiting, _BATCH))
            expire = loop.time() - self._expired >= _EXPIRE_EVERY
            keep = self._keep() if expire else None

            written: list[int] = []

            def write(batch: list[Event] = batch, keep: float | None = keep, to: list[int] = written) -> None:
                to.append(self._database.append(batch, keep=keep))

            try:
                await self._in_thread("kmod_journal", write)
            except (sqlite3.Error, OSError, KmoddError) as err:
                self._failed(err)
                return
            # In one step of the loop: each event is either below `_until` in the file, or waits.
            self._until, self._unread = written[0], None
            for _ in batch:
                self._waiting.popleft()
            if expire:
                self._expired = loop.time()
            self._succeeded()
            # What came meanwhile is new, and waits for others in its turn: to write at once, again and again,
            # is a thread that takes Python's lock from the requests for as long as they come.
            more = len(self._waiting) >= _BATCH

    def _written(self, writing: asyncio.Task[None]) -> None:
        self._writing = None
        if not writing.cancelled() and (error := writing.exception()) is not None:
            self._failed(error)
        if self._failures and not self._on:
            self._hold()
        if self._waiting and not self._closed:
            self._arm(_RETRIES[min(self._failures, len(_RETRIES)) - 1] if self._failures else DELAY)

    def _hold(self) -> None:
        """What could not be written before it was switched off is not tried again until it is on."""
        self._held.extendleft(reversed(self._waiting))
        self._waiting.clear()
        self.problem, self._failures = None, 0

    def _failed(self, err: BaseException) -> None:
        problem = self._sentence("write", err)
        if problem != self.problem:
            log.error("journal: %s; events wait in memory, at most %d", problem, WAITING_MAX)
        self.problem = problem
        self._failures += 1

    def _sentence(self, deed: str, err: BaseException) -> str:
        return str(err) if isinstance(err, NewerJournal) else f"cannot {deed} {self.path}: {words(err)}"

    def _succeeded(self) -> None:
        if self.problem is not None:
            log.warning("journal: written again; %d events were lost", self.lost)
        self.problem, self._failures = None, 0


def seconds(age: str) -> float:
    """Return the setting journal_keep, as in `30d`, in seconds."""
    return float(int(age[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}[age[-1]])
