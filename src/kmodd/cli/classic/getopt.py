"""How the classic tools take their options: as getopt_long(3) does, with its messages.

Not argparse: it has other messages and no way to act on `-V` before a wrong option behind it. The standard
getopt brings gettext, and with it costs a tool half of Python's own start.
"""

from __future__ import annotations

import os

from kmodd.cli.classic.say import write_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

WRONG = "?"
"""The letter of an option that does not exist, or lacks what it needs: its message is printed already."""


def options(
    argv: list[str], short: str, long: dict[str, str], prog: str, operands: list[str]
) -> Iterator[tuple[str, str]]:
    """Yield each option's letter and argument, in order; put what is no option into `operands`.

    `short`: as getopt(3) has it, a letter with `:` takes an argument. `long`: names, in the order in which
    messages list them, and their letters. Ends at the first wrong option, with the letter WRONG.
    """
    waiting = list(reversed(argv))
    while waiting:
        word = waiting.pop()
        if word == "--":
            break
        if word.startswith("--"):
            letter, value, problem = _long(word[2:], short, long, waiting)
        elif word.startswith("-") and word != "-":
            letter, value, problem = _short(word[1:], short, waiting)
        else:
            operands.append(word)
            if "POSIXLY_CORRECT" in os.environ:
                break
            continue
        if problem:
            write_error(f"{prog}: {problem}")
            yield WRONG, ""
            return
        yield letter, value
    operands.extend(reversed(waiting))


def _takes_argument(letter: str, short: str) -> bool:
    return short.partition(letter)[2].startswith(":")


def _long(text: str, short: str, long: dict[str, str], waiting: list[str]) -> tuple[str, str, str]:
    """Return the letter, the argument and what is wrong with it."""
    given, equals, value = text.partition("=")
    names = [given] if given in long else [name for name in long if name.startswith(given)]
    if not names:
        return WRONG, "", f"unrecognized option '--{text}'"
    letter = long[names[0]]
    if any(long[name] != letter for name in names):
        which = " ".join(f"'--{name}'" for name in names)
        return WRONG, "", f"option '--{text}' is ambiguous; possibilities: {which}"
    if not _takes_argument(letter, short):
        problem = f"option '--{names[0]}' doesn't allow an argument" if equals else ""
        return letter, "", problem
    if not equals:
        if not waiting:
            return WRONG, "", f"option '--{names[0]}' requires an argument"
        value = waiting.pop()
    return letter, value, ""


def _short(text: str, short: str, waiting: list[str]) -> tuple[str, str, str]:
    """Return the first letter of `-abc`, its argument, and what is wrong; the other letters go on waiting."""
    letter, rest = text[0], text[1:]
    if letter == ":" or letter not in short:
        return WRONG, "", f"invalid option -- '{letter}'"
    if _takes_argument(letter, short):
        if not rest and not waiting:
            return WRONG, "", f"option requires an argument -- '{letter}'"
        return letter, rest or waiting.pop(), ""
    if rest:
        waiting.append(f"-{rest}")
    return letter, "", ""
