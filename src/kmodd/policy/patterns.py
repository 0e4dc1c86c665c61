"""What the fields of a rule are compared with: globs and numbers, each made ready once."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from kmodd.names import normalise

_WILD = re.compile(r"[*?\[]")


def plain(name: str) -> str:
    """Return a name as names are compared: `-` and `_` are the same to modprobe, wherever they stand.

    Who may choose a part of a name would else choose the other spelling of what a rule denies.
    """
    return name.replace("-", "_")


@dataclass(frozen=True, slots=True)
class Globs:
    """Patterns as of fnmatch(3); `matches` says whether any of them does. Upper and lower case differ."""

    patterns: tuple[str, ...]
    exact: frozenset[str]
    wild: re.Pattern[str] | None = field(compare=False)

    @classmethod
    def of(cls, patterns: Iterable[str], *, names: bool = False) -> Globs:
        """Make patterns ready; `names`: of names, in which `-` and `_` are the same."""
        given = tuple(patterns)
        ready = [normalise(pattern) if names else pattern for pattern in given]
        exact = frozenset(pattern for pattern in ready if not _WILD.search(pattern))
        # Two stars side by side are one, and each costs.
        rest = [fnmatch.translate(re.sub(r"\*+", "*", pattern)) for pattern in ready if pattern not in exact]
        return cls(given, exact, re.compile("|".join(rest)) if rest else None)

    def matches(self, text: str) -> bool:
        """Return whether one of the patterns matches all of `text`."""
        return text in self.exact or (self.wild is not None and self.wild.match(text) is not None)

    @property
    def any(self) -> bool:
        """Whether they match whatever there is, by a pattern `*`."""
        return "*" in self.patterns


@dataclass(frozen=True, slots=True)
class Numbers:
    """User or group ids: single ones and ranges, both ends included."""

    ranges: tuple[tuple[int, int], ...]

    def matches(self, number: int) -> bool:
        """Return whether a number is among them."""
        return any(first <= number <= last for first, last in self.ranges)

    def match_any(self, numbers: Collection[int]) -> bool:
        """Return whether one of several numbers is among them."""
        return any(self.matches(number) for number in numbers)
