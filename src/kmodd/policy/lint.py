"""Rules that can never match, and others that are not what they look like. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from datetime import datetime

from kmodd.model import Source
from kmodd.policy.files import Policy
from kmodd.policy.patterns import Globs, Numbers, plain
from kmodd.policy.rules import REQUEST, SET, Action, Mode, Rule

_GLOBS = ("name", "module", "exe", "call_site")
_EITHER = ("unit", "container")
_NUMBERS = ("uid", "gid", "user", "group")
_SHADOWS_MAX = 2_000
"""Rules that are compared with each other; the work grows with the square."""


_IN_BRACKETS = re.compile(r"\[!?\]?[^\]]*\]")


def lint(
    policy: Policy, now: datetime, installed: Collection[str] | None = None
) -> list[tuple[str, int, str]]:
    """Return what is doubtful, as (file, line, sentence), in order.

    `installed`: the names of all modules that there are, built in ones too; None where that is not known.
    """
    there = None if installed is None else frozenset(map(plain, installed))
    found: list[tuple[str, int, str]] = []
    for file in policy.files:
        found += [(file.name, line, doubt) for line, doubt in file.doubts]
    rules = policy.rules[:_SHADOWS_MAX]
    for number, rule in enumerate(rules):
        if rule.mode is Mode.OFF:
            continue
        if rule.ended(now):
            found.append((rule.file, rule.line, f"its time was over on {rule.until:%Y-%m-%d}: remove it"))
            continue
        if (words := _contradiction(rule) or _shadow(rules, number, now) or _absent(rule, there)) is not None:
            found.append((rule.file, rule.line, words))
    order = {file.name: number for number, file in enumerate(policy.files)}
    return sorted(found, key=lambda item: (order.get(item[0], 0), item[1]))


def _contradiction(rule: Rule) -> str | None:
    """Return why no request can have all that a rule asks for."""
    asked = ", ".join(sorted(rule.operation))
    if REQUEST not in rule.operation and rule.source is not None and Source.API.value not in rule.source:
        return f'can never match: operation {asked} is asked for through the API only, whose source is "api"'
    if REQUEST not in rule.operation and rule.call_site is not None:
        return f"can never match: operation {asked} comes from no function of the kernel, as call_site says"
    if rule.operation == {SET} and rule.module is not None:
        return "can never match: a setting, its key as name, is of no module"
    if rule.name is not None:
        wrong = [pattern for pattern in rule.name.patterns if not _may_be_asked_for(pattern)]
        if len(wrong) == len(rule.name.patterns):
            return f"can never match: no name that may be asked for is like {wrong[0][:80]!r}"
        if wrong:
            return f"its name {wrong[0][:80]!r} can never match: no name that may be asked for is like that"
    if rule.call_site is not None and rule.source is not None and Source.KERNEL.value not in rule.source:
        sources = ", ".join(sorted(rule.source))
        return f"matches only what modules ask for as they load: a request from {sources} has no call_site"
    return None


def _may_be_asked_for(pattern: str) -> bool:
    """Whether a name may be like a glob: names hold 0x21 to 0x7e, and begin with neither `/` nor `.`."""
    plainly = _IN_BRACKETS.sub("*", pattern)
    return pattern[0] not in "/." and all("\x21" <= char <= "\x7e" for char in plainly)


def _absent(rule: Rule, installed: frozenset[str] | None) -> str | None:
    """Return that nothing is installed of what a rule names; of groups not all is meant to be."""
    if not installed or rule.module is None or rule.operation != {REQUEST}:
        return None
    given = rule.text.get("module")
    patterns = [str(item) for item in (given if isinstance(given, list) else [given])]
    if any(pattern.startswith("@") for pattern in patterns) or rule.module.any:
        return None
    if not rule.module.exact.isdisjoint(installed) or any(map(rule.module.matches, installed)):
        return None
    return f"no module is installed that is like {patterns[0][:80]!r}: an alias is denied or allowed by name"


def _shadow(rules: Sequence[Rule], number: int, now: datetime) -> str | None:
    rule = rules[number]
    nearly: str | None = None
    for before in rules[:number]:
        if not covers(before, rule, now):
            continue
        left = _left(before, rule)
        if not left:
            return f"can never match: {before.place} decides all that it asks for"
        nearly = nearly or f"matches no more than {' and '.join(left)}: {before.place} decides all else"
    return nearly


def _left(before: Rule, rule: Rule) -> list[str]:
    """Return what a rule finds although one before it is for all that it asks for."""
    left = []
    if _goes_past(before, rule):
        left.append("what an allowed module needs or asks for")
    peers = {Source.API.value, Source.CLI.value}
    of_peers = rule.source is None or not peers.isdisjoint(rule.source)
    if of_peers and not _gives_nothing(rule) and _gives_nothing(before):
        left.append("requests of strangers of the API")
    return left


def _gives_nothing(rule: Rule) -> bool:
    """Whether a stranger of the API passes by a rule."""
    return rule.action is Action.ALLOW and not rule.names_peers


def _goes_past(before: Rule, rule: Rule) -> bool:
    """Whether a rule finds what one that means everything leaves."""
    if before.module is not None and not before.any_module:
        return False
    if rule.module is not None:
        return bool(rule.module.exact) or rule.module.wild is not None
    return before.name is None and rule.name is not None


def covers(before: Rule, rule: Rule, now: datetime) -> bool:
    """Return whether `before` has decided whatever `rule` asks for, as far as that is sure; see `_left`."""
    if before.rate is not None or before.ended(now) or before.mode.strength < rule.mode.strength:
        return False
    if before.until is not None and (rule.until is None or rule.until > before.until):
        return False
    if rule.unknown and not before.unknown:
        return False
    if not rule.operation <= before.operation:
        return False
    if before.source is not None and (rule.source is None or not rule.source <= before.source):
        return False
    if before.privileged is not None and rule.privileged is not before.privileged:
        return False
    return (
        all(_globs(getattr(before, field), getattr(rule, field)) for field in _GLOBS)
        and all(_either(getattr(before, field), getattr(rule, field)) for field in _EITHER)
        and all(_numbers(getattr(before, field), getattr(rule, field)) for field in _NUMBERS)
    )


def _globs(before: Globs | None, rule: Globs | None) -> bool:
    if before is None:
        return True
    if rule is None:
        return False
    if before.any:
        return True
    wild = [pattern for pattern in rule.patterns if any(char in pattern for char in "*?[")]
    return all(before.matches(name) for name in rule.exact) and all(item in before.patterns for item in wild)


def _either(before: Globs | bool | None, rule: Globs | bool | None) -> bool:
    if before is None or before == rule:
        return True
    if rule is None or before is False or rule is False:
        return False
    if before is True:
        return True  # a rule with patterns asks for some
    return not isinstance(rule, bool) and _globs(before if isinstance(before, Globs) else None, rule)


def _numbers(before: Numbers | None, rule: Numbers | None) -> bool:
    if before is None:
        return True
    if rule is None:
        return False
    return all(
        any(low <= first and last <= high for low, high in before.ranges) for first, last in rule.ranges
    )
