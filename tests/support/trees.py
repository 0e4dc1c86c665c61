"""Module trees to test with, and the real modprobe to compare with."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from kmodd.tree.plan import Action, Plan, Verdict
from support.tools import Done

ROOT = Path(__file__).resolve().parents[2]
UML = Path("/usr/lib/uml/modules")
KERNELS = ROOT / ".cache/kernels"
DEBIAN = KERNELS / "current/lib/modules"
CLOUD = KERNELS / "cloud/lib/modules"
COMPRESSED = KERNELS / "compressed/lib/modules"
"""Both with modules that are compressed; the one has few of them, the other's kernel boots in the lab."""


def tree(folder: Path) -> Path:
    """The one release below a folder."""
    found = [path for path in folder.glob("*") if (path / "modules.dep").exists()]
    if not found:
        pytest.skip(f"no modules below {folder}: tools/setup test installs them")
    return found[0]


class Modprobe:
    """The real modprobe on a root directory that has one tree."""

    def __init__(self, root: Path, release: Path, config: Path | None = None) -> None:
        modules = root / "lib/modules"
        modules.mkdir(parents=True, exist_ok=True)
        self.directory = modules / release.name
        if not self.directory.is_symlink():
            self.directory.symlink_to(release)
        self.options = ["-d", str(root), "-S", release.name]
        if config is not None:
            self.options += ["-C", str(config)]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/sbin/modprobe", *self.options, *arguments],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            check=False,
            env={"PATH": os.environ["PATH"]},
        )

    def done(self, *arguments: str) -> Done:
        """Run it; return what it did as our own tools are compared by."""
        run = self.run(*arguments)
        return run.returncode, os.fsencode(run.stdout), os.fsencode(run.stderr)

    def answers(self, option: str, names: Iterable[str]) -> tuple[int, list[str]]:
        """Ask for all names at once; the status is 0 only if it is for each of them."""
        run = self.run("-a", option, "--", *names)
        return run.returncode, run.stdout.splitlines()


def show_depends(plan: Plan) -> list[str]:
    """A plan as `modprobe --show-depends` prints it: a blank behind the path, one more behind options."""
    lines = []
    for target in plan.targets:
        if target.verdict is Verdict.BUILT_IN:
            lines.append(f"builtin {target.module}")
        for step in target.steps:
            options = step.parameters + " " if step.parameters else ""
            match step.action:
                case Action.INSERT if step.path is not None:
                    lines.append(f"insmod {step.path} {options}")
                case Action.RUN:
                    lines.append(f"install {step.command} {options}")
                case Action.BUILT_IN:
                    lines.append(f"builtin {step.module}")
                case _:
                    pass
    return lines


def concrete(patterns: Sequence[str]) -> list[str]:
    """Names that the patterns of aliases match, each star filled in one of several ways."""
    fillings = ("", "1", "zz", "00A0")
    names = []
    for number, pattern in enumerate(patterns):
        name = re.sub(r"\[([^\]])[^\]]*\]", r"\1", pattern).replace("?", "x")
        name = name.replace("*", fillings[number % len(fillings)])
        if name and name[0] not in "-/.":
            names.append(name)
    return names
