"""Whether others did it: what our threads and children did is never told of others, what they did always is."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.broker.foreign import Deed, OwnLoad, Whose, Work, whose
from kmodd.broker.own import Own

THREAD = Work(10, 100, 200, is_child=False)
CHILD = Work(20, 100, 200, is_child=True)


def deed(
    time: int = 150, tid: int = 77, session: int | None = 70, module: str = "x", *, brought_in: bool = True
) -> Deed:
    return Deed(time, tid, module, session, brought_in)


@pytest.mark.parametrize("work", [THREAD, CHILD])
def test_a_thread_of_ours_and_a_child_by_its_number(work: Work) -> None:
    assert work.tid is not None
    assert whose(deed(tid=work.tid), [work], []) is Whose.OURS
    for time in (99, 201):  # the number was somebody else's then
        assert whose(deed(time, tid=work.tid), [work], []) is Whose.OTHERS


def test_what_a_child_of_ours_has_started_by_its_session() -> None:
    assert whose(deed(session=20), [CHILD], []) is Whose.OURS
    assert whose(deed(session=20, brought_in=False), [CHILD], []) is Whose.OURS
    assert whose(deed(session=10), [THREAD], []) is Whose.OTHERS


def test_by_others_while_we_load_another_module() -> None:
    running = OwnLoad(100, None)
    assert whose(deed(), [THREAD], [running]) is Whose.OTHERS
    # It has gone already; our threads are known all the same.
    assert whose(deed(session=None), [THREAD], [running]) is Whose.OTHERS
    assert whose(deed(), [CHILD], [running]) is Whose.OTHERS


def test_a_task_that_has_gone_while_a_child_of_ours_ran() -> None:
    gone = deed(session=None)
    assert whose(gone, [CHILD], [OwnLoad(90, None)]) is Whose.OPEN
    assert whose(gone, [CHILD], [OwnLoad(90, 300, frozenset({"x"}))]) is Whose.OURS
    assert whose(gone, [CHILD], [OwnLoad(90, 300, frozenset({"y"}))]) is Whose.OTHERS
    # Not in progress at the time: what it reports came in another time.
    assert whose(gone, [CHILD], [OwnLoad(160, 300, frozenset({"x"}))]) is Whose.OTHERS
    # It does not know what it brought in: nothing is told of anybody.
    assert whose(gone, [CHILD], [OwnLoad(90, 300, None)]) is Whose.OURS
    assert whose(deed(session=None, brought_in=False), [CHILD], []) is Whose.OURS


def test_a_child_that_is_not_known_yet() -> None:
    new = Work(None, 100, None, is_child=True)
    assert whose(deed(), [new], []) is Whose.OPEN
    assert whose(deed(), [Work(None, 100, 200, is_child=True)], []) is Whose.OTHERS  # it could not be started


times = st.integers(0, 30)
works = st.builds(
    lambda tid, begin, length, is_child: Work(
        tid, begin, None if length is None else begin + length, is_child
    ),
    st.one_of(st.none(), st.integers(1, 6)),
    times,
    st.one_of(st.none(), times),
    st.booleans(),
)
loads = st.builds(
    lambda begin, length, modules: OwnLoad(
        begin,
        None if length is None else begin + length,
        None if length is None or modules is None else frozenset(modules),
    ),
    times,
    st.one_of(st.none(), times),
    st.one_of(st.none(), st.sets(st.sampled_from("xyz"))),
)
deeds = st.builds(
    Deed,
    times,
    st.integers(1, 6),
    st.sampled_from("xyz"),
    st.one_of(st.none(), st.integers(1, 6)),
    st.booleans(),
)


@given(deeds, st.lists(works, max_size=6), st.lists(loads, max_size=4))
def test_our_own_is_never_others_and_others_never_ours_where_the_task_is_known(
    done: Deed, own: list[Work], ours: list[OwnLoad]
) -> None:
    told = whose(done, own, ours)
    then = [work for work in own if work.covers(done.time)]
    is_ours = any(
        work.tid == done.tid or (work.is_child and work.tid is not None and work.tid == done.session)
        for work in then
    )
    if is_ours:
        assert told is Whose.OURS
    elif not any(work.is_child for work in then):
        assert told is Whose.OTHERS
    elif done.session is not None:
        assert told is not Whose.OURS


@given(deeds, st.lists(works, max_size=6), st.lists(loads, max_size=4))
def test_once_all_has_ended_all_is_decided(done: Deed, own: list[Work], ours: list[OwnLoad]) -> None:
    ended = [Work(work.tid, work.begin, work.end or 99, work.is_child) for work in own]
    reported = [OwnLoad(load.begin, load.end or 99, load.modules) for load in ours]
    told = whose(done, ended, reported)
    assert told is not Whose.OPEN
    before = whose(done, own, ours)
    # What is known of threads, children and sessions at first stays so.
    if before is Whose.OURS or (before is Whose.OTHERS and done.session is not None):
        assert told is before


def test_own_work_in_progress_and_when_it_has_ended() -> None:
    now = 1000
    own = Own(lambda: now)
    with own.thread():
        now = 1010
        with own.child() as started:
            assert {work.tid for work in own.at(1010)} == {threading.get_native_id(), None}
            started(4711)
            assert {work.tid for work in own.at(1010)} == {threading.get_native_id(), 4711}
            assert [work.tid for work in own.at(1005)] == [threading.get_native_id()]
            now = 1020
    now = 2000
    assert sorted(work.is_child for work in own.at(1015)) == [False, True]
    assert own.at(999) == own.at(1021) == []


def test_own_work_that_fails_has_ended_too() -> None:
    now = 1000
    own = Own(lambda: now)

    def fail() -> None:
        nonlocal now
        with own.thread():
            now = 1005
            raise OSError("no")

    with pytest.raises(OSError, match="no"):
        fail()
    now = 1100
    assert [work.end for work in own.at(1003)] == [1005]
    assert own.at(1100) == []


def test_what_is_remembered_of_own_work_is_bounded() -> None:
    now = 0
    own = Own(lambda: now)
    for _ in range(3000):
        now += 1
        with own.thread():
            now += 1
    assert own.at(1) == []
    assert len(own.at(now)) == 1
    assert len(own._ended) == 1024
    assert own._running == {}
