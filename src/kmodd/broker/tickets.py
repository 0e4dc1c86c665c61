"""Requests on their way, and the loads that they wait for: what the broker keeps of each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kmodd.broker.judging import Gate
from kmodd.broker.states import RequestState
from kmodd.errors import InvalidName
from kmodd.model import UNKNOWN_REQUESTER, Event, Request, Requester, Result, Source
from kmodd.tree.plan import Plan

if TYPE_CHECKING:
    from kmodd.broker.broker import Broker

StatusTold = Callable[[int], None]
ResultTold = Callable[[Result], None]

_NOTHING: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, as far as that is known.

    `session`: the session id. `tid`: the thread id. A `stranger` may have nothing but what a rule of the
    policy gives it. `gone`: who it was is not known, and it has ended.
    """

    requester: Requester = UNKNOWN_REQUESTER
    session: int | None = None
    tid: int | None = None
    stranger: bool = False
    gone: bool = False


NOBODY = Asker()


class Ticket:
    """A request on its way. Only the broker changes it."""

    __slots__ = (
        "_on_result",
        "_on_status",
        "asker",
        "event",
        "left",
        "load",
        "no_right",
        "refusal",
        "request",
        "result",
        "state",
        "timeout",
        "timer",
    )

    def __init__(
        self,
        request: Request,
        asker: Asker,
        timeout: float | None,
        on_status: StatusTold | None,
        on_result: ResultTold | None,
    ) -> None:
        self.request = request
        self.asker = asker
        self.no_right = False
        self.timeout = timeout
        self.state = RequestState.NEW
        self.load: Load | None = None
        self.result: Result | None = None
        self.event: Event | None = None
        self.refusal: InvalidName | None = None
        self.left = False
        self.timer: asyncio.TimerHandle | None = None
        self._on_status = on_status
        self._on_result = on_result

    def tell_status(self, status: int) -> None:
        """Tell the requester its status; once."""
        told, self._on_status = self._on_status, None
        if told is not None:
            told(status)

    def tell_result(self, result: Result) -> None:
        """Tell the requester its result; once."""
        told, self._on_result = self._on_result, None
        if told is not None:
            told(result)

    @property
    def shares_a_load(self) -> bool:
        """Whether it waits for a load that another request began."""
        return self.load is not None and self.load.first != self.request.id

    @property
    def awaits_result(self) -> bool:
        """Whether somebody is there to be told the result."""
        return self._on_result is not None

    def forget_requester(self) -> None:
        """Nobody is there any more to be told."""
        self.left = True
        self._on_status = self._on_result = None


def session_known(ticket: Ticket) -> int | None:
    """Return the requester's session id, None where it is not known: only the kernel's is to be found."""
    session = ticket.asker.session
    return session if ticket.request.source is Source.KERNEL else session or 0


class Load:
    """A load in progress, and who waits for it. It is its loader's `Progress`."""

    __slots__ = (
        "_broker",
        "_waits",
        "by_kernel",
        "early",
        "first",
        "gate",
        "name",
        "number",
        "plan",
        "refused",
        "session_id",
        "started",
        "task",
        "tickets",
        "told",
    )

    def __init__(self, broker: Broker, number: int, name: str, first: int, started: float) -> None:
        self._broker = broker
        self.number = number
        self.name = name
        self.first = first
        self.started = started
        self.session_id: int | None = None
        self._waits: set[int] | None = None
        self.told: int | None = None
        self.tickets: dict[int, Ticket] = {}
        self.early: list[Ticket] = []
        self.gate = Gate(broker.policy)
        self.refused = False
        self.by_kernel = False
        """Whether the kernel has asked for it, too."""
        self.plan: Callable[[], Plan | None] = lambda: None
        self.task: asyncio.Task[None] | None = None

    @property
    def waits(self) -> AbstractSet[int]:
        """The loads of modules that it waits for."""
        return self._waits or _NOTHING

    def may_begin(self, plan: Callable[[], Plan | None]) -> bool:
        """See `loader.Progress`."""
        return self._broker.plan_known(self, plan)

    def planned(self) -> frozenset[str]:
        """Return all modules of its plan, those that were live too; none where there is none."""
        plan = self.plan()
        return frozenset() if plan is None else frozenset(plan.modules())

    def judged_by_plan(self) -> bool:
        """See `loader.Progress`."""
        return self._broker.policy.active

    def may_go_on(self) -> bool:
        """See `loader.Progress`."""
        return self.gate.open

    def session(self, session: int) -> None:
        """See `loader.Progress`."""
        self.session_id = session

    def awaits(self, number: int, *, shared: bool) -> None:
        """See `loader.Progress`."""
        if self._waits is None:
            self._waits = set()
        self._waits.add(number)
        if shared:
            self._broker.load_joined()

    def got(self, number: int) -> None:
        """See `loader.Progress`."""
        if self._waits is not None:
            self._waits.discard(number)

    def is_live(self) -> None:
        """See `loader.Progress`."""
        self._broker.not_joined_any_more(self)

    def report_awaited(self) -> bool:
        """See `loader.Progress`."""
        return any(ticket.awaits_result for ticket in self.tickets.values())

    def status(self, status: int) -> None:
        """See `loader.Progress`."""
        self._broker.status_known(self, status)
