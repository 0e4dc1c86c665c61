"""Whether somebody else has loaded or unloaded a module: decided from what is known, and pure.

A task of ours is known by its number, or by its session: each child of ours leads one. Where a task had gone
before it could be looked at, what our loads report to have brought in tells, as far as it goes.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Work:
    """A thread of ours that loads or unloads, or a child of ours that may; times are CLOCK_MONOTONIC, ns.

    `tid`: the thread's id, or the child's pid and session id; None while that is not known. `end`: None
    while it goes on.
    """

    tid: int | None
    begin: int
    end: int | None
    is_child: bool

    def covers(self, moment: int) -> bool:
        """Whether it was in progress."""
        return self.begin <= moment and (self.end is None or moment <= self.end)


@dataclass(frozen=True, slots=True)
class OwnLoad:
    """A load of kmodd's. `end`: None while it goes on. `modules`: what it brought in, None where unknown."""

    begin: int
    end: int | None
    modules: frozenset[str] | None = None

    def covers(self, moment: int) -> bool:
        """Whether it was in progress."""
        return self.begin <= moment and (self.end is None or moment <= self.end)


@dataclass(frozen=True, slots=True)
class Deed:
    """A module came in or went at a time. `session`: that of the task, None where that had gone.

    `brought_in`: it came in and is there, as against one whose init has failed, and one that went.
    """

    time: int
    tid: int
    module: str
    session: int | None
    brought_in: bool


class Whose(enum.Enum):
    """What is decided."""

    OURS = "ours"
    """A thread or a child of ours did it, or it cannot be told from what one did."""
    OTHERS = "others"
    """Somebody else did it."""
    OPEN = "open"
    """That is known later: once a child of ours is known, or a load of ours has ended."""


def whose(deed: Deed, own: Collection[Work], loads: Collection[OwnLoad]) -> Whose:
    """Return who did it. `own` and `loads` may hold what was not in progress at the time: it does not count.

    Where the task could be looked at, and where no child of ours was in progress, the answer is certain.
    Else a module that a load of ours reports is ours, one that it does not report is others'; and of one that
    went, or whose init has failed, it cannot be told.
    """
    children = []
    for work in own:
        if work.covers(deed.time):
            if work.tid == deed.tid:
                return Whose.OURS
            if work.is_child:
                if work.tid is not None and work.tid == deed.session:
                    return Whose.OURS
                children.append(work)
    if not children:
        return Whose.OTHERS
    if any(child.tid is None and child.end is None for child in children):
        return Whose.OPEN
    if deed.session is not None:
        return Whose.OTHERS
    if not deed.brought_in:
        return Whose.OURS
    at_the_time = [load for load in loads if load.covers(deed.time)]
    if any(load.end is None for load in at_the_time):
        return Whose.OPEN
    ours = any(load.modules is None or deed.module in load.modules for load in at_the_time)
    return Whose.OURS if ours else Whose.OTHERS
