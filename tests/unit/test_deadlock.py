"""Who waits only for themselves: the pure decision."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kmodd.broker.deadlock import RunningLoad, WaitingRequest, deadlocked
from kmodd.kernel.interface import BlockedTask, Wait

OUTSIDE = 9999


def asking(tid: int, session: int, *modules: str) -> BlockedTask:
    return BlockedTask(tid, session, Wait.REQUEST, frozenset(modules))


def test_a_module_that_asks_for_itself() -> None:
    loads = [RunningLoad(2, 200)]
    waits = [WaitingRequest(1, 2, None), WaitingRequest(3, 2, None)]
    tasks = [asking(50, OUTSIDE), asking(200, 200, "a")]
    assert deadlocked(loads, waits, tasks) == [3]


def test_the_maker_of_a_request_is_among_those_who_were_blocked_when_it_came() -> None:
    """The load's own request is still on its way; the one that is here was made by somebody not seen yet."""
    loads = [RunningLoad(2, 200)]
    tasks = [asking(200, 200, "a")]
    seen = WaitingRequest(3, 2, None, frozenset({200}))
    assert deadlocked(loads, [seen], tasks) == [3]
    assert deadlocked(loads, [WaitingRequest(3, 2, None, frozenset({77}))], tasks) == []


def test_a_duplicate_from_outside_is_none() -> None:
    """The load's task asks for something that has not come in yet; its duplicate comes from outside."""
    loads = [RunningLoad(2, 200)]
    waits = [WaitingRequest(1, 2, None), WaitingRequest(3, 2, None)]
    tasks = [asking(50, OUTSIDE), asking(51, OUTSIDE), asking(200, 200, "a")]
    assert deadlocked(loads, waits, tasks) == []


def test_a_nested_request_for_something_else_is_none() -> None:
    loads = [RunningLoad(2, 200), RunningLoad(4, 400)]
    waits = [WaitingRequest(1, 2, None), WaitingRequest(3, 4, None)]
    assert deadlocked(loads, waits, [asking(50, OUTSIDE), asking(200, 200, "a")]) == []


def test_a_cycle_is_broken_at_the_request_that_closed_it() -> None:
    loads = [RunningLoad(2, 200), RunningLoad(4, 400), RunningLoad(6, 600)]
    waits = [WaitingRequest(number, load, None) for number, load in ((1, 2), (3, 4), (5, 6), (7, 2))]
    tasks = [asking(50, OUTSIDE), asking(200, 200, "a"), asking(400, 400, "b"), asking(600, 600, "c")]
    assert deadlocked(loads, waits, tasks) == [7]


def test_two_cycles_at_once() -> None:
    loads = [RunningLoad(2, 200), RunningLoad(4, 400)]
    waits = [WaitingRequest(number, load, session) for number, load, session in
             ((1, 2, OUTSIDE), (3, 4, OUTSIDE), (5, 2, 200), (6, 4, 400))]  # fmt: skip
    assert sorted(deadlocked(loads, waits, [])) == [5, 6]


def test_of_two_that_cannot_be_told_apart_the_newest_is_told() -> None:
    loads = [RunningLoad(2, 200)]
    waits = [WaitingRequest(1, 2, None), WaitingRequest(3, 2, None), WaitingRequest(4, 2, None)]
    tasks = [asking(50, OUTSIDE), asking(51, OUTSIDE), asking(200, 200, "a")]
    assert deadlocked(loads, waits, tasks) == [4]


def test_a_load_that_waits_in_the_kernel_for_the_module_that_asked_for_it() -> None:
    loads = [RunningLoad(2, 200), RunningLoad(4, 400)]
    waits = [WaitingRequest(1, 2, None), WaitingRequest(3, 4, None)]
    waiting = BlockedTask(400, 400, Wait.MODULE, frozenset({"a"}))
    assert deadlocked(loads, waits, [asking(50, OUTSIDE), asking(200, 200, "a"), waiting]) == [3]
    # Another module is coming as well, and it may be that one: it will end by itself.
    either = BlockedTask(400, 400, Wait.MODULE, frozenset({"a", "slow"}))
    assert deadlocked(loads, waits, [asking(50, OUTSIDE), asking(200, 200, "a"), either]) == []


LOADS = st.lists(st.integers(0, 6), min_size=1, max_size=6)


@settings(max_examples=1000, deadline=None)
@given(parents=LOADS, closing=st.integers(0, 5), data=st.data())
def test_a_tree_of_nested_loads_is_never_a_deadlock_and_a_closing_edge_always_is(
    parents: list[int], closing: int, data: st.DataObject
) -> None:
    """Load n was asked for by a task of an earlier load, or from outside; every blocked task is known."""
    loads, waits, tasks = [], [], [asking(5000, OUTSIDE)]
    for index, parent in enumerate(parents):
        number = 10 * (index + 1)
        waits.append(WaitingRequest(number, number + 1, None))
        loads.append(RunningLoad(number + 1, number))
        if index and parent % index != index - 1:
            # Asked for from outside: one more blocked task there.
            tasks.append(asking(5000 + index, OUTSIDE))
        elif index:
            tasks.append(asking(number - 10, number - 10, f"m{index - 1}"))
    order = data.draw(st.permutations(tasks))
    assert deadlocked(loads, waits, order) == []
    # Now the last load asks for one that it descends from.
    last = len(parents) - 1
    first = last
    while first and parents[first] % first == first - 1:
        first -= 1
    goal = first + closing % (last - first + 1)
    waits.append(WaitingRequest(1000, 10 * (goal + 1) + 1, None))
    order.append(asking(10 * (last + 1), 10 * (last + 1), "last"))
    victims = deadlocked(loads, waits, order)
    assert victims == [1000]
