"""One exception tree: each error knows its words, its exit status and its errno."""

from __future__ import annotations

import errno as _errno
import os


class KmoddError(Exception):
    """Anything kmodd can say of a mistake or a failure, in one sentence.

    `exit_status` is what the command line ends with (the table in kmodd(8)).
    """

    exit_status = 1


class UsageError(KmoddError):
    """The command's words are off."""

    exit_status = 2


class InvalidName(KmoddError):
    """A module name or alias that is refused at the door (S7)."""

    exit_status = 2


class NotFound(KmoddError):
    """No module of that name or alias is installed."""

    exit_status = 3


class Denied(KmoddError):
    """The policy does not let this requester have this module."""

    exit_status = 4


class TimedOut(KmoddError):
    """The load goes on, but its requester waits no longer."""

    exit_status = 5


class Deadlock(KmoddError):
    """The request could only have waited for itself (EDEADLK)."""

    exit_status = 5


class Unreachable(KmoddError):
    """The daemon does not answer on its socket."""

    exit_status = 69


class NotPermitted(KmoddError):
    """The caller may not do this."""

    exit_status = 77


class SettingsError(KmoddError):
    """A setting that is unknown, of the wrong type or out of range."""


class KernelError(KmoddError):
    """A system call about modules failed; `errno` is a positive error number.

    `status`: the negative errno, or the exit status of the command of modprobe.d that failed.
    """

    def __init__(self, message: str, errno: int, status: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno
        self.status = -errno if status is None else status


def errno_words(number: int) -> str:
    """Return an errno (positive) in words with its symbol: `No such device (ENODEV)`."""
    # errorcode knows 35 by its other name.
    symbol = "EDEADLK" if number == _errno.EDEADLK else _errno.errorcode.get(number)
    words = os.strerror(number)
    return f"{words} ({symbol})" if symbol else f"{words} (errno {number})"
