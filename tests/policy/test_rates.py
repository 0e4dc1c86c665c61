"""How often: a bucket for each rule and user, filled evenly, and none can take from another's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.policy import rates
from kmodd.policy.files import Policy
from kmodd.policy.inforce import PolicyInForce
from kmodd.policy.rates import BUCKETS_MAX, Rates
from kmodd.policy.rules import Mode
from support.policies import NOW, asks, rule, rules, taken, wants


class Clock:
    """Seconds, as the test has them go by."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


RULE = rule('rate = "3/min"')
PLAN = wants({"m_0": []})


def test_as_many_at_once_as_the_rate_names_and_then_one_by_one() -> None:
    clock = Clock()
    counted = Rates(clock)
    assert [counted.take(RULE, asks(uid=1)) for _ in range(5)] == [False, False, False, True, True]
    clock.now += 19
    assert counted.take(RULE, asks(uid=1))
    clock.now += 1
    assert not counted.take(RULE, asks(uid=1))
    assert counted.take(RULE, asks(uid=1))
    clock.now += 1e9
    assert [counted.take(RULE, asks(uid=1)) for _ in range(4)] == [False, False, False, True]


def test_what_exceeds_it_is_not_counted() -> None:
    clock = Clock()
    counted = Rates(clock)
    for _ in range(100):
        counted.take(RULE, asks(uid=1))
        clock.now += 0.5
    clock.now += 10
    assert not counted.take(RULE, asks(uid=1))


def test_each_user_has_his_own_and_each_rule_and_those_who_are_not_known_one_together() -> None:
    counted = Rates(Clock())
    for _ in range(4):
        counted.take(RULE, asks(uid=1))
    assert counted.look(RULE, asks(uid=1))
    assert not counted.look(RULE, asks(uid=2))
    assert not counted.look(RULE, asks())
    assert not counted.look(rules('\n[[rule]]\naction = "deny"\nrate = "3/min"')[0], asks(uid=1))


def test_looking_counts_nothing() -> None:
    counted = Rates(Clock())
    assert not any(counted.look(RULE, asks(uid=1)) for _ in range(10))
    assert [counted.take(RULE, asks(uid=1)) for _ in range(4)] == [False, False, False, True]


def test_the_buckets_are_bounded_and_the_one_least_used_of_late_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert BUCKETS_MAX >= 1000
    monkeypatch.setattr(rates, "BUCKETS_MAX", 3)
    counted = Rates(Clock())
    for uid in (1, 2, 3):
        for _ in range(3):
            counted.take(RULE, asks(uid=uid))
    assert counted.take(RULE, asks(uid=1))
    assert not counted.take(RULE, asks(uid=4))
    assert [counted.look(RULE, asks(uid=uid)) for uid in (1, 2, 3)] == [True, False, True]


@given(
    st.integers(1, 5),
    st.sampled_from(["s", "min", "h", "day"]),
    st.lists(st.floats(0, 100_000, allow_nan=False), max_size=40),
)
def test_no_more_get_through_than_the_rate_names(count: int, unit: str, gaps: list[float]) -> None:
    seconds = {"s": 1, "min": 60, "h": 3600, "day": 86400}[unit]
    limited = rule(f'rate = "{count}/{unit}"')
    clock = Clock()
    counted = Rates(clock)
    within: list[float] = []
    for gap in gaps:
        clock.now += gap
        if not counted.take(limited, asks(uid=1)):
            within.append(clock.now)
    for first, start in enumerate(within):
        for last, end in enumerate(within[first:], first):
            assert last - first + 1 <= count + (end - start) * count / seconds + 1e-6


# In force


def in_force(clock: Clock, text: str = '[[rule]]\naction = "deny"\nrate = "1/min"\n') -> PolicyInForce:
    policy = PolicyInForce(clock, lambda: NOW)
    policy.replace(Policy((taken(text),)))
    return policy


def test_a_rule_with_a_rate_denies_what_exceeds_it() -> None:
    clock = Clock()
    policy = in_force(clock)
    who = asks(uid=1)
    assert [policy.judge(who, lambda: PLAN).allowed for _ in range(2)] == [True, False]
    clock.now += 60
    assert policy.judge(who, lambda: PLAN).allowed


def test_a_request_that_has_been_counted_is_within_its_rate_when_it_is_judged_again() -> None:
    policy = in_force(Clock())
    who = asks(uid=1)
    assert policy.judge(who, lambda: PLAN).allowed
    policy.set_mode(Mode.ENFORCE)
    assert policy.judge(who, lambda: PLAN, again=True).allowed
    assert not policy.judge(who, lambda: PLAN).allowed


def test_asking_what_would_be_said_counts_nothing() -> None:
    policy = in_force(Clock())
    who = asks(uid=1)
    assert all(policy.check(who, lambda: PLAN).allowed for _ in range(3))
    assert policy.judge(who, lambda: PLAN).allowed
    assert not policy.check(who, lambda: PLAN).allowed


def test_one_request_is_counted_once_whatever_is_looked_at() -> None:
    policy = in_force(
        Clock(),
        '[[rule]]\naction = "deny"\nrate = "2/min"\n[[rule]]\nmode = "audit"\naction = "deny"\nname = "x"\n',
    )
    policy.seal(sealed=False)
    said = [policy.judge(asks(uid=1), lambda: PLAN).allowed for _ in range(3)]
    assert said == [True, True, False]


def test_a_rate_is_not_counted_by_requests_that_the_rule_is_not_for() -> None:
    policy = in_force(Clock(), '[[rule]]\naction = "deny"\nmodule = "m_0"\nrate = "1/min"\n')
    for _ in range(5):
        assert policy.judge(asks(uid=1), lambda: wants({"other": []})).allowed
    assert policy.judge(asks(uid=1), lambda: PLAN).allowed
    assert not policy.judge(asks(uid=1), lambda: PLAN).allowed


def test_other_files_begin_to_count_anew() -> None:
    policy = in_force(Clock())
    assert policy.judge(asks(uid=1), lambda: PLAN).allowed
    policy.replace(policy.policy)
    assert policy.judge(asks(uid=1), lambda: PLAN).allowed
