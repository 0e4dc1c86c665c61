"""The rule of autoclean: which modules go, in which order, and that nothing else ever does."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.autoclean.rule import Candidate, Verdict, decide, own_users, seconds
from kmodd.kernel.interface import ModuleState

NOW = 1000.0
IDLE = Candidate("m", 4096, ModuleState.LIVE, False, 0, (), delay=60.0, touched=NOW - 60)


def verdict(**changed: Any) -> Verdict:
    (found,) = decide([dataclasses.replace(IDLE, **changed)], NOW)
    return found


def test_what_nobody_has_used_for_its_delay_goes() -> None:
    assert verdict() == Verdict("m", True, "nobody has used it for 60 s", 0)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"kept": "its exit leaks"}, "it is kept: its exit leaks"),
        ({"permanent": True}, "it is permanent: it has no exit function"),
        ({"refcount": None}, "this kernel cannot unload modules"),
        ({"delay": 0.0}, "autoclean is off for it (unload_delay, unload_delays)"),
        ({"state": ModuleState.COMING}, "it is being loaded"),
        ({"state": ModuleState.GOING}, "it is being unloaded"),
        ({"going": True}, "it is being unloaded"),
        ({"wanted": True}, "a request needs it now"),
        ({"holders": ("a",), "refcount": 1}, "it is used by a"),
        ({"holders": tuple("abcde"), "refcount": 5}, "it is used by a, b, c and 2 more"),
        ({"refcount": 1}, "it has 1 user"),
        ({"refcount": 3, "holders": ()}, "it has 3 users"),
        ({"uses": "it drives device 0000:00:03.0 (pci driver e1000)"}, "it drives device 0000:00:03.0 (pci driver e1000)"),
    ],
)  # fmt: skip
def test_what_stays_whatever_the_time(changed: dict[str, Any], reason: str) -> None:
    assert verdict(**changed) == Verdict("m", False, reason, None)


def test_what_was_touched_within_its_delay_has_its_second_chance() -> None:
    assert verdict(touched=NOW - 59, used=True) == Verdict("m", False, "it was last used 59 s ago", 1)
    assert verdict(touched=NOW - 0.5) == Verdict("m", False, "it was loaded or asked for 0.5 s ago", 59.5)
    assert verdict(touched=NOW + 5).left == 60, "a clock that goes back takes no delay away"


def test_what_a_module_that_goes_has_held_may_go_behind_it() -> None:
    top = dataclasses.replace(IDLE, module="top")
    dep = dataclasses.replace(IDLE, module="dep", refcount=1, holders=("top",))
    assert [(each.module, each.goes) for each in decide([dep, top], NOW)] == [("top", True), ("dep", True)]
    young = dataclasses.replace(top, touched=NOW)
    assert [(each.module, each.goes) for each in decide([dep, young], NOW)] == [
        ("dep", False),
        ("top", False),
    ]
    also_used = dataclasses.replace(dep, refcount=2)
    assert [(each.module, each.goes) for each in decide([also_used, top], NOW)] == [
        ("top", True),
        ("dep", False),
    ]


def test_a_holder_that_is_not_ours_keeps_what_it_holds() -> None:
    dep = dataclasses.replace(IDLE, module="dep", refcount=1, holders=("theirs",))
    assert decide([dep], NOW) == [Verdict("dep", False, "it is used by theirs", None)]


def test_what_hold_each_other_stay() -> None:
    one = dataclasses.replace(IDLE, module="a", refcount=1, holders=("b",))
    two = dataclasses.replace(IDLE, module="b", refcount=1, holders=("a",))
    assert not any(each.goes for each in decide([one, two], NOW))


NAMES = "abcdefgh"


@st.composite
def machines(draw: st.DrawFn) -> list[Candidate]:
    """Modules, each held by some that come behind it (dependencies have no circles), and by strangers."""
    made = []
    names = NAMES[: draw(st.integers(1, len(NAMES)))]
    for number, name in enumerate(names):
        behind = names[number + 1 :]
        holders = draw(st.lists(st.sampled_from([*behind, "x", "y"]), unique=True, max_size=3))
        own = draw(st.sampled_from([0, 0, 0, 1, 2]))
        made.append(
            Candidate(
                name,
                draw(st.integers(0, 1 << 20)),
                draw(st.sampled_from([ModuleState.LIVE, ModuleState.LIVE, ModuleState.LIVE, *ModuleState])),
                draw(st.sampled_from([False, False, False, True])),
                draw(st.sampled_from([len(holders) + own, len(holders) + own, len(holders) + own, None])),
                tuple(holders),
                draw(st.sampled_from([0.0, 1.0, 60.0, 60.0, 300.0])),
                NOW - draw(st.floats(0, 400)),
                draw(st.booleans()),
                draw(st.sampled_from([None, None, None, "it drives a device"])),
                draw(st.sampled_from([None, None, None, "it is fragile"])),
                draw(st.sampled_from([False, False, False, True])),
                draw(st.sampled_from([False, False, False, True])),
            )
        )
    return draw(st.permutations(made))


@given(machines())
def test_nothing_goes_that_anything_speaks_for(machine: list[Candidate]) -> None:
    verdicts = decide(machine, NOW)
    assert sorted(each.module for each in verdicts) == sorted(each.module for each in machine)
    known = {each.module: each for each in machine}
    gone: set[str] = set()
    for each in verdicts:
        if not each.goes:
            assert each.left is None or 0 < each.left <= known[each.module].delay
            continue
        it = known[each.module]
        assert it.state is ModuleState.LIVE
        assert not any((it.permanent, it.wanted, it.going))
        assert it.kept is None
        assert it.uses is None
        assert it.delay > 0
        assert NOW - it.touched >= it.delay - 0.001
        assert set(it.holders) <= gone, "each goes behind all that hold it"
        assert it.refcount is not None
        assert own_users(it.refcount, it.holders) == 0
        gone.add(each.module)
    order = [each.goes for each in verdicts]
    assert order == sorted(order, reverse=True)


@given(machines(), st.data())
def test_a_reason_to_stay_never_lets_more_go(machine: list[Candidate], data: st.DataObject) -> None:
    before = {each.module for each in decide(machine, NOW) if each.goes}
    number = data.draw(st.integers(0, len(machine) - 1))
    reason = data.draw(
        st.sampled_from(
            [
                {"uses": "used"},
                {"kept": "kept"},
                {"wanted": True},
                {"touched": NOW},
                {"permanent": True},
                {"refcount": 50},
            ]
        )
    )
    changed = list(machine)
    changed[number] = dataclasses.replace(machine[number], **reason)
    after = {each.module for each in decide(changed, NOW) if each.goes}
    assert after <= before - {machine[number].module}


@given(machines())
def test_the_order_in_which_modules_are_looked_at_does_not_matter(machine: list[Candidate]) -> None:
    def goes(order: list[Candidate]) -> dict[str, tuple[bool, str]]:
        return {each.module: (each.goes, each.reason) for each in decide(order, NOW)}

    assert goes(machine) == goes(machine[::-1])


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.25, "0.2 s"), (59.6, "60 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172800, "2 d")],
)
def test_seconds_in_words(value: float, words: str) -> None:
    assert seconds(value) == words
