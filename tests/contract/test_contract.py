"""The simulated kernel and the real one pass the same contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kmodd.kernel.simulated import SimulatedKernel
from kmodd.lab import Guest, LabOptions
from support import contract

IN_GUEST = """
import sys
sys.path.insert(0, tests)
from pathlib import Path
from support import contract
from kmodd.kernel.linux import LinuxKernel
import os
folder = Path("/lib/modules", os.uname().release, "kmodd-test")
result = contract.run_all(LinuxKernel(), lambda name: str(folder / f"{name}.ko"))
"""


@pytest.mark.parametrize("name", contract.CHECKS)
def test_simulated(name: str) -> None:
    contract.CHECKS[name](SimulatedKernel(contract.INSTALLED), lambda module: module)


@pytest.fixture(scope="module")
def on_linux() -> Iterator[Any]:
    with Guest(LabOptions(kernel="qemu", smp=2, serve=False, timeout=120)) as guest:
        yield guest.python(IN_GUEST, tests=str(Path(__file__).parents[1]))


@pytest.mark.real
@pytest.mark.parametrize("name", contract.CHECKS)
def test_linux(on_linux: dict[str, str], name: str) -> None:
    assert name not in on_linux, on_linux[name]
