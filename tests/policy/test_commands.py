"""The file of commands: what is written comes back, and what somebody else has written is not lost."""

from __future__ import annotations

import tomllib
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.names import check
from kmodd.policy.commands import Command, as_text, changed, commands
from kmodd.policy.files import COMMANDS
from kmodd.policy.parse import PolicyError
from kmodd.policy.patterns import plain
from kmodd.policy.rules import Action
from support.policies import allowed, asks, taken, wants

DENY, ALLOW = Action.DENY, Action.ALLOW

names = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=20).filter(
    lambda name: name[0] not in "-/.@"
)
printable = st.text(max_size=40).filter(str.isprintable)
until = st.one_of(
    st.none(),
    st.dates(date(1970, 1, 2), date(9000, 1, 1)),
    st.datetimes(datetime(1970, 1, 3), datetime(9000, 1, 1)),  # noqa: DTZ001
    st.datetimes(datetime(1970, 1, 3), datetime(9000, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)
items = st.builds(
    Command, names, st.sampled_from(Action), st.one_of(st.none(), printable), until, st.booleans()
)


@given(st.lists(items, max_size=4))
def test_what_is_written_comes_back(given_items: list[Command]) -> None:
    text = as_text(given_items)
    assert commands(text) == given_items
    found = taken(text, COMMANDS)
    assert [(rule.action, rule.reason) for rule in found.rules] == [(c.action, c.reason) for c in given_items]
    assert [rule.until is None for rule in found.rules] == [c.until is None for c in given_items]
    assert not found.doubts
    for rule, command in zip(found.rules, given_items, strict=True):
        given_globs, other = (rule.name, rule.module) if command.by_name else (rule.module, rule.name)
        assert given_globs is not None
        assert given_globs.patterns == (command.module,)
        assert other is None


@given(names)
def test_names_that_may_be_asked_for_may_be_denied(name: str) -> None:
    assert check(name.encode()) == name
    text = as_text([Command(name, DENY)])
    if not set(name) & set("*?["):
        assert not allowed(text, asks(), wants({plain(name): []}))


@pytest.mark.parametrize("reason", ["a\nb", "\t", "\x00", "\x7f", "\x9f", "\u202e", "\u2028", "x" * 1025])
def test_no_reason_becomes_a_second_rule_or_breaks_the_toml(reason: str) -> None:
    text = as_text([Command("m", DENY, reason)])
    assert commands(text) == [Command("m", DENY, reason)]
    with pytest.raises(PolicyError, match=r"^00-commands\.toml:3: reason takes one line"):
        taken(text, COMMANDS)


def test_a_reason_that_looks_like_a_rule_is_a_reason() -> None:
    reason = '"\n[[rule]]\nmodule = "*"\naction = "allow"\n#'
    assert commands(as_text([Command("m", DENY, reason)])) == [Command("m", DENY, reason)]


def test_the_newest_command_comes_first_and_takes_the_place_of_an_older_one() -> None:
    first = changed([], Command("a", DENY))
    second = changed(first, Command("b", ALLOW, "r"))
    assert second == [Command("b", ALLOW, "r"), Command("a", DENY)]
    assert changed(second, Command("a", ALLOW)) == [Command("a", ALLOW), Command("b", ALLOW, "r")]


def test_a_command_for_a_module_is_one_however_it_is_spelled() -> None:
    had = [Command("snd-seq", DENY), Command("x_*", DENY)]
    assert changed(had, Command("snd_seq", ALLOW)) == [Command("snd_seq", ALLOW), Command("x_*", DENY)]
    assert changed(had, forget="snd_seq") == [Command("x_*", DENY)]
    assert changed(had, forget="x-*") == [Command("snd-seq", DENY)]
    assert changed(had, forget="x-y") == had


def test_a_name_and_a_module_are_denied_and_forgotten_together() -> None:
    both = [Command("a-b", DENY, by_name=True), Command("a-b", DENY)]
    had = changed([Command("a_b", ALLOW), Command("c", DENY)], *both)
    assert had == [*both, Command("c", DENY)]
    assert not allowed(as_text(had), asks("a_b"), wants({"other": []}))
    assert not allowed(as_text(had), asks("x"), wants({"x": ["a_b"], "a_b": []}))
    assert changed(had, forget="a_b") == [Command("c", DENY)]


def test_the_last_command_counts_for_a_module_and_what_it_needs() -> None:
    items = changed(changed([], Command("base", DENY)), Command("xfs", ALLOW))
    plan = wants({"xfs": ["base"]})
    # A denial names its module: no allowance of another one is meant to overrule that.
    assert not allowed(as_text(items), asks(), plan)
    assert allowed(as_text(changed(items, forget="base")), asks(), plan)


def test_an_empty_file_has_no_commands() -> None:
    assert commands("") == []
    assert commands(as_text([])) == []
    assert taken(as_text([])).rules == ()


@pytest.mark.parametrize(
    "text",
    [
        'mode = "audit"',
        "x = 1",
        '[[rule]]\nmodule = ["a", "b"]\naction = "deny"',
        '[[rule]]\nmodule = "a"\naction = "deny"\nuid = 1000',
        '[[rule]]\nmodule = "a"\nname = "a"\naction = "deny"',
        '[[rule]]\nmodule = "a"\naction = "deny"\nreason = 1',
        '[[rule]]\nmodule = "a"\naction = "deny"\nuntil = "2027-01-31"',
        '[[rule]]\nmodule = "a"\naction = "reject"',
        '[[rule]]\nmodule = "a"',
        '[[rule]]\naction = "deny"',
        "rule = [1]",
        "[rule]\na = 1",
        "rule = 1",
        "not TOML",
    ],
)
def test_what_no_command_writes_is_refused_and_never_rewritten(text: str) -> None:
    with pytest.raises((tomllib.TOMLDecodeError, KeyError, TypeError, ValueError)):
        commands(text)
