"""What a kernel is to kmodd: load, unload, list, and who is blocked. Linux and the simulated one do this."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from kmodd.kernel.uses import Kinds, StandsFor, Uses


class ModuleState(enum.Enum):
    """The states of /proc/modules."""

    LIVE = "live"
    """Initialised and usable."""
    COMING = "coming"
    """Its init function has not returned yet (`Loading` in /proc/modules)."""
    GOING = "going"
    """Its exit function is running (`Unloading`)."""


@dataclass(frozen=True, slots=True)
class Module:
    """A module in the kernel.

    `size` is in bytes; `refcount` is None where the kernel cannot unload modules; `holders` are the
    modules that use it; `permanent` ones can never be unloaded.
    """

    name: str
    size: int
    refcount: int | None
    holders: tuple[str, ...]
    state: ModuleState
    permanent: bool = False


class Wait(enum.Enum):
    """What a task is blocked on, as far as modules go."""

    REQUEST = "request"
    """On a request_module() of its own."""
    MODULE = "module"
    """On a module that another task is bringing in."""


@dataclass(frozen=True, slots=True)
class BlockedTask:
    """A task that waits for a module.

    `session` is its session id: each load has its own (S5), so it tells which load the task belongs to.
    `modules`: for REQUEST the modules whose code is on its stack (it runs their init), for MODULE those
    it may be waiting for.
    """

    tid: int
    session: int
    wait: Wait
    modules: frozenset[str] = frozenset()


class Kernel(Protocol):
    """A kernel, real or simulated. The calls may block: never make them on the event loop."""

    name: str
    """`linux` or `simulated`."""

    @property
    def release(self) -> str:
        """The kernel's release, as in `uname -r`."""

    def modules(self) -> Mapping[str, Module]:
        """Return the modules in the kernel by name, the one that came first first."""

    def holders(self) -> Mapping[str, tuple[str, ...]]:
        """Return the live ones of `modules()`, in the same order, with no more than their holders."""

    def load(self, module: str, parameters: str = "") -> None:
        """Load one module whose dependencies are live; return when its init has returned.

        `module` is a path for Linux, a name for the simulated kernel.

        Raises:
            OSError: EEXIST it is live; ENOENT a symbol that it needs is not there, or no such file; or
                whatever its init returned.
        """

    def unload(self, name: str) -> None:
        """Unload one module, without waiting for its users (O_NONBLOCK).

        Raises:
            OSError: ENOENT no such module; EWOULDBLOCK (EAGAIN) in use, or it has holders; EBUSY it is
                coming, going, or permanent; EPERM not allowed (delete_module(2)).
        """

    def uses(self, name: str, stands_for: StandsFor) -> Uses:
        """Return what is known to use a module in the kernel: nothing that it says is complete."""

    def uses_of(
        self, names: Collection[str], stands_for: StandsFor, kinds: Kinds | None
    ) -> Mapping[str, Uses]:
        """Return what is known to use each of these modules, also without a reference; see `inuse`."""

    def identity(self, name: str) -> str | None:
        """Return what a module in the kernel keeps, and no later module of its name gets, in any boot."""

    def blocked_tasks(self, sessions: Collection[int], threads: Collection[int] = ()) -> list[BlockedTask]:
        """Return the tasks blocked in request_module(), and who waits for a module of those that load.

        Those that load: the tasks of `sessions`, and our own `threads` by their thread ids.
        """

    def is_live(self, name: str) -> bool:
        """Return whether a module is live; of one that is part of the kernel image, False. Never blocks."""
