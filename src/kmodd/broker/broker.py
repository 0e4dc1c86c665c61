"""The broker: takes requests, shares loads between them, tells each its true status, once.

One event loop owns all of this; there are no locks (invariant 1). A load runs as a task of its own and
blocks nobody; what it waits for, and for how long, is its own affair.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from kmodd.broker.deadlock import RunningLoad, WaitingRequest
from kmodd.broker.loader import Loader, Report
from kmodd.broker.states import RequestState, advance
from kmodd.broker.tickets import NOBODY, Asker, Load, ResultTold, StatusTold, Ticket, session_known
from kmodd.broker.watch import ASLEEP, DeadlockWatch, FindBlocked
from kmodd.errors import InvalidName, errno_words
from kmodd.kernel.stacks import session_of
from kmodd.model import (
    Outcome,
    Request,
    Result,
    Source,
    duration_us,
    request_fields,
)
from kmodd.names import API_MAX, check, escape
from kmodd.policy.decide import NO_RIGHT
from kmodd.policy.inforce import PolicyInForce
from kmodd.policy.rules import Facts
from kmodd.record.recorder import Recorder
from kmodd.settings import Settings, Value
from kmodd.tree.plan import Plan

log = logging.getLogger(__name__)


def _now() -> datetime:
    return datetime.now(UTC)


class Broker:
    """Any number of requests at once, nested to any depth."""

    def __init__(
        self,
        loader: Loader,
        settings: Settings,
        recorder: Recorder,
        find_blocked: FindBlocked,
        now: Callable[[], datetime] = _now,
        asleep: float = ASLEEP,
        identity: Callable[[str], str | None] = lambda _module: None,
        policy: PolicyInForce | None = None,
    ) -> None:
        self._loader = loader
        self.policy = policy if policy is not None else PolicyInForce()
        self._settings = settings
        self._recorder = recorder
        self._now = now
        self._identity = identity
        self._in_flight: dict[str, Load] = {}
        self._running: dict[int, Load] = {}
        self._tickets: dict[int, Ticket] = {}
        self._watch = DeadlockWatch(self, find_blocked, asleep)
        self.on_by_hand: Callable[[Collection[str]], None] = lambda _modules: None
        """Told of the modules that somebody else than the kernel has asked for, and has."""
        self.stopping = False
        self.outcomes: Counter[str] = Counter()
        self.requests_total = 0
        self.loads_total = 0
        settings.subscribe(self._setting_changed)
        self.policy.subscribe(self._policy_changed)

    # Requests come in

    def submit(
        self,
        raw_name: bytes,
        source: Source,
        *,
        longest: int = API_MAX,
        asker: Asker = NOBODY,
        timeout: float | None = None,
        on_status: StatusTold | None = None,
        on_result: ResultTold | None = None,
    ) -> Ticket:
        """Take a request.

        `on_status` is called as soon as its status is known, `on_result` when all is known; each once,
        maybe before this returns. `timeout` is the requester's own, in seconds; the setting load_timeout
        holds beside it.
        """
        loop = asyncio.get_running_loop()
        try:
            name, refusal = check(raw_name, longest), None
        except InvalidName as err:
            name, refusal = escape(raw_name), err
        request = Request(self._recorder.next_id(), source, name, self._now(), loop.time(), asker.requester)
        ticket = Ticket(request, asker, timeout, on_status, on_result)
        ticket.refusal = refusal
        self.requests_total += 1
        if refusal is not None:
            self._end(ticket, Result(Outcome.FAILED, -errno.EINVAL, (), str(refusal)))
        elif self.stopping:
            self._end(
                ticket, Result(Outcome.FAILED, -errno.ESHUTDOWN, (), f"cannot load {name}: kmodd is stopping")
            )
        else:
            self._wait(ticket)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """The requester has gone. Its load goes on, for the others and because it cannot be taken back."""
        ticket.forget_requester()

    def _wait(self, ticket: Ticket) -> None:
        request = ticket.request
        ticket.state = advance(ticket.state, RequestState.WAITING)
        self._tickets[request.id] = ticket
        load = self._in_flight.get(request.name)
        if load is None:
            self._start(ticket)
            return
        ticket.load = load
        load.by_kernel |= request.source is Source.KERNEL
        load.tickets[request.id] = ticket
        if load.gate.judged and not self._judge(ticket, load):
            return
        self._set_timer(ticket)
        self._watch.joined()

    def _start(self, ticket: Ticket) -> None:
        """Start the load that a request is the first to wait for; both may have ended when this returns."""
        request = ticket.request
        load = Load(self, self._recorder.next_id(), request.name, request.id, request.received)
        load.by_kernel = request.source is Source.KERNEL
        self._in_flight[request.name] = ticket.load = load
        self._running[load.number] = load
        load.tickets[request.id] = ticket
        self.loads_total += 1
        try:
            report = self._loader.load(load.name, load)
        except Exception as err:
            log.exception("loader failed")
            report = self._defect(load, err)
        if isinstance(report, Report):
            self._ended(load, report)
            return
        load.task = asyncio.get_running_loop().create_task(self._run(load, report))
        if ticket.state is RequestState.WAITING:
            self._set_timer(ticket)
        self._watch.started()

    # Who may

    def plan_known(self, load: Load, plan: Callable[[], Plan | None]) -> bool:
        """Judge all who wait for a load by what it would bring; return whether one of them may have it."""
        load.plan = plan
        load.gate.judge_by(plan)
        for ticket in load.early:
            load.gate.judge(self._facts(ticket))
        load.early.clear()
        self._judge_all(load)
        load.refused = not load.gate.open
        return load.gate.open

    def _judge_all(self, load: Load, *, again: bool = False) -> None:
        for ticket in list(load.tickets.values()):
            self._judge(ticket, load, again=again)
        if not load.gate.open:
            # Who asks from now on may well have it, and is not to be told what these are.
            self.not_joined_any_more(load)

    def _judge(self, ticket: Ticket, load: Load, *, again: bool = False) -> bool:
        """Judge a request that waits; end it where it is denied."""
        judgement = load.gate.judge(self._facts(ticket), again=again)
        request = ticket.request
        if judgement.decision != request.decision:
            ticket.request = replace(request, decision=judgement.decision)
        if judgement.allowed:
            return True
        ticket.no_right = judgement is NO_RIGHT
        error = f"cannot load {request.name}: denied by {judgement.why}"
        if ticket.no_right:
            uid = request.requester.uid
            error = f"uid {uid} may not request {request.name}; be root, or have a rule of the policy let you"
        # Where the load has begun it is not known here what it has brought in so far.
        modules = None if again else ()
        self._end(
            ticket, replace(self._left_load(ticket, Outcome.DENIED, -errno.EPERM, error), modules=modules)
        )
        return False

    def _facts(self, ticket: Ticket) -> list[Facts]:
        """Return a request as the policy sees it: where a module makes it as it loads, for whom that is."""
        request = ticket.request
        asker = ticket.asker
        facts = Facts(
            request.name, request.source, request.requester, stranger=asker.stranger, gone=asker.gone
        )
        loads = self._made_by(ticket)
        if not loads:
            return [facts]
        owners = {owner for load in loads for owner in load.gate.owners}
        return [
            replace(
                owner,
                name=request.name,
                nested=True,
                requester=replace(owner.requester, call_site=request.requester.call_site),
            )
            for owner in owners
        ]

    def _made_by(self, ticket: Ticket) -> list[Load]:
        """Return the loads in which a module makes this request; empty where it is somebody else's."""
        tid = ticket.asker.tid
        if tid is None:
            return []
        inside = {load.number for load in self._loader.running() if load.tid == tid}
        sessions = {load.session_id for load in self._running.values() if load.session_id is not None}
        if not inside and not sessions:
            return []
        # Read for each request only where it matters: in a storm every look costs the others.
        session = session_of(tid) if sessions and not inside and self.policy.active else None
        return [
            load
            for load in self._running.values()
            if inside & load.waits or (session is not None and load.session_id == session)
        ]

    def _policy_changed(self) -> None:
        """Judge those who wait again, and the loads that go on without them."""
        for load in list(self._running.values()):
            if load.gate.judged and load.told is None:
                load.gate.judge_again()
                self._judge_all(load, again=True)

    # Loads end

    async def _run(self, load: Load, loading: Coroutine[Any, Any, Report]) -> None:
        try:
            report = await loading
        except asyncio.CancelledError:
            raise
        except Exception as err:
            log.exception("loader failed")
            report = self._defect(load, err)
        self._ended(load, report)

    @staticmethod
    def _defect(load: Load, err: Exception) -> Report:
        """A defect of ours must not cost anybody their answer."""
        return Report(Outcome.FAILED, -errno.EIO, (), f"cannot load {load.name}: internal error: {err!r}")

    def not_joined_any_more(self, load: Load) -> None:
        """From now on a request for that name is a new load."""
        if self._in_flight.get(load.name) is load:
            del self._in_flight[load.name]

    def status_known(self, load: Load, status: int) -> None:
        """Tell the waiters of a load its status. From now on a request for that name is a new load."""
        if load.told is not None:
            raise RuntimeError(f"load {load.number} has told its status already")
        load.told = status
        self.not_joined_any_more(load)
        for ticket in load.tickets.values():
            ticket.state = advance(ticket.state, RequestState.ANSWERED)
            self._clear_timer(ticket)
            ticket.tell_status(status)

    def _ended(self, load: Load, report: Report) -> None:
        if load.told is None:
            self.status_known(load, report.status)
        del self._running[load.number]
        loop = asyncio.get_running_loop()
        modules = None if report.modules is None else list(report.modules)
        if not load.refused:
            self._recorder.add(
                "load",
                {
                    "name": load.name,
                    "outcome": report.outcome.value,
                    "status": report.status,
                    "modules": modules,
                    "duration_us": duration_us(load.started, loop.time()),
                    "error": report.error,
                    "reasons": dict(report.reasons),
                    "identities": {module: self._identity(module) for module in modules or ()},
                    "request": load.first,
                    "autoload": self._came_by_itself(load, report),
                },
            )
        for ticket in list(load.tickets.values()):
            self._end(ticket, self._result_for(ticket, load, report))
        if not self._running:
            self._watch.stop()

    @staticmethod
    def _came_by_itself(load: Load, report: Report) -> list[str]:
        """Return the modules that a request of the kernel has brought in: those that it was to bring in.

        What else came while a command ran may be somebody else's.
        """
        if not load.by_kernel or not report.modules:
            return []
        planned = load.planned()
        return [module for module in report.modules if module in planned]

    @staticmethod
    def _result_for(ticket: Ticket, load: Load, report: Report) -> Result:
        shared_with = None if ticket.request.id == load.first else load.first
        return Result(report.outcome, report.status, report.modules, report.error, shared_with)

    # Requests end

    def _end(self, ticket: Ticket, result: Result) -> None:
        """End a request: the only way out, from whatever state it is in."""
        early = ticket.state is not RequestState.ANSWERED
        ticket.state = advance(ticket.state, RequestState.ENDED)
        self._clear_timer(ticket)
        self._tickets.pop(ticket.request.id, None)
        if ticket.load is not None:
            ticket.load.tickets.pop(ticket.request.id, None)
            if result.outcome is Outcome.DENIED:
                result = replace(result, denied_modules=ticket.load.gate.what_it_stands_for())
        ticket.result = result
        self.outcomes[result.outcome.value] += 1
        request = ticket.request
        fields = request_fields(request, result, asyncio.get_running_loop().time())
        ticket.event = self._recorder.add_at("request", request.id, request.time, fields)
        if early:
            ticket.tell_status(result.status)
        ticket.tell_result(result)
        if result.status == 0 and request.source is not Source.KERNEL and ticket.load is not None:
            self.on_by_hand(ticket.load.planned())

    def deadlock(self, number: int) -> None:
        """Tell request `number` EDEADLK; the load goes on."""
        ticket = self._tickets.get(number)
        if ticket is None or ticket.state is not RequestState.WAITING:
            return
        self._ends_early(ticket)
        name = ticket.request.name
        error = f"cannot load {name}: the request could only wait for itself: {errno_words(errno.EDEADLK)}"
        self._end(ticket, self._left_load(ticket, Outcome.DEADLOCK, -errno.EDEADLK, error))

    def _timed_out(self, number: int) -> None:
        ticket = self._tickets.get(number)
        if ticket is None or ticket.state is not RequestState.WAITING:
            return
        self._ends_early(ticket)
        name = ticket.request.name
        error = f"gave up waiting for {name}; its load goes on"
        self._end(ticket, self._left_load(ticket, Outcome.TIMED_OUT, -errno.ETIMEDOUT, error))

    @staticmethod
    def _ends_early(ticket: Ticket) -> None:
        """A requester waits no longer for a load that is made in its name all the same."""
        if ticket.load is not None and not ticket.load.gate.judged:
            ticket.load.early.append(ticket)

    @staticmethod
    def _left_load(ticket: Ticket, outcome: Outcome, status: int, error: str) -> Result:
        first = ticket.load.first if ticket.load is not None else ticket.request.id
        return Result(outcome, status, None, error, None if first == ticket.request.id else first)

    # Time

    def _set_timer(self, ticket: Ticket) -> None:
        limits = [
            limit for limit in (ticket.timeout, self._settings.load_timeout or None) if limit is not None
        ]
        if limits:
            number = ticket.request.id
            when = ticket.request.received + min(limits)
            ticket.timer = asyncio.get_running_loop().call_at(when, self._timed_out, number)

    @staticmethod
    def _clear_timer(ticket: Ticket) -> None:
        if ticket.timer is not None:
            ticket.timer.cancel()
            ticket.timer = None

    def _setting_changed(self, key: str, _old: Value, _new: Value) -> None:
        """A changed load_timeout holds for those who wait now, too (S12)."""
        if key != "load_timeout":
            return
        for ticket in self._tickets.values():
            if ticket.state is RequestState.WAITING:
                self._clear_timer(ticket)
                self._set_timer(ticket)

    # What the deadlock watch, status and stop look at

    def running(self) -> list[RunningLoad]:
        """Return the loads in progress: those of names, and those of modules that they wait for."""
        return [
            *(
                RunningLoad(load.number, load.session_id, waits=frozenset(load.waits))
                for load in self._running.values()
            ),
            *self._loader.running(),
        ]

    def load_joined(self) -> None:
        """A load has come to wait for a module that another one is bringing in: a cycle may be closed."""
        self._watch.joined()

    def loads_began(self) -> dict[int, float]:
        """Return when each load in progress began (the loop's time), by the request that started it."""
        return {load.first: load.started for load in self._running.values()}

    @property
    def loads_running(self) -> int:
        """How many names are being loaded."""
        return len(self._running)

    def waiting(self) -> list[WaitingRequest]:
        """Return the requests that somebody waits for."""
        return [
            WaitingRequest(
                ticket.request.id, ticket.load.number, session_known(ticket), since=ticket.request.received
            )
            for ticket in self._tickets.values()
            if ticket.state is RequestState.WAITING and ticket.load is not None and not ticket.left
        ]

    @property
    def waiting_total(self) -> int:
        """How many requests wait, those too whose requester has gone."""
        return sum(ticket.state is RequestState.WAITING for ticket in self._tickets.values())

    async def stop(self, limit: float) -> None:
        """Take no more requests, let loads finish for `limit` seconds, then answer every waiter."""
        self.stopping = True
        tasks = [load.task for load in self._running.values() if load.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=limit)
        for ticket in list(self._tickets.values()):
            self._end(ticket, self._result_on_stop(ticket))
        self._watch.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _result_on_stop(self, ticket: Ticket) -> Result:
        told = ticket.load.told if ticket.load is not None else None
        if told is not None:
            # The status is true; what it did has not been found out in time.
            outcome = Outcome.FAILED if told else Outcome.LOADED
            return Result(outcome, told, None, None)
        error = f"cannot wait for {ticket.request.name}: kmodd has stopped; its load may not be finished"
        return self._left_load(ticket, Outcome.FAILED, -errno.ESHUTDOWN, error)
