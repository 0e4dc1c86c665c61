"""What is installed and configured at one moment, and whether it still is."""

from __future__ import annotations

import os
from dataclasses import dataclass

from kmodd import names
from kmodd.tree import modprobed
from kmodd.tree.index import FILES, Index
from kmodd.tree.modprobed import DIRECTORIES, Config

ROOT = "/lib/modules"
_COMMAND_LINE = "/proc/cmdline"

Stamp = tuple[int, int, int, int, int]
Signature = tuple[tuple[str, Stamp | None], ...]
"""For each path its device, inode, times of change in nanoseconds, that of its owner and mode too, and size.

None where it is not there."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An index and a configuration that belong together; neither changes any more."""

    index: Index
    config: Config
    signature: Signature

    def problems(self) -> list[str]:
        """Return what was wrong with the files, in sentences of printable characters."""
        found = (*self.index.problems, *map(str, self.config.problems))
        return [names.printable(os.fsencode(problem)) for problem in found]


def sign(directory: str) -> Signature:
    """Return how the files of a tree and the configuration stand; equal ones mean that nothing changed."""
    paths = [directory, *(f"{directory}/{name}" for name in FILES), *DIRECTORIES]
    found, _problems = modprobed.files(DIRECTORIES, None)
    return tuple((path, _stamp(path)) for path in (*paths, *found))


def _stamp(path: str) -> Stamp | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino, info.st_mtime_ns, info.st_ctime_ns, info.st_size


def places() -> set[str]:
    """Return the directories that hold configuration: modprobe.d's, and those that links there lead to."""
    found, _problems = modprobed.files(DIRECTORIES, None)
    return {
        *DIRECTORIES,
        *(os.path.dirname(os.path.realpath(path)) for path in found if os.path.islink(path)),
    }


def take(directory: str, *, only_trusted: bool) -> Snapshot:
    """Read all of it; it blocks, for tens of milliseconds or, without modules.dep, for seconds.

    Raises:
        NoTree: there is no such directory.
        Corrupt: a file of depmod's is not whole, and no other file has what it has.
    """
    signature = sign(directory)
    index = Index(directory)
    index.load_all()
    return Snapshot(index, configuration(index, only_trusted=only_trusted), signature)


def configuration(index: Index, *, only_trusted: bool) -> Config:
    """Read modprobe.d, the tree's own soft dependencies, and the kernel command line."""
    config = modprobed.load(DIRECTORIES, index.directory, kernel_command_line(), only_trusted=only_trusted)
    lines = index.softdep_lines()
    if lines is not None:
        modprobed.parse(config, lines, f"{index.directory} (.modinfo)")
    return config


def kernel_command_line() -> str | None:
    """Return the kernel command line; None where it cannot be read."""
    try:
        with open(_COMMAND_LINE, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(65536)
    except OSError:
        return None
