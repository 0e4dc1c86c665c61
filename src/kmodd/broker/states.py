"""The states of a request, and the one function that moves it from one to the next.

ARCHITECTURE.md draws these; a test compares the drawing with TRANSITIONS.
"""

from __future__ import annotations

import enum


class RequestState(enum.Enum):
    """Where a request is on its way."""

    # There is one object of each; Enum's own hashes the name, in Python, at every look into the table.
    __hash__ = object.__hash__

    NEW = "new"
    """It has come in and is looked at: its name, whether the daemon takes requests."""
    WAITING = "waiting"
    """Its load runs: one that it started, or one that it shares."""
    ANSWERED = "answered"
    """The requester knows the status; what there is to tell beside it is still being found out."""
    ENDED = "ended"
    """The result is known and recorded. Nothing happens to it any more."""


TRANSITIONS: dict[RequestState, frozenset[RequestState]] = {
    RequestState.NEW: frozenset({RequestState.WAITING, RequestState.ENDED}),
    RequestState.WAITING: frozenset({RequestState.ANSWERED, RequestState.ENDED}),
    RequestState.ANSWERED: frozenset({RequestState.ENDED}),
    RequestState.ENDED: frozenset(),
}


def advance(old: RequestState, new: RequestState) -> RequestState:
    """Return `new` if a request in state `old` may go there.

    Raises:
        RuntimeError: it may not: some request would be lost or answered twice (S4).
    """
    if new not in TRANSITIONS[old]:
        raise RuntimeError(f"a request cannot go from {old.value} to {new.value}")
    return new
