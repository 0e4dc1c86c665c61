"""The modules of one kernel release, from what depmod(8) wrote below /lib/modules/RELEASE.

Each table is read when it is first needed, from its text file, else from its `.bin` file. Where there is
no modules.dep at all the modules' own `.modinfo` is read instead (`scan`).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from kmodd.errors import KmoddError
from kmodd.image import whole
from kmodd.tree import binary
from kmodd.tree.aliases import AliasTable
from kmodd.tree.glob import LONGEST, BadBrackets, normalise

_FILE_MAX = 64 << 20
"""Bytes. The largest, of a kernel with everything in modules, has some 3 million."""
_PIECE = 1 << 16
"""Bytes of a text file that are made into lines at once."""
T = TypeVar("T")

FILES = (
    "modules.dep",
    "modules.dep.bin",
    "modules.alias",
    "modules.alias.bin",
    "modules.symbols",
    "modules.symbols.bin",
    "modules.softdep",
    "modules.weakdep",
    "modules.builtin",
    "modules.builtin.bin",
    "modules.builtin.alias.bin",
    "modules.builtin.modinfo",
    "modules.order",
    "modules.devname",
)
"""The files of a tree that any table is made from."""


class NoTree(KmoddError):
    """There is no directory of modules for a release."""


class Corrupt(KmoddError):
    """A file of depmod's that is not whole: cut, or written in part."""


def module_name(path: str) -> str:
    """Return the name of the module in a file: `kernel/net/9p/9pnet-virtio.ko.xz` is `9pnet_virtio`."""
    return path[path.rfind("/") + 1 :].partition(".")[0].replace("-", "_")


