"""Loads and unloads that bypass kmodd, as events: insmod(8), udev, another modprobe; and who made them.

The kernel tells of each at once, so the task is nearly always still there to be looked at. What our own
threads and children do is left out: that has events of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from kmodd.broker.foreign import Deed, OwnLoad, Whose, whose
from kmodd.broker.own import Own
from kmodd.errors import errno_words
from kmodd.kernel import requester
from kmodd.kernel.comings import Comings, Kind, Record
from kmodd.kernel.instance import Opened
from kmodd.kernel.interface import Kernel
from kmodd.kernel.requester import Seen
from kmodd.model import UNKNOWN_REQUESTER, Event, Outcome
from kmodd.record.recorder import Recorder

PENDING = 512
"""Deeds that are not decided yet; of more the oldest are dropped, and counted as missed."""
_REMEMBERED = 1024
"""Loads of ours that have ended, and deeds of others, that are remembered; tasks that are bringing one in."""
_UNKNOWN = ""
_NOBODY = Seen(UNKNOWN_REQUESTER)
_FIRST_LOOK, _LAST_LOOK = 0.02, 5.0
"""Seconds between looks at what is not decided: each time twice as long."""


@dataclass(eq=False, slots=True)
class _Pending:
    """Something that was done and is not decided: `result` of a load, None while its init may be running."""

    time: int
    tid: int
    module: str
    seen: Seen
    is_load: bool
    result: int | None = 0
    gone: bool = False

    def deed(self) -> Deed:
        return Deed(
            self.time, self.tid, self.module, self.seen.session, brought_in=self.is_load and self.result == 0
        )


def _now() -> datetime:
    return datetime.now(UTC)


class Others:
    """Watches what others do to the kernel's modules.

    All calls but `open` on the event loop; none of them blocks.
    `loads`: the loads of ours in progress, each with when it began (the loop's time, s).
    """

    def __init__(
        self,
        comings: Comings,
        own: Own,
        kernel: Kernel,
        recorder: Recorder,
        loads: Callable[[], Mapping[int, float]],
        *,
        proc: str = "/proc",
        clock: Callable[[], int] = time.monotonic_ns,
        now: Callable[[], datetime] = _now,
    ) -> None:
        self._comings = comings
        self._own = own
        self._kernel = kernel
        self._recorder = recorder
        self._loads = loads
        self._proc = proc
        self._clock = clock
        self._now = now
        self._pending: deque[_Pending] = deque()
        self._bringing_in: dict[int, _Pending] = {}
        self._ended: deque[OwnLoad] = deque(maxlen=_REMEMBERED)
        self._known: deque[Deed] = deque(maxlen=_REMEMBERED)
        self._timer: asyncio.TimerHandle | None = None
        self._pause = _FIRST_LOOK
        self._dropped = 0
        recorder.subscribe(self._note)

    @property
    def on(self) -> bool:
        """Whether what others do is seen."""
        return self._comings.on

    @property
    def problem(self) -> str | None:
        """Why it is not."""
        return self._comings.problem

    @problem.setter
    def problem(self, words: str) -> None:
        self._comings.problem = words

    @property
    def missed(self) -> int:
        """How many records, at least, were lost, or could not be decided in time."""
        return self._comings.missed + self._dropped

    def open(self) -> Opened:
        """Make what `begin` needs; from any thread, for it waits for the kernel."""
        return self._comings.open()

    def begin(self, opened: Opened) -> None:
        """Begin to watch."""
        self._comings.take(opened)
        if self._comings.on:
            asyncio.get_running_loop().add_reader(self._comings.fileno(), self.look)
            self.look()

    def end(self) -> Callable[[], None]:
        """End it, with what has happened until now; return what puts the kernel back, for any thread."""
        if self._comings.on:
            self._look(everywhere=True)
            asyncio.get_running_loop().remove_reader(self._comings.fileno())
        self._clear_timer()
        self._dropped += len(self._pending)
        self._pending.clear()
        self._bringing_in.clear()
        return self._comings.let_go()

    def look(self) -> None:
        """Take what the kernel has recorded, and tell what can be decided."""
        self._look(everywhere=False)

    def since(self, moment: int) -> Collection[str]:
        """Return the modules that others, as is known, have brought in since (CLOCK_MONOTONIC, ns).

        What came while a program of ours ran is not all its own.
        """
        self.look()
        return {
            deed.module
            for deed in self._known
            if deed.time >= moment and whose(deed, self._own.at(deed.time), ()) is Whose.OTHERS
        }

    def _look(self, *, everywhere: bool) -> None:
        records = self._comings.drain(everywhere=everywhere)
        for record in records:
            self._take(record)
        if records:
            self._pause = _FIRST_LOOK
        self._those_without_init()
        while len(self._pending) > PENDING:
            self._pending.popleft()
            self._dropped += 1
        self._settle()

    def _those_without_init(self) -> None:
        """A module that is live and of which no init is recorded has none; all records count for that."""
        live = [one for one in self._pending if one.result is None and self._is_live(one.module)]
        if not live:
            return
        for record in self._comings.drain(everywhere=True):
            self._take(record)
        for one in live:
            if one.result is None:
                one.result = 0

    # What was recorded

    def _take(self, record: Record) -> None:
        match record.kind:
            case Kind.LOAD:
                self._comes(record)
            case Kind.INIT:
                self._initialised(record)
            case Kind.FREE:
                self._goes(record)

    def _comes(self, record: Record) -> None:
        before = self._bringing_in.pop(record.tid, None)
        if before is not None and before.result is None:
            before.result = 0  # it had no init, and its task has gone on
        if self._is_our_thread(record):
            return
        coming = self._append(record, is_load=True)
        coming.result = None
        self._brings_in(record.tid, coming)
        if coming.seen.session is not None:
            self._known.append(Deed(record.time, record.tid, record.module, coming.seen.session, True))

    def _brings_in(self, tid: int, coming: _Pending) -> None:
        while len(self._bringing_in) >= _REMEMBERED:
            del self._bringing_in[next(iter(self._bringing_in))]
        self._bringing_in[tid] = coming

    def _initialised(self, record: Record) -> None:
        coming = self._bringing_in.get(record.tid)
        if coming is not None:
            if coming.result is None:
                coming.result = min(0, record.result)
        elif record.result < 0:
            # One that came before we looked, in an earlier daemon's days: that it goes is no unload.
            unknown = _Pending(record.time, record.tid, _UNKNOWN, _NOBODY, is_load=True, result=record.result)
            self._brings_in(record.tid, unknown)

    def _goes(self, record: Record) -> None:
        coming = self._bringing_in.get(record.tid)
        if coming is not None and coming.module in {record.module, _UNKNOWN}:
            del self._bringing_in[record.tid]
            if coming.result:
                return  # its init has failed: this is how that ends
        for pending in self._pending:
            if pending.module == record.module and pending.is_load:
                pending.gone = True
                if pending.result is None:
                    pending.result = 0
        if not self._is_our_thread(record):
            self._append(record, is_load=False)

    def _is_our_thread(self, record: Record) -> bool:
        return self._own.has(record.tid, record.time)

    def _append(self, record: Record, *, is_load: bool) -> _Pending:
        suspended = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
        seen = requester.seen(record.tid, record.time + suspended, self._proc)
        pending = _Pending(record.time, record.tid, record.module, seen, is_load)
        self._pending.append(pending)
        return pending

    def _note(self, event: Event) -> None:
        """A load of ours has ended, and what it reports may decide what came in meanwhile."""
        if event.event != "load" or event.fields["request"] is None:
            return
        end, modules = self._clock(), event.fields["modules"]
        begin = end - (event.fields["duration_us"] + 1) * 1000
        self._ended.append(OwnLoad(begin, end, None if modules is None else frozenset(modules)))
        if self._pending:
            asyncio.get_running_loop().call_soon(self._settle)

    # What is decided

    def _settle(self) -> None:
        """Tell what is decided; of one module in order."""
        waits: set[str] = set()
        for pending in list(self._pending):
            if pending.module in waits:
                continue
            decided = self._decide(pending)
            if decided is Whose.OPEN:
                waits.add(pending.module)
                continue
            self._pending.remove(pending)
            if decided is Whose.OTHERS:
                self._tell(pending)
        self._set_timer()

    def _decide(self, pending: _Pending) -> Whose:
        if pending.result is None:
            return Whose.OPEN
        loads = [OwnLoad(int(began * 1e9), None) for began in self._loads().values()]
        return whose(pending.deed(), self._own.at(pending.time), [*self._ended, *loads])

    def _is_live(self, module: str) -> bool:
        # A name is whatever its file says, and no path.
        return "/" not in module and self._kernel.is_live(module)

    def _tell(self, pending: _Pending) -> None:
        module, result = pending.module, pending.result or 0
        when = self._now() - timedelta(microseconds=max(0, self._clock() - pending.time) // 1000)
        who = pending.seen.requester.as_json()
        if not pending.is_load:
            fields = {"module": module, "reason": "by others", "requester": who}
            self._recorder.add_at("unload", self._recorder.next_id(), when, fields)
            return
        identity = None if pending.gone or result or "/" in module else self._kernel.identity(module)
        error = f"cannot load {module}: its init function has failed: {errno_words(-result)}"
        self._recorder.add_at(
            "load",
            self._recorder.next_id(),
            when,
            {
                "name": module,
                "outcome": (Outcome.FAILED if result else Outcome.LOADED).value,
                "status": result,
                "modules": [] if result else [module],
                "duration_us": None,
                "error": error if result else None,
                "reasons": {},
                "identities": {} if result else {module: identity},
                "request": None,
                "requester": who,
            },
        )

    # Time

    def _set_timer(self) -> None:
        self._clear_timer()
        if self._pending:
            self._timer = asyncio.get_running_loop().call_later(self._pause, self._look_again)

    def _look_again(self) -> None:
        self._pause = min(_LAST_LOOK, self._pause * 2)
        self._those_without_init()
        self._settle()

    def _clear_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
