"""A policy file, from its text to rules. Every mistake is told with file and line."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any, TypeVar

from kmodd.errors import KmoddError
from kmodd.model import Source
from kmodd.policy.patterns import Globs, Numbers
from kmodd.policy.rules import OPERATIONS, Action, Mode, Rate, Rule

_Choice = TypeVar("_Choice", Action, Mode)

RULES_MAX = 5_000
"""Rules of one file: a request is compared with each."""
_VALUES_MAX = 20_000
_TEXT_MAX = 1024
_GLOB_MAX = 3 * 4096
"""Characters of a value: the longest path, each character of it in brackets."""
_ID_MAX = (1 << 32) - 1
_RATE = re.compile(r"([0-9]{1,9})/(s|sec|min|h|hour|d|day)")
_SECONDS = {"s": 1, "sec": 1, "min": 60, "h": 3600, "hour": 3600, "d": 86400, "day": 86400}
_HEADER = re.compile(r"""^\s*\[\[\s*(?:rule|"rule"|'rule')\s*\]\]""")
_ENDS = {"'''": re.compile(r".*?'{3,5}"), '"""': re.compile(r'(?:[^"\\]|\\.|"(?!""))*"{3,5}')}
"""The rest of a string of several lines: up to two quotes may stand before the three that end it."""
_PART = re.compile(r"'''|\"\"\"|\"(?:[^\"\\]|\\.)*\"|'[^']*'|#.*")

FIELDS = (
    "name", "module", "source", "operation", "privileged", "uid", "gid", "user", "group", "exe", "unit",
    "container", "call_site", "action", "reason", "until", "rate", "unknown", "mode",
)  # fmt: skip
"""The keys that a rule may have."""


class PolicyError(KmoddError):
    """A policy file that cannot be taken; `file` and `line` say where, as far as that is known."""

    def __init__(self, message: str, file: str, line: int | None = None) -> None:
        super().__init__(f"{file}:{line}: {message}" if line else f"{file}: {message}")
        self.message, self.file, self.line = message, file, line


class _Wrong(Exception):
    """A value that is refused; the words say why."""


@dataclass(frozen=True, slots=True)
class Names:
    """What names outside a file stand for; each returns None for a name that is not known.

    `groups`: the modules of a shipped group, by its name without `@`.
    """

    user: Callable[[str], int | None]
    group: Callable[[str], int | None]
    groups: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A file's rules, in order, and what is doubtful in it: `(line, sentence)`."""

    name: str
    rules: tuple[Rule, ...]
    doubts: tuple[tuple[int, str], ...] = ()


def parse(text: str, file: str, names: Names) -> PolicyFile:
    """Return the rules of a policy file; `file` is the name that they are told by.

    Raises:
        PolicyError: it is not TOML, or a key or a value is not as a rule takes it.
    """
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as err:
        where = re.search(r"\(at line (\d+), column \d+\)", str(err))
        raise PolicyError(f"not TOML: {err}", file, int(where[1]) if where else None) from err
    if unknown := sorted(data.keys() - {"mode", "rule"}):
        raise PolicyError(f"unknown key {_shown(unknown[0])}: there are mode and [[rule]]", file)
    try:
        mode = _choice(data.get("mode", "enforce"), Mode)
    except _Wrong as err:
        raise PolicyError(f"mode {err}", file) from err
    tables = data.get("rule", [])
    lines = _header_lines(text)
    if not isinstance(tables, list) or len(tables) != len(lines):
        raise PolicyError("write each rule as a table of its own, below a line [[rule]]", file)
    if len(tables) > RULES_MAX:
        raise PolicyError(f"{len(tables)} rules; at most {RULES_MAX} are taken", file)
    rules, doubts = [], []
    for table, line in zip(tables, lines, strict=True):
        reader = _Reader(table, names)
        try:
            rules.append(reader.rule(file, line, mode))
        except _Wrong as err:
            raise PolicyError(str(err), file, line) from err
        doubts += [(line, doubt) for doubt in reader.doubts]
    return PolicyFile(file, tuple(rules), tuple(doubts))


def quoted(text: str) -> str:
    """Return a text as TOML has it."""
    # JSON's strings are TOML's basic strings, but for the one character that TOML wants escaped too.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _header_lines(text: str) -> list[int]:
    """Return the numbers of the lines `[[rule]]`, those in strings of several lines left out."""
    found, inside = [], ""
    for number, line in enumerate(text.split("\n"), 1):
        if not inside and _HEADER.match(line):
            found.append(number)
            continue
        at = 0
        while (part := (_ENDS[inside].match if inside else _PART.search)(line, at)) is not None:
            inside = part[0] if not inside and part[0] in _ENDS else ""
            at = part.end()
    return found


class _Reader:
    """One `[[rule]]` table; each value is checked as it is read."""

    def __init__(self, table: Mapping[str, Any], names: Names) -> None:
        self._table = table
        self._names = names
        self.doubts: list[str] = []

    def rule(self, file: str, line: int, of_file: Mode) -> Rule:
        table = self._table
        if unknown := sorted(table.keys() - set(FIELDS)):
            raise _Wrong(f"unknown key {_shown(unknown[0])}: a rule has {', '.join(FIELDS)}")
        if "action" not in table:
            raise _Wrong('a rule needs an action, "allow" or "deny"')
        action: Action = self._of("action", lambda value: _choice(value, Action))
        own: Mode = self._of("mode", lambda value: _choice(value, Mode)) or of_file
        unknown_counts = self._of("unknown", _boolean) or False
        if unknown_counts and action is Action.ALLOW:
            raise _Wrong("unknown = true is for deny rules: nobody is let in for what is not known of him")
        rate: Rate | None = self._of("rate", _rate)
        if rate is not None and action is Action.ALLOW:
            self.doubts.append(
                "an allow rule with a rate allows what exceeds it; a deny rule is meant, mostly"
            )
        return Rule(
            file=file,
            line=line,
            action=action,
            mode=own,
            reason=self._of("reason", _text),
            name=self._of("name", _names),
            module=self._of("module", self._modules),
            source=self._of("source", lambda value: _among(value, [item.value for item in Source])),
            operation=self._of("operation", lambda value: _among(value, OPERATIONS))
            or frozenset({OPERATIONS[0]}),
            privileged=self._of("privileged", _boolean),
            uid=self._of("uid", _numbers),
            gid=self._of("gid", _numbers),
            user=self._of("user", lambda value: self._ids(value, self._names.user, "user")),
            group=self._of("group", lambda value: self._ids(value, self._names.group, "group")),
            exe=self._of("exe", _paths),
            unit=self._of("unit", _globs_or_boolean),
            container=self._of("container", _globs_or_boolean),
            call_site=self._of("call_site", _globs),
            until=self._of("until", _until),
            rate=rate,
            unknown=unknown_counts,
            text=dict(table),
        )

    def _of(self, key: str, read: Callable[[Any], Any]) -> Any:
        if key not in self._table:
            return None
        try:
            return read(self._table[key])
        except _Wrong as err:
            raise _Wrong(f"{key} {err}") from err

    def _modules(self, value: object) -> Globs:
        patterns: list[str] = []
        for item in _strings(value):
            if not item.startswith("@"):
                patterns.append(item)
                continue
            members = self._names.groups.get(item[1:])
            if members is None:
                known = ", ".join(f"@{name}" for name in sorted(self._names.groups))
                raise _Wrong(f"names the group {_shown(item)}, which there is not: there are {known}")
            patterns += members
        return Globs.of(patterns, names=True)

    def _ids(self, value: object, look_up: Callable[[str], int | None], kind: str) -> Numbers:
        found = []
        for name in _strings(value):
            number = look_up(name)
            if number is None:
                self.doubts.append(
                    f"there is no {kind} {_shown(name)} here; the rule is not for anybody of it"
                )
            else:
                found.append((number, number))
        return Numbers(tuple(found))


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:80] + "..."


