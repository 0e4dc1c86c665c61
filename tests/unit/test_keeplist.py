"""The list of what is never unloaded: each entry says why and whence, and is about modules that there are."""

from __future__ import annotations

import re
import tomllib

import pytest

from kmodd.autoclean import keeplist
from kmodd.autoclean.keeplist import Keep, shipped
from kmodd.autoclean.limits import Limits
from kmodd.settings import Settings
from kmodd.tree.glob import matches
from support.shipped import indexes, modules

with open(keeplist._FILE, "rb") as _file:
    ENTRIES = tomllib.load(_file)["keep"]

ELSEWHERE = {
    "lp": "Debian's 6.12 has none",
    "nvidia*": "NVIDIA's own, not in the kernel's source",
    "spl": "OpenZFS, not in the kernel's source",
    "trusted": "part of Debian's kernels",
    "xe": "Intel's graphics driver since 6.8",
    "zfs": "OpenZFS, not in the kernel's source",
}
"""Globs that may match nothing in the trees here, and why they are in the list."""


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["globs"][0])
def test_an_entry_says_what_why_and_whence(entry: dict[str, object]) -> None:
    assert entry.keys() == {"globs", "reason", "source"}
    globs, reason, source = entry["globs"], entry["reason"], entry["source"]
    assert isinstance(globs, list)
    assert globs
    assert isinstance(source, str)
    assert source
    # It ends a sentence: no capital to begin with, no full stop.
    assert isinstance(reason, str)
    assert re.fullmatch(r"[a-z][^.\n]{10,120}[^.\s]", reason)


def test_all_of_the_file_is_there_in_order_and_each_once() -> None:
    assert list(shipped()) == [Keep(glob, entry["reason"]) for entry in ENTRIES for glob in entry["globs"]]
    assert len({keep.glob for keep in shipped()}) == len(shipped()) > 30
    assert shipped() is shipped()


def test_each_matches_a_module_that_there_is() -> None:
    unmatched = {keep.glob for keep in shipped() if not any(matches(keep.glob, name) for name in modules())}
    assert unmatched <= ELSEWHERE.keys()


def test_what_makes_a_table_of_rules_is_kept() -> None:
    limits = Limits(Settings(), shipped())
    tables = {
        name
        for name in modules()
        if re.fullmatch(r"(ip|ip6|arp|eb)table_\w+", name) and not name.endswith("tables")
    }
    assert len(tables) > 12
    for name in tables:
        assert limits.kept(name) == "its rules and policies go with it"


def test_what_a_protocol_needs_beside_itself_is_kept() -> None:
    """Several modules stand for one protocol family: the kernel asks for them with the first socket only."""
    limits = Limits(Settings(), shipped())
    several = 0
    for index in indexes():
        families: dict[str, set[str]] = {}
        for alias, module in index.aliases():
            if re.fullmatch(r"net_pf_\d+", alias):
                families.setdefault(alias, set()).add(module)
        for found in families.values():
            several += len(found) > 1
            assert len(found) == 1 or all(limits.kept(module) for module in found), found
    assert several


@pytest.mark.parametrize(
    "module",
    ["minix", "vfat", "loop", "dummy", "bridge", "zram", "sctp", "af_alg", "nf_defrag_ipv4", "dm_mod"],
)
def test_what_may_go_is_not_on_it(module: str) -> None:
    assert Limits(Settings(), shipped()).kept(module) is None
