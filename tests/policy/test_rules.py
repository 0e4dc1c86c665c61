"""Each field of a rule: what it matches, what it does not, and what it makes of a fact that is not known."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given

from kmodd.model import UNKNOWN_REQUESTER, Source
from kmodd.policy.parse import FIELDS
from kmodd.policy.rules import REMOVE, SET, Mode, Wanted
from support.policies import NOW, as_toml, asks, judged, plans, requests, rule, rules, tables, wants

WHO: dict[str, Any] = {
    "uid": 1000,
    "gid": 1000,
    "groups": (10, 2000),
    "exe": "/usr/bin/a",
    "unit": "a.service",
    "container": "c1",
    "privileged": False,
    "call_site": "inet_create",
    "kernel_thread": False,
}
PLAN = wants({"m_0": ["m_1"], "m_1": []})


def matches(fields: str, *, action: str = "deny", **facts: Any) -> bool:
    """Return whether a rule decides on a request of WHO, with other facts where they are given."""
    asked = asks(**{"name": "net-pf-9", **WHO, **facts})
    return judged((replace(rule(fields, action), line=1),), asked, PLAN).rule is not None


FIELD = [
    ("", {}),
    ('name = "net-pf-9"', {}),
    ('name = ["x", "net_pf_*"]', {}),
    ('module = "m-0"', {}),
    ('module = "m_1"', {}),
    ('module = "@one"', {}),
    ('source = "kernel"', {}),
    ('source = ["api", "uevent"]', {"source": Source.UEVENT}),
    ('operation = ["request", "set"]', {}),
    ("privileged = false", {}),
    ("privileged = true", {"privileged": True}),
    ("uid = 1000", {}),
    ('uid = [1, "999-1001"]', {}),
    ("gid = 1000", {}),
    ("gid = 2000", {}),
    ('gid = "1-20"', {}),
    ('user = "ann"', {}),
    ('user = ["ann", "nobody-knows"]', {}),
    ('group = "lab"', {}),
    ('group = "wheel"', {"gid": 10, "groups": ()}),
    ('exe = "/usr/bin/*"', {}),
    ('exe = "/usr/bin/a"', {}),
    ('unit = "a.*"', {}),
    ("unit = true", {}),
    ("unit = false", {"unit": None}),
    ('container = ["c1", "c2"]', {}),
    ("container = true", {}),
    ("container = false", {"container": None}),
    ('call_site = "inet_*"', {}),
    ('rate = "5/min"', {}),
    ("until = 2027-01-01", {}),
    ('reason = "no condition at all"', {}),
    ('uid = 1000\ngroup = "lab"\nexe = "/*"\nmodule = "m_1"\nname = "net*"', {}),
]
OTHER = [
    ('name = "net-pf-1?"', {}),
    ('name = "m_0"', {}),
    ('module = "m_2"', {}),
    ('module = "net-pf-9"', {}),
    ('module = "@net"', {}),
    ('source = "kernel"', {"source": Source.API}),
    ('source = ["boot", "uevent"]', {}),
    ('operation = "remove"', {}),
    ("privileged = true", {}),
    ("privileged = false", {"privileged": True}),
    ("uid = 1001", {}),
    ('uid = "1001-4294967295"', {}),
    ("gid = 1001", {}),
    ('user = "root"', {}),
    ('user = "nobody-knows"', {}),
    ('group = "lab"', {"groups": ()}),
    ('group = "nobody-knows"', {}),
    ('exe = "/usr/bin/b"', {}),
    ('exe = "/usr/bin"', {}),
    ('exe = "*"', {"exe": None, "kernel_thread": True}),
    ('unit = "b.service"', {}),
    ("unit = false", {}),
    ("unit = true", {"unit": None}),
    ('unit = "*"', {"unit": None}),
    ('container = "c2"', {}),
    ("container = false", {}),
    ("container = true", {"container": None}),
    ('call_site = "inet6_*"', {}),
    ("until = 2026-11-22", {}),
    ('uid = 1000\ngroup = "lab"\nexe = "/*"\nmodule = "m_2"', {}),
    ('uid = 1001\ngroup = "lab"\nexe = "/*"\nmodule = "m_1"', {}),
]


@pytest.mark.parametrize("action", ["deny", "allow"])
@pytest.mark.parametrize(("fields", "facts"), FIELD)
def test_a_rule_matches_what_it_asks_for(fields: str, facts: dict[str, Any], action: str) -> None:
    assert matches(fields, action=action, **facts)


@pytest.mark.parametrize("unknown", ["", "unknown = true\n"])
@pytest.mark.parametrize(("fields", "facts"), OTHER)
def test_and_nothing_else_unknown_or_not(fields: str, facts: dict[str, Any], unknown: str) -> None:
    assert not matches(unknown + fields, **facts)


def test_every_field_has_been_tried_both_ways() -> None:
    conditions = set(FIELDS) - {"action", "mode", "reason", "unknown"}
    for tried in (FIELD, OTHER):
        named = {line.partition(" =")[0] for fields, _facts in tried for line in fields.splitlines()}
        assert conditions - named <= {"rate"}  # what is within a rate: test_rates.py


def test_what_is_within_a_rate_is_not_matched() -> None:
    within = replace(rule('rate = "5/min"'), line=2)
    assert judged((within,), asks(), PLAN).rule is None


@pytest.mark.parametrize(
    ("fields", "hidden"),
    [
        ("privileged = false", ["privileged"]),
        ("privileged = true", ["privileged"]),
        ("uid = 1", ["uid"]),
        ('user = "root"', ["uid"]),
        ("gid = 1", ["gid"]),
        ("gid = 1", ["groups"]),
        ('group = "wheel"', ["gid", "groups"]),
        ('exe = "/usr/bin/z"', ["exe"]),
        ('exe = "/usr/bin/z"', ["exe", "kernel_thread"]),
        ('call_site = "z"', ["call_site"]),
        ('unit = "z"', ["uid"]),
        ("unit = true", ["uid"]),
        ("unit = false", ["uid"]),
        ('container = "z"', ["uid"]),
        ("container = true", ["uid"]),
        ("container = false", ["uid"]),
    ],
)
def test_what_is_not_known_matches_nothing_but_with_unknown(fields: str, hidden: list[str]) -> None:
    facts: dict[str, Any] = dict.fromkeys(hidden)
    if "groups" in hidden:
        facts["gid"] = facts.get("gid", 1000)
    if hidden == ["gid"]:
        facts["groups"] = ()
    assert not matches(fields, **facts)
    assert matches(fields + "\nunknown = true", **facts)


def test_unknown_does_not_replace_what_is_known() -> None:
    hidden = {"privileged": None, "exe": None, "call_site": None}
    assert matches("unknown = true\nprivileged = false\nuid = 1000", **hidden)
    assert not matches("unknown = true\nprivileged = false\nuid = 1001", **hidden)
    assert not matches('unknown = true\nexe = "/x"\nname = "other"', **hidden)
    assert not matches('unknown = true\nexe = "/x"\nmodule = "other"', **hidden)


def test_a_group_that_is_known_counts_where_others_are_not() -> None:
    assert matches("gid = 1000", groups=None)
    assert matches("gid = 10", gid=None, groups=(10,))


def test_nobody_at_all_is_known() -> None:
    nobody = asks("net-pf-9")
    assert nobody.requester == UNKNOWN_REQUESTER
    for fields, _facts in FIELD:
        asks_who = any(
            fields.startswith(key)
            for key in ("priv", "uid", "gid", "user", "group", "exe", "unit", "cont", "call")
        )
        if asks_who:
            assert judged((rule(fields),), nobody, PLAN).rule is None, fields
            assert judged((rule(fields + "\nunknown = true"),), nobody, PLAN).rule is not None, fields


# Kernel threads


def test_a_kernel_thread_is_privileged_and_runs_no_program() -> None:
    thread: dict[str, Any] = {
        "uid": 0, "gid": 0, "groups": (), "exe": None, "unit": None, "container": None, "privileged": True,
        "kernel_thread": True,
    }  # fmt: skip
    assert matches("privileged = true", **thread)
    assert matches("uid = 0", **thread)
    assert matches("unit = false", **thread)
    assert matches("container = false", **thread)
    for unknown in ("", "\nunknown = true"):
        assert not matches('exe = "*"' + unknown, **thread)
        assert not matches("privileged = false" + unknown, **thread)
        assert not matches("unit = true" + unknown, **thread)


# Peers of the API


def test_program_unit_and_container_of_a_peer_are_its_own_word_and_so_unknown() -> None:
    for fields in ('exe = "/usr/bin/a"', 'unit = "a.service"', "unit = true", 'container = "c1"'):
        for source in (Source.API, Source.CLI):
            assert not matches(fields, source=source)
            assert matches(fields + "\nunknown = true", source=source)


def test_roots_are_what_root_says() -> None:
    for fields in ('exe = "/usr/bin/a"', 'unit = "a.service"', 'container = "c1"', "unit = true"):
        assert matches(fields, source=Source.API, uid=0)
    assert not matches('exe = "/usr/bin/z"\nunknown = true', source=Source.API, uid=0)


def test_nobody_in_the_kernel_calls_for_a_peer() -> None:
    assert not matches('call_site = "*"\nunknown = true', source=Source.API, call_site=None)
    assert matches('call_site = "x"\nunknown = true', source=Source.KERNEL, call_site=None)


# What a rule says of itself


def test_removal_and_settings_are_operations_of_their_own() -> None:
    removal = replace(asks("m_0", **WHO), operation=REMOVE)
    assert judged('[[rule]]\naction = "deny"', removal, PLAN).rule is None
    assert judged('[[rule]]\noperation = "remove"\naction = "deny"', removal, PLAN).rule is not None
    setting = replace(removal, name="load_timeout", operation=SET)
    named = '[[rule]]\noperation = ["set", "remove"]\nname = "load-timeout"\naction = "deny"'
    assert judged(named, setting, Wanted((), {}, frozenset())).rule is not None


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ("", False),
        ('module = "a"\nexe = "/a"\nunit = "b"\nprivileged = true', False),
        ('source = ["kernel", "uevent", "boot"]', False),
        ('source = ["kernel", "api"]', True),
        ('source = "cli"', True),
        ("uid = 1", True),
        ("gid = 1", True),
        ('user = "nobody-knows"', True),
        ('group = "lab"', True),
    ],
)
def test_what_names_peers(fields: str, names: bool) -> None:
    assert rule(fields).names_peers is names


def test_its_time_ends_at_the_moment_that_it_names() -> None:
    ends = rule("until = 2026-11-23T12:00:00Z")
    assert ends.ended(NOW)
    assert not ends.ended(NOW - timedelta(microseconds=1))
    assert not rule("").ended(NOW)


def test_the_place_is_file_and_line() -> None:
    assert rules('\n\n[[rule]]\naction = "deny"')[0].place == "50-test.toml:3"


def test_modes_have_an_order() -> None:
    assert sorted(Mode, key=lambda mode: mode.strength) == [Mode.OFF, Mode.AUDIT, Mode.ENFORCE]


# Whatever rules and requests there are


@given(tables(), requests(), plans())
def test_a_field_more_never_matches_more(table: dict[str, Any], facts: Any, wanted: Wanted | None) -> None:
    """Each field narrows a rule, as long as it has no `unknown`, and its `operation` is as it was."""
    table["mode"] = "enforce"
    whole = judged(as_toml([table]), facts, wanted)
    # A request that a module makes is about modules and names: there a name is more than no condition.
    if whole.rule is None or facts.nested:
        return
    for key in table.keys() - {"action", "mode", "unknown", "operation", "module"}:
        if key == "source" or (facts.stranger and key in {"uid", "gid", "user", "group"}):
            continue
        less = {other: value for other, value in table.items() if other != key}
        assert judged(as_toml([less]), facts, wanted).rule is not None, key
