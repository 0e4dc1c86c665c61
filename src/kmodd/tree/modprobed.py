"""modprobe.d: its directories, their masking, and every directive (modprobe.d(5)).

All files are read in byte order of their names, the tree's own `modules.softdep` and `modules.weakdep`
among them. A line that is wrong is skipped and told with its file and number.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from kmodd.errors import KmoddError
from kmodd.image import whole
from kmodd.tree.glob import BadBrackets, is_literal, matches, normalise

DIRECTORIES = (
    "/etc/modprobe.d",
    "/run/modprobe.d",
    "/usr/local/lib/modprobe.d",
    "/usr/lib/modprobe.d",
    "/lib/modprobe.d",
)
"""Where configuration is, the highest first: a file name there masks the same name further down."""

_FILE_MAX = 16 << 20
"""Bytes of a file, and of all files together."""
_PROBLEMS_MAX = 1000
_WILD_MAX = 10_000
"""Lines with wildcards of one directive: every name is compared with each of them."""
_BLANK = " \t"
_TREE_FILES = ("modules.softdep", "modules.weakdep")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a directive stands: a file and the number of its line, from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        """Return `FILE:LINE`."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Problem:
    """A line or file that was skipped, and why."""

    place: Place
    text: str

    def __str__(self) -> str:
        """Return it as a message."""
        where = str(self.place) if self.place.line else self.place.file
        return f"{where}: {self.text}"


@dataclass(frozen=True, slots=True)
class Alias:
    """`alias PATTERN MODULE`."""

    pattern: str
    module: str
    place: Place


@dataclass(frozen=True, slots=True)
class Command:
    """`install PATTERN COMMAND` or `remove PATTERN COMMAND`."""

    pattern: str
    command: str
    place: Place


@dataclass(frozen=True, slots=True)
class Options:
    """`options MODULE PARAMETERS`, or a `module.parameter` of the kernel command line."""

    module: str
    parameters: str
    place: Place


@dataclass(frozen=True, slots=True)
class Softdep:
    """`softdep PATTERN pre: … post: …`; of a weakdep `pre` alone is used."""

    pattern: str
    pre: tuple[str, ...]
    post: tuple[str, ...]
    place: Place


class TooMany(KmoddError):
    """More lines with wildcards than a name can be compared with."""


class _HasPattern(Protocol):
    @property
    def pattern(self) -> str: ...


T = TypeVar("T", bound=_HasPattern)


class Lines(Generic[T]):
    """Directives with a pattern, in the order in which they were read."""

    __slots__ = ("_literal", "_patterns", "_wild", "items")

    def __init__(self) -> None:
        self.items: list[T] = []
        self._literal: dict[str, list[int]] = {}
        self._wild: list[int] = []
        self._patterns: set[str] = set()

    def add(self, item: T) -> None:
        """Add the next one.

        Raises:
            TooMany: there are 10,000 with wildcards.
        """
        if is_literal(item.pattern):
            self._literal.setdefault(item.pattern, []).append(len(self.items))
        elif len(self._wild) < _WILD_MAX:
            self._wild.append(len(self.items))
            self._patterns.add(item.pattern)
        else:
            raise TooMany(f"there are more than {_WILD_MAX} such lines with wildcards")
        self.items.append(item)

    def __contains__(self, pattern: str) -> bool:
        """Whether one has exactly this pattern."""
        return pattern in self._literal or pattern in self._patterns

    @property
    def wild(self) -> int:
        """How many have wildcards."""
        return len(self._wild)

    def find(self, names: Iterable[str]) -> list[T]:
        """Return those whose pattern matches one of a module's names, in order, each once."""
        if not self.items:
            return []
        found: set[int] = set()
        for name in names:
            if name in self._literal:
                found.update(self._literal[name])
            if self._wild:
                found.update(at for at in self._wild if matches(self.items[at].pattern, name))
        return [self.items[at] for at in sorted(found)] if found else []


