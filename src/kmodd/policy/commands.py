"""The file that `kmodd policy deny` and `allow` write: one rule for each module. Pure, from text to text."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from kmodd.policy.parse import quoted
from kmodd.policy.patterns import plain
from kmodd.policy.rules import Action

_HEAD = """\
# Written by `kmodd policy deny`, `allow` and `forget`: changes by hand are lost.
"""


@dataclass(frozen=True, slots=True)
class Command:
    """What a command says of one module, or of a glob of modules. `until`: a day, or a moment.

    `by_name`: of requests for that name instead, which is an alias, or a glob of some.
    """

    module: str
    action: Action
    reason: str | None = None
    until: date | datetime | None = None
    by_name: bool = False


def commands(text: str) -> list[Command]:
    """Return the commands of a file as this wrote it.

    Raises:
        tomllib.TOMLDecodeError, KeyError, TypeError, ValueError: it was written by somebody else.
    """
    tables = tomllib.loads(text)
    if more := sorted(tables.keys() - {"rule"}):
        raise ValueError(f"there is {more[0]!r} in it, which no command writes")
    return [_command(rule) for rule in tables.get("rule", [])]


def _command(rule: Any) -> Command:
    # What somebody has written into it by hand is not to be lost, or to come to mean something else.
    if not isinstance(rule, dict):
        raise TypeError("a rule in it is no table")
    field = "name" if "name" in rule else "module"
    if more := sorted(rule.keys() - {field, "action", "reason", "until"}):
        raise ValueError(f"a rule in it has {more[0]!r}, which no command writes")
    module, reason, until = rule[field], rule.get("reason"), rule.get("until")
    if not isinstance(module, str) or not isinstance(reason, str | None):
        raise TypeError("a rule in it has a list, which no command writes")
    if not isinstance(until, date | None):
        raise TypeError("a rule in it has an until that is no date")
    return Command(module, Action(rule["action"]), reason, until, field == "name")


def changed(before: list[Command], *new: Command, forget: str | None = None) -> list[Command]:
    """Return the commands with new ones first, which take the place of older ones for the same module.

    However that was spelled: `-` and `_` are the same.
    """
    gone = {plain(command.module) for command in new}
    if forget is not None:
        gone.add(plain(forget))
    return [*new, *(command for command in before if plain(command.module) not in gone)]


def as_text(items: list[Command]) -> str:
    """Return the file."""
    return _HEAD + "".join(_rule(item) for item in items)


def _rule(item: Command) -> str:
    field = "name" if item.by_name else "module"
    lines = ["", "[[rule]]", f"{field} = {quoted(item.module)}", f'action = "{item.action.value}"']
    if item.reason is not None:
        lines.append(f"reason = {quoted(item.reason)}")
    if item.until is not None:
        lines.append(f"until = {item.until.isoformat()}")
    return "\n".join(lines) + "\n"
