"""libkmod in a process of its own, driven by bench/native/libkmod.c: no call of its pays for Python."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.host import Host
from kmodd.errors import KmoddError


class Libkmod:
    """The index of one tree, loaded; a context manager. `load_ns`, `kilobytes`: what loading it took."""

    def __init__(self, host: Host, modules: Path) -> None:
        self._process = subprocess.Popen(
            [host.program("libkmod"), str(modules)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.load_ns, self.kilobytes = self._numbers()

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it."""
        self._process.communicate()

    def resolve(self, work: str, names: Sequence[str]) -> tuple[int, int]:
        """Resolve names, by `lookup` or `plan`; return the nanoseconds of all, and how many modules."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n".join([f"{work} {len(names)}", *names]) + "\n")
        self._process.stdin.flush()
        return self._numbers()

    def _numbers(self) -> tuple[int, int]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().split()
        if len(line) != 2:
            raise KmoddError("libkmod cannot read the tree: has depmod made its index?")
        return int(line[0]), int(line[1])