@dataclass(slots=True)
class Config:
    """All of it, in the order in which it was read. Nothing changes it once it has been read."""

    aliases: Lines[Alias] = field(default_factory=Lines)
    blacklist: dict[str, Place] = field(default_factory=dict)
    options: list[Options] = field(default_factory=list)
    install: Lines[Command] = field(default_factory=Lines)
    remove: Lines[Command] = field(default_factory=Lines)
    softdeps: Lines[Softdep] = field(default_factory=Lines)
    weakdeps: Lines[Softdep] = field(default_factory=Lines)
    problems: list[Problem] = field(default_factory=list)
    _options: dict[str, list[int]] = field(default_factory=dict)

    def add_options(self, item: Options) -> None:
        """Add the next `options` line."""
        self._options.setdefault(item.module, []).append(len(self.options))
        self.options.append(item)

    def add_problem(self, place: Place, text: str) -> None:
        """Note what is wrong; of a thousand such things and more the rest is left out."""
        if len(self.problems) < _PROBLEMS_MAX:
            self.problems.append(Problem(place, text))
        elif len(self.problems) == _PROBLEMS_MAX:
            self.problems.append(Problem(place, f"{text}; what else is wrong is not told"))

    def parameters_of(self, names: Iterable[str]) -> str:
        """Return what the `options` lines of exactly one of a module's names say, one after the other."""
        known = [self._options[name] for name in names if name in self._options]
        if not known:
            return ""
        found = sorted({at for lines in known for at in lines})
        return " ".join(self.options[at].parameters for at in found)


# Files


def files(paths: Iterable[str], tree: str | None) -> tuple[list[str], list[Problem]]:
    """Return the configuration files below `paths` in the order in which they are read.

    `paths` are directories, or files that are taken as they are (`modprobe -C`). `tree`: the directory of
    the modules, whose own files are among them; None for none.
    """
    found: dict[str, str] = {}
    problems: list[Problem] = []
    for path in paths:
        try:
            info = os.stat(path)
            names = sorted(os.listdir(path)) if stat.S_ISDIR(info.st_mode) else [""]
        except FileNotFoundError:
            continue
        except OSError as err:
            problems.append(Problem(Place(path, 0), f"cannot be read: {err.strerror}"))
            continue
        for name in names:
            full = os.path.join(path, name) if name else path
            base = name or os.path.basename(path)
            if name and (name.startswith(".") or not name.endswith(".conf") or os.path.isdir(full)):
                continue
            found.setdefault(base, full)
    if tree is not None:
        for name in _TREE_FILES:
            found[name] = os.path.join(tree, name)
    return [found[name] for name in sorted(found, key=os.fsencode)], problems


def untrusted(path: str) -> str | None:
    """Return why a root daemon must not follow a configuration file, or None.

    It, the directory it is in, and that of what it is a link to, must be root's and not writable by others.
    """
    for what in dict.fromkeys((path, os.path.dirname(path), os.path.dirname(os.path.realpath(path)))):
        info = os.stat(what)
        if info.st_uid != 0:
            return f"{what} belongs to uid {info.st_uid}, not to root"
        if info.st_mode & 0o022 and not (stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX):
            return f"{what} may be written by others than root"
    return None


def load(
    paths: Iterable[str] = DIRECTORIES,
    tree: str | None = None,
    command_line: str | None = None,
    *,
    only_trusted: bool = False,
) -> Config:
    """Read the configuration. Nothing in it makes this fail: what cannot be used is in `problems`.

    `command_line`: the kernel's, None for none. `only_trusted`: leave out files that others than root can
    change, as whoever loads modules on behalf of others must.
    """
    config = Config()
    named = tuple(paths)
    names, problems = files(named, tree)
    for problem in problems:
        config.add_problem(problem.place, problem.text)
    total = 0
    for path in names:
        try:
            if only_trusted and (why := untrusted(path)):
                config.add_problem(Place(path, 0), f"left out: {why}")
                continue
            # A path that is named may be a pipe, as `modprobe -C <(…)` has it.
            data = whole.read(path, _FILE_MAX, pipe=path in named)
        except FileNotFoundError:
            continue
        except OSError as err:
            config.add_problem(Place(path, 0), f"cannot be read: {err.strerror}")
            continue
        total += len(data)
        if total > _FILE_MAX:
            config.add_problem(Place(path, 0), f"left out: all files have more than {_FILE_MAX >> 20} MiB")
            break
        parse(config, data.decode("utf-8", errors="surrogateescape"), path)
    if command_line is not None:
        parse_command_line(config, command_line)
    return config


