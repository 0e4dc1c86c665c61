"""What a name stands for: the first source that knows it, and all that it says, as modprobe looks."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from kmodd.tree.glob import normalise
from kmodd.tree.index import Index
from kmodd.tree.modprobed import Config


class Found(enum.Enum):
    """Where a name was found, in the order in which modprobe looks."""

    CONFIG = "alias in modprobe.d"
    """An `alias` of the configuration."""
    NAME = "name"
    """A module's name, in modules.dep."""
    SYMBOL = "symbol"
    """A symbol that a module exports."""
    COMMAND = "command"
    """A name that has an `install` or `remove` command, and no more."""
    ALIAS = "alias"
    """An alias of the module's own."""
    BUILTIN = "built-in"
    """A module that is part of the kernel image."""
    BUILTIN_ALIAS = "alias of built-in"
    """An alias of a module that is part of the kernel image."""


@dataclass(frozen=True, slots=True)
class Match:
    """A module that a name stands for.

    `alias`: what it was found by, where that is not its name: `options` for that text hold for it too;
    commands and soft dependencies do not. For an alias of the configuration it is the pattern as it is
    written.
    """

    module: str
    found: Found
    alias: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names that directives for this module may have."""
        return (self.module,) if self.alias is None else (self.module, self.alias)


def lookup(index: Index, config: Config, name: str) -> list[Match]:
    """Return the modules that a name stands for, in the order in which they are loaded; empty: none.

    Raises:
        BadBrackets: the name holds brackets that do not pair, or is longer than 4096 characters.
    """
    plain = normalise(name)
    if config.aliases.items and (configured := config.aliases.find((plain,))):
        return [Match(line.module, Found.CONFIG, line.pattern) for line in configured]
    if ":" not in plain:
        if plain in index:
            return [Match(plain, Found.NAME)]
    elif plain.startswith("symbol:") and (exporting := index.symbol(plain)):
        return [Match(module, Found.SYMBOL, plain) for module in exporting]
    if plain in config.install or plain in config.remove:
        return [Match(plain, Found.COMMAND)]
    if modules := index.alias(plain):
        return [Match(module, Found.ALIAS, plain) for module in modules]
    if index.is_builtin(plain):
        return [Match(plain, Found.BUILTIN)]
    return [Match(module, Found.BUILTIN_ALIAS, plain) for module in index.builtin_alias(plain)]