def _choice(value: object, kind: type[_Choice]) -> _Choice:
    for item in kind:
        if item.value == value:
            return item
    raise _Wrong(f"must be one of {', '.join(item.value for item in kind)}, not {_shown(value)}")


def _list(value: object) -> list[Any]:
    items = value if isinstance(value, list) else [value]
    if not items:
        raise _Wrong("is an empty list, which matches nothing; leave it out")
    if len(items) > _VALUES_MAX:
        raise _Wrong(f"has {len(items)} values; at most {_VALUES_MAX} are taken")
    return items


def _strings(value: object) -> list[str]:
    items = _list(value)
    for item in items:
        if not isinstance(item, str):
            raise _Wrong(f"takes a string or a list of strings, not {_shown(item)}")
        if not item or len(item) > _GLOB_MAX or not item.isprintable():
            raise _Wrong(f"takes 1 to {_GLOB_MAX} printable characters, not {_shown(item)}")
    return items


def _globs(value: object) -> Globs:
    return Globs.of(_strings(value))


def _names(value: object) -> Globs:
    return Globs.of(_strings(value), names=True)


def _paths(value: object) -> Globs:
    for item in _strings(value):
        if item[0] not in "/*?[":
            raise _Wrong(f"takes absolute paths, not {_shown(item)}: a program is known by its whole path")
    return _globs(value)


