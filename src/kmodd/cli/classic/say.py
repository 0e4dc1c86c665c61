"""What the classic tools say, and where: standard output and error, or the system's log."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO

FATAL, ERROR, WARNING, NOTICE, INFO = 2, 3, 4, 5, 6
"""Levels, as in syslog(3), which kmod's are."""
_NAMES = {FATAL: "FATAL", ERROR: "ERROR", WARNING: "WARNING", NOTICE: "NOTICE", INFO: "INFO"}


class Stop(Exception):
    """A fatal message was given: nothing more is done."""


class Messages:
    """What a tool complains of, as far as `level` lets it through."""

    __slots__ = ("_prog", "_to_syslog", "lenient", "level")

    def __init__(self, prog: str) -> None:
        self._prog = prog
        self._to_syslog = False
        self.level = WARNING
        self.lenient = False
        """Whether what concerns one argument is only a warning, as for `modprobe -a`."""

    def use_syslog(self) -> None:
        """Send what comes from now on to syslog(3), as a daemon's."""
        import syslog  # noqa: PLC0415

        syslog.openlog(self._prog, syslog.LOG_CONS, syslog.LOG_DAEMON)
        self._to_syslog = True

    def say(self, level: int, text: str) -> None:
        """Say something, if it matters enough."""
        if level > self.level:
            return
        line = f"{_NAMES[level]}: {text}"
        if not self._to_syslog:
            write_error(f"{self._prog}: {line}")
            return
        import syslog  # noqa: PLC0415

        syslog.syslog(level, line.encode("utf-8", "replace").decode())

    def error(self, text: str) -> None:
        """Say that something has failed."""
        self.say(ERROR, text)

    def always(self, text: str) -> None:
        """Write an error to standard error, whatever the options: what is wrong with the configuration."""
        write_error(f"{self._prog}: {_NAMES[ERROR]}: {text}")

    def fatal(self, text: str) -> None:
        """Say so and end the program, unless nobody is to hear it, as in kmod.

        Raises:
            Stop: it was said.
        """
        self.say(FATAL, text)
        if self.level >= FATAL:
            raise Stop

    def about_argument(self, text: str) -> None:
        """Say what is wrong with one argument; where they are many the others still have their turn.

        Raises:
            Stop: it is the only one.
        """
        if self.lenient:
            self.say(WARNING, text)
        else:
            self.fatal(text)


def has_error_output() -> bool:
    """Return whether there is a standard error, which whoever starts a program may have closed."""
    try:
        os.fstat(2)
    except OSError:
        return False
    return True


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


def write_error(line: str) -> None:
    """Write a line to standard error, with the bytes that names had on the command line."""
    _write(sys.stderr, os.fsencode(line) + b"\n")


def write(data: bytes) -> None:
    """Write bytes to standard output."""
    _write(sys.stdout, data)


def _write(stream: IO[str] | None, data: bytes) -> None:
    """Write, or where that cannot be done (a full disk, a closed pipe) say nothing more: as in kmod.

    What the tool is there for does not depend on it.
    """
    if stream is None:  # closed by whoever started the tool
        return
    try:
        stream.flush()
        stream.buffer.write(data)  # type: ignore[attr-defined]
        stream.buffer.flush()  # type: ignore[attr-defined]
    except OSError:
        # Else Python would try again, and complain, at exit.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
