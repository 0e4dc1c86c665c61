"""Which modules an alias stands for: tens of thousands of patterns, looked through in microseconds.

A name is compared with few patterns, found in three ways: those without wildcards by a dictionary; those
with a literal prefix by one look-up for each length that such prefixes have; and under one prefix, where
there are many, by the rarest literal that must come later (`acpi*:PNP0501:*`), found from its first
character.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

from kmodd.tree.glob import matches, prefix_length

_FEW = 6
"""Up to so many patterns of one prefix are simply all compared."""


class _Bucket:
    """The patterns of one prefix, by a literal behind their first wildcard (a needle)."""

    __slots__ = ("_by_first", "_needles", "_others")

    def __init__(self, lines: list[int], patterns: list[str]) -> None:
        self._others: list[int] = []
        self._needles: dict[str, list[int]] = {}
        literals = [(line, _literals(patterns[line])) for line in lines]
        often = Counter(literal for _line, found in literals for literal in found)
        for line, found in literals:
            if found:
                # What all of them have, as `:feature:` of processors, tells none from another.
                needle = min(found, key=lambda literal: (often[literal], -len(literal)))
                self._needles.setdefault(needle, []).append(line)
            else:
                self._others.append(line)
        lengths: dict[str, set[int]] = {}
        for needle in self._needles:
            lengths.setdefault(needle[0], set()).add(len(needle))
        self._by_first = {first: tuple(sorted(found)) for first, found in lengths.items()}

    def lines(self) -> list[int]:
        """Return all of its lines."""
        return [*self._others, *(line for lines in self._needles.values() for line in lines)]

    def candidates(self, name: str, start: int) -> list[int]:
        """Return the lines whose pattern may match, among them all that do."""
        found = list(self._others)
        needles = self._needles
        if len(needles) <= _FEW:
            for needle, lines in needles.items():
                if needle in name:
                    found += lines
            return found
        seen = set()
        for first, lengths in self._by_first.items():
            at = name.find(first, start)
            while at >= 0:
                for length in lengths:
                    needle = name[at : at + length]
                    if needle in needles and needle not in seen:
                        seen.add(needle)
                        found += needles[needle]
                at = name.find(first, at + 1)
        return found


def _literals(pattern: str) -> list[str]:
    """Return what is literal in a pattern of stars; of others nothing."""
    if "?" in pattern or "[" in pattern or "\\" in pattern:
        return []
    return [literal for literal in pattern.split("*") if literal]


_Found = int | tuple[int, ...] | _Bucket
"""One line, some lines, or many of them."""


class AliasTable:
    """Immutable: lines of a pattern and a module, in order of priority."""

    __slots__ = ("_exact", "_module_of", "_modules", "_patterns", "_wild")

    def __init__(self, lines: Iterable[tuple[str, str]]) -> None:
        """Take `(pattern, module)` in ascending priority; the patterns are normalised already."""
        self._modules: list[str] = []
        self._module_of = array("I")
        # Of each what stands behind its prefix: thousands end alike, as `*sd*bc*sc*i*`, and share that.
        self._patterns: list[str] = []
        self._exact: dict[str, int | list[int]] = {}
        # By what stands before the first colon: the lengths of the literal prefixes, and what each has.
        self._wild: dict[str, tuple[tuple[int, ...], dict[str, _Found]]] = {}
        numbers: dict[str, int] = {}
        ends: dict[str, str] = {}
        wild: dict[str, dict[str, int | list[int]]] = {}
        for line, (pattern, module) in enumerate(lines):
            number = numbers.get(module)
            if number is None:
                number = numbers[module] = len(self._modules)
                self._modules.append(module)
            self._module_of.append(number)
            length = prefix_length(pattern)
            if length == len(pattern):
                self._patterns.append("")
                _add(self._exact, pattern, line)
            else:
                prefix, end = pattern[:length], pattern[length:]
                self._patterns.append(ends.setdefault(end, end))
                _add(wild.setdefault(_head(prefix), {}), prefix, line)
        for head, prefixes in wild.items():
            made = {prefix: self._made(found) for prefix, found in prefixes.items()}
            prefixes.clear()
            self._wild[head] = tuple(sorted({len(prefix) for prefix in made})), made

    def _made(self, found: int | list[int]) -> _Found:
        if isinstance(found, int):
            return found
        return tuple(found) if len(found) <= _FEW else _Bucket(found, self._patterns)

    def __len__(self) -> int:
        """Return the number of lines."""
        return len(self._patterns)

    def find(self, name: str) -> list[str]:
        """Return the modules of all patterns that match a normalised name, in ascending priority.

        A module that several patterns name is returned as often.
        """
        exact = self._exact.get(name)
        lines = [] if exact is None else list(_lines(exact))
        patterns = self._patterns
        end = len(name)
        for head in (_head(name), "") if ":" in name else ("",):
            group = self._wild.get(head)
            if group is None:
                continue
            lengths, prefixes = group
            for length in lengths:
                if length > end:
                    break
                found = prefixes.get(name[:length])
                if found is None:
                    continue
                candidates = found.candidates(name, length) if isinstance(found, _Bucket) else _lines(found)
                rest = name[length:]
                lines += [line for line in candidates if matches(patterns[line], rest)]
        if len(lines) > 1:
            lines.sort()
        return [self._modules[self._module_of[line]] for line in lines]

    def patterns(self) -> list[tuple[str, str]]:
        """Return every pattern with its module, those without wildcards too, in ascending priority."""
        begins = {line: pattern for pattern, lines in self._exact.items() for line in _lines(lines)}
        for _lengths, prefixes in self._wild.values():
            for prefix, found in prefixes.items():
                lines = found.lines() if isinstance(found, _Bucket) else _lines(found)
                begins.update(dict.fromkeys(lines, prefix))
        return [
            (begins[line] + end, self._modules[self._module_of[line]])
            for line, end in enumerate(self._patterns)
        ]


def _add(table: dict[str, int | list[int]], key: str, line: int) -> None:
    """Note one more line of a key; most have one, for which a list would be much."""
    before = table.setdefault(key, line)
    if isinstance(before, list):
        before.append(line)
    elif before != line:
        table[key] = [before, line]


def _lines(found: int | Sequence[int]) -> Sequence[int]:
    return (found,) if isinstance(found, int) else found


def _head(text: str) -> str:
    """Return what stands before the first colon, the bus of a modalias; empty where there is no colon."""
    return text[: text.find(":") + 1]
