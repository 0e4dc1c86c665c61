"""`kmodd why`: where a module comes from, in sentences that a person would say."""

from __future__ import annotations

from datetime import datetime

from kmodd.views.show import asker, task

TYPE_CHECKING = False  # as mypy reads it; importing typing would cost a third of Python's own start
if TYPE_CHECKING:
    from typing import Any

_DEEDS = {
    "__sock_create": "opened a socket",
    "get_fs_type": "mounted a file system",
    "alg_bind": "used the crypto API",
    "alg_get_type": "used the crypto API",
    "crypto_alg_mod_lookup": "used a cipher or a hash",
    "crypto_larval_lookup": "used a cipher or a hash",
    "inet_create": "opened an internet socket",
    "inet6_create": "opened an internet socket",
    "netlink_create": "opened a netlink socket",
    "search_binary_handler": "executed a file of an unknown format",
    "bprm_execve": "executed a file of an unknown format",
    "misc_open": "opened a device file",
    "base_probe": "opened a device file",
    "blk_request_module": "opened a block device",
    "__rtnl_newlink": "made a network interface",
    "qdisc_create": "set up traffic control",
    "tty_ldisc_get": "set a terminal's line discipline",
    "br_ioctl_call": "set up a network bridge",
}
"""What a task does when this kernel function asks for a module for it (Linux 6.1 to 6.12)."""

DENIALS_MAX = 100
"""As many denied requests `io.kmodd.Why` counts."""


def story(told: dict[str, Any], module: str) -> str:
    """Return what `io.kmodd.Why` told, as a few sentences."""
    sentence = _how_it_came(told, module)
    if told.get("denied") is not None:
        sentence += f" {_denial(told)}"
    if told.get("problem") is not None:
        sentence += f" What the journal knows of it is not told: {told['problem']}."
    return sentence


def _how_it_came(told: dict[str, Any], module: str) -> str:
    load, request, unload = told["load"], told["request"], told["unload"]
    if load is None:
        return _without_a_load(told, module)
    if load["request"] is None:
        sentence = (
            f"{module} was loaded on {_moment(load['time'])} by {task(load['requester'])}, not through kmodd."
        )
    else:
        sentence = _why(load, request, module)
    if unload is not None:
        by = f" by {task(unload['requester'])}" if unload.get("requester") else ""
        sentence += f" It was unloaded on {_moment(unload['time'])}{by}."
    elif not told["live"]:
        sentence += " It is no longer in the kernel: somebody else has unloaded it, or that was another boot."
    if told["live"] and not told["ours"]:
        sentence += f" The one that is in the kernel now was {_by_whom(told)}."
    return sentence


def _without_a_load(told: dict[str, Any], module: str) -> str:
    """Return what is known of a module that the journal has no load of."""
    unread = told.get("problem") is not None
    if told["live"] and told.get("brought_in_by") is not None:
        return f"{module} was {_by_whom(told)}."
    there = f"{module} is {'' if told['live'] else 'not '}in the kernel"
    if unread or (told.get("denied") is not None and not told["live"]):
        return f"{there}."
    if told["live"]:
        knows = "of no load of it" if told.get("denied") is not None else "nothing of it"
        return f"{there}, and how it came there is not known: the journal knows {knows}."
    return f"{there}, and the journal knows nothing of it."


def _by_whom(told: dict[str, Any]) -> str:
    """Return who brought in what is in the kernel, where the journal has no load that says so."""
    if (number := told.get("brought_in_by")) is None:
        return "loaded by somebody else"
    gone = "" if told.get("problem") is not None else "; that is no longer in the journal"
    return f"brought in by kmodd (request {number}){gone}"


def _why(load: dict[str, Any], request: dict[str, Any] | None, module: str) -> str:
    """Return why kmodd loaded it."""
    return (
        f"{module} was loaded on {_moment(load['time'])} because {_who_asked(request)} for {load['name']}"
        f"{_reason(load, module)}."
    )


def _denial(told: dict[str, Any]) -> str:
    """Return who was denied it last, and by what."""
    request, others = told["denied"], told["denials"] - 1
    name = request["name"]
    why = request["error"].removeprefix(f"cannot load {name}: ")
    by = f" by {why.removeprefix('denied by ')}" if why.startswith("denied by ") else f": {why}"
    sentence = f"On {_moment(request['time'])} {_who_asked(request)} for {name} and was denied it{by}."
    if others:
        count = f"{others} or more" if told["denials"] >= DENIALS_MAX else str(others)
        sentence += f" {count} earlier request{'s' * (others > 1)} for it had been denied, too."
    return sentence


def _who_asked(request: dict[str, Any] | None) -> str:
    if request is not None and (deed := _DEEDS.get(request["requester"]["call_site"] or "")):
        return f"{_who(request)} {deed} ({request['requester']['call_site']}), which asked"
    return f"{_who(request)} asked"


def _moment(time: str) -> str:
    """Return a time of an event as people here say it."""
    return datetime.fromisoformat(time).astimezone().strftime("%A %Y-%m-%d %H:%M:%S")


def _who(request: dict[str, Any] | None) -> str:
    if request is None:
        return "somebody whose request is no longer in the journal"
    return asker(request)


def _reason(load: dict[str, Any], module: str) -> str:
    """Return why it is this module that the name brought in."""
    reason = (load.get("reasons") or {}).get(module, "")
    if reason.startswith("dependency of "):
        return f"; {reason.removeprefix('dependency of ')} needs it"
    if " softdep of " in reason:
        return f"; it is a {reason}"
    if reason.startswith("alias"):
        return f", an alias of {module}"
    return ""
