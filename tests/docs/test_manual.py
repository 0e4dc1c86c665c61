"""The man pages say what the code does, all of it and no more."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from asyncvarlink import VarlinkInterface

from kmodd import errors
from kmodd.cli import parser
from kmodd.model import Outcome, Requester
from kmodd.policy.parse import FIELDS
from kmodd.policy.rules import Mode
from kmodd.settings import SETTINGS
from kmodd.sources.varlink import KmoddInterface

ROOT = Path(__file__).resolve().parents[2]
KMODD = ROOT / "man/kmodd.8"
TOML = ROOT / "man/kmodd.toml.5"
TOOLS = ROOT / "man/kmodd-tools.8"
POLICY = ROOT / "man/kmodd-policy.5"


def plain(path: Path) -> str:
    """What a reader sees, on one line, without hyphenation and overstrikes."""
    argv = ["mandoc", "-T", "utf8", "-O", "width=1000", str(path)]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout
    return re.sub(r"\s+", " ", re.sub(".\b", "", shown))


def sections(path: Path, macro: str = "Sh") -> dict[str, str]:
    """The source of each section (or subsection, up to the next section or subsection)."""
    parts = re.split(r"(?m)^\.(?:Sh|Ss) " if macro == "Ss" else r"(?m)^\.Sh ", path.read_text())
    return {title: body for title, _, body in (part.partition("\n") for part in parts[1:])}


def subparsers() -> dict[str, argparse.ArgumentParser]:
    actions = parser.build()._actions
    (found,) = (action for action in actions if isinstance(action, argparse._SubParsersAction))
    return dict(found.choices)


def options(made: argparse.ArgumentParser) -> set[str]:
    return {flag for action in made._actions for flag in action.option_strings} - {"-h", "--help"}


def documented(body: str) -> set[str]:
    """The options that a list of this section has an item for."""
    items = re.findall(r"(?m)^\.It (Fl .*)$", body)
    return {f"-{flag}" for item in items for flag in re.findall(r"Fl (\S+)", item)}


@pytest.mark.parametrize("path", [KMODD, TOML, TOOLS, POLICY], ids=lambda path: path.name)
def test_mandoc_finds_nothing_wrong(path: Path) -> None:
    argv = ["mandoc", "-T", "lint", "-W", "warning", str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_command_has_a_section_and_every_section_a_command() -> None:
    titles = {title for title in sections(KMODD, "Ss") if title.startswith("kmodd ")}
    assert titles == {f"kmodd {name}" for name in subparsers()} | {"kmodd --version"}


@pytest.mark.parametrize("name", subparsers())
def test_the_options_of_a_command_are_those_of_its_section(name: str) -> None:
    assert documented(sections(KMODD, "Ss")[f"kmodd {name}"]) == options(subparsers()[name])


def synopsis() -> Iterator[tuple[str, str]]:
    for part in sections(KMODD)["SYNOPSIS"].split(".Nm\n")[1:]:
        command = re.match(r"\.Cm (\S+)", part)
        yield (command[1] if command else ""), part


def test_the_synopsis_has_every_command_with_its_options() -> None:
    shown = {
        name: {f"-{flag}" for flag in re.findall(r"(?m)(?:Fl |\| )(-?\w[\w-]*)(?= |$)", part)}
        for name, part in synopsis()
    }
    assert set(shown) == {*subparsers(), ""}
    for name, made in subparsers().items():
        flags = {flag for flag in shown[name] if flag.startswith("--") or len(flag) == 2}
        assert flags == options(made), name


def test_every_option_in_the_text_exists() -> None:
    known = {flag for made in (parser.build(), *subparsers().values()) for flag in options(made)}
    known |= {"-h", "--help", "--"}
    used = {f"-{flag}" for flag in re.findall(r"(?m)\bFl (-?[a-z][\w-]*|-)(?=[\s.,]|$)", KMODD.read_text())}
    assert used == known


def test_choices_are_named() -> None:
    for name, made in subparsers().items():
        shown = sections(KMODD, "Ss")[f"kmodd {name}"] + dict(synopsis())[name]
        for action in made._actions:
            for choice in action.choices or ():
                assert re.search(rf"\b{re.escape(str(choice))}\b", shown), (name, choice)


def test_every_classic_tool_is_named() -> None:
    synopsis = re.search(r"(?m)^\.Cm (modprobe .*)$", sections(TOOLS)["SYNOPSIS"])
    assert synopsis
    assert synopsis[1].split(" | ") == list(parser.TOOLS)


def test_outcomes() -> None:
    items = re.findall(r"(?m)^\.It Cm (\S+)$", sections(KMODD, "Ss")["OUTCOMES"])
    assert items == [outcome.value for outcome in Outcome]


def kinds(of: type[errors.KmoddError]) -> Iterator[type[errors.KmoddError]]:
    yield of
    for kind in of.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from kinds(kind)


def test_exit_statuses() -> None:
    items = {int(item) for item in re.findall(r"(?m)^\.It (\d+)$", sections(KMODD)["EXIT STATUS"])}
    assert items == {0, 130} | {kind.exit_status for kind in kinds(errors.KmoddError)}


def test_the_fields_of_a_result() -> None:
    body = sections(KMODD)["THE RESULT OF A REQUEST"]
    literal = re.search(r"(?s)\.Bd -literal\n(.*?)\n\.Ed", body)
    assert literal
    example = json.loads(literal[1])
    items = re.findall(r"(?m)^\.It Va (\S+)$", body)
    assert items == list(example)
    assert list(example["requester"]) == list(Requester().as_json())


def test_varlink_methods_and_errors() -> None:
    body = sections(KMODD)["THE VARLINK API"]
    assert issubclass(KmoddInterface, VarlinkInterface)
    description = KmoddInterface.render_interface_description()
    declared = dict(re.findall(r"(?m)^method (\w+)\((.*?)\) ->", description))
    shown = dict(re.findall(r"(?m)^\.It Fn (\w+)(.*)$", body))
    assert set(shown) == set(declared)
    for method, parameters in declared.items():
        # `name: string` or, optional, `wait: ?bool`; the values of an enumeration have no colon
        expected = [f"{name}{optional}" for name, optional in re.findall(r"(\w+): (\??)", parameters)]
        assert re.findall(r'"(.*?)"', shown[method]) == expected, method
    errors_shown = re.findall(r"(?m)^\.It Er (\w+)$", body)
    assert errors_shown == [kind.__name__ for kind in KmoddInterface.errors]


def test_every_field_of_a_rule() -> None:
    items = re.findall(r"(?m)^\.It Va (.*)$", sections(POLICY)["RULES"])
    named = [field for item in items for field in item.split(" , ")]
    assert sorted(named) == sorted(FIELDS)
    assert {mode.value for mode in Mode} == set(re.findall(r"(?m)^\.It Cm (\w+)$", sections(POLICY)["MODES"]))


def test_every_setting_with_its_default() -> None:
    body = sections(TOML)["SETTINGS"]
    found = re.findall(r"(?m)^\.It Va ([\w.]+) No \((.*), default Ql (.*) \)$", body)
    assert [key for key, _kind, _default in found] == list(SETTINGS)
    types = {"string": str, "list of strings": list, "number of seconds": int, "boolean": bool}
    for key, kind, default in found:
        shown = json.loads(default.replace(r"\(dq", '"').replace("\\ ", " "))
        assert shown == SETTINGS[key].default
        assert isinstance(shown, types[kind])


@pytest.mark.parametrize("key", SETTINGS)
def test_the_range_of_a_setting_is_the_one_checked(key: str) -> None:
    setting = SETTINGS[key]
    if not isinstance(setting.default, int) or isinstance(setting.default, bool):
        return
    (item,) = re.findall(rf"(?s)\.It Va {key} .*?(?=\n\.It |\n\.El)", TOML.read_text())
    span = re.search(r"from (\d+)\s+to\s+(\d+)", item)
    assert span, item
    low, high = int(span[1]), int(span[2])
    assert setting.check(low) is None
    assert setting.check(high) is None
    assert setting.check(low - 1) is not None
    assert setting.check(high + 1) is not None


def test_files_and_environment_are_named() -> None:
    text = plain(KMODD)
    for word in (
        "KMODD_SOCKET", "KMODD_LAB_KERNELS", "NO_COLOR", "/run/kmodd/helper.sock", "/run/kmodd/io.kmodd",
        "/run/kmodd/fallback", "/run/kmodd/modprobe.before", "etc/kmodd/simulated.toml",
    ):  # fmt: skip
        assert word in text, word


def test_journal_fields_are_named() -> None:
    source = (ROOT / "src/kmodd/record/systemlog.py").read_text()
    text = plain(KMODD)
    for field in set(re.findall(r'"(KMODD_\w+)"', source)):
        assert field in text, field


def test_keys_of_the_simulated_kernel() -> None:
    from kmodd.kernel.simulated import _KEYS  # noqa: PLC0415

    body = sections(KMODD)["THE SIMULATED KERNEL"]
    assert re.findall(r"(?m)^\.It Va (\w+)$", body) == list(_KEYS)
