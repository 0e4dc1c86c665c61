"""What the API answers with where it does not do what it is asked, and to whom it answers at all.

No `from __future__ import annotations` here: asyncvarlink reads the annotations as types.
"""

import contextvars
from typing import Any

from asyncvarlink import TypedVarlinkErrorReply

from kmodd.broker.tickets import Ticket
from kmodd.model import Outcome, Result, Source
from kmodd.policy.decide import NO_RIGHT
from kmodd.policy.inforce import PolicyInForce
from kmodd.policy.rules import Facts, Wanted
from kmodd.sources import peer
from kmodd.sources.peer import Peer

current_peer: contextvars.ContextVar[Peer] = contextvars.ContextVar("current_peer")
"""Who has made the call that is being served."""


class NotFound(TypedVarlinkErrorReply, interface="io.kmodd"):
    """No installed module has that name or alias; or, of RemoveModule, it is not in the kernel."""

    class Parameters:
        name: str
        error: str
        result: Any


class Denied(TypedVarlinkErrorReply, interface="io.kmodd"):
    """The policy does not let this requester have it."""

    class Parameters:
        name: str
        error: str
        result: Any


class LoadFailed(TypedVarlinkErrorReply, interface="io.kmodd"):
    """It could not be loaded. `status`: a negative errno or modprobe's exit status."""

    class Parameters:
        name: str
        status: int
        error: str
        result: Any


class RemoveFailed(TypedVarlinkErrorReply, interface="io.kmodd"):
    """It could not be unloaded. `status`: a negative errno, or its `remove` command's exit status."""

    class Parameters:
        name: str
        status: int
        error: str


class TimedOut(TypedVarlinkErrorReply, interface="io.kmodd"):
    """The requester waits no longer; the load goes on."""

    class Parameters:
        name: str
        error: str
        result: Any


class Deadlock(TypedVarlinkErrorReply, interface="io.kmodd"):
    """The request could only have waited for itself."""

    class Parameters:
        name: str
        error: str
        result: Any


class InvalidName(TypedVarlinkErrorReply, interface="io.kmodd"):
    """Such a name is refused; `name` shows it escaped."""

    class Parameters:
        name: str
        error: str
        result: Any


class InvalidSetting(TypedVarlinkErrorReply, interface="io.kmodd"):
    """There is no such setting, or the value is of the wrong type or out of range."""

    class Parameters:
        key: str
        error: str


class InvalidPolicy(TypedVarlinkErrorReply, interface="io.kmodd"):
    """The policy's files cannot be taken; what was in force stays so. `line` is 0 where it is not known."""

    class Parameters:
        file: str
        line: int
        error: str


class JournalUnreadable(TypedVarlinkErrorReply, interface="io.kmodd"):
    """What is in the journal's file cannot be told; what is not there yet was told before this."""

    class Parameters:
        error: str


class NotPermitted(TypedVarlinkErrorReply, interface="io.kmodd"):
    """The caller may not do this."""

    class Parameters:
        error: str


def need_root(what: str) -> Peer:
    """Return the caller.

    Raises:
        NotPermitted: it is not root.
    """
    caller = current_peer.get()
    if not caller.is_root:
        raise NotPermitted(error=f"uid {caller.uid} may not {what}; be root")
    return caller


def need_right(policy: PolicyInForce, operation: str, name: str, module: str | None = None) -> Peer:
    """Return the caller, where the policy lets it; without a rule root may, and nobody else.

    Raises:
        NotPermitted: it is not root, and no rule lets it.
        Denied: a rule denies it.
    """
    caller = current_peer.get()
    facts = Facts(name, Source.API, peer.requester(caller), operation, stranger=not caller.is_root)
    modules = {} if module is None else {module: frozenset[str]()}
    judgement = policy.judge(facts, lambda: Wanted(tuple(modules), modules, frozenset()))
    if judgement is NO_RIGHT:
        error = f"uid {caller.uid} may not {operation} {name}; be root, or have a rule of the policy let you"
        raise NotPermitted(error=error)
    if not judgement.allowed:
        error = f"cannot {operation} {name}: denied by {judgement.why}"
        raise Denied(name=name, error=error, result=None)
    return caller


def raise_for(ticket: Ticket, result: Result, shown: dict[str, Any]) -> None:
    """Raise the error that a request's outcome is told by; where it is none, return."""
    name, error = ticket.request.name, result.error or result.outcome.value
    if ticket.refusal is not None:
        raise InvalidName(name=name, error=error, result=shown)
    if ticket.no_right:
        raise NotPermitted(error=error)
    match result.outcome:
        case Outcome.NOT_FOUND:
            raise NotFound(name=name, error=error, result=shown)
        case Outcome.DENIED:
            raise Denied(name=name, error=error, result=shown)
        case Outcome.TIMED_OUT:
            raise TimedOut(name=name, error=error, result=shown)
        case Outcome.DEADLOCK:
            raise Deadlock(name=name, error=error, result=shown)
        case Outcome.FAILED:
            raise LoadFailed(name=name, status=result.status, error=error, result=shown)
        case Outcome.LOADED | Outcome.ALREADY_LIVE | Outcome.BUILT_IN:
            return
