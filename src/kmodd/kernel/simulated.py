"""A kernel in memory that follows the same rules: dependencies, refcounts, states, errno, nested requests.

For unit tests, fault injection and machines without modules. One contract test suite passes on this one
and on Linux. It has no threads and no clock of its own: `begin` and `finish` are the two ends of a load,
and whoever drives it decides what happens in between.
"""

from __future__ import annotations

import errno
import os
import secrets
import threading
import time
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kmodd.errors import SettingsError
from kmodd.kernel.interface import BlockedTask, Module, ModuleState
from kmodd.kernel.uses import Kinds, StandsFor, Uses
from kmodd.names import normalise


@dataclass(frozen=True, slots=True)
class Installed:
    """An installed module of the simulated kernel.

    `latency`: seconds its init takes; `error`: the errno (positive) its init fails with, 0 for none;
    `requests`: the names its init asks for by request_module(), one after the other.
    """

    name: str
    depends: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    size: int = 16384
    latency: float = 0.0
    error: int = 0
    requests: tuple[str, ...] = ()
    builtin: bool = False
    permanent: bool = False


def _os_error(number: int, what: str) -> OSError:
    return OSError(number, os.strerror(number), what)


class SimulatedKernel:
    """See `interface.Kernel`. Safe to use from several threads."""

    name = "simulated"
    release = "simulated"

    def __init__(
        self, installed: Iterable[Installed] = (), sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.installed = {module.name: module for module in installed}
        self._by_alias: dict[str, list[str]] = {}
        for module in self.installed.values():
            for alias in module.aliases:
                self._by_alias.setdefault(alias, []).append(module.name)
        self._sleep = sleep
        self._modules: dict[str, Module] = {}
        self._users: dict[str, int] = {}
        self._identities: dict[str, int] = {}
        self._boot = secrets.token_hex(8)
        self._changed = threading.Condition()
        self._watchers: list[Callable[[str], None]] = []
        self.blocked: dict[int, BlockedTask] = {}
        """Who is blocked, by task id: kept by whoever drives the loads."""

    # What is installed

    def resolve(self, name: str) -> list[str]:
        """Return the installed modules that `name`, a module's name or an alias, stands for."""
        plain = normalise(name)
        if plain in self.installed:
            return [plain]
        return self._by_alias.get(name, [])

    def closure(self, name: str) -> list[str]:
        """Return an installed module behind all that it depends on, in an order that they load in."""
        order: dict[str, None] = {}

        def visit(module: str, path: tuple[str, ...]) -> None:
            if module in order or module in path:
                return
            for dependency in self.installed[module].depends if module in self.installed else ():
                visit(dependency, (*path, module))
            order[module] = None

        visit(name, ())
        return list(order)

    # interface.Kernel

    def modules(self) -> Mapping[str, Module]:
        """Return the modules in this kernel, the one that came first first."""
        with self._changed:
            holders: dict[str, list[str]] = {name: [] for name in self._modules}
            for name in self._modules:
                for dependency in self.installed[name].depends:
                    if dependency in holders:
                        holders[dependency].append(name)
            return {
                name: replace(
                    module,
                    holders=tuple(holders[name]),
                    refcount=len(holders[name]) + self._users.get(name, 0),
                )
                for name, module in self._modules.items()
            }

    def holders(self) -> Mapping[str, tuple[str, ...]]:
        """Return the holders of the live modules in this kernel."""
        live = ModuleState.LIVE
        return {name: module.holders for name, module in self.modules().items() if module.state is live}

    def load(self, module: str, parameters: str = "") -> None:  # noqa: ARG002 - the interface's
        """Load one installed module by name, sleeping its latency."""
        with self._changed:
            while not self.begin(module):
                self._changed.wait()
        self._sleep(self.installed[module].latency)
        self.finish(module)

    def unload(self, name: str) -> None:
        """Unload one module."""
        with self._changed:
            module = self.modules().get(name)
            if module is None:
                raise _os_error(errno.ENOENT, name)
            # The order of delete_module() in kernel/module/main.c: holders, state, exit function, users.
            if module.holders:
                raise _os_error(errno.EWOULDBLOCK, name)
            if module.state is not ModuleState.LIVE or module.permanent:
                raise _os_error(errno.EBUSY, name)
            if module.refcount:
                raise _os_error(errno.EWOULDBLOCK, name)
            del self._modules[name]
            self._tell(name)

    def uses(self, name: str, stands_for: StandsFor) -> Uses:  # noqa: ARG002 - the interface's
        """Nothing: there are no devices and no mounts here, only counts."""
        return Uses()

    def uses_of(
        self,
        names: Collection[str],
        stands_for: StandsFor,
        kinds: Kinds | None,  # noqa: ARG002 - the interface's
    ) -> Mapping[str, Uses]:
        """Return what `uses` does of each."""
        return {name: self.uses(name, stands_for) for name in names}

    def identity(self, name: str) -> str | None:
        """Return which coming of the module this is; None where it is not in the kernel."""
        return f"{self._boot}:{self._identities[name]}" if name in self._modules else None

    def is_live(self, name: str) -> bool:
        """Return whether a module is live."""
        module = self._modules.get(name)
        return module is not None and module.state is ModuleState.LIVE

    def blocked_tasks(
        self,
        sessions: Collection[int],  # noqa: ARG002 - the interface's
        threads: Collection[int] = (),  # noqa: ARG002 - as above
    ) -> list[BlockedTask]:
        """Return who is blocked."""
        return list(self.blocked.values())

    # The two ends of a load, and faults

    def begin(self, name: str) -> bool:
        """Begin to load a module; False while another task is bringing it in: wait for a change, ask again.

        Raises:
            OSError: EEXIST it is live; ENOENT it is not installed, or a dependency is not live.
        """
        with self._changed:
            module = self.installed.get(name)
            if module is None or module.builtin:
                raise _os_error(errno.ENOENT if module is None else errno.EEXIST, name)
            present = self._modules.get(name)
            if present is not None:
                if present.state is ModuleState.LIVE:
                    raise _os_error(errno.EEXIST, name)
                return False
            for dependency in module.depends:
                needed = self.installed.get(dependency)
                if needed is not None and needed.builtin:
                    continue
                live = self._modules.get(dependency)
                if live is None or live.state is not ModuleState.LIVE:
                    raise _os_error(errno.ENOENT, f"{name}: Unknown symbol of {dependency}")
            self._modules[name] = Module(name, module.size, 0, (), ModuleState.COMING, module.permanent)
            self._identities[name] = self._identities.get(name, 0) + 1
            self._tell(name)
            return True

    def finish(self, name: str) -> None:
        """End a load that `begin` began: live, or gone again with its init's errno.

        Raises:
            OSError: what its init returned.
        """
        with self._changed:
            module = self.installed[name]
            if module.error:
                del self._modules[name]
                self._tell(name)
                raise _os_error(module.error, name)
            self._modules[name] = replace(self._modules[name], state=ModuleState.LIVE)
            self._tell(name)

    def use(self, name: str, change: int) -> None:
        """Count users of a module up or down, as open files and sockets do."""
        with self._changed:
            self._users[name] = max(0, self._users.get(name, 0) + change)

    def watch(self, watcher: Callable[[str], None]) -> None:
        """Call `watcher(name)` after each change of a module's state, in the thread that made it."""
        self._watchers.append(watcher)

    def _tell(self, name: str) -> None:
        self._changed.notify_all()
        for watcher in self._watchers:
            watcher(name)


DEFAULT_MODULES = (
    Installed("dccp"),
    Installed("dccp_ipv4", depends=("dccp",), aliases=("net-pf-2-proto-33-type-6", "net-pf-33")),
    Installed("crc32c_generic", aliases=("crypto-crc32c", "crypto-crc32c-generic")),
    Installed("libcrc32c", depends=("crc32c_generic",)),
    Installed("sctp", depends=("libcrc32c",), aliases=("net-pf-2-proto-132-type-1", "net-pf-2-proto-132")),
    Installed("cbc", aliases=("crypto-cbc",)),
    Installed("dm_mod", aliases=("char-major-10-236", "devname:mapper/control")),
    Installed("dm_crypt", depends=("dm_mod",), requests=("crypto-cbc",)),
    Installed("isofs", aliases=("fs-iso9660", "iso9660")),
    Installed("loop", aliases=("block-major-7-0", "devname:loop-control")),
    Installed("ext4", aliases=("fs-ext4", "fs-ext3", "fs-ext2"), builtin=True),
)
"""What is installed where no `simulated.toml` says otherwise: enough to try things with."""

_KEYS: dict[str, type | tuple[type, ...]] = {
    "depends": list,
    "aliases": list,
    "size": int,
    "latency": (int, float),
    "error": (int, str),
    "requests": list,
    "builtin": bool,
    "permanent": bool,
}


def installed_below(root: str) -> tuple[Installed, ...]:
    """Return what `etc/kmodd/simulated.toml` below `root` installs: one `[NAME]` table a module.

    Keys as in `Installed`; `error` also takes a symbol such as "ENODEV". Without the file: a few
    well-known modules.

    Raises:
        SettingsError: the file is not as it should be; the message names it.
    """
    path = os.path.join(root, "etc/kmodd/simulated.toml")
    try:
        with open(path, "rb") as file:
            tables = tomllib.load(file)
    except FileNotFoundError:
        return DEFAULT_MODULES
    except OSError as err:
        raise SettingsError(f"cannot read {path}: {err.strerror}") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise SettingsError(f"{path}: not TOML: {err}") from err
    return tuple(_installed(path, normalise(name), table) for name, table in tables.items())


def _installed(path: str, name: str, table: object) -> Installed:
    if not isinstance(table, dict):
        raise SettingsError(f"{path}: {name} is not a table [{name}]")
    values: dict[str, Any] = {}
    for key, value in table.items():
        kind = _KEYS.get(key)
        if kind is None or not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise SettingsError(f"{path}: [{name}] has a key {key!r} that is unknown or of the wrong type")
        values[key] = tuple(str(item) for item in value) if isinstance(value, list) else value
    if isinstance(values.get("error"), str):
        number = getattr(errno, values["error"], None)
        if not isinstance(number, int):
            raise SettingsError(f"{path}: [{name}] error {values['error']!r} is no errno")
        values["error"] = number
    return Installed(name, **values)
