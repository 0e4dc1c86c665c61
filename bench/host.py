"""What workloads on the machine itself share: programs of bench/native, a module tree, processes timed."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
from pathlib import Path

from kmodd.errors import KmoddError
from kmodd.lab.kernels import InstalledKernel, find_installed

ROOT = Path(__file__).resolve().parents[1]
_NATIVE = ROOT / "bench/native"
_STRICT = ("-O2", "-Wall", "-Wextra", "-Werror")
_PROGRAMS = {
    "nothing": ("nothing.S", ("-nostdlib", "-static"), ()),
    "spawn": ("spawn.c", _STRICT, ()),
    "libkmod": ("libkmod.c", _STRICT, ("-l:libkmod.so.2",)),
    "kernel": ("kernel.c", (*_STRICT, "-shared", "-fPIC"), ("-ldl",)),
}
# As helper/meson.build has it, in the order of helper/README.md.
_LEAN = shlex.split(
    "-DKMODD_LEAN -Os -ffreestanding -fno-builtin -fno-pie -fno-stack-protector "
    "-fno-asynchronous-unwind-tables -fcf-protection=none -fno-tree-loop-distribute-patterns"
)
_LEAN_LINK = shlex.split(
    "-static -nostdlib -no-pie -Wl,-z,noseparate-code -Wl,-z,norelro -Wl,-z,noexecstack "
    "-Wl,--build-id=none -s"
)


class Host:
    """Made of what is in `directory`, which is nobody else's and is removed behind it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @functools.cached_property
    def tree(self) -> InstalledKernel:
        """The kernel whose modules are resolved: the one that the guests run, too."""
        return find_installed()

    def modprobe(self, *words: str) -> list[str]:
        """Return the command that runs the stock modprobe on that tree."""
        root = str(self.tree.modules.parents[2])
        return [tool("modprobe"), "-d", root, "-S", self.tree.release, *words]

    def program(self, name: str) -> str:
        """Return a program of bench/native, built when it is first asked for."""
        source, flags, libraries = _PROGRAMS[name]
        path = self.directory / name
        if not path.exists():
            _compile(*flags, str(_NATIVE / source), "-o", str(path), *libraries)
        return str(path)

    def helper(self, run_directory: Path) -> str:
        """Return the kernel's helper as it ships, but that it looks for the daemon in `run_directory`."""
        path = run_directory.parent / "helper"
        where = f'-DKMODD_DIRECTORY="{run_directory}"'
        source = str(ROOT / "helper/kmodd-helper.c")
        _compile(*_LEAN, where, source, "-o", str(path), *_LEAN_LINK)
        return str(path)

    def spawn(self, count: int, *argv: str, at_once: int = 1) -> tuple[int, list[int]]:
        """Start a program `count` times, at most so many at once; return nanoseconds: of all, and of each.

        Those of each are there where they run one at a time. It is done in C, as the kernel does it.
        """
        done = subprocess.run(
            [self.program("spawn"), str(count), str(at_once), *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise KmoddError(f"cannot run {argv[0]}: {done.stderr.strip()}")
        total, *each = map(int, done.stdout.split())
        return total, each


def tool(name: str) -> str:
    """Return the path of a program, also of one that only root's PATH has."""
    found = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin")
    if found is None:
        raise KmoddError(f"{name} is not installed: tools/setup test installs it")
    return found


def _compile(*words: str) -> None:
    done = subprocess.run(["gcc", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise KmoddError(f"cannot build a program of the bench: {done.stderr.strip()}")


def process_field(pid: int | str, key: str) -> int | None:
    """Return a number of /proc/PID/status, such as VmRSS in KiB; None where that process has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0])
    return None


def switches(pid: int) -> int:
    """Return how often the threads of a process have gone to sleep: each is a wake-up that has ended."""
    tasks = (int(path.name) for path in Path(f"/proc/{pid}/task").iterdir())
    return sum(process_field(task, "voluntary_ctxt_switches") or 0 for task in tasks)


def running(comm: str) -> int | None:
    """Return the pid of a program that runs on this machine; None where it does not."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().strip() == comm:
                return int(path.parent.name)
        except OSError:
            continue
    return None
