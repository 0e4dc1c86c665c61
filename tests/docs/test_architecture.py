"""ARCHITECTURE.md and the code tell the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kmodd.broker.states import TRANSITIONS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "ARCHITECTURE.md").read_text()
SOURCE = ROOT / "src/kmodd"


def section(title: str) -> str:
    found = re.search(rf"(?ms)^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE)
    assert found, title
    return found[1]


def rooms() -> dict[str, str]:
    return dict(re.findall(r"(?m)^\| \[[^\]]+\]\(([^)]+)\) \| (.*) \|$", section("The rooms")))


def test_the_diagram_has_the_transitions_of_the_code() -> None:
    diagram = re.search(r"(?s)```mermaid\nstateDiagram-v2\n(.*?)```", PAGE)
    assert diagram
    drawn = set(re.findall(r"(?m)^\s*(\S+) --> ([^\s:]+)", diagram[1]))
    real = {(old.value, new.value) for old, following in TRANSITIONS.items() for new in following}
    ends = {(state.value, "[*]") for state, following in TRANSITIONS.items() if not following}
    assert drawn == real | ends | {("[*]", next(iter(TRANSITIONS)).value)}


def test_every_room_exists_and_every_package_is_a_room() -> None:
    packages = {path.parent for place in (SOURCE, ROOT / "bench") for path in place.rglob("*.py")}
    assert {ROOT / room for room in rooms()} == packages | {ROOT / "helper", ROOT / "lab"}


@pytest.mark.parametrize("room", rooms())
def test_every_file_of_a_room_is_named_and_every_named_file_is_there(room: str) -> None:
    folder = ROOT / room
    named = re.findall(r"`([\w-]+\.(?:py|c))`", rooms()[room])
    there = {path.name for path in folder.iterdir() if path.suffix in {".py", ".c"}} - {"__init__.py"}
    assert sorted(named) == sorted(there)


def behaviours() -> list[tuple[str, str, str]]:
    rows = re.findall(r"(?m)^\| S(\d+) \| .* \| (.*) \| (.*) \|$", section("Behaviours of 1998"))
    assert [number for number, _home, _tests in rows] == [str(number) for number in range(1, 17)]
    return rows


def test_every_behaviour_has_a_home() -> None:
    for number, home, _tests in behaviours():
        for file in re.findall(r"`([^`]+)`", home):
            assert (SOURCE / file).is_file(), (number, file)


@pytest.mark.parametrize("number", [number for number, _home, tests in behaviours() if tests != "later"])
def test_every_behaviour_has_a_test_of_its_name(number: str) -> None:
    named = {tests for row, _home, tests in behaviours() if row == number}
    assert named == {f"`test_s{number}_*`"}
    pattern = re.compile(rf"^\s*(?:async )?def test_s{number}_", re.MULTILINE)
    assert any(pattern.search(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py"))


def test_what_comes_later_has_no_test_yet() -> None:
    later = [number for number, _home, tests in behaviours() if tests == "later"]
    pattern = re.compile(rf"^\s*(?:async )?def test_s({'|'.join(later)})_", re.MULTILINE)
    assert not [path for path in (ROOT / "tests").rglob("test_*.py") if pattern.search(path.read_text())]
