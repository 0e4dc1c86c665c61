"""Which requests can only wait for themselves: a pure function from who waits for whom.

A load waits for a request that one of its tasks has made; that request waits for the load it shares.
A cycle of these never ends by itself (the stock kernel and modprobe hang): module A's init asks for A.
The request that closed the cycle, the last that came, is told EDEADLK; then the others can go on.

Where the requester is not known, it is found by elimination: each task blocked in request_module() has
made one request, and stays blocked until that is answered; a load cannot have made a request that is
older than itself. What stays ambiguous is decided where every way to read it is a deadlock: where each
of some loads waits, whatever it waits for, for one of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kmodd.kernel.interface import BlockedTask, Wait


@dataclass(frozen=True, slots=True)
class RunningLoad:
    """A load in progress: its number in the order of all events, and how its tasks are known.

    `session`: the session id of what it runs, if it runs something. `tid`: the thread of ours that hands a
    module to the kernel. `waits`: the loads that it waits for in here, all of them.
    """

    number: int
    session: int | None
    tid: int | None = None
    waits: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class WaitingRequest:
    """A request that waits for load number `load`.

    `session` is its requester's, None if not known; then `suspects`, where given, are the tasks that have
    been blocked whenever one looked since it came. `since`: when it came, in the loop's seconds.
    """

    number: int
    load: int
    session: int | None
    suspects: frozenset[int] | None = None
    since: float = 0.0


Edges = dict[int, set[int]]


class _Owners:
    """Which load a task belongs to."""

    def __init__(self, loads: Iterable[RunningLoad]) -> None:
        self._by_session = {load.session: load.number for load in loads if load.session is not None}
        self._by_thread = {load.tid: load.number for load in loads if load.tid is not None}

    def of(self, task: BlockedTask) -> int | None:
        """Return the number of its load, None where it is nobody's."""
        return self._by_thread.get(task.tid, self._by_session.get(task.session))

    def of_session(self, session: int | None) -> int | None:
        """Return the number of the load with a session."""
        return None if session is None else self._by_session.get(session)


def _reaches(edges: Edges, start: int, goal: int) -> bool:
    seen, todo = {start}, [start]
    while todo:
        node = todo.pop()
        if node == goal:
            return True
        for following in edges.get(node, ()):
            if following not in seen:
                seen.add(following)
                todo.append(following)
    return False


def _possible_issuers(
    waits: Sequence[WaitingRequest], asking: Sequence[BlockedTask], owners: _Owners
) -> dict[int, set[int]]:
    """Return for each request of an unknown requester the ids of the tasks that can have made it."""
    possible = {
        wait.number: {
            task.tid
            for task in asking
            if ((load := owners.of(task)) is None or load < wait.number)
            and (wait.suspects is None or task.tid in wait.suspects)
        }
        for wait in waits
        if wait.session is None
    }
    nothing_on_its_way = _all_are_here(possible, asking)
    settled: set[int] = set()
    while True:
        makers = _sole_makers(possible)
        news = [number for number in makers if number not in settled]
        for number in news:
            settled.add(number)
            for other, tids in possible.items():
                if other != number:
                    tids.discard(makers[number])
        if nothing_on_its_way:
            # The other way round: a task whose request can only be this one has made it.
            for task in asking:
                made = [number for number, tids in possible.items() if task.tid in tids]
                if len(made) == 1 and len(possible[made[0]]) > 1:
                    possible[made[0]] = {task.tid}
                    news += made
        if not news:
            return possible


def _all_are_here(possible: dict[int, set[int]], asking: Sequence[BlockedTask]) -> bool:
    """Return whether there are requests enough for all who have asked: else one is still on its way here."""
    return sum(map(bool, possible.values())) >= len(asking)


def _sole_makers(possible: dict[int, set[int]]) -> dict[int, int]:
    """Return the task for each request that only this one can have made, and that has made no other."""
    sole = {number: next(iter(tids)) for number, tids in possible.items() if len(tids) == 1}
    counts = Counter(sole.values())
    return {number: tid for number, tid in sole.items() if counts[tid] == 1}


