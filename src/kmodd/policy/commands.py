"""The file that `kmodd policy deny` and `allow` write: one rule for each module. Pure, from text to text."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from datetime import date, datetime

from kmodd.policy.rules import Action

_HEAD = """\
# Written by `kmodd policy deny`, `allow` and `forget`: changes by hand are lost.
"""


@dataclass(frozen=True, slots=True)
class Command:
    """What a command says of one module, or of a glob of modules. `until`: a day, or a moment."""

    module: str
    action: Action
    reason: str | None = None
    until: date | datetime | None = None


def commands(text: str) -> list[Command]:
    """Return the commands of a file as this wrote it.

    Raises:
        tomllib.TOMLDecodeError, KeyError, TypeError, ValueError: it was written by somebody else.
    """
    return [
        Command(str(rule["module"]), Action(rule["action"]), rule.get("reason"), rule.get("until"))
        for rule in tomllib.loads(text).get("rule", [])
    ]


def changed(before: list[Command], new: Command | None, forget: str | None = None) -> list[Command]:
    """Return the commands with a new one first, which takes the place of an older one for the same module."""
    gone = new.module if new is not None else forget
    kept = [command for command in before if command.module != gone]
    return kept if new is None else [new, *kept]


def as_text(items: list[Command]) -> str:
    """Return the file."""
    return _HEAD + "".join(_rule(item) for item in items)


def _rule(item: Command) -> str:
    lines = ["", "[[rule]]", f"module = {json.dumps(item.module)}", f'action = "{item.action.value}"']
    if item.reason is not None:
        lines.append(f"reason = {json.dumps(item.reason, ensure_ascii=False)}")
    if item.until is not None:
        lines.append(f"until = {item.until.isoformat()}")
    return "\n".join(lines) + "\n"
