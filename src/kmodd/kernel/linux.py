"""The running Linux kernel."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

from kmodd.kernel import inuse, libc, modulecalls, stacks, uses
from kmodd.kernel.boot import boot_id
from kmodd.kernel.interface import BlockedTask, Module, ModuleState
from kmodd.kernel.uses import Kinds, StandsFor, Uses

_STATES = {"Live": ModuleState.LIVE, "Loading": ModuleState.COMING, "Unloading": ModuleState.GOING}


def parse_proc_modules(text: str) -> dict[str, Module]:
    """Return the modules of /proc/modules, the one that came first first (the kernel lists the last first).

    A line: name, size, refcount (`-` where modules cannot be unloaded), holders (`a,b,` or `-`, with
    `[permanent],` among them), state, address, taints. See m_show() in kernel/module/procfs.c.
    """
    modules: dict[str, Module] = {}
    for line in reversed(text.splitlines()):
        name, size, refcount, holders, state = line.split(" ", 5)[:5]
        modules[name] = Module(
            name=name,
            size=int(size),
            refcount=None if refcount == "-" else int(refcount),
            holders=_module_names(holders),
            state=_STATES[state],
            permanent="[permanent]" in holders.split(","),
        )
    return modules


def _module_names(holders: str) -> tuple[str, ...]:
    """Return the modules in the fourth field of /proc/modules: `-`, or `a,b,[permanent],`."""
    return tuple(item for item in holders.split(",") if item and item != "-" and item[0] != "[")


class LinuxKernel:
    """The kernel that this process runs on; see `interface.Kernel`."""

    name = "linux"

    def __init__(self, proc: str = "/proc", sys: str = "/sys") -> None:
        self._proc = proc
        self._sys = sys
        self._boot: str | None = None

    @property
    def release(self) -> str:
        """As in `uname -r`."""
        return os.uname().release

    def modules(self) -> Mapping[str, Module]:
        """Read /proc/modules; empty where the kernel was built without modules."""
        return parse_proc_modules(self._read())

    def holders(self) -> Mapping[str, tuple[str, ...]]:
        """Read /proc/modules; every load of an external modprobe does, twice."""
        found = {}
        for line in reversed(self._read().splitlines()):
            name, _size, _refcount, holders, state = line.split(" ", 5)[:5]
            if state == "Live":
                found[name] = () if holders == "-" else _module_names(holders)
        return found

    def _read(self) -> str:
        try:
            with open(f"{self._proc}/modules", encoding="ascii") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def load(self, module: str, parameters: str = "") -> None:
        """Load the module file `module` by finit_module(2), or init_module(2); see `modulecalls`."""
        modulecalls.load_image(module, os.fsencode(parameters))

    def unload(self, name: str) -> None:
        """Unload by delete_module(2), O_NONBLOCK, never forced."""
        libc.delete_module(name)

    def uses(self, name: str, stands_for: StandsFor) -> Uses:
        """Read PID 1's mounts and sysfs; see `uses`."""
        return uses.find(name, stands_for, self._proc, self._sys)

    def uses_of(
        self, names: Collection[str], stands_for: StandsFor, kinds: Kinds | None
    ) -> Mapping[str, Uses]:
        """Read much of procfs and sysfs; see `inuse`."""
        return inuse.look(names, stands_for, kinds, self._proc, self._sys)

    def identity(self, name: str) -> str | None:
        """The boot, and the inode of its directory in sysfs: never used again (kernfs, since 3.14)."""
        try:
            if self._boot is None:
                self._boot = boot_id()
            return f"{self._boot}:{os.stat(f'{self._sys}/module/{name}').st_ino}"
        except OSError:
            return None

    def is_live(self, name: str) -> bool:
        """Read its state in sysfs, which is in memory."""
        try:
            fd = os.open(f"{self._sys}/module/{name}/initstate", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return os.read(fd, 16) == b"live\n"
        except OSError:
            return False
        finally:
            os.close(fd)

    def blocked_tasks(self, sessions: Collection[int], threads: Collection[int] = ()) -> list[BlockedTask]:
        """Read the kernel stacks of tasks; see `stacks`."""
        coming = [name for name, module in self.modules().items() if module.state is ModuleState.COMING]
        if not coming:
            return []  # a load that asks for a module does so in an init function
        return stacks.blocked_tasks(sessions, coming, self._proc, threads)
