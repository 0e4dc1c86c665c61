"""Policy files: every field taken, every mistake told with file and line, and bounds on all of it."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kmodd.policy.parse import FIELDS, RULES_MAX, PolicyError, quoted
from kmodd.policy.patterns import Globs, Numbers
from kmodd.policy.rules import Action, Mode, Rate, Rule
from support.policies import as_toml, rule, rules, tables, taken


def refused(text: str, file: str = "50-test.toml") -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        taken(text, file)
    return caught.value


# What is taken


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ('name = "net-pf-*"', "name", Globs.of(["net-pf-*"], names=True)),
        ('name = ["a", "b-*"]', "name", Globs.of(["a", "b-*"], names=True)),
        ('name = "@net"', "name", Globs.of(["@net"])),
        ('module = "snd-*"', "module", Globs.of(["snd-*"], names=True)),
        ('module = ["x", "@net", "y"]', "module", Globs.of(["x", "dccp*", "sctp", "y"])),
        ('source = "kernel"', "source", frozenset({"kernel"})),
        ('source = ["api", "cli"]', "source", frozenset({"api", "cli"})),
        ('operation = "remove"', "operation", frozenset({"remove"})),
        ('operation = ["set", "request"]', "operation", frozenset({"set", "request"})),
        ("privileged = true", "privileged", True),
        ("privileged = false", "privileged", False),
        ("uid = 0", "uid", Numbers(((0, 0),))),
        ("uid = 4294967295", "uid", Numbers(((4294967295, 4294967295),))),
        ('uid = [1000, "2000-2999", "7"]', "uid", Numbers(((1000, 1000), (2000, 2999), (7, 7)))),
        ('gid = "5-5"', "gid", Numbers(((5, 5),))),
        ('user = ["root", "ann"]', "user", Numbers(((0, 0), (1000, 1000)))),
        ('user = "nobody-knows"', "user", Numbers(())),
        ('group = "lab"', "group", Numbers(((2000, 2000),))),
        ('exe = "/usr/bin/*"', "exe", Globs.of(["/usr/bin/*"])),
        ('exe = ["*/a", "?b", "[/]c"]', "exe", Globs.of(["*/a", "?b", "[/]c"])),
        ('unit = "a-b.service"', "unit", Globs.of(["a-b.service"])),
        ("unit = true", "unit", True),
        ("container = false", "container", False),
        ('container = ["a", "b"]', "container", Globs.of(["a", "b"])),
        ('call_site = "inet_*"', "call_site", Globs.of(["inet_*"])),
        ('reason = "CVE-2026-31431: \\u00fc"', "reason", "CVE-2026-31431: ü"),
        ("until = 2027-01-31T10:00:00Z", "until", datetime(2027, 1, 31, 10, tzinfo=UTC)),
        ("until = 2027-01-31T10:00:00+02:00", "until", datetime(2027, 1, 31, 8, tzinfo=UTC)),
        ('rate = "10/min"', "rate", Rate(10, 60, "10/min")),
        ('rate = "1/s"', "rate", Rate(1, 1, "1/s")),
        ('rate = "2/sec"', "rate", Rate(2, 1, "2/sec")),
        ('rate = "3/h"', "rate", Rate(3, 3600, "3/h")),
        ('rate = "3/hour"', "rate", Rate(3, 3600, "3/hour")),
        ('rate = "999999999/d"', "rate", Rate(999999999, 86400, "999999999/d")),
        ('rate = "4/day"', "rate", Rate(4, 86400, "4/day")),
        ("unknown = true", "unknown", True),
        ("unknown = false", "unknown", False),
        ('mode = "audit"', "mode", Mode.AUDIT),
    ],
)
def test_a_field_is_taken(line: str, field: str, value: object) -> None:
    found = rule(line)
    assert getattr(found, field) == value
    # And no other field is touched by it.
    plain = replace(rule(""), text={})
    assert replace(found, text={}) == replace(plain, **{field: value})


def test_what_is_not_given_is_not_asked_for() -> None:
    [found] = rules('[[rule]]\naction = "allow"\n')
    assert found == Rule("50-test.toml", 1, Action.ALLOW, Mode.ENFORCE, operation=frozenset({"request"}))
    assert found.text == {"action": "allow"}


def test_a_day_ends_at_midnight_of_this_machine() -> None:
    ends = rule("until = 2027-01-31").until
    assert ends == datetime(2027, 2, 1).astimezone()
    assert ends.tzinfo is not None
    here = rule("until = 2027-01-31T10:00:00").until
    assert here == datetime(2027, 1, 31, 10).astimezone()
    assert ends - here == timedelta(hours=14)


def test_the_mode_of_the_file_is_that_of_each_rule_that_has_none() -> None:
    text = 'mode = "audit"\n[[rule]]\naction = "deny"\n[[rule]]\naction = "deny"\nmode = "off"\n'
    assert [item.mode for item in rules(text)] == [Mode.AUDIT, Mode.OFF]
    assert rules("") == ()
    assert rules('mode = "off"') == ()


def test_who_is_not_there_is_doubtful_and_refuses_nothing() -> None:
    file = taken('\n[[rule]]\nuser = "nobody-knows"\ngroup = ["lab", "gone"]\naction = "deny"\n')
    assert file.doubts == (
        (2, "there is no user 'nobody-knows' here; the rule is not for anybody of it"),
        (2, "there is no group 'gone' here; the rule is not for anybody of it"),
    )


def test_an_allow_rule_with_a_rate_is_doubtful() -> None:
    [(line, doubt)] = taken('[[rule]]\nrate = "1/s"\naction = "allow"').doubts
    assert line == 1
    assert "allows what exceeds it" in doubt
    assert not taken('[[rule]]\nrate = "1/s"\naction = "deny"').doubts


# What is refused


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("name = 1", "name takes a string or a list of strings, not 1"),
        ("name = []", "name is an empty list"),
        ('name = ""', "name takes 1 to"),
        ('name = ["a", 2]', "not 2"),
        ('name = "a\\nb"', "printable"),
        ('name = "a\\u202eb"', "printable"),
        ("name = {a = 1}", "name takes a string"),
        (
            'module = ["a", "@gone"]',
            "module names the group '@gone', which there is not: there are @net, @one",
        ),
        ('module = "@"', "module names the group '@'"),
        ("module = true", "module takes a string"),
        ('source = "kernal"', "source must be one of kernel, api, cli, uevent, boot, not 'kernal'"),
        ('source = ["api", "x"]', "not 'x'"),
        ('operation = "load"', "operation must be one of request, remove, set, not 'load'"),
        ('privileged = "yes"', "privileged takes true or false, not 'yes'"),
        ("privileged = 1", "privileged takes true or false, not 1"),
        ("uid = -1", "uid takes ids from 0 to 4294967295"),
        ("uid = 4294967296", "uid takes ids"),
        ("uid = true", "uid takes ids"),
        ("uid = 1.0", "uid takes ids"),
        ('uid = "10-5"', "ends before it begins"),
        ('uid = "1-"', "uid takes ids"),
        ('uid = "-5"', "uid takes ids"),
        ('uid = "1-2-3"', "uid takes ids"),
        ('uid = "\\u0661"', "uid takes ids"),
        ('uid = "root"', "uid takes ids"),
        ("uid = []", "uid is an empty list"),
        ("uid = [[1]]", "uid takes ids"),
        ('gid = "99999999999"', "gid takes ids"),
        ("user = 0", "user takes a string"),
        ("group = 0", "group takes a string"),
        ('exe = "bash"', "exe takes absolute paths, not 'bash'"),
        ('exe = ["/a", "./b"]', "exe takes absolute paths, not './b'"),
        ("unit = 1", "unit takes a string"),
        ("container = []", "container is an empty list"),
        ('call_site = ""', "call_site takes 1 to"),
        ("reason = 1", "reason takes one line"),
        ('reason = "a\\nb"', "reason takes one line"),
        ('reason = "\\u001b[31m"', "reason takes one line"),
        ('until = "2027-01-31"', "until takes a date or a time without quotes"),
        ("until = 10:00:00", "until takes a date"),
        ("until = 9999-12-31", "until is a time beyond all clocks"),
        ("until = 0001-01-01T00:00:00", "until is a time beyond all clocks"),
        ('rate = "10"', "rate takes a number and a time"),
        ('rate = "0/s"', "rate takes a number and a time"),
        ('rate = "-1/s"', "rate takes"),
        ('rate = "1/week"', "rate takes"),
        ('rate = "1/s\\n"', "rate takes"),
        ('rate = "\\u0661/s"', "rate takes"),
        ('rate = "1000000000/s"', "rate takes"),
        ("rate = 10", "rate takes"),
        ('unknown = "true"', "unknown takes true or false"),
        ('mode = "enforced"', "mode must be one of enforce, audit, off, not 'enforced'"),
        ("mode = []", "mode must be one of"),
        ("moduel = 'x'", "unknown key 'moduel': a rule has name, module"),
    ],
)
def test_a_mistake_is_told_with_file_and_line(line: str, words: str) -> None:
    err = refused(f'mode = "enforce"\n\n[[rule]]\naction = "allow"\n\n[[rule]]\naction = "deny"\n{line}\n')
    assert words in err.message
    assert (err.file, err.line) == ("50-test.toml", 6)
    assert str(err) == f"50-test.toml:6: {err.message}"


def test_every_field_has_been_tried_both_ways() -> None:
    for test in (test_a_field_is_taken, test_a_mistake_is_told_with_file_and_line):
        [mark] = test.pytestmark  # type: ignore[attr-defined]
        assert {case[0].partition(" ")[0] for case in mark.args[1]} >= set(FIELDS) - {"action"}


@pytest.mark.parametrize(
    ("text", "words", "line"),
    [
        ("[[rule]]\nname = 'x'\n", 'a rule needs an action, "allow" or "deny"', 1),
        ("[[rule]]\naction = 'reject'\n", "action must be one of allow, deny, not 'reject'", 1),
        ("[[rule]]\naction = 'allow'\nunknown = true\n", "unknown = true is for deny rules", 1),
        (
            "[[rule]]\naction = 'deny'\n\n[[rule]]\naction = 'deny'\n[rule.more]\nx = 1\n",
            "unknown key 'more'",
            4,
        ),
        ("x = 1\n", "unknown key 'x': there are mode and [[rule]]", None),
        ("[[rules]]\naction = 'deny'\n", "unknown key 'rules'", None),
        ("mode = 'on'\n", "mode must be one of", None),
        ("mode = 1\n", "mode must be one of", None),
        ("[rule]\naction = 'deny'\n", "below a line [[rule]]", None),
        ("rule = [{action = 'deny'}]\n", "below a line [[rule]]", None),
        ("rule = ['deny']\n", "below a line [[rule]]", None),
        ("rule = 1\n", "below a line [[rule]]", None),
        ('[["\\u0072ule"]]\naction = "deny"\n', "below a line [[rule]]", None),
        ("[[rule]]\naction = deny\n", "not TOML", 2),
        ("[[rule]]\naction = 'deny'\naction = 'allow'\n", "not TOML", 3),
        ("a = " + "[" * 100_000, "not TOML", None),
        ("[[rule]]\nuid = " + "9" * 5000, "not TOML", None),
        ("\ufeffmode = 'off'", "not TOML", 1),
    ],
)
def test_a_file_that_is_off_is_refused_whole(text: str, words: str, line: int | None) -> None:
    err = refused(text, "10-a.toml")
    assert words in err.message
    assert (err.file, err.line) == ("10-a.toml", line)
    assert str(err).startswith("10-a.toml:")


def test_a_value_of_any_length_is_told_in_few_words() -> None:
    assert len(str(refused(f"[[rule]]\naction = '{'x' * 100_000}'"))) < 300
    assert len(str(refused(f"{'x' * 100_000} = 1"))) < 300


# Bounds


def test_the_longest_path_of_stars_is_taken_and_nothing_longer() -> None:
    path = "/" + "[*]" * 4095
    assert rule(f'exe = "{path}"').exe == Globs.of([path])
    assert "takes 1 to 12288" in str(refused(f'[[rule]]\naction = "deny"\nexe = "/{"x" * 12288}"'))


def test_a_reason_has_one_line_of_bounded_length() -> None:
    assert rule(f'reason = "{"x" * 1024}"').reason == "x" * 1024
    assert "at most 1024" in str(refused(f'[[rule]]\naction = "deny"\nreason = "{"x" * 1025}"'))


def test_values_and_rules_are_bounded() -> None:
    assert "at most 20000" in str(refused(f'[[rule]]\naction = "deny"\nuid = {[1] * 20_001}'))
    one = '[[rule]]\naction = "deny"\n'
    assert len(rules(one * RULES_MAX)) == RULES_MAX
    assert f"at most {RULES_MAX} are taken" in str(refused(one * (RULES_MAX + 1)))


def test_one_long_line_takes_no_long_time() -> None:
    began = time.process_time()
    many = '"abcdefghij", ' * 20_000
    found = rules(f'[[rule]]\naction = "deny"\nmodule = [{many}]\n[[rule]]\naction = "deny"')
    assert [item.line for item in found] == [1, 4]
    assert time.process_time() - began < 5


# Lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ('[[rule]]\naction = "deny"\n  [[ rule ]] # more\naction = "deny"', [1, 3]),
        ('[["rule"]]\naction = "deny"\n[[\'rule\']]\naction = "deny"', [1, 3]),
        ('# [[rule]]\n[[rule]]\naction = "deny" # [[rule]]\n', [2]),
        ('[[rule]]\r\naction = "deny"\r\n[[rule]]\r\naction = "deny"', [1, 3]),
        ('[[rule]]\nreason = """\\\n[[rule]]\\\n"""\naction = "deny"\n[[rule]]\naction = "deny"', [1, 6]),
        ("[[rule]]\nreason = '''x'''\naction = 'deny'\n[[rule]]\naction = 'deny'", [1, 4]),
        ('[[rule]]\nreason = """a\\""" b"""\naction = "deny"\n[[rule]]\naction = "deny"', [1, 4]),
        ('[[rule]]\nreason = """a\\\\"""\naction = "deny"\n[[rule]]\naction = "deny"', [1, 4]),
        ('[[rule]]\nreason = """"a"""""\naction = "deny"\n[[rule]]\naction = "deny"', [1, 4]),
        ("[[rule]]\nreason = ''''a'''''\naction = 'deny'\n[[rule]]\naction = 'deny'", [1, 4]),
        ('[[rule]]\nreason = "\'\'\'"\naction = "deny"\n[[rule]]\naction = "deny"', [1, 4]),
        ("[[rule]]\nreason = '\"\"\"'\naction = 'deny' # \"\"\"\n[[rule]]\naction = 'deny'", [1, 4]),
        ('[[rule]]\nreason = "\\"\\"\\""\naction = "deny"\n[[rule]]\naction = "deny"', [1, 4]),
        ('[[rule]]\nreason = ""\naction = "deny" # it\'s\n[[rule]]\naction = "deny" # \'\'\'', [1, 4]),
        (
            '[[rule]]\nmodule = [\n  "a", # [[rule]]\n  """\\\n[[rule]]""",\n]\naction = "deny"\n[[rule]]\naction = "deny"',
            [1, 8],
        ),
    ],
)
def test_a_rules_line_is_that_of_its_header(text: str, lines: list[int]) -> None:
    assert [item.line for item in rules(text)] == lines


