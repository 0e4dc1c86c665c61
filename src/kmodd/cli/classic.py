"""How the classic tools take their options and say what is wrong: as getopt_long(3) and kmod do it.

Not argparse: it has other messages and no way to act on `-V` before a wrong option behind it. The standard
getopt brings gettext, and with it costs a tool half of Python's own start.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

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


def print_version() -> None:
    """Print kmodd's version, and what it was built with, in the two lines that `kmod --version` has."""
    from importlib.util import find_spec  # noqa: PLC0415

    from kmodd import __version__  # noqa: PLC0415

    have_zstd = False
    for name in ("compression.zstd", "backports.zstd"):
        try:
            have_zstd = have_zstd or find_spec(name) is not None
        except ImportError:
            continue
    zstd = "+" if have_zstd else "-"
    print(f"kmodd version {__version__}\n{zstd}ZSTD +XZ +ZLIB -LIBCRYPTO -EXPERIMENTAL")


class Messages:
    """Where a tool's complaints go: to standard error, or with `-s` to the system's log."""

    __slots__ = ("_prog", "_to_syslog")

    def __init__(self, prog: str) -> None:
        self._prog = prog
        self._to_syslog = False

    def use_syslog(self) -> None:
        """Send what comes from now on to syslog(3), as a daemon's."""
        import syslog  # noqa: PLC0415

        syslog.openlog(self._prog, syslog.LOG_CONS, syslog.LOG_DAEMON)
        self._to_syslog = True

    def error(self, text: str) -> None:
        """Say that something has failed."""
        if not self._to_syslog:
            write_error(f"{self._prog}: ERROR: {text}")
            return
        import syslog  # noqa: PLC0415

        syslog.syslog(syslog.LOG_ERR, f"ERROR: {text}".encode("utf-8", "replace").decode())


def write_error(line: str) -> None:
    """Write a line to standard error, with the bytes that names had on the command line."""
    _write(sys.stderr, os.fsencode(line) + b"\n")


def write(data: bytes) -> None:
    """Write bytes to standard output."""
    _write(sys.stdout, data)


def _write(stream: IO[str] | None, data: bytes) -> None:
    if stream is None:  # closed by whoever started the tool
        return
    stream.flush()
    stream.buffer.write(data)  # type: ignore[attr-defined]
    stream.buffer.flush()  # type: ignore[attr-defined]
