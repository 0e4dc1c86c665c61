"""PID 1's root and working directory, which loads are made from (S13).

The kernel's own helpers share init's root and working directory as they are at that moment, so that
they go on working when init moves from an initramfs to the real root. A loader thread does the same.
"""

from __future__ import annotations

import functools
import os

from kmodd.kernel import libc

ROOT = "/proc/1/root"
"""PID 1's root, as errors name it."""


def enter(pid: int = 1) -> None:
    """Move the calling thread, and what it starts, to the root and working directory of `pid`.

    The other threads stay where they are. It is done for every load, even where the root is the same:
    that costs five system calls, and asking whether it is the same (root, mounts) would cost more.

    Raises:
        OSError: no right to (CAP_SYS_PTRACE and CAP_SYS_CHROOT), or /proc is not mounted; its filename is
            the root's in /proc.
    """
    try:
        _enter(_proc(), str(pid))
    except OSError as err:
        raise OSError(err.errno, err.strerror, f"/proc/{pid}/root") from err


@functools.cache
def _proc() -> int:
    """Return /proc as the first thread has it: one that has entered a root before may have none there."""
    return os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _enter(proc: int, process: str) -> None:
    libc.unshare(libc.CLONE_FS)
    root = os.open(f"{process}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc)
    try:
        cwd = os.open(f"{process}/cwd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc)
        try:
            os.fchdir(root)
            os.chroot(".")
            os.fchdir(cwd)
        finally:
            os.close(cwd)
    finally:
        os.close(root)
