"""Which tasks asked for which names: the kernel's trace event module:module_request, in an instance of ours.

The event is recorded in the requesting task before the kernel starts its helper (kernel/module/kmod.c), so
whoever serves the helper finds it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from kmodd.kernel.instance import Instance
from kmodd.kernel.ringbuffer import EventFormat

_INIT_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A request as the kernel recorded it; each record is one of its own.

    `time`: CLOCK_MONOTONIC, ns. `tid`: the task's thread id in the initial pid namespace. `wait`: whether
    it waits for the answer (request_module_nowait() does not).
    """

    time: int
    tid: int
    name: bytes
    wait: bool


def pids_are_the_kernels() -> bool:
    """Return whether our pids are those of the kernel: those of its initial pid namespace."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino == _INIT_PID_NAMESPACE
    except OSError:
        return False


class Tracing(Instance[Asked]):
    """The instance for requests. The kernel has 50 of them at once at most, and a buffer takes 100."""

    name = "kmodd"
    events: ClassVar[dict[str, tuple[str, ...]]] = {"module:module_request": ("wait", "name")}

    def decode(self, _event: str, record: EventFormat, time: int, raw: bytes) -> Asked:
        """See `Instance.decode`."""
        fields = record.fields
        return Asked(
            time, fields["common_pid"].read(raw), fields["name"].text(raw), bool(fields["wait"].read(raw))
        )
