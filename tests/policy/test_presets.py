"""The presets are policy files that a person can read, about modules that there are."""

from __future__ import annotations

import re
import tomllib
from importlib import resources
from typing import Any

import pytest

from kmodd.policy import groups
from kmodd.tree.glob import is_literal, matches
from support.shipped import ELSEWHERE, modules

FOLDER = resources.files("kmodd.policy") / "presets"
NAMES = ("audit", "desktop", "modharden", "server")
KEYS = frozenset(
    [
        "name",
        "module",
        "source",
        "privileged",
        "uid",
        "gid",
        "user",
        "group",
        "exe",
        "unit",
        "container",
        "call_site",
        "operation",
        "action",
        "reason",
        "until",
        "rate",
        "mode",
        "unknown",
    ]
)
NOT_HERE = {
    "af_packet": "a module of kernels that make small images",
    "hctr2": "Android's and Fedora's, 6.0",
    "polyval*": "Android's and Fedora's, 6.0: with hctr2",
    "unix": "a module of kernels that make small images",
    "xctr": "Android's and Fedora's, 6.0",
}


def text(name: str) -> str:
    return (FOLDER / f"{name}.toml").read_text(encoding="utf-8")


def rules(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tomllib.loads(text(name))["rule"]
    return found


def patterns(rule: dict[str, Any]) -> list[str]:
    found = rule.get("module", [])
    return [found] if isinstance(found, str) else found


def test_the_presets_are_there_and_no_others() -> None:
    there = sorted(path.name for path in FOLDER.iterdir() if path.name.endswith(".toml"))
    assert there == [f"{name}.toml" for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_is_well_formed(name: str) -> None:
    assert tomllib.loads(text(name)).keys() == {"mode", "rule"}
    for rule in rules(name):
        assert rule.keys() <= KEYS
        assert rule["action"] in {"allow", "deny"}
        assert rule["reason"].strip() == rule["reason"] != ""
        assert patterns(rule), rule
        if rule["action"] == "deny":
            # Nobody evades a rule by not being known, and none is in the way of the machine itself.
            assert rule["privileged"] is False
            assert rule["unknown"] is True
        else:
            assert "*" not in patterns(rule)


@pytest.mark.parametrize("name", NAMES)
def test_groups_and_modules_exist(name: str) -> None:
    for rule in rules(name):
        for pattern in patterns(rule):
            if pattern[0] == "@":
                assert pattern[1:] in groups.load(), pattern
            elif is_literal(pattern):
                assert pattern in modules() | ELSEWHERE.keys() | NOT_HERE.keys(), pattern
            else:
                there = any(matches(pattern, module) for module in modules())
                assert there != (pattern in NOT_HERE), pattern


def test_the_list_of_what_is_not_here_is_used() -> None:
    named = {pattern for name in NAMES for rule in rules(name) for pattern in patterns(rule)}
    assert named >= NOT_HERE.keys()
    assert not modules() & NOT_HERE.keys()


@pytest.mark.parametrize("name", NAMES)
def test_rules_in_comments_are_rules_too(name: str) -> None:
    """What is to be uncommented is valid when it is."""
    commented = re.findall(r"(?m)^# +\[\[rule\]\]\n(?:# +\w+ = .*\n)+", text(name))
    for block in commented:
        [rule] = tomllib.loads(re.sub(r"(?m)^# +", "", block))["rule"]
        assert rule.keys() <= KEYS
        assert rule["reason"]
        for pattern in patterns(rule):
            assert pattern[1:] in groups.load() if pattern[0] == "@" else pattern in modules(), pattern
    assert len(commented) == text(name).count("[[rule]]") - len(rules(name))


@pytest.mark.parametrize("name", NAMES)
def test_each_says_at_its_top_what_it_is_for_and_how_to_adapt_it(name: str) -> None:
    top = text(name).partition("\nmode = ")[0]
    assert top.startswith(f"# {name}: ")
    assert all(line.startswith("#") for line in top.splitlines() if line)
    for word in ("unprivileged", "CAP_SYS_ADMIN", "HOW TO ADAPT IT", "unknown = true"):
        assert word in top, word
    assert max(map(len, text(name).splitlines())) <= 116


def test_modharden_ends_with_everything_and_audit_has_nothing_else() -> None:
    assert patterns(rules("modharden")[-1]) == ["*"]
    assert [patterns(rule) for rule in rules("audit")] == [["*"]]
    assert tomllib.loads(text("audit"))["mode"] == "audit"
    assert all(tomllib.loads(text(name))["mode"] == "enforce" for name in NAMES if name != "audit")


# What they come to, for whoever they deny: the first rule that names a module decides. What a module needs, and
# the facts that a rule for one service asks for, are the engine's matter.


def verdict(preset: str, module: str, **facts: str) -> str:
    for rule in rules(preset):
        if any(facts.get(key) != rule[key] for key in ("unit", "name") if key in rule):
            continue
        for pattern in patterns(rule):
            held = groups.load()[pattern[1:]].holds(module) if pattern[0] == "@" else matches(pattern, module)
            if held:
                return str(rule["action"])
    return "allow"


ESCALATIONS = (
    "nf_tables",
    "vsock",
    "algif_aead",
    "esp4",
    "esp6",
    "rxrpc",
    "cifs",
    "n_hdlc",
    "dccp",
    "tipc",
    "can_bcm",
)
"""What autoloading has brought to code of the kernel that nobody used, 2017 to 2026."""


@pytest.mark.parametrize("name", ["modharden", "server", "desktop"])
@pytest.mark.parametrize("module", ESCALATIONS)
def test_unprivileged_tasks_do_not_get_what_escalations_went_through(name: str, module: str) -> None:
    assert verdict(name, module) == "deny"


@pytest.mark.parametrize(
    ("module", "modharden", "server", "desktop"),
    [
        ("tcp_diag", "allow", "allow", "allow"),
        ("snd_seq", "allow", "deny", "allow"),
        ("fuse", "allow", "allow", "allow"),
        ("overlay", "deny", "allow", "allow"),
        ("tun", "deny", "deny", "allow"),
        ("vfat", "deny", "allow", "allow"),
        ("hfsplus", "deny", "deny", "deny"),
        ("rfcomm", "deny", "deny", "allow"),
        ("sctp", "deny", "deny", "deny"),
        ("crypto_user", "deny", "deny", "deny"),
        ("wireguard", "deny", "deny", "deny"),
        ("sch_htb", "deny", "deny", "deny"),
        ("scsi_transport_iscsi", "deny", "deny", "deny"),
    ],
)
def test_what_unprivileged_tasks_get(module: str, modharden: str, server: str, desktop: str) -> None:
    found = (verdict("modharden", module), verdict("server", module), verdict("desktop", module))
    assert found == (modharden, server, desktop)


def test_a_cipher_is_given_by_its_own_name_only() -> None:
    assert verdict("modharden", "xts", name="crypto-*") == "allow"
    assert verdict("modharden", "xts") == "deny"
    assert verdict("modharden", "crypto_user", name="crypto-*") == "deny"
