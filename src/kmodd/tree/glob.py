"""Patterns of aliases and of modprobe.d: fnmatch(3) without flags, in time that no name can make long.

Patterns come from packages and root; what they are matched with comes from strangers. Python's `fnmatch`
differs (no backslash, no `[^`), and a pattern made into an ordinary regular expression can take a time
that grows with a power of the name's length.
"""

from __future__ import annotations

import functools
import re

from kmodd.errors import KmoddError

LONGEST = 4096
"""Characters of a name or pattern; a longer one names nothing that may be asked for."""

_SPECIAL = frozenset("*?[\\")
_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": r" \t",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": r"!-~",
    "lower": "a-z",
    "print": r" -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r" \t-\r",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}


class BadBrackets(KmoddError):
    """A name or pattern whose brackets do not pair, or that is too long (kmod: EINVAL for both)."""


def normalise(text: str) -> str:
    """Return a name or pattern as modprobe compares it: `-` becomes `_`, except inside `[...]`.

    Raises:
        BadBrackets: a `[` is not closed, or a `]` not opened (as kmod: EINVAL); or it is too long.
    """
    if len(text) > LONGEST:
        raise BadBrackets(f"{text[:64]}... has more than {LONGEST} characters")
    if "[" not in text and "]" not in text:
        return text.replace("-", "_")
    out: list[str] = []
    at = 0
    while at < len(text):
        char = text[at]
        if char == "]":
            raise _unmatched(text)
        if char == "[":
            end = text.find("]", at)
            if end < 0:
                raise _unmatched(text)
            out.append(text[at : end + 1])
            at = end + 1
            continue
        out.append("_" if char == "-" else char)
        at += 1
    return "".join(out)


def _unmatched(text: str) -> BadBrackets:
    return BadBrackets(f"unmatched bracket in {text if len(text) <= 64 else text[:64] + '...'}")


def is_literal(pattern: str) -> bool:
    """Return whether a pattern matches itself and nothing else."""
    return _SPECIAL.isdisjoint(pattern)


def prefix_length(pattern: str) -> int:
    """Return how many characters a pattern begins with that stand for themselves."""
    end = pattern.find("*")
    if end < 0:
        end = len(pattern)
    for char in "?[\\":
        at = pattern.find(char, 0, end)
        if at >= 0:
            end = at
    return end


def matches(pattern: str, name: str) -> bool:
    """Return whether `name` matches, as fnmatch(pattern, name, 0) says in the C locale.

    The time is at most proportional to the product of the two lengths.
    """
    if "?" in pattern or "[" in pattern or "\\" in pattern:
        return _compiled(pattern).fullmatch(name) is not None
    parts = pattern.split("*")
    if len(parts) == 1:
        return pattern == name
    first, last = parts[0], parts[-1]
    end = len(name) - len(last)
    at = len(first)
    if at > end or not name.startswith(first) or not name.endswith(last):
        return False
    for part in parts[1:-1]:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


@functools.lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern, without any backtracking into what is behind a star.

    Between two stars the first place that matches will do, so each such part is an atomic group.
    """
    parts = _parts(pattern)
    if len(parts) == 1:
        return re.compile(parts[0], re.DOTALL)
    middle = "".join(f"(?>.*?{part})" for part in parts[1:-1] if part)
    return re.compile(f"{parts[0]}{middle}.*{parts[-1]}", re.DOTALL)


def _parts(pattern: str) -> list[str]:
    """Return the regular expressions of what stands between the stars."""
    parts = [""]
    at = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*":
            parts.append("")
        elif char == "?":
            parts[-1] += "."
        elif char == "[":
            found = _bracket(pattern, at)
            if found is None:
                parts[-1] += r"\["
            else:
                expression, at = found
                parts[-1] += expression
        elif char == "\\":
            # A backslash at the end matches nothing (glibc since 2.x: FNM_NOMATCH).
            parts[-1] += re.escape(pattern[at]) if at < len(pattern) else "(?!)"
            at += 1
        else:
            parts[-1] += re.escape(char)
    return parts


def _bracket(pattern: str, at: int) -> tuple[str, int] | None:
    """Return the regular expression of a bracket and where it ends; None where it is not closed.

    `at` is behind the `[`.
    """
    negated = pattern[at : at + 1] in {"!", "^"}
    at += negated
    out: list[str] = []
    first = True
    while at < len(pattern):
        char = pattern[at]
        if char == "]" and not first:
            if not out:
                return "." if negated else "(?!)", at + 1
            return f"[{'^' if negated else ''}{''.join(out)}]", at + 1
        first = False
        if char == "[" and pattern[at + 1 : at + 2] == ":":
            end = pattern.find(":]", at + 2)
            named = _CLASSES.get(pattern[at + 2 : end]) if end > 0 else None
            if named is not None:
                out.append(named)
                at = end + 2
                continue
        char, at = _character(pattern, at)
        if pattern[at : at + 2] == "-":
            return "(?!)", at + 1  # glibc: a range without an end matches nothing
        if pattern[at : at + 1] == "-" and pattern[at + 1 : at + 2] != "]":
            high, at = _character(pattern, at + 1)
            if char <= high:
                out.append(f"{re.escape(char)}-{re.escape(high)}")
        else:
            out.append(re.escape(char))
    return None


def _character(pattern: str, at: int) -> tuple[str, int]:
    """Return a character of a bracket, which a backslash may stand before, and where the next one is."""
    if pattern[at] == "\\" and at + 1 < len(pattern):
        return pattern[at + 1], at + 2
    return pattern[at], at + 1
