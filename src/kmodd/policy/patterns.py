"""What the fields of a rule are compared with: globs and numbers, each made ready once."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

_WILD = re.compile(r"[*?\[]")
_STARS = re.compile(r"\*+")
_CLASS_OR_DASH = re.compile(r"\[(!?)(\]?[^\]]*)\]|-")


def plain(name: str) -> str:
    """Return a name as names are compared: `-` and `_` are the same to modprobe, wherever they stand.

    Who may choose a part of a name would else choose the other spelling of what a rule denies.
    """
    return name.replace("-", "_")


def _named(pattern: str) -> str:
    """Return a glob on names as one on what `plain` returns: each `-` is `_`, but for those of ranges."""
    return _CLASS_OR_DASH.sub(_spelled, pattern)


def _spelled(found: re.Match[str]) -> str:
    if found[0] == "-":
        return "_"
    first, inside = found[1], found[2]
    if inside[:1] == "-":
        inside = "_" + inside[1:]
    if inside[-1:] == "-":
        inside = inside[:-1] + "_"
    return f"[{first}{inside}]"


@dataclass(frozen=True, slots=True)
class Globs:
    """Patterns as of fnmatch(3); `matches` says whether any of them does. Upper and lower case differ.

    `any`: whether they match whatever there is, by a pattern `*`.
    """

    patterns: tuple[str, ...]
    exact: frozenset[str]
    any: bool
    wild: re.Pattern[str] | None = field(compare=False)

    @classmethod
    def of(cls, patterns: Iterable[str], *, names: bool = False) -> Globs:
        """Make patterns ready; `names`: of names, in which `-` and `_` are the same."""
        given = tuple(patterns)
        # Two stars side by side are one, and each costs.
        ready = [_STARS.sub("*", _named(pattern) if names else pattern) for pattern in given]
        exact = frozenset(pattern for pattern in ready if not _WILD.search(pattern))
        rest = [fnmatch.translate(pattern) for pattern in ready if pattern not in exact and pattern != "*"]
        return cls(given, exact, "*" in ready, re.compile("|".join(rest)) if rest else None)

    def matches(self, text: str) -> bool:
        """Return whether one of the patterns matches all of `text`."""
        return self.any or text in self.exact or (self.wild is not None and self.wild.match(text) is not None)

    def names(self, text: str) -> bool:
        """Return whether one of them does that is not `*`, which means everything and names nothing."""
        return text in self.exact or (self.wild is not None and self.wild.match(text) is not None)


_UNION_MAX = 200


@dataclass(frozen=True, slots=True)
class Union:
    """Many globs at once: one look says of nearly every text that none of them matches it."""

    exact: frozenset[str]
    wild: re.Pattern[str] | None
    any: bool

    @classmethod
    def of(cls, globs: Iterable[Globs]) -> Union:
        """Put them together; of too many to be compiled in no time it is not said that none matches."""
        given = tuple(globs)
        wild = dict.fromkeys(each.wild.pattern for each in given if each.wild is not None)
        if any(each.any for each in given) or len(wild) > _UNION_MAX:
            return cls(frozenset(), None, any=True)
        exact = frozenset[str]().union(*(each.exact for each in given))
        return cls(exact, re.compile("|".join(wild)) if wild else None, any=False)

    def may_match(self, text: str) -> bool:
        """Return False where none of them matches all of `text`."""
        return self.any or text in self.exact or (self.wild is not None and self.wild.match(text) is not None)


@dataclass(frozen=True, slots=True)
class Numbers:
    """User or group ids: single ones and ranges, both ends included."""

    ranges: tuple[tuple[int, int], ...]
    single: frozenset[int] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "single", frozenset(first for first, last in self.ranges if first == last))

    def matches(self, number: int) -> bool:
        """Return whether a number is among them."""
        return any(first <= number <= last for first, last in self.ranges)

    def match_any(self, numbers: Collection[int]) -> bool:
        """Return whether one of several numbers is among them; who asks says how many, up to thousands."""
        if not self.single.isdisjoint(numbers):
            return True
        wide = [(first, last) for first, last in self.ranges if first != last]
        return any(first <= number <= last for first, last in wide for number in numbers)
