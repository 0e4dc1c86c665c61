"""Rules that never decide are told, and none is told that does."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmodd.policy.files import Policy
from kmodd.policy.lint import lint
from kmodd.policy.parse import PolicyFile
from kmodd.policy.rules import SET, Facts, Rule, Wanted
from support.policies import NOW, allowed, judged, plans, policies, requests, taken, wants


def told(*texts: str) -> list[str]:
    """Return what is told of rules, each written as its lines, one file after the other."""
    files = tuple(taken(text, f"{number}.toml") for number, text in enumerate(texts))
    return [f"{file}:{line}: {words}" for file, line, words in lint(Policy(files), NOW)]


def pair(first: str, second: str) -> list[str]:
    return told(f"[[rule]]\n{first}\n", f"[[rule]]\n{second}\n")


NEVER = ["1.toml:1: can never match: 0.toml:1 decides all that it asks for"]


def nearly(what: str) -> list[str]:
    return [f"1.toml:1: matches no more than {what}: 0.toml:1 decides all else"]


NEEDED = "what an allowed module needs or asks for"
PEERS = "requests of strangers of the API"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("", "action = 'deny'"),
        ("", "uid = 1\naction = 'deny'"),
        ("uid = '1-9'", "uid = [2, '4-5']\naction = 'deny'"),
        ("user = 'ann'", "user = 'ann'\nname = 'x'\nmodule = 'm'\naction = 'deny'"),
        ("gid = 1\nname = 'a*'", "name = 'a*'\ngid = 1\nexe = '/x'\naction = 'deny'"),
        ("name = 'a*'", "name = ['ab', 'a-c']\naction = 'deny'"),
        ("module = 'm_*'", "module = 'm-1'\nrate = '1/s'\naction = 'deny'"),
        ("module = '*'", "module = '*'\naction = 'deny'"),
        ("", "module = '*'\naction = 'deny'"),
        ("exe = '*'", "exe = '/usr/*'\naction = 'deny'"),
        ("unit = true", "unit = 'a*'\naction = 'deny'"),
        ("container = ['a', 'b*']", "container = 'b*'\naction = 'deny'"),
        ("container = false", "container = false\naction = 'deny'"),
        ("privileged = false\nunknown = true", "privileged = false\naction = 'deny'"),
        ("call_site = 'a*'", "call_site = 'abc'\naction = 'deny'"),
        ("source = ['kernel', 'api']", "source = 'api'\naction = 'deny'"),
        ("operation = ['request', 'set']", "action = 'deny'"),
        ("until = 2030-01-01", "until = 2029-01-01\naction = 'deny'"),
        ("mode = 'enforce'", "mode = 'audit'\naction = 'deny'"),
        ("mode = 'audit'", "mode = 'audit'\naction = 'deny'"),
    ],
)
def test_a_rule_behind_one_for_all_that_it_asks_for_never_matches(first: str, second: str) -> None:
    first += "" if "module" in first or "module" not in second or "'*'" in second else "\nmodule = '*m*'"
    second = second.replace("module = 'm'", "module = '*m*'")
    assert pair(f"{first}\naction = 'deny'", second) == NEVER


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("module = 'a'", "module = 'b'"),
        ("module = 'a'", "module = ['a', 'b']"),
        ("module = 'a'", ""),
        ("module = '*'", ""),
        ("module = 'a*'", "module = 'a?'"),
        ("name = 'a'", "module = 'a'"),
        ("uid = '1-9'", "uid = '5-10'"),
        ("uid = 1", "user = 'ann'"),
        ("gid = 1", ""),
        ("exe = '*'", ""),
        ("unit = true", "unit = false"),
        ("unit = 'a'", "unit = true"),
        ("unit = 'a'", "unit = 'b'"),
        ("container = false", "container = 'a'"),
        ("privileged = false", "privileged = true"),
        ("privileged = false", ""),
        ("privileged = false", "privileged = false\nunknown = true"),
        ("call_site = 'a'", "call_site = 'b'"),
        ("source = 'kernel'", ""),
        ("source = 'kernel'", "source = ['kernel', 'api']"),
        ("operation = 'set'", ""),
        ("rate = '1/s'", ""),
        ("until = 2029-01-01", ""),
        ("until = 2029-01-01", "until = 2030-01-01"),
        ("mode = 'audit'", ""),
        ("mode = 'off'", ""),
        ("until = 2026-01-02", ""),
        ("", "mode = 'off'"),
    ],
)
def test_a_rule_that_asks_for_anything_more_is_not_told(first: str, second: str) -> None:
    found = pair(f"{first}\naction = 'deny'", f"{second}\naction = 'deny'")
    assert [line for line in found if line.startswith("1.toml")] == []


@pytest.mark.parametrize("general", ["", "module = '*'", "uid = 1"])
def test_a_general_rule_leaves_what_allowed_modules_need_and_ask_for(general: str) -> None:
    uid = "uid = 1\n" if general == "uid = 1" else ""
    assert pair(f"{general}\naction = 'deny'", f"{uid}module = 'm'\naction = 'deny'") == nearly(NEEDED)
    assert pair(f"{general}\naction = 'deny'", f"{uid}module = ['*', 'm']\naction = 'deny'") == nearly(NEEDED)
    assert pair("action = 'deny'", "name = 'x'\naction = 'deny'") == nearly(NEEDED)


def test_an_allowance_for_everybody_leaves_strangers_of_the_api() -> None:
    assert pair("module = 'm'\naction = 'allow'", "module = 'm'\naction = 'deny'") == nearly(PEERS)
    assert pair("module = 'm'\naction = 'allow'", "module = 'm'\nuid = 1\naction = 'allow'") == nearly(PEERS)
    assert pair("module = 'm'\naction = 'allow'", "module = 'm'\naction = 'allow'") == NEVER
    assert pair("module='m'\naction='allow'", "module='m'\nsource='kernel'\naction='deny'") == NEVER
    assert pair("module='m'\nuid=1\naction='allow'", "module='m'\nuid=1\naction='deny'") == NEVER
    assert pair("action = 'allow'", "module = 'm'\naction = 'deny'") == nearly(f"{NEEDED} and {PEERS}")


def test_a_rule_whose_time_is_over_is_told_and_hides_nothing() -> None:
    found = pair("until = 2026-11-20T00:00:00Z\naction = 'deny'", "action = 'deny'")
    assert len(found) == 1
    assert found[0].startswith("0.toml:1: its time was over on 2026-11-")


def test_doubts_of_the_parser_are_told_in_their_place() -> None:
    found = told(
        "[[rule]]\naction = 'deny'\n[[rule]]\nuid = 1\naction = 'deny'\n",
        "[[rule]]\nuser = 'gone'\nrate = '1/s'\naction = 'allow'\n",
    )
    assert [line.split(" ", 1)[0] for line in found] == ["0.toml:3:", "1.toml:1:", "1.toml:1:", "1.toml:1:"]


def test_nothing_is_told_of_a_policy_that_is_as_it_should_be() -> None:
    assert told("[[rule]]\nmodule = 'a'\naction = 'allow'\n[[rule]]\nmodule = '*'\naction = 'deny'\n") == []


def one(fields: str, *installed: str) -> list[str]:
    """Return what is told of one rule, without its place."""
    policy = Policy((taken(f"[[rule]]\naction = 'deny'\n{fields}\n"),))
    return [words for _file, _line, words in lint(policy, NOW, installed or None)]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ("source = 'kernel'\noperation = 'remove'", "can never match: operation remove is asked for through"),
        ("source = 'cli'\noperation = ['set', 'remove']", "can never match: operation remove, set is asked"),
        (
            "operation = 'remove'\ncall_site = 'a*'",
            "can never match: operation remove comes from no function",
        ),
        ("operation = 'set'\nmodule = '*'", "can never match: a setting, its key as name, is of no module"),
        (
            "source = 'api'\ncall_site = 'a*'",
            "matches only what modules ask for as they load: a request from api",
        ),
        ("source = ['cli', 'boot']\ncall_site = 'a'\nunknown = true", "matches only what modules ask for"),
        ("name = 'a b'", "can never match: no name that may be asked for is like 'a b'"),
        ("name = ['fs-\u00e9*', '/sbin/x', '.x']", "can never match: no name that may be asked for is like"),
        ("name = ['fs-x', 'fs x']", "its name 'fs x' can never match"),
    ],
)
def test_what_contradicts_itself_is_told(fields: str, words: str) -> None:
    [found] = one(fields)
    assert found.startswith(words)


@pytest.mark.parametrize(
    "fields",
    [
        "source = ['kernel', 'api']\noperation = ['remove', 'request']\ncall_site = 'a'",
        "source = ['api', 'cli']\noperation = ['remove', 'set']",
        "source = 'kernel'\noperation = ['request', 'remove']",
        "operation = ['set', 'remove']\nmodule = 'x'",
        "source = ['kernel', 'cli']\ncall_site = 'a'",
        "name = ['[ a]b', '[!/]*', '*', '-x', 'of:N*T*Cfoo,bar']",
    ],
)
def test_what_may_match_is_not_told(fields: str) -> None:
    assert one(fields) == []


@pytest.mark.parametrize(
    ("fields", "like"),
    [
        ("module = 'net-pf-99'", "net-pf-99"),
        ("module = ['x*', 'net-pf-99']", "x*"),
        ("module = ['x*', 'snd-seq']", None),
        ("module = 'snd-*'", None),
        ("module = 'snd_seq'", None),
        ("module = '*'", None),
        ("module = ['x', '@net']", None),
        ("module = 'x'\noperation = 'remove'", None),
        ("module = 'x'\nmode = 'off'", None),
        ("name = 'x'", None),
    ],
)
def test_a_module_that_is_not_installed_is_told(fields: str, like: str | None) -> None:
    assert one(fields) == []
    found = one(fields, "snd-seq", "other")
    words = f"no module is installed that is like '{like}': an alias is denied or allowed by name"
    assert found == ([] if like is None else [words])


# Whatever rules there are


def _without(policy: Sequence[Rule], places: set[str]) -> tuple[Rule, ...]:
    return tuple(rule for rule in policy if rule.place not in places)


@settings(max_examples=100)
@given(policies(most=8), st.lists(st.tuples(requests(), plans()), min_size=5, max_size=5), st.booleans())
def test_a_rule_that_can_never_match_never_decides(
    policy: tuple[Rule, ...], asked: list[tuple[Facts, Wanted | None]], sealed: bool
) -> None:
    found = lint(Policy((PolicyFile("50-test.toml", policy),)), NOW)
    never = {
        f"{file}:{line}" for file, line, words in found if "can never match" in words or "its time" in words
    }
    for facts, plan in asked:
        wanted = wants({}) if facts.operation == SET else plan
        said = judged(policy, facts, wanted, sealed=sealed)
        assert said.rule is None or said.rule.place not in never
        assert judged(_without(policy, never), facts, wanted, sealed=sealed) == said


@settings(max_examples=100)
@given(policies(most=8), st.lists(st.tuples(requests(), plans()), min_size=5, max_size=5))
def test_one_that_matches_hardly_anything_decides_on_that_only(
    policy: tuple[Rule, ...], asked: list[tuple[Facts, Wanted | None]]
) -> None:
    found = lint(Policy((PolicyFile("50-test.toml", policy),)), NOW)
    hardly = {
        (line, NEEDED in words, PEERS in words) for _file, line, words in found if "no more than" in words
    }
    for facts, wanted in asked:
        for line, needed, peers in hardly:
            if (needed and (facts.nested or wanted is not None)) or (peers and facts.stranger):
                continue
            said = judged(policy, facts, wanted)
            assert said.rule is None or said.rule.line != line
            less = tuple(rule for rule in policy if rule.line != line)
            assert allowed(less, facts, wanted) == allowed(policy, facts, wanted)


def test_time_goes_by() -> None:
    files = Policy((taken("[[rule]]\nuntil = 2027-01-01T00:00:00Z\naction = 'deny'\n"),))
    assert lint(files, NOW) == []
    assert len(lint(files, NOW + timedelta(days=60))) == 1
