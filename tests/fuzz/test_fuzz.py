"""The fuzzing targets: on their seeds, on what once went wrong, under atheris, and with hypothesis."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.targets import REGRESSIONS, TARGETS, TEXT_FILES, TREE_WORDS, Target, regressions
from support.trees import ROOT

FUZZ = ROOT / "tests/fuzz/fuzz.py"
NAMES = sorted(TARGETS)
WORDS = (*TREE_WORDS, b"nosuch", b"[", b"]", b"\\", b"\n", b'"', b"=", b".", b",", b":", b"\xff")
TEXT = st.lists(st.sampled_from(WORDS), max_size=60).map(b"".join)


@st.composite
def damaged(draw: st.DrawFn, target: Target) -> bytes:
    """A seed, of which pieces are cut out, put in, or replaced."""
    data = bytearray(draw(st.sampled_from(target.seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(data)


@pytest.mark.parametrize("name", NAMES)
def test_seeds_and_regressions(name: str) -> None:
    target = TARGETS[name]
    for data in (b"", *target.seeds, *(path.read_bytes() for path in regressions(name))):
        target.run(data)


def test_every_regression_has_a_target() -> None:
    assert {path.name for path in REGRESSIONS.iterdir()} <= TARGETS.keys()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_bytes(name: str, data: st.DataObject) -> None:
    target = TARGETS[name]
    target.run(data.draw(st.one_of(st.binary(max_size=200), damaged(target))))


@settings(max_examples=300, deadline=None)
@given(TEXT)
def test_text_of_modprobe_d(text: bytes) -> None:
    TARGETS["config"].run(text)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(TEXT_FILES)), TEXT)
def test_text_in_a_tree(number: int, text: bytes) -> None:
    TARGETS["tree"].run(bytes([number]) + text + b"\n")


@pytest.mark.parametrize("name", NAMES)
def test_under_atheris(name: str, tmp_path: Path) -> None:
    """The same executions in every run. `make fuzz` looks further."""
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python and processor")
    done = subprocess.run(
        [
            sys.executable,
            FUZZ,
            name,
            f"-runs={TARGETS[name].runs}",
            "-seed=1",
            f"-artifact_prefix={tmp_path}/",
        ],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        timeout=300,
    )
    inputs = "\n".join(f"{path.name}: {path.read_bytes()!r}" for path in tmp_path.iterdir())
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{inputs}"
