"""Why the kernel refused a module, in words: what finit_module(2) says, and what the kernel log adds.

The errors are those of kernel/module/main.c and signing.c, Linux 5.3 to 6.12.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time

from kmodd.errors import errno_words
from kmodd.names import printable

_KMSG = "/dev/kmsg"
_LOCKDOWN = "/sys/kernel/security/lockdown"
_DISABLED = "/proc/sys/kernel/modules_disabled"
_RECORD_MAX = 8192
_RECORDS_MAX = 50_000
_SLACK_US = 100_000
"""The kernel log has its own clock, a little off CLOCK_MONOTONIC (printk's local_clock())."""


def now() -> int:
    """Return the time as the kernel log has it, in microseconds: take it before the call that may fail."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def words(number: int, module: str, since: int) -> str:
    """Return an errno (positive) of finit_module(2) in words, with the kernel log's line where there is one.

    `since`: what `now()` returned before the call. It reads files of the kernel: never on the event loop.
    """
    said = _special(number) or errno_words(number)
    line = log_line(module, since)
    return f"{said}: {line}" if line else said


def _special(number: int) -> str | None:
    if number == errno.EKEYREJECTED:
        return f"it is not signed by a key that this kernel trusts: {errno_words(number)}"
    if number in {errno.EKEYEXPIRED, errno.EKEYREVOKED, errno.ENOKEY, errno.ENOPKG, errno.EBADMSG}:
        return f"its signature cannot be verified: {errno_words(number)}"
    if number == errno.EPERM:
        if _read(_DISABLED).strip() == "1":
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


def log_line(module: str, since: int, path: str = _KMSG) -> str | None:
    """Return the last line that the kernel has logged about a module since then; None where there is none.

    The format of /dev/kmsg: Documentation/ABI/testing/dev-kmsg. A record: `level,number,microseconds,…;text`.
    """
    found = None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None  # no right to (kernel.dmesg_restrict), or no kernel log
    try:
        for _ in range(_RECORDS_MAX):
            try:
                record = os.read(fd, _RECORD_MAX)
            except BrokenPipeError:
                continue  # overwritten while we read: the next one follows
            if not record:
                break
            head, _, text = record.partition(b";")
            if not text.startswith(os.fsencode(module) + b":"):
                continue
            with contextlib.suppress(IndexError, ValueError):
                if int(head.split(b",")[2]) >= since - _SLACK_US:
                    found = printable(text.partition(b"\n")[0], 512)
    except OSError:
        pass  # EAGAIN: the end
    finally:
        os.close(fd)
    return found
