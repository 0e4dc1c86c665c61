"""One external program: own session, clean signals, fixed environment, its output kept (S5, S6, S8, S11)."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kmodd.kernel import libc

ENVIRONMENT = {"HOME": "/", "TERM": "linux", "PATH": "/sbin:/usr/sbin:/bin:/usr/bin"}
"""What the kernel gives its helpers (kernel/kmod.c since 2.3), and nothing else."""

OUTPUT_MAX = 16384
"""Bytes of a program's output that are kept; it may print more, which is dropped."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended: `status` as os.waitstatus_to_exitcode (-N: killed by signal N)."""

    status: int
    output: bytes


def run(
    path: str,
    argv: Sequence[str],
    started: Callable[[int], None],
    environment: Mapping[str, str] = ENVIRONMENT,
) -> Ended:
    """Run a program to its end, in the calling thread; `started(pid)` is told its pid, also its session id.

    The child is always waited for (S11). What it leaves running in the background is not: a grandchild
    that keeps the output open does not keep us.

    Raises:
        OSError: it cannot be started (S8).
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        pid = libc.spawn(path, argv, environment, writing)
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    try:
        started(pid)
        output = _collect(reading, pid)
    finally:
        os.close(reading)
        _, wait_status = os.waitpid(pid, 0)
    return Ended(os.waitstatus_to_exitcode(wait_status), output)


def _collect(reading: int, pid: int) -> bytes:
    kept = bytearray()
    os.set_blocking(reading, False)
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        # No descriptor left, say: it runs all the same, and its status is what counts.
        return b""
    try:
        poll = select.poll()
        poll.register(reading, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        ended = False
        while not ended:
            ready = {fd for fd, _event in poll.poll()}
            ended = pidfd in ready
            if reading in ready and not _drain(reading, kept):
                poll.unregister(reading)
        return bytes(kept)
    finally:
        os.close(pidfd)


def _drain(reading: int, kept: bytearray) -> bool:
    """Read what there is, at most 1 MiB of it at a time; False once nobody can write any more."""
    for _ in range(16):
        try:
            data = os.read(reading, 65536)
        except BlockingIOError:
            return True
        if not data:
            return False
        kept += data[: max(0, OUTPUT_MAX - len(kept))]
    return True
