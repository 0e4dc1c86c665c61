"""What `modprobe` sees: the modules that are installed, and those that are in the kernel."""

from __future__ import annotations

import os

from kmodd.tree.index import Index, NoTree


class Tree(Index):
    """The modules of a release; there need not be any, `install` commands and built-in modules do without.

    `tells_builtin` off: what is built in passes for a module without a file, whose steps are to be shown.
    """

    def __init__(self, directory: str) -> None:
        self.tells_builtin = True
        try:
            super().__init__(directory)
        except NoTree:
            self._tables = {"modules": {}}

    def is_builtin(self, module: str) -> bool:
        """Return whether a module is part of the kernel image, and is to be taken as such."""
        return self.tells_builtin and super().is_builtin(module)

    def is_in_image(self, module: str) -> bool:
        """Return whether a module is part of the kernel image."""
        return super().is_builtin(module)

    def builtin_alias(self, name: str) -> list[str]:
        """Return the built-in modules that a name stands for."""
        if not self.tells_builtin and super().is_builtin(name):
            return [name]
        return super().builtin_alias(name)


def state(module: str) -> str | None:
    """Return `live`, `coming` or `going`; None where the kernel has no such module."""
    directory = f"/sys/module/{module}"
    try:
        fd = os.open(f"{directory}/initstate", os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError):
        # The kernel makes the directory first, the files in it later.
        return "coming" if os.path.isdir(directory) else None
    try:
        text = os.read(fd, 32).decode("ascii", "replace").rstrip("\n")
    except OSError:
        return None
    finally:
        os.close(fd)
    return text if text in ("live", "coming", "going") else None


class LiveModules:
    """The modules that need nothing done, asked of sysfs one by one."""

    __slots__ = ()

    def __contains__(self, module: object) -> bool:
        return isinstance(module, str) and state(module) == "live"


def refcount(module: str) -> int | None:
    """Return how often a module is in use; None where the kernel does not say."""
    try:
        with open(f"/sys/module/{module}/refcnt", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None
