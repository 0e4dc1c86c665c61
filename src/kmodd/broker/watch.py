"""Looks for deadlocks while requests wait: soon after one joins another's load, then ever less often."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import replace
from typing import Protocol

from kmodd.broker.deadlock import RunningLoad, WaitingRequest, deadlocked
from kmodd.kernel.interface import BlockedTask

log = logging.getLogger(__name__)

FindBlocked = Callable[[Collection[int], Collection[int]], Awaitable[list[BlockedTask]]]
"""Finds the blocked tasks, given the sessions and the threads of those that load."""

_SOON = (0.0, 0.02, 0.1, 0.5)
_LATER = 1.0
_SHARE = 20
"""A look that took t seconds is followed by none for 20 t: at most a twentieth of the time goes into it."""

ASLEEP = 0.5
"""Seconds after which a requester is surely asleep: the helper may be here before it has gone to sleep."""


class Waiting(Protocol):
    """What the watch is told of the broker."""

    def running(self) -> list[RunningLoad]:
        """Return the loads in progress."""

    def waiting(self) -> list[WaitingRequest]:
        """Return the requests that wait for them."""

    def deadlock(self, number: int) -> None:
        """Tell request `number` EDEADLK."""


class DeadlockWatch:
    """One timer while there are loads, none when there are not: an idle daemon sleeps."""

    def __init__(self, broker: Waiting, find_blocked: FindBlocked, asleep: float = ASLEEP) -> None:
        self._broker = broker
        self._asleep = asleep
        self._find = find_blocked
        self._timer: asyncio.TimerHandle | None = None
        self._look: asyncio.Task[None] | None = None
        self._delays: Iterator[float] = iter(())
        self._not_before = 0.0
        self._suspects: dict[int, frozenset[int]] = {}

    def started(self) -> None:
        """A load has started. It may come to wait inside the kernel for one that waits for it."""
        if self._timer is None and self._look is None:
            self._arm(_LATER)

    def joined(self) -> None:
        """A request shares a load that was in progress: the request that closes a cycle always does."""
        self._delays = iter(_SOON)
        if self._look is None:
            self._arm(next(self._delays))

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._look is not None:
            self._look.cancel()
        self._suspects.clear()

    def _arm(self, delay: float) -> None:
        loop = asyncio.get_running_loop()
        when = max(loop.time() + delay, self._not_before)
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = loop.call_at(when, self._begin)

    def _begin(self) -> None:
        self._timer = None
        if self._broker.waiting():
            self._look = asyncio.get_running_loop().create_task(self._looking())
            self._look.add_done_callback(self._looked)

    async def _looking(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        before = {wait.number for wait in self._broker.waiting()}
        running = self._broker.running()
        sessions = {load.session for load in running if load.session is not None}
        threads = {load.tid for load in running if load.tid is not None}
        tasks = await self._find(sessions, threads)
        self._not_before = loop.time() + _SHARE * (loop.time() - began)
        blocked = frozenset(task.tid for task in tasks)
        # One that came while we looked may have been made by a task that we have missed: next time.
        waits = [wait for wait in self._broker.waiting() if wait.number in before]
        waits = self._with_suspects(waits, blocked, began)
        for number in deadlocked(self._broker.running(), waits, tasks):
            self._broker.deadlock(number)

    def _with_suspects(
        self, waits: list[WaitingRequest], blocked: frozenset[int], now: float
    ) -> list[WaitingRequest]:
        """Narrow down who can have made each request: its maker has been blocked since it came.

        Nobody, where it was made by what is no task of this kernel's that we see.
        """
        suspects: dict[int, frozenset[int]] = {}
        for wait in waits:
            known = self._suspects.get(wait.number)
            if now - wait.since >= self._asleep:
                known = blocked if known is None else known & blocked
            if known is not None:
                suspects[wait.number] = known
        self._suspects = suspects
        # Of one whose maker is not seen to be blocked yet nothing can be said: it waits for the next look.
        return [
            replace(wait, suspects=suspects.get(wait.number))
            for wait in waits
            if wait.session is not None or wait.number in suspects
        ]

    def _looked(self, look: asyncio.Task[None]) -> None:
        self._look = None
        if look.cancelled():
            return
        if (error := look.exception()) is not None:
            log.error("cannot look for deadlocks: %s", error)
        if self._broker.running():
            self._arm(next(itertools.chain(self._delays, itertools.repeat(_LATER))))