def _globs_or_boolean(value: object) -> Globs | bool:
    return value if isinstance(value, bool) else _globs(value)


def _among(value: object, choices: list[str] | tuple[str, ...]) -> frozenset[str]:
    items = _strings(value)
    if wrong := [item for item in items if item not in choices]:
        raise _Wrong(f"must be one of {', '.join(choices)}, not {_shown(wrong[0])}")
    return frozenset(items)


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise _Wrong(f"takes true or false, not {_shown(value)}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > _TEXT_MAX:
        raise _Wrong(f"takes one line of at most {_TEXT_MAX} printable characters, not {_shown(value)}")
    return value


def _numbers(value: object) -> Numbers:
    return Numbers(tuple(_range(item) for item in _list(value)))


def _range(value: object) -> tuple[int, int]:
    first: object = value
    last: object = value
    if isinstance(value, str):
        low, dash, high = value.partition("-")
        if all(
            part.isascii() and part.isdigit() and len(part) <= 10 for part in (low, high if dash else low)
        ):
            first, last = int(low), int(high if dash else low)
    for end in (first, last):
        if isinstance(end, bool) or not isinstance(end, int) or not 0 <= end <= _ID_MAX:
            raise _Wrong(f'takes ids from 0 to {_ID_MAX} and ranges such as "1000-1999", not {_shown(value)}')
    assert isinstance(first, int)
    assert isinstance(last, int)
    if first > last:
        raise _Wrong(f"has the range {_shown(value)}, which ends before it begins")
    return first, last


def _rate(value: object) -> Rate:
    found = _RATE.fullmatch(value) if isinstance(value, str) else None
    if found is None or int(found[1]) == 0:
        raise _Wrong(f'takes a number and a time, as in "10/min" (s, min, h or day), not {_shown(value)}')
    return Rate(int(found[1]), _SECONDS[found[2]], found[0])


def _until(value: object) -> datetime:
    """Return the moment from which on the rule is over: of a day its end, in the time of this machine."""
    try:
        if isinstance(value, datetime):
            return value.astimezone()
        if isinstance(value, date):
            return datetime.combine(value + timedelta(days=1), time()).astimezone()
    except (OverflowError, ValueError, OSError) as err:
        raise _Wrong(f"is a time beyond all clocks: {_shown(value)}") from err
    raise _Wrong(f"takes a date or a time without quotes, as 2027-01-31, not {_shown(value)}")