class Index:
    """What is installed for one release. Immutable: `load_all` only reads ahead.

    `problems`: what was wrong with its files, in sentences.
    """

    def __init__(self, directory: str) -> None:
        """Take the tree in `directory`; nothing is read yet.

        Raises:
            NoTree: there is no such directory.
        """
        self.directory = directory.rstrip("/") or "/"
        self.release = os.path.basename(self.directory)
        self.problems: list[str] = []
        self._tables: dict[str, Any] = {}
        self._needs: dict[str, tuple[str, ...]] = {}
        self.scanned = False
        """Whether it was made without modules.dep, from the modules themselves."""
        self.source = "text"
        """What it was made from: `text`, `bin`, or `modules`, their own .modinfo."""
        try:
            found = stat.S_ISDIR(os.stat(self.directory).st_mode)
        except OSError:
            found = False
        if not found:
            raise NoTree(f"{self.directory} is not there: no modules of {self.release} are installed")

    def load_all(self) -> None:
        """Read every table now.

        Raises:
            Corrupt: a file is not whole, and there is no other for what it has.
        """
        for table in (
            self._modules,
            self._aliases,
            self._symbols,
            self._builtin,
            self._builtin_aliases,
            self._devnames,
        ):
            table()

    # What is asked of it

    def __contains__(self, module: str) -> bool:
        """Whether a module of that normalised name is installed as a file."""
        return module in (self._tables.get("modules") or self._modules())

    def modules(self) -> Iterator[str]:
        """Yield the names of all module files, in the order of modules.dep."""
        return iter(self._modules())

    def path(self, module: str) -> str | None:
        """Return the absolute path of a module's file; None where it has none."""
        line = self._modules().get(module)
        return None if line is None else self._absolute(line.partition(":")[0])

    def dependencies(self, module: str) -> tuple[str, ...]:
        """Return all that a module needs, directly or not, in an order in which it can be loaded."""
        needs = self._needs.get(module)
        if needs is not None:
            return needs
        line = self._modules().get(module)
        if line is None:
            return ()
        needs = tuple([sys.intern(module_name(path)) for path in reversed(line.partition(":")[2].split())])
        # A plan asks for those of a module again and again; few of all modules are ever in one.
        self._needs[module] = needs
        return needs

    def alias(self, name: str) -> list[str]:
        """Return the modules whose own aliases match a normalised name, in ascending priority."""
        return self._aliases().find(name)

    def symbol(self, name: str) -> list[str]:
        """Return the modules that export a symbol, given as `symbol:NAME`."""
        found = (self._tables.get("symbols") or self._symbols()).get(name, ())
        return [found] if isinstance(found, str) else list(found)

    def is_builtin(self, module: str) -> bool:
        """Return whether a module is part of the kernel image."""
        return module in self._builtin()

    def builtin_alias(self, name: str) -> list[str]:
        """Return the built-in modules whose aliases match a normalised name."""
        return self._builtin_aliases().find(name)

    def builtin_info(self, module: str) -> list[tuple[str, str]]:
        """Return the .modinfo of a built-in module, from modules.builtin.modinfo."""
        return [(key, value) for name, key, value in self._builtin_modinfo() if name == module]

    def builtins(self) -> Iterable[str]:
        """Return the names of all built-in modules."""
        return self._builtin()

    def aliases(self) -> list[tuple[str, str]]:
        """Return every alias pattern with its module, in ascending priority."""
        return self._aliases().patterns()

    def symbols(self) -> Iterable[str]:
        """Return every exported symbol, as `symbol:NAME`."""
        return self._symbols()

    def devnames(self) -> list[tuple[str, str, str]]:
        """Return the device nodes that stand for modules: module, node, `c10:235` (modules.devname)."""
        found: list[tuple[str, str, str]] = self._devnames()
        return found

    def softdep_lines(self) -> str | None:
        """Return what a scan has found of soft dependencies, as in modules.softdep; else None."""
        self._modules()
        return self._tables.get("softdeps") if self.scanned else None

    # Tables

    def _table(self, name: str, make: Callable[[], Any]) -> Any:
        found = self._tables.get(name)
        if found is None:
            found = self._tables[name] = make()
        return found

    def _modules(self) -> dict[str, str]:
        found: dict[str, str] = self._table("modules", self._read_modules)
        return found

    def _aliases(self) -> AliasTable:
        found: AliasTable = self._tables.get("aliases") or self._table("aliases", self._read_aliases)
        return found

    def _symbols(self) -> dict[str, str | list[str]]:
        found: dict[str, str | list[str]] = self._table("symbols", self._read_symbols)
        return found

    def _builtin(self) -> frozenset[str]:
        found: frozenset[str] = self._table("builtin", self._read_builtin)
        return found

    def _builtin_aliases(self) -> AliasTable:
        found: AliasTable = self._table("builtin.alias", self._read_builtin_aliases)
        return found

    def _devnames(self) -> list[tuple[str, str, str]]:
        found: list[tuple[str, str, str]] = self._table("devname", self._read_devnames)
        return found

    # Files

    def _absolute(self, path: str) -> str:
        return path if path.startswith("/") else f"{self.directory}/{path}"

    def _bytes(self, name: str) -> bytes | None:
        path = f"{self.directory}/{name}"
        try:
            return whole.read(path, _FILE_MAX)
        except FileNotFoundError:
            return None
        except OSError as err:
            raise Corrupt(f"cannot read {path}: {err.strerror}") from err

    def _lines(self, name: str) -> Iterator[str] | None:
        """Return the lines of a text file; None where it is not there.

        They are made as they are taken: all of them at once are memory that does not come back.

        Raises:
            Corrupt: it is cut in the middle of a line, or is no text.
        """
        data = self._bytes(name)
        if data is None:
            return None
        if data and not data.endswith(b"\n"):
            raise Corrupt(f"{self.directory}/{name} ends in the middle of a line: it is written in part")
        if b"\0" in data:
            raise Corrupt(f"{self.directory}/{name} is no text: it is damaged")
        return _split(data)

    def _some_lines(self, name: str) -> Iterator[str] | None:
        """Return the lines of a text file; None where there are none: that is what a lost write leaves."""
        lines = self._lines(name)
        first = None if lines is None else next(lines, None)
        return None if lines is None or first is None else itertools.chain((first,), lines)

    def _no_line(self, name: str, number: int, line: str) -> Corrupt:
        return Corrupt(f"{self.directory}/{name}:{number}: {line[:80]!r} is no line of depmod's")

    def _entries(self, name: str) -> list[tuple[str, str, int]] | None:
        data = self._bytes(name)
        if not data:
            return None
        try:
            return list(binary.entries(data))
        except binary.CorruptIndex as err:
            raise Corrupt(f"{self.directory}/{name}: {err}") from err

    def _either(self, text: Callable[[], Any], other: Callable[[], Any]) -> Any:
        """Return what the text file gives, else the `.bin` file; None where neither is there.

        Raises:
            Corrupt: neither is whole.
        """
        try:
            found = text()
        except Corrupt as err:
            with contextlib.suppress(Corrupt):
                found = other()
                if found is not None:
                    self.problems.append(str(err))
                    return found
            raise
        return other() if found is None else found

    def _read_modules(self) -> dict[str, str]:
        found: dict[str, str] | None = self._either(self._text_modules, self._binary_modules)
        if found is not None:
            return found
        return self._scan()

    def _text_modules(self) -> dict[str, str] | None:
        lines = self._some_lines("modules.dep")
        if lines is None:
            return None  # the modules know better
        modules = {}
        for number, line in enumerate(lines, 1):
            path, colon, _dependencies = line.partition(":")
            if not colon:
                raise self._no_line("modules.dep", number, line)
            modules[module_name(path)] = line
        return modules

    def _binary_modules(self) -> dict[str, str] | None:
        entries = self._entries("modules.dep.bin")
        if entries is not None:
            self.source = "bin"
        return None if entries is None else {key: value for key, value, _priority in entries}

    def _read_aliases(self) -> AliasTable:
        self._modules()
        if self.scanned:
            return AliasTable(self._tables["scanned.alias"])
        found: AliasTable | None = self._either(
            lambda: _made(AliasTable, self._text_aliases("modules.alias")),
            lambda: _made(AliasTable, self._binary_aliases("modules.alias.bin")),
        )
        return AliasTable(()) if found is None else found

    def _text_aliases(self, name: str) -> Iterator[tuple[str, str]] | None:
        lines = self._some_lines(name)  # depmod writes a comment at least
        return None if lines is None else self._alias_lines(name, lines)

    def _alias_lines(self, name: str, lines: Iterator[str]) -> Iterator[tuple[str, str]]:
        for number, line in enumerate(lines, 1):
            if not line or line[0] == "#":
                continue
            words = line.split(" ")
            if len(words) != 3 or words[0] != "alias":
                # An alias may hold a blank, which no name that is asked for does.
                if words[0] == "alias" and len(words) > 3:
                    continue
                raise self._no_line(name, number, line)
            with contextlib.suppress(BadBrackets):
                yield normalise(words[1]), words[2]

    def _binary_aliases(self, name: str) -> list[tuple[str, str]] | None:
        entries = self._entries(name)
        if entries is None:
            return None
        entries.sort(key=lambda entry: entry[2])
        return [(key, value) for key, value, _priority in entries if len(key) <= LONGEST]

    def _read_symbols(self) -> dict[str, str | list[str]]:
        found: dict[str, str | list[str]] | None = self._either(
            lambda: _made(_symbol_table, self._text_aliases("modules.symbols")),
            lambda: _made(_symbol_table, self._binary_aliases("modules.symbols.bin")),
        )
        return found or {}

    def _read_builtin(self) -> frozenset[str]:
        found: frozenset[str] | None = self._either(self._text_builtin, self._binary_builtin)
        if found is None:
            return frozenset(name for name, _key, _value in self._builtin_modinfo())
        return found

    def _text_builtin(self) -> frozenset[str] | None:
        lines = self._lines("modules.builtin")
        return None if lines is None else frozenset(module_name(line) for line in lines if line)

    def _binary_builtin(self) -> frozenset[str] | None:
        entries = self._entries("modules.builtin.bin")
        return None if entries is None else frozenset(key for key, _value, _priority in entries)

    def _builtin_modinfo(self) -> list[tuple[str, str, str]]:
        """Return module, key and value of what modules.builtin.modinfo holds, each ended by a NUL."""
        data = self._bytes("modules.builtin.modinfo")
        found = []
        for item in (data or b"").split(b"\0"):
            name, dot, rest = item.decode("utf-8", errors="surrogateescape").partition(".")
            key, _, value = rest.partition("=")
            if dot and key:
                found.append((name.replace("-", "_"), key, value))
        return found

    def _read_builtin_aliases(self) -> AliasTable:
        lines = self._binary_aliases("modules.builtin.alias.bin")
        if lines is None:
            lines = []
            for module, key, value in self._builtin_modinfo():
                if key == "alias":
                    with contextlib.suppress(BadBrackets):
                        lines.append((normalise(value), module))
        return AliasTable(lines)

    def _read_devnames(self) -> list[tuple[str, str, str]]:
        words = [line.split() for line in self._lines("modules.devname") or () if line[:1] != "#"]
        return [(item[0], item[1], item[2]) for item in words if len(item) == 3]

    # Without depmod

    def _scan(self) -> dict[str, str]:
        from kmodd.tree.scan import scan  # noqa: PLC0415 - reading ELF and decompressing is rarely needed

        self.scanned, self.source = True, "modules"
        found = scan(self.directory)
        self._tables["scanned.alias"] = found.aliases
        self._tables["softdeps"] = found.softdeps
        self.problems += found.problems
        return found.modules


def _split(data: bytes) -> Iterator[str]:
    """Yield the lines of a text that ends with one."""
    at = 0
    while at < len(data):
        end = data.find(b"\n", min(at + _PIECE, len(data) - 1)) + 1
        yield from data[at:end].decode("utf-8", errors="surrogateescape").split("\n")[:-1]
        at = end


def _made(
    make: Callable[[Iterable[tuple[str, str]]], T], lines: Iterable[tuple[str, str]] | None
) -> T | None:
    """Return what is made of lines; None where there is no file."""
    return None if lines is None else make(lines)


def _symbol_table(lines: Iterable[tuple[str, str]]) -> dict[str, str | list[str]]:
    symbols: dict[str, str | list[str]] = {}
    for symbol, name in lines:
        module = sys.intern(name)  # one of a few, not one for each symbol
        before = symbols.setdefault(symbol, module)
        if isinstance(before, list):
            before.append(module)
        elif before != module:
            symbols[symbol] = [before, module]
    return symbols
