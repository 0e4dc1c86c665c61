"""Which tasks bring modules in and take them out: trace events in an instance of ours.

It is not the one for requests: to be told of loads at once adds nothing to the way of a request that fails.
module:module_load is recorded before the module's init is called, module:module_free when its memory is
given back: it was unloaded, or its init has failed. initcall:initcall_finish says what init has returned,
where the module has one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar

from kmodd.kernel.instance import Instance
from kmodd.kernel.ringbuffer import EventFormat
from kmodd.names import printable


class Kind(enum.Enum):
    """What was recorded."""

    LOAD = "load"
    """A module is in the kernel, and its init is about to be called."""
    INIT = "init"
    """The init of the module that the task brings in has returned."""
    FREE = "free"
    """A module is taken out of the kernel."""


@dataclass(frozen=True, slots=True)
class Record:
    """One of these, as the kernel recorded it.

    `time`: CLOCK_MONOTONIC, ns. `tid`: the task's thread id in the initial pid namespace. `module`: of INIT
    it is not known. `result`: of INIT, 0 or a negative errno.
    """

    time: int
    tid: int
    kind: Kind
    module: str = ""
    result: int = 0


class Comings(Instance[Record]):
    """The instance for loads and unloads."""

    name = "kmodd-loads"
    events: ClassVar[dict[str, tuple[str, ...]]] = {
        "module:module_load": ("name",),
        "module:module_free": ("name",),
        "initcall:initcall_finish": ("ret",),
    }
    _kinds: ClassVar[dict[str, Kind]] = {
        "module:module_load": Kind.LOAD,
        "module:module_free": Kind.FREE,
        "initcall:initcall_finish": Kind.INIT,
    }

    def decode(self, event: str, record: EventFormat, time: int, raw: bytes) -> Record:
        """See `Instance.decode`."""
        fields = record.fields
        kind, tid = self._kinds[event], fields["common_pid"].read(raw)
        if kind is Kind.INIT:
            return Record(time, tid, kind, result=fields["ret"].read(raw))
        return Record(time, tid, kind, printable(fields["name"].text(raw)))
