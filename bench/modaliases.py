"""Names that devices could have: each made from a pattern of the tree, on all buses that it has."""

from __future__ import annotations

import random

from kmodd.tree.index import Index

_BEHIND = ("", "0000", "00010002", "ABC")
_HEX = "0123456789ABCDEF"


def modaliases(index: Index, count: int, seed: int) -> list[str]:
    """Return so many distinct names, of each bus as many as of each other where it has that many patterns."""
    dice = random.Random(seed)  # noqa: S311 - names to measure with, the same in each run
    buses: dict[str, list[str]] = {}
    for pattern, _module in index.aliases():
        if ":" in pattern:
            buses.setdefault(pattern.partition(":")[0].partition("*")[0], []).append(pattern)
    names: dict[str, None] = {}
    order = sorted(buses)
    while len(names) < count:
        names.setdefault(_concrete(dice.choice(buses[dice.choice(order)]), dice))
    shuffled = list(names)
    dice.shuffle(shuffled)
    return shuffled


def _concrete(pattern: str, dice: random.Random) -> str:
    """Return a name that a pattern matches, or nearly."""
    out = []
    rest = iter(pattern)
    for char in rest:
        if char == "*":
            out.append(dice.choice(_BEHIND))
        elif char == "?":
            out.append(dice.choice(_HEX))
        elif char == "[":
            out.append(next(rest))
            while next(rest, "]") != "]":
                pass
        else:
            out.append(char)
    return "".join(out)
