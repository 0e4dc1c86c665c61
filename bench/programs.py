"""The limits that kmodd is compared with: programs that do the least there is to do, built for a run."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from kmodd.errors import KmoddError

_SOURCES = Path(__file__).with_name("programs")


def exits(directory: Path) -> str:
    """Build the assembly program that only exits; return its path."""
    options = ["-nostdlib", "-s", "-Wl,-z,noseparate-code", "-Wl,--build-id=none"]
    return _build("exit.S", directory / "exit", options)


def inserts(directory: Path, paths: Sequence[str] = ()) -> str:
    """Build the program that hands module files to the kernel: these, or those in a list; return its path."""
    if not paths:
        return _build("insert.c", directory / "insert", ["-O2"])
    name = "insert-" + Path(paths[-1]).stem
    quoted = ",".join(f'"{path}"' for path in paths)
    return _build("insert.c", directory / name, ["-O2", f"-DPATHS={quoted}"])


def _build(source: str, target: Path, options: Sequence[str]) -> str:
    done = subprocess.run(
        ["gcc", "-static", *options, str(_SOURCES / source), "-o", str(target)],
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise KmoddError(f"cannot build {source}: {done.stderr.strip()}")
    return str(target)
