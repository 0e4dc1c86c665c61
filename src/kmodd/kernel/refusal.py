"""Why the kernel refused a module, in words: what finit_module(2) says, and what the kernel log adds.

The errors are those of kernel/module/main.c and signing.c, Linux 5.3 to 6.12.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Self

from kmodd.errors import errno_words
from kmodd.names import printable

_KMSG = "/dev/kmsg"
_LOCKDOWN = "/sys/kernel/security/lockdown"
_DISABLED = "/proc/sys/kernel/modules_disabled"
_RECORD_MAX = 8192
_RECORDS_MAX = 10_000


class KernelLog:
    """The kernel log from a moment on: made before the call that may fail. A context manager.

    By place, not by time: the log has a clock of its own (printk's local_clock()), which drifts from ours.
    """

    __slots__ = ("_fd",)

    def __init__(self, path: str = _KMSG) -> None:
        self._fd = -1
        with contextlib.suppress(OSError):  # no right to (kernel.dmesg_restrict), or no kernel log
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Let go of it."""
        if self._fd >= 0:
            os.close(self._fd)

    def line(self, module: str) -> str | None:
        """Return the last line since then about a module; None where there is none, or no log to be read.

        The format of a record: `level,number,microseconds,...;text` (Documentation/ABI/testing/dev-kmsg).
        """
        found = None
        begins = os.fsencode(module) + b":"
        try:
            for _ in range(_RECORDS_MAX if self._fd >= 0 else 0):
                try:
                    record = os.read(self._fd, _RECORD_MAX)
                except BrokenPipeError:
                    continue  # overwritten while we read: the next one follows
                if not record:
                    break
                _head, _, text = record.partition(b";")
                if text.startswith(begins):
                    found = printable(text.partition(b"\n")[0], 512)
        except OSError:
            pass  # EAGAIN: the end
        return found


def modules_disabled() -> bool:
    """Return whether the kernel loads and unloads nothing until the next boot: kernel.modules_disabled."""
    return _read(_DISABLED).strip() == "1"


def words(number: int, module: str, log: KernelLog) -> str:
    """Return an errno (positive) of finit_module(2) in words, with the kernel log's line where there is one.

    It reads files of the kernel: never on the event loop.
    """
    said = _special(number) or errno_words(number)
    line = log.line(module)
    return f"{said}: {line}" if line else said


def _special(number: int) -> str | None:
    if number == errno.EKEYREJECTED:
        return f"it is not signed by a key that this kernel trusts: {errno_words(number)}"
    if number in {errno.EKEYEXPIRED, errno.EKEYREVOKED, errno.ENOKEY, errno.ENOPKG, errno.EBADMSG}:
        return f"its signature cannot be verified: {errno_words(number)}"
    if number == errno.EPERM:
        if modules_disabled():
            return f"module loading is disabled until reboot (kernel.modules_disabled): {errno_words(number)}"
        mode = _read(_LOCKDOWN).partition("[")[2].partition("]")[0]
        if mode not in {"", "none"}:
            return f"kernel lockdown ({mode}) takes only signed modules: {errno_words(number)}"
    if number == errno.ENOEXEC:
        return f"Invalid module format ({errno.errorcode[number]})"
    if number == errno.ENOENT:
        return "Unknown symbol in module (ENOENT)"
    return None


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(256)
    except OSError:
        return ""