# Lines


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield lines, those that end with a backslash joined to the next, with the number of their first."""
    number, begun, joined = 0, 0, ""
    for line in text.replace("\0", "").split("\n"):
        number += 1
        begun = begun or number
        if line.endswith("\\"):
            joined += line[:-1]
            continue
        yield begun, joined + line
        begun, joined = 0, ""
    if begun:
        yield begun, joined


def _word(text: str) -> tuple[str, str]:
    """Return the first word and what is behind the one blank after it (strtok_r(3))."""
    text = text.lstrip(_BLANK)
    for at, char in enumerate(text):
        if char in _BLANK:
            return text[:at], text[at + 1 :]
    return text, ""


def parse(config: Config, text: str, path: str) -> None:
    """Add the directives of one file."""
    for number, line in _logical_lines(text):
        if not line or line.startswith("#"):
            continue
        place = Place(path, number)
        directive, rest = _word(line)
        if not directive:
            continue
        try:
            problem = _directive(config, directive, rest, place)
        except (BadBrackets, TooMany) as err:
            problem = str(err)
        if problem:
            config.add_problem(place, problem)


def _directive(config: Config, directive: str, rest: str, place: Place) -> str | None:
    """Add one directive; return what is wrong with it."""
    first, rest = _word(rest)
    name = normalise(first)
    problem = None
    match directive:
        case _ if directive in {"include", "config"}:
            problem = f"{directive} is not supported any more"
        case "alias" | "options" | "install" | "remove" | "softdep" | "weakdep" | "blacklist" if not name:
            problem = f"{directive} lacks a name"
        case "blacklist":
            config.blacklist.setdefault(name, place)
        case "alias":
            module = normalise(_word(rest)[0])
            if module:
                config.aliases.add(Alias(name, module, place))
            else:
                problem = "alias lacks a module"
        case "options" | "install" | "remove" | "softdep" | "weakdep":
            problem = _with_text(config, directive, name, rest, place)
        case _:
            problem = f"{directive[:64]!r} is no directive"
    return problem


def _with_text(config: Config, directive: str, name: str, text: str, place: Place) -> str | None:
    if not text:
        return f"{directive} lacks what follows the name"
    match directive:
        case "options":
            config.add_options(Options(name, text, place))
        case "install":
            config.install.add(Command(name, text, place))
        case "remove":
            config.remove.add(Command(name, text, place))
        case "softdep":
            config.softdeps.add(_softdep(name, text, place))
        case "weakdep":
            config.weakdeps.add(Softdep(name, tuple(text.split()), (), place))
    return None


def _softdep(name: str, text: str, place: Place) -> Softdep:
    kinds: dict[str, list[str]] = {"pre:": [], "post:": []}
    current: list[str] = []  # what stands before `pre:` and `post:` is dropped
    for word in text.split():
        if word in kinds:
            current = kinds[word]
        else:
            current.append(word)
    return Softdep(name, tuple(kinds["pre:"]), tuple(kinds["post:"]), place)


# The kernel command line


def parse_command_line(config: Config, text: str) -> None:
    """Add what the kernel command line says of modules: `module.parameter[=value]`, `modprobe.blacklist=`.

    Quotes may stand around a value or a whole word; a second dot in a parameter's name drops the word.
    """
    place = Place("/proc/cmdline", 0)
    for word in _words(text):
        module, dot, rest = word.partition(".")
        name = rest.partition("=")[0]
        if not dot or not module or not rest or "." in name or "=" in module:
            continue
        if module == "modprobe" and name == "blacklist":
            for item in rest.partition("=")[2].split(","):
                if item:
                    config.blacklist.setdefault(item, place)
            continue
        try:
            config.add_options(Options(normalise(module), rest, place))
        except BadBrackets as err:
            config.add_problem(place, str(err))


def _words(text: str) -> Iterator[str]:
    """Yield the words, in which a quoted blank does not count; quotes around a whole word are dropped."""
    word, quoted = "", False
    for char in text:
        if char == '"':
            quoted = not quoted
            word += char
        elif char in " \t\n" and not quoted:
            if word:
                yield _unquoted(word)
            word = ""
        else:
            word += char
    if word:
        yield _unquoted(word)


def _unquoted(word: str) -> str:
    return word[1:-1] if len(word) > 1 and word[0] == word[-1] == '"' else word