def test_a_header_in_a_string_of_several_lines_is_none() -> None:
    err = refused(
        '[[rule]]\naction = "deny"\nreason = """\n[[rule]]\n[[rule]]\n"""\n[[rule]]\naction = "deny"\n'
    )
    assert (err.line, "one line" in err.message) == (1, True)
    err = refused("[[rule]]\naction = 'deny'\nname = ['''\n[[rule]]''', 'x']\n[[rule]]\naction = 'reject'\n")
    assert err.line == 5


# Whatever there is


@given(st.text(max_size=60))
@example('[["rule"]]\n')
@example("rule = [[]]")
def test_any_text_is_taken_or_refused(text: str) -> None:
    for whole in (
        text,
        f'[[rule]]\naction = "deny"\n{text}',
        f"[[rule]]\naction = 'deny'\nname = '''{text}'''",
    ):
        try:
            taken(whole)
        except PolicyError as err:
            assert err.file == "50-test.toml"


@given(st.text())
def test_any_text_comes_back_from_quotes(text: str) -> None:
    import tomllib  # noqa: PLC0415

    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert tomllib.loads(f"x = {quoted(text)}") == {"x": text}


@given(st.lists(tables(), max_size=5))
def test_each_rule_has_the_line_that_it_is_written_in(items: list[dict[str, object]]) -> None:
    text = as_toml(items)
    headers = [number for number, line in enumerate(text.splitlines(), 1) if line == "[[rule]]"]
    assert [item.line for item in rules(text)] == headers