def _waits_in_kernel(tasks: Iterable[BlockedTask], owners: _Owners) -> Edges:
    """Return for the loads that wait inside the kernel the loads that bring in what they may wait for.

    Only where all of those are asking themselves: another will end by itself.
    """
    tasks = list(tasks)
    edges: Edges = {}
    for task in tasks:
        waiting = owners.of(task)
        if task.wait is not Wait.MODULE or waiting is None:
            continue
        bringing: set[int] = set()
        owned: set[str] = set()
        for other in tasks:
            load = owners.of(other)
            if other.wait is Wait.REQUEST and other.modules & task.modules and load is not None:
                bringing.add(load)
                owned |= other.modules & task.modules
        if owned == task.modules:
            edges.setdefault(waiting, set()).update(bringing)
    return edges


def deadlocked(
    loads: Iterable[RunningLoad], waits: Sequence[WaitingRequest], tasks: Sequence[BlockedTask]
) -> list[int]:
    """Return the numbers of the requests to be told EDEADLK, so that no cycle is left that is certain."""
    loads = list(loads)
    owners = _Owners(loads)
    asking = [task for task in tasks if task.wait is Wait.REQUEST]
    owner_of = {task.tid: owners.of(task) for task in asking}
    possible = _possible_issuers(waits, asking, owners)
    in_kernel = _waits_in_kernel(tasks, owners)
    in_here: Edges = {load.number: set(load.waits) for load in loads if load.waits}
    certain: Edges = {load: set(others) for load, others in in_here.items()}
    for load, bringing in in_kernel.items():
        if len(bringing) == 1:
            certain.setdefault(load, set()).update(bringing)
    makers = _sole_makers(possible)
    made_by: dict[int, int] = {}
    for wait in waits:
        known = makers.get(wait.number)
        maker = owners.of_session(wait.session) if known is None else owner_of[known]
        if maker is not None:
            made_by[wait.number] = maker
            certain.setdefault(maker, set()).add(wait.load)

    victims = []
    for wait in sorted(waits, key=lambda wait: wait.number, reverse=True):
        maker = made_by.get(wait.number)
        if maker is not None and (wait.load == maker or _reaches(certain, wait.load, maker)):
            victims.append(wait.number)
            certain[maker].discard(wait.load)
    if victims or not _all_are_here(possible, asking):
        # In the second case a request is still on its way here, and may be what a task waits for.
        return victims
    targets: Edges = {load: set(bringing) for load, bringing in in_kernel.items()}
    return _knot(waits, asking, possible, owners, targets, in_here)


def _knot(
    waits: Sequence[WaitingRequest],
    asking: Sequence[BlockedTask],
    possible: dict[int, set[int]],
    owners: _Owners,
    targets: Edges,
    in_here: Edges,
) -> list[int]:
    """Return the newest request of loads that all wait for each other, however one reads who made which.

    `targets`: a load waits for one of these, it is not known for which. `in_here`: it waits for all of these.
    """
    by_load: dict[int, set[int]] = {}
    for task in asking:
        maker = owners.of(task)
        if maker is None:
            continue
        made = [wait for wait in waits if task.tid in possible.get(wait.number, ())]
        targets.setdefault(maker, set()).update(wait.load for wait in made)
        by_load.setdefault(maker, set()).update(wait.number for wait in made)
    knot = {load for load, reached in (*targets.items(), *in_here.items()) if reached}

    def stuck(load: int) -> bool:
        reached = targets.get(load)
        return bool((reached and reached <= knot) or in_here.get(load, set()) & knot)

    while outside := {load for load in knot if not stuck(load)}:
        knot -= outside
    numbers = [number for load in knot for number in by_load.get(load, ())]
    # The newest: had it been there before the others, it would have stood alone.
    return [max(numbers)] if numbers else []
