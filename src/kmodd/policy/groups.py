"""The groups of modules that ship with kmodd, for rules such as `module = "@net-protocols"`."""

from __future__ import annotations

import functools
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from kmodd.errors import KmoddError
from kmodd.tree.glob import matches

_FILE = os.path.join(os.path.dirname(__file__), "groups.toml")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_PATTERN = re.compile(r"[A-Za-z0-9_*?]*[A-Za-z0-9_][A-Za-z0-9_*?]*")
"""Characters of names and stars, and not stars alone: a group of everything is no group."""


class BadGroups(KmoddError):
    """The file of groups is off."""


@dataclass(frozen=True, slots=True)
class Group:
    """`patterns`: globs on the names of modules, with those of the groups that it takes in, each once."""

    name: str
    description: str
    patterns: tuple[str, ...]

    def holds(self, module: str) -> bool:
        """Return whether a module of that name (with `_`) is in it."""
        return any(matches(pattern, module) for pattern in self.patterns)


@functools.lru_cache(maxsize=1)
def load() -> Mapping[str, Group]:
    """Return the groups that ship with kmodd by name, without the `@`.

    Raises:
        BadGroups: the file is not there, or not as it should be.
    """
    try:
        with open(_FILE, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as err:
        raise BadGroups(f"cannot read {_FILE}: {err}") from err
    return parse(text, _FILE)


def parse(text: str, name: str) -> Mapping[str, Group]:
    """Return the groups of a text in TOML; `name` is what messages call it.

    Raises:
        BadGroups: it is not TOML, or a group is not as it should be.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise BadGroups(f"{name} is not TOML: {err}") from err
    own: dict[str, tuple[str, ...]] = {}
    for group, table in tables.items():
        _check(group, table, name)
        own[group] = tuple(table["modules"])
    found = {
        group: Group(group, table["description"].strip(), tuple(_patterns(group, own, (), name)))
        for group, table in tables.items()
    }
    return MappingProxyType(found)


def _check(group: str, table: Any, name: str) -> None:
    if not _NAME.fullmatch(group):
        raise BadGroups(f"{name}: [{group}] is no name of a group: small letters, digits, and - between them")
    if not isinstance(table, dict) or table.keys() != {"description", "modules"}:
        raise BadGroups(f"{name}: [{group}] has to have description and modules, and nothing else")
    description, modules = table["description"], table["modules"]
    if not isinstance(description, str) or not description.strip():
        raise BadGroups(f"{name}: the description of [{group}] is not a text")
    if not isinstance(modules, list) or not modules:
        raise BadGroups(f"{name}: the modules of [{group}] are not a list")
    for pattern in modules:
        if not isinstance(pattern, str) or not (pattern[:1] == "@" or _PATTERN.fullmatch(pattern)):
            raise BadGroups(f"{name}: {pattern!r} of [{group}] is neither a glob on names with _ nor a group")
    if len(set(modules)) != len(modules):
        raise BadGroups(f"{name}: [{group}] names something twice")


def _patterns(group: str, own: Mapping[str, tuple[str, ...]], above: tuple[str, ...], name: str) -> list[str]:
    """Return the patterns of a group and of those that it takes in; `above` are the groups that lead here."""
    if group not in own:
        raise BadGroups(f"{name}: [{above[-1]}] takes in @{group}, which is not there")
    if group in above:
        raise BadGroups(f"{name}: [{group}] takes in itself, by {' and '.join(above)}")
    found: dict[str, None] = {}
    for pattern in own[group]:
        if pattern[0] == "@":
            found.update(dict.fromkeys(_patterns(pattern[1:], own, (*above, group), name)))
        else:
            found[pattern] = None
    return list(found)
