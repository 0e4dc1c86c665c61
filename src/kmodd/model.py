"""The values every room speaks: requests, their results, and events."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any


class Source(enum.Enum):
    """Where a request comes from."""

    KERNEL = "kernel"
    """request_module() in the kernel, through the helper."""
    API = "api"
    """A program, through the varlink socket."""
    CLI = "cli"
    """`kmodd request`."""
    UEVENT = "uevent"
    """A device that appeared."""
    BOOT = "boot"
    """A boot list (modules-load.d)."""


class Outcome(enum.Enum):
    """How a request ended."""

    LOADED = "loaded"
    """It is live now, and this load brought it in."""
    ALREADY_LIVE = "already-live"
    """It was live before."""
    BUILT_IN = "built-in"
    """It is part of the kernel image."""
    NOT_FOUND = "not-found"
    """No installed module has that name or alias."""
    DENIED = "denied"
    """The requester may not have it."""
    FAILED = "failed"
    """It was found, and could not be loaded; or the request was malformed."""
    TIMED_OUT = "timed-out"
    """The requester waits no longer; the load goes on."""
    DEADLOCK = "deadlock"
    """The request could only have waited for itself (EDEADLK)."""


@dataclass(frozen=True, slots=True)
class Requester:
    """Who asked. What is not known is None, never guessed.

    `namespaces`: those that are not PID 1's, of the kinds `mnt`, `net`, `pid` and `user`. `cgroup`: the path.
    `groups`: the supplementary ones, for rules; they are not told. `exe_doubtful`: another program may be at
    that path for everybody else, or that has not been looked at.
    """

    pid: int | None = None
    comm: str | None = None
    uid: int | None = None
    gid: int | None = None
    exe: str | None = None
    unit: str | None = None
    container: str | None = None
    privileged: bool | None = None
    call_site: str | None = None
    kernel_thread: bool | None = None
    cgroup: str | None = None
    namespaces: tuple[str, ...] | None = None
    groups: tuple[int, ...] | None = None
    exe_doubtful: bool = field(default=False, compare=False)

    def as_json(self) -> dict[str, Any]:
        """Return the contract's JSON object."""
        told = {name: getattr(self, name) for name in self.__slots__ if name not in _NOT_TOLD}
        if self.namespaces is not None:
            told["namespaces"] = list(self.namespaces)
        return told


_NOT_TOLD = frozenset({"groups", "exe_doubtful"})
UNKNOWN_REQUESTER = Requester()


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether the requester may: `allow` or `deny`, by which rule, in which mode, and that rule's reason."""

    action: str = "allow"
    rule: str | None = None
    mode: str | None = None
    reason: str | None = field(default=None, compare=False)

    def as_json(self) -> dict[str, Any]:
        """Return the contract's JSON object."""
        return {"action": self.action, "rule": self.rule, "mode": self.mode}


ALLOW = Decision()


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came in.

    `name` has passed `names.check`; for a refused one it is the escaped spelling. `received` is the
    loop's monotonic time in seconds, `time` the wall clock's.
    """

    id: int
    source: Source
    name: str
    time: datetime
    received: float
    requester: Requester = UNKNOWN_REQUESTER
    decision: Decision = ALLOW


@dataclass(frozen=True, slots=True)
class Result:
    """How a request ended, for whoever asked.

    `status` is 0, a negative errno, or the positive exit status of an external modprobe. `modules` is
    what the request caused to be loaded, in order; None where that is not known. `denied_modules`: of one
    that was denied the modules that it stood for, and those that would have come with them; None where that
    is not known, and for all others.
    """

    outcome: Outcome
    status: int
    modules: tuple[str, ...] | None = ()
    error: str | None = None
    coalesced_with: int | None = None
    denied_modules: tuple[str, ...] | None = None


def timestamp(moment: datetime) -> str:
    """Return a moment as UTC with microseconds: `2026-11-23T08:00:00.123456Z`."""
    # Not strftime(), which costs several times as much: every event of the journal has one.
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def duration_us(start: float, end: float) -> int:
    """Return the microseconds between two monotonic times in seconds, never negative."""
    return max(0, round((end - start) * 1_000_000))


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: what the journal keeps and `kmodd log` shows."""

    id: int
    time: datetime
    event: str
    fields: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the contract's JSON object."""
        return {"id": self.id, "time": timestamp(self.time), "event": self.event, **self.fields}


def request_fields(request: Request, result: Result, ended: float) -> dict[str, Any]:
    """Return the fields of a `request` event; the JSON of `kmodd request` is this with id and time."""
    return {
        "source": request.source.value,
        "name": request.name,
        "outcome": result.outcome.value,
        "status": result.status,
        "modules": None if result.modules is None else list(result.modules),
        "coalesced_with": result.coalesced_with,
        "duration_us": duration_us(request.received, ended),
        "error": result.error,
        "requester": request.requester.as_json(),
        "decision": request.decision.as_json(),
        "reason": request.decision.reason,
        "denied_modules": None if result.denied_modules is None else list(result.denied_modules),
    }
