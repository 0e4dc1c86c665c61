"""What loads one name: the seam between the broker and modprobe, the kernel, or a simulation."""

from __future__ import annotations

import errno
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from kmodd.broker.deadlock import RunningLoad
from kmodd.model import Outcome
from kmodd.tree.plan import Plan


@dataclass(frozen=True, slots=True)
class Report:
    """How a load ended. Fields as in `model.Result`.

    `reasons`: of the modules, why each was loaded, as far as that is known.
    """

    outcome: Outcome
    status: int
    modules: tuple[str, ...] | None = ()
    error: str | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)


class Progress(Protocol):
    """What a loader tells while it works. Called on the event loop."""

    def may_begin(self, plan: Callable[[], Plan | None]) -> bool:
        """Have everybody who asks judged by what would be loaded; once, before anything is.

        `plan` gives None where that is not known. False: none of them may have it; nothing is to be done.
        """

    def judged_by_plan(self) -> bool:
        """Whether anything could be denied: else it is not worth while to make a plan for that alone."""

    def may_go_on(self) -> bool:
        """Whether somebody who asked may still have it, as the policy is now: before each module.

        It may be called from any thread.
        """

    def awaits(self, number: int, *, shared: bool) -> None:
        """The load now waits for load `number` of a module; `shared`: that one was in progress before."""

    def got(self, number: int) -> None:
        """It does not wait for that one any more."""

    def session(self, session: int) -> None:
        """The load's tasks have this session id: who they are when one of them asks for a module."""

    def is_live(self) -> None:
        """What was asked for is live: what is still done belongs to it, but a new request is another load."""

    def report_awaited(self) -> bool:
        """Whether anybody waits for more than the status: the kernel does not, programs do."""

    def status(self, status: int) -> None:
        """The status is known (once, and final); the report may take longer."""


def denied(name: str) -> Report:
    """Return the report of a load that nobody who asked may have."""
    error = f"cannot load {name}: the policy denies it to all who asked"
    return Report(Outcome.DENIED, -errno.EPERM, (), error)


class Loader(Protocol):
    """Loads names. Each call is a loader of its own, as in 1998: none waits for another's slot (S3)."""

    def load(self, name: str, progress: Progress) -> Report | Coroutine[Any, Any, Report]:
        """Load what `name` stands for and report. Never raises for what a name or a module does.

        Where nothing has to be waited for the report comes at once; most of the kernel's requests are for
        names that nothing has, or that are live.
        """

    def running(self) -> list[RunningLoad]:
        """Return the loads of single modules in progress, which those of names wait for."""
