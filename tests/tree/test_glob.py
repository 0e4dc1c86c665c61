"""Patterns: the same as fnmatch(3) of the C library, and never slow."""

from __future__ import annotations

import ctypes
import time

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from kmodd.tree.aliases import AliasTable
from kmodd.tree.glob import BadBrackets, matches, normalise

_libc = ctypes.CDLL(None)
TEXT = st.text("ab:*?[]!^-\\x", max_size=12)


@settings(max_examples=2000)
@given(pattern=TEXT, name=st.text("ab:[]!^-\\x", max_size=10))
@example(pattern="[]a]", name="]")
@example(pattern="[!]a]", name="b")
@example(pattern="[a-]", name="-")
@example(pattern="a\\", name="a\\")
def test_as_fnmatch(pattern: str, name: str) -> None:
    try:
        normalise(pattern)
    except BadBrackets:
        assume(False)  # such a pattern is refused before anything is compared with it
    assert matches(pattern, name) == (_libc.fnmatch(pattern.encode(), name.encode(), 0) == 0)


@pytest.mark.parametrize("pattern", ["*a" * 20 + "b", "[a]*" * 20 + "b", "?*" * 20 + "b", "a*" * 30 + "[b]"])
def test_no_name_makes_it_slow(pattern: str) -> None:
    began = time.process_time()
    assert not matches(pattern, "a" * 4096)
    # An expression that goes back into what is behind each star would need longer than the universe has.
    assert time.process_time() - began < 1


def test_normalise() -> None:
    assert normalise("a-b[c-d]e-f") == "a_b[c-d]e_f"
    for bad in ("a[b", "a]b", "[a]]"):
        with pytest.raises(BadBrackets):
            normalise(bad)


ALIAS = st.text("ab:*?[]12", min_size=1, max_size=10)


@settings(max_examples=500)
@given(st.lists(st.tuples(ALIAS, st.sampled_from("uvwxyz")), max_size=40), st.lists(ALIAS, max_size=10))
def test_the_table_finds_what_comparing_each_would(lines: list[tuple[str, str]], names: list[str]) -> None:
    table = AliasTable(lines)
    for name in (*names, *(pattern for pattern, _module in lines)):
        assert table.find(name) == [module for pattern, module in lines if matches(pattern, name)]
    assert table.patterns() == lines
