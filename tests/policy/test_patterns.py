"""Globs and numbers: what they match, `-` and `_` alike in names, and that no name makes them slow."""

from __future__ import annotations

import fnmatch
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.policy.patterns import Globs, Numbers, Union, plain


def of_names(*patterns: str) -> Globs:
    return Globs.of(patterns, names=True)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("snd-seq", "snd_seq"),
        ("snd_seq", "snd-seq"),
        ("net-pf-*", "net_pf_16-proto_12"),
        ("fs_*", "fs-xfs"),
        ("a?b", "a-b"),
        ("a[-x]b", "a-b"),
        ("a[-x]b", "a_b"),
        ("a[x-]b", "a_b"),
        ("a[!-]b", "axb"),
        ("a[!x-]b", "ayb"),
        ("a[b-d]-*", "ac_1"),
        ("a[b-d", "a[b_d"),
        ("a[]-]b", "a_b"),
    ],
)
def test_dashes_and_underscores_are_the_same_in_names(pattern: str, name: str) -> None:
    assert of_names(pattern).matches(plain(name))


@pytest.mark.parametrize(
    ("pattern", "name"),
    [("a[b-d]", "a_"), ("a[!-]b", "a-b"), ("a[!x-]b", "a_b"), ("snd-seq", "snd_seq_midi"), ("SND", "snd")],
)
def test_and_nothing_else_is(pattern: str, name: str) -> None:
    assert not of_names(pattern).matches(plain(name))


def test_elsewhere_they_are_two() -> None:
    assert not Globs.of(["/usr/bin/a-b"]).matches("/usr/bin/a_b")
    assert not Globs.of(["/usr/bin/a-*"]).matches("/usr/bin/a_b")


@given(
    st.text("ab-_[]!*?", max_size=8),
    st.text("ab-_[]!*?", max_size=8),
)
def test_who_chooses_a_name_gains_nothing_by_its_spelling(pattern: str, name: str) -> None:
    globs = of_names(pattern)
    assert globs.matches(plain(name)) == globs.matches(plain(name.replace("_", "-")))


@given(st.text("ab.[]!*?", max_size=8), st.text("ab.[]!*?", max_size=8))
def test_without_dashes_they_match_as_fnmatch_does(pattern: str, text: str) -> None:
    for globs in (Globs.of([pattern]), of_names(pattern)):
        assert globs.matches(text) == fnmatch.fnmatchcase(text, pattern)


@given(st.lists(st.text("ab*?", min_size=1, max_size=4), max_size=4), st.text("ab", max_size=5))
def test_one_of_several_is_enough(patterns: list[str], text: str) -> None:
    assert Globs.of(patterns).matches(text) == any(Globs.of([pattern]).matches(text) for pattern in patterns)


def test_all_of_a_text_is_matched_its_last_line_end_too() -> None:
    assert not Globs.of(["a"]).matches("a\n")
    assert not Globs.of(["?"]).matches("a\n")
    assert not Globs.of(["b*"]).matches("ab")


def test_a_star_means_everything_and_names_nothing() -> None:
    globs = of_names("*", "a-b", "c*")
    assert globs.any
    assert globs.matches("whatever")
    assert not globs.names("whatever")
    assert globs.names("a_b")
    assert globs.names("cd")
    assert of_names("**").any
    assert not of_names("?*").any
    assert of_names("?*").names("x")


@pytest.mark.parametrize(
    "pattern",
    [
        "*a*a*a*",
        "*a*a*a*b",
        "*a" * 300 + "b",
        "a*" * 300 + "b",
        "*?a?*" * 50 + "b",
        "**" * 500 + "b",
        "*[ab]*" * 50 + "c",
    ],
)
def test_no_name_makes_a_pattern_slow(pattern: str) -> None:
    globs = of_names(pattern)
    began = time.process_time()
    for name in ("a" * 4096, "a" * 4095 + "c", "ab" * 2048, "ba" * 2047 + "cc"):
        globs.matches(name)
    # A fraction of it in truth; backtracking would take longer than the machine lives.
    assert time.process_time() - began < 2


def test_numbers_are_single_ones_and_ranges_with_both_ends() -> None:
    numbers = Numbers(((5, 5), (10, 12)))
    assert [number for number in range(20) if numbers.matches(number)] == [5, 10, 11, 12]
    assert numbers.match_any([1, 11])
    assert not numbers.match_any([1, 13])
    assert not numbers.match_any([])
    assert not Numbers(()).matches(0)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), max_size=3),
    st.lists(st.integers(0, 25), max_size=4),
)
def test_any_of_several_numbers_is_enough(ranges: list[tuple[int, int]], asked: list[int]) -> None:
    numbers = Numbers(tuple((first, first + more) for first, more in ranges))
    assert numbers.match_any(asked) == any(numbers.matches(number) for number in asked)


def test_thousands_of_groups_hold_nobody_up() -> None:
    rules = [Numbers(((number, number),)) for number in range(100)]
    groups = tuple(range(1000, 31_000))
    began = time.process_time()
    assert not any(numbers.match_any(groups) for numbers in rules)
    # Tens of milliseconds; the daemon's only thread compares them.
    assert time.process_time() - began < 1


def test_many_at_once_say_no_only_where_none_matches() -> None:
    globs = [Globs.of([f"a-{n}", f"net-pf-{n}-*", "x[ab]?"], names=True) for n in range(30)]
    union = Union.of(globs)
    assert not union.any
    for text in ("a_3", "net_pf_7_proto_1", "xa1", "a_99", "net_pf_7", "xc1", ""):
        assert union.may_match(text) is any(each.matches(text) for each in globs), text


def test_many_at_once_are_never_too_many_to_be_put_together() -> None:
    assert Union.of([]).may_match("x") is False
    assert Union.of([Globs.of(["*"])]).may_match("x")
    assert Union.of([Globs.of([f"a{n}"]) for n in range(10_000)]).may_match("b") is False
    assert Union.of([Globs.of([f"a{n}*"]) for n in range(10_000)]).may_match("b")
