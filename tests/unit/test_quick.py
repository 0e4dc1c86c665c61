"""What is read without argparse is what argparse would have read, of every command."""

from __future__ import annotations

import argparse
import contextlib
import io

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kmodd.cli import parser
from kmodd.cli.quick import Quick

FLAGS = sorted(
    {
        flag
        for action in parser.build()._actions
        if isinstance(action, argparse._SubParsersAction)
        for made in action.choices.values()
        for each in made._actions
        for flag in each.option_strings
    }
)
WORDS = st.one_of(
    st.sampled_from(FLAGS),
    st.sampled_from(
        ["ext4", "dm-crypt", "5", "0", "-1", "-", "--", "", "a b", "linux", "uml", "on", "bash", "kernel"]
    ),
    st.sampled_from(
        ["--js", "--json=1", "--timeout=5", "-n5", "-fn", "-x", "nan", "1e3", "@file", "log_level=3"]
    ),
    st.text(max_size=4),
)


def quick(command: str, words: list[str]) -> dict[str, object] | None:
    made = Quick()
    parser.COMMANDS[command][2](made)
    found = made.read(command, words)
    return None if found is None else vars(found)


def by_argparse(command: str, words: list[str]) -> dict[str, object] | None:
    """None where argparse ends with a message or with help."""
    made = argparse.ArgumentParser(prog="kmodd", allow_abbrev=False)
    parser.COMMANDS[command][2](made)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return vars(made.parse_args(words, argparse.Namespace(command=command)))
    except SystemExit:
        return None


@given(st.sampled_from(sorted(parser.COMMANDS)), st.lists(WORDS, max_size=5))
@example("request", ["a", "--json", "b"])
@example("tune", ["--json"])
@example("log", ["-n", "-5"])
@example("request", ["a", "--timeout", "x"])
@settings(max_examples=500)
def test_it_reads_what_argparse_reads_or_nothing(command: str, words: list[str]) -> None:
    found = quick(command, words)
    assert found is None or found == by_argparse(command, words)


@pytest.mark.parametrize(
    "line",
    [
        "status", "status --json", "list", "request ext4", "request --timeout 5 ext4 dm-crypt", "remove a --holders",
        "tune", "tune a=1 b", "log", "log -f", "log -n 5 --uid 0 --name *", "why ext4 --json", "hook status",
        "resolve --release 6.1 ext4", "serve --hook --kernel simulated --root /x", "completion bash",
    ],
)  # fmt: skip
def test_what_people_type_is_read_without_argparse(line: str) -> None:
    command, *words = line.split()
    found = quick(command, words)
    assert found is not None
    assert found == by_argparse(command, words)


@pytest.mark.parametrize(
    "line", ["status -h", "status x", "request", "request --help", "hook maybe", "request a --x"]
)
def test_what_argparse_has_to_say_something_about_is_left_to_it(line: str) -> None:
    command, *words = line.split()
    assert quick(command, words) is None
    with pytest.raises(SystemExit):
        parser.parse([command, *words])
