"""Which task made a request of the kernel: the helper does not know, and its parent is the kernel's.

With tracing each request has a record with its name and its task; without, a task is told where it is the
only one that can have asked. A request whose task has gone, and one that nothing is known of, has nobody.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from kmodd.kernel import requester, stacks
from kmodd.kernel.tracing import Asked, Tracing
from kmodd.model import UNKNOWN_REQUESTER, Requester
from kmodd.sources.ahead import Ahead

log = logging.getLogger(__name__)

RECORDS = 512
"""Unclaimed records that are kept; the kernel has 50 requests at once at most."""
AGE = 60.0
"""Seconds for which an unclaimed record is kept: its helper starts late on a machine that is busy."""
_SETTLED = 1.0
"""Seconds after which a task that does not wait for its helper is not going to."""
_TURNS = 4
"""Times that one is looked for while new records come."""
_SCAN = 0.05
"""Seconds that looking at all tasks may take on the event loop; on a machine with more nobody is told."""
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Claim:
    """Who made a request; `tid` is None where that is not known.

    `gone`: it was recorded, and has ended or gone on since. `early`: it was recorded, and does not wait yet.
    """

    requester: Requester = UNKNOWN_REQUESTER
    tid: int | None = None
    gone: bool = False
    early: bool = False


NOBODY = Claim()


class WhoAsked:
    """Joins requests with tasks; each record, and each waiting task, is given to one request.

    `wanted`: whether anybody wants to know; where not, every request has nobody.
    """

    def __init__(
        self,
        tracing: Tracing,
        proc: str = "/proc",
        clock: Callable[[], int] = time.monotonic_ns,
        wanted: Callable[[], bool] = lambda: True,
        check_exe: Callable[[], bool] = lambda: False,
    ) -> None:
        """`check_exe`: whether it matters that the path of a program means the same to everybody."""
        self._check_exe = check_exe
        self._tracing = tracing
        self._wanted = wanted
        self._proc = proc
        self._clock = clock
        self._ahead = Ahead(proc)
        self._records: list[Asked] = []
        self._given: list[Asked] = []
        self._over: list[Asked] = []
        """Those that are not claimed, whose task does not wait any more: their helpers may still come."""
        self._privileged: set[Asked] = set()
        """Those that were seen to wait, privileged: who waits stays what it is, so one look is enough."""
        self._claimed: set[int] = set()
        self._unknown = 0
        self._looked_through = 0
        """When old records were last dropped, which is done once a second where none comes."""

    def claim(self, name: bytes) -> Claim:
        """Return who asked for `name`, and take the record away.

        Of several that still wait the least privileged counts, of those the oldest: which of them a helper
        stands for nobody can say. Reads procfs and tracefs only, neither of which blocks. A defect of ours
        costs nobody their answer.
        """
        try:
            claim = self._find(name)
        except Exception:
            log.exception("cannot find out who asked")
            claim = NOBODY
        if claim.tid is None:
            self._unknown += 1
        else:
            self._claimed.add(claim.tid)
        return claim

    def release(self, claim: Claim) -> None:
        """The request of a claim has been answered; to be called once."""
        if claim.tid is None:
            self._unknown -= 1
        else:
            self._claimed.discard(claim.tid)

    def look_ahead(self) -> None:
        """Look at whoever has asked since the last time, as the kernel announces it, before the helpers come.

        Raises:
            OSError: tracefs fails; whoever called is not to call again.
        """
        new = self._tracing.drain()
        self._note(new)
        if self._wanted():
            for asked in new:
                if asked in self._records:
                    self._ahead.look(asked, check_exe=self._check_exe())

    def forget(self) -> None:
        """Tracing has been switched off: nobody comes any more for what was recorded."""
        self._records, self._given, self._over = [], [], []
        self._privileged.clear()
        self._ahead.keep(())
        requester.forget()

    def _look(self, asked: Asked) -> Requester | None:
        who = self._ahead.who(asked, check_exe=self._check_exe())
        if who is None:
            self._ahead.forget(asked)  # it never holds again
            who = self._look_at(asked.tid)
        return who

    def _look_at(self, tid: int) -> Requester | None:
        return requester.waiting(tid, self._proc, check_exe=self._check_exe())

    def _find(self, name: bytes) -> Claim:
        if not self._wanted():
            return NOBODY
        return self._by_record(name) if self._tracing.on else self._only_one()

    # With tracing

    def _by_record(self, name: bytes) -> Claim:
        self._note(self._tracing.drain())
        found = self._waiting(name)
        if found is None:
            self._note(self._tracing.drain(everywhere=True))
            found = self._waiting(name) or self._still_waiting(name) or self._gone_on(name)
        return found or self._not_waiting(name)

    def _not_waiting(self, name: bytes) -> Claim:
        """Return whether whoever asked has ended, or has not come to wait for the answer yet."""
        for asked in self._records:
            if asked.name == name and asked.wait:
                if requester.is_there(asked.tid, self._proc):
                    return Claim(early=True)
                self._records.remove(asked)
                return Claim(gone=True)
        for asked in self._over:
            if asked.name == name:
                self._over.remove(asked)
                return Claim(gone=True)
        return NOBODY

    def _note(self, new: list[Asked]) -> None:
        now = self._clock()
        if not new and now - self._looked_through < _NS:
            return
        self._looked_through = now
        for asked in new:
            if any(one.tid == asked.tid and one.time > asked.time for one in (*self._records, *self._given)):
                # The other one was in another processor's buffer, and read first.
                if asked.wait:
                    self._over.append(asked)
                continue
            # A task that asks anew has gone on: what it asked for before the fallback has answered, or it was
            # killed by a thread that has its number now, as another program (execve(2)).
            if left := [old for old in self._records if old.tid == asked.tid and old.wait]:
                self._over += left
                self._records = [old for old in self._records if old not in left]
            self._given = [old for old in self._given if old.tid != asked.tid]
            self._records.append(asked)
        oldest = now - int(AGE * _NS)
        self._records = [asked for asked in self._records[-RECORDS:] if asked.time >= oldest]
        self._given = [asked for asked in self._given[-RECORDS:] if asked.time >= oldest]
        self._over = [asked for asked in self._over[-RECORDS:] if asked.time >= oldest]
        self._ahead.keep(self._records)
        if self._privileged:
            self._privileged.intersection_update([*self._records, *self._given])

    def _waiting(self, name: bytes) -> Claim | None:
        """Return one of those that wait for `name` and have not been given to a request."""
        for _turn in range(_TURNS):
            found = self._least_privileged(
                [asked for asked in self._records if asked.name == name and asked.wait]
            )
            if found is None:
                return None
            asked, who = found
            # What it waits for may be what another program of its number has asked for since. That record was
            # made before the task slept, and may be in the next sub-buffer; since a look ahead it has been
            # announced, but before one just now maybe not.
            more = self._tracing.drain(everywhere=not self._ahead.has(asked))
            if not more:
                break
            self._note(more + self._tracing.drain(everywhere=True))
            if asked in self._records:
                break
        else:
            return None
        self._ahead.forget(asked)
        self._records.remove(asked)
        self._given.append(asked)
        return Claim(who, asked.tid)

    def _still_waiting(self, name: bytes) -> Claim | None:
        """Return one whose record went to another's request for `name`, which has been answered.

        That other task has gone on since, with its own record unclaimed; this one is what is left.
        """
        gone = None
        for _turn in range(_TURNS):
            found = self._least_privileged(
                [asked for asked in self._given if asked.name == name and asked.tid not in self._claimed]
            )
            if found is None:
                break
            asked, who = found
            self._note(self._tracing.drain(everywhere=True))  # as in _waiting()
            if asked in self._given:
                return Claim(who, asked.tid)
            gone = Claim(gone=True)
        return self._waiting(name) or gone if gone else None

    def _least_privileged(self, records: list[Asked]) -> tuple[Asked, Requester] | None:
        """Return the one of those whose task waits that may least, the oldest of several.

        The first that is not known to be privileged is that one: no other is looked at behind it.
        """
        privileged: dict[Asked, Requester | None] = {}
        for asked in records:
            if asked in self._privileged:
                privileged[asked] = None
                continue
            who = self._look(asked)
            if who is None:
                if asked in self._records and self._clock() - asked.time > _SETTLED * _NS:
                    self._records.remove(asked)
                    self._over.append(asked)
            elif not who.privileged:
                return asked, who
            else:
                privileged[asked] = who
        if len(privileged) > 1:
            self._privileged.update(privileged)
        for asked, seen in privileged.items():
            who = seen or self._look(asked)
            if who is not None:
                return asked, who
        return None

    def _gone_on(self, name: bytes) -> Claim | None:
        """Return the oldest that asked for `name` by request_module_nowait(): no more than its pid."""
        for asked in self._records:
            if asked.name == name and not asked.wait:
                self._records.remove(asked)
                suspended = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
                return Claim(requester.known_by_number(asked.tid, asked.time + suspended, self._proc))
        return None

    # Without

    def _only_one(self) -> Claim:
        # The task of a request that nobody is known of waits too, so there are two: a storm reads nothing.
        if self._unknown:
            return NOBODY
        tids = stacks.requesting(self._proc, time.monotonic() + _SCAN)
        unclaimed = [] if tids is None else [tid for tid in tids if tid not in self._claimed]
        if len(unclaimed) != 1:
            return NOBODY
        who = self._look_at(unclaimed[0])
        return NOBODY if who is None else Claim(who, unclaimed[0])
