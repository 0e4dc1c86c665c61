"""`kmodd policy`: its actions, and those that no more than ask or tell the daemon."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace

from kmodd import names
from kmodd.connection import Connection, Reply
from kmodd.errors import Denied, UsageError
from kmodd.views import show

TYPE_CHECKING = False  # as mypy reads it; importing typing would cost a third of Python's own start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_FACTS = (
    *("uid", "gid", "user", "exe", "unit", "container", "privileged", "unprivileged", "call_site"),
    *("source", "unknown"),
)
_MODES = ("enforce", "audit", "off")


def policy(arguments: Namespace) -> int:
    """Run one of the actions; refuse an option that is another one's."""
    run, options, least, most = _ACTIONS[arguments.action]
    every = {option for _run, taken, _least, _most in _ACTIONS.values() for option in taken}
    for option in sorted(every - set(options)):
        if getattr(arguments, option):
            spelled = "--" + option.replace("_", "-")
            raise UsageError(f"kmodd policy {arguments.action} takes no {spelled}")
    if not least <= len(arguments.what) <= most:
        count = "nothing more" if most == 0 else "one word" if most == 1 else "one word or more"
        raise UsageError(f"kmodd policy {arguments.action} takes {count}: see kmodd(8)")
    return run(arguments)


def ask(method: str, what: str, **parameters: Any) -> Any:
    """Call a method of the daemon's, and return one thing that it returns."""
    try:
        return Connection().call(method, **parameters).get(what)
    except Reply as reply:
        raise reply.as_error() from None


# Asking


def _check(arguments: Namespace) -> int:
    from kmodd.cli import policyfiles  # noqa: PLC0415 - where the daemon is asked little of it is needed

    facts = _facts(arguments)
    status, doubt = 0, False
    for name in arguments.what:
        plain = names.check(os.fsencode(name))
        if arguments.root is not None:
            told = policyfiles.check(arguments.root, plain, facts)
        else:
            told = ask("CheckPolicy", "checked", name=plain, **facts)
        print(json.dumps(told) if arguments.json else _check_words(told))
        doubt = doubt or bool(told.get("groups_unknown"))  # an older daemon does not say
        if not told["allowed"]:
            status = Denied.exit_status
    if doubt and not arguments.unknown:
        print(f"kmodd: {_no_groups(facts)}", file=sys.stderr)
    return status


def _no_groups(facts: dict[str, Any]) -> str:
    """Say why groups are not known, and what follows."""
    why = f"uid {facts['uid']} is no user here" if facts["gid"] is None else "--gid tells one group alone"
    return (
        f"{why}, so not all groups of the requester are known: a rule on others matches it "
        "only with unknown = true; --user names somebody whose groups are known"
    )


def _facts(arguments: Namespace) -> dict[str, Any]:
    """Return who asks: whoever the options name, else whoever runs this."""
    others = {"user", "unknown", "privileged", "unprivileged"}
    facts = {key: getattr(arguments, key) for key in _FACTS if key not in others}
    if arguments.privileged and arguments.unprivileged:
        raise UsageError("--privileged and --unprivileged exclude each other")
    facts["privileged"] = True if arguments.privileged else False if arguments.unprivileged else None
    if arguments.unknown:
        if any(value is not None for key, value in facts.items() if key not in {"source", "call_site"}):
            raise UsageError("--unknown and facts of a requester exclude each other")
        return facts
    if arguments.user is not None or (facts["uid"] is not None and facts["gid"] is None):
        _add_user(facts, arguments.user)
    elif facts["uid"] is None and facts["gid"] is None:
        facts["uid"], facts["gid"], facts["groups"] = os.geteuid(), os.getegid(), os.getgroups()
    return facts


def _add_user(facts: dict[str, Any], name: str | None) -> None:
    """Add what is known of a user, by name or else by uid: all of his groups; a gid that is given is left."""
    import pwd  # noqa: PLC0415 - for these options alone

    try:
        entry = pwd.getpwuid(facts["uid"]) if name is None else pwd.getpwnam(name)
    except KeyError:
        if name is None:
            return
        raise UsageError(f"there is no user {name!r} here") from None
    facts["uid"] = entry.pw_uid
    facts["gid"] = entry.pw_gid if facts["gid"] is None else facts["gid"]
    facts["groups"] = os.getgrouplist(entry.pw_name, entry.pw_gid)


def _check_words(told: dict[str, Any]) -> str:
    decision = told["decision"]
    if not told["allowed"]:
        verdict = f"{show.outcome('denied')} by {told['why']}"
    elif decision["action"] == "deny":
        verdict = f"allowed, as that only tells: it would be denied by {told['why']}"
    elif decision["rule"] is not None:
        verdict = f"allowed by {told['why']}"
    else:
        verdict = "allowed: no rule is against it"
    words = [f"{told['name']}: {verdict}"]
    if told["rate"]:
        words.append(f"beyond {told['rate']}")
    if told["modules"]:
        words.append(f"modules: {' '.join(told['modules'])}")
    elif told["modules"] is not None:
        words.append("nothing of that name is installed")
    return "; ".join(words)


def _show(arguments: Namespace) -> int:
    from kmodd.cli import policyfiles  # noqa: PLC0415 - as above

    told = policyfiles.shown(arguments.root) if arguments.root is not None else ask("GetPolicy", "policy")
    if arguments.json:
        print(json.dumps(told))
        return 0
    sealed = ", sealed" if told["sealed"] else ""
    print(f"policy: {told['mode']}{sealed}, {told['rules_total']} rules in {told['files_total']} files")
    if told["problem"]:
        print(f"problem: {told['problem']}")
    for rule in told["rules"]:
        print(_rule_words(rule))
    return 0


def _rule_words(rule: dict[str, Any]) -> str:
    fields = [
        f"{key}={_value_words(value)}"
        for key, value in rule.items()
        if key not in {"place", "file", "line", "action", "mode", "reason"}
    ]
    mode = "" if rule["mode"] == "enforce" else f" ({rule['mode']})"
    reason = f"  # {rule['reason']}" if rule.get("reason") else ""
    return f"{rule['place']}  {rule['action']}{mode}  {' '.join(fields) or 'everything'}{reason}"


def _value_words(value: object) -> str:
    items = value if isinstance(value, list) else [value]
    some = ",".join(json.dumps(item) if isinstance(item, bool) else str(item) for item in items[:6])
    return some + (f",... ({len(items)})" if len(items) > 6 else "")


# Telling


def _mode(arguments: Namespace) -> int:
    if not arguments.what:
        mode = ask("GetStatus", "status")["policy"]["mode"]
        print(json.dumps({"mode": mode}) if arguments.json else mode)
        return 0
    if arguments.what[0] not in _MODES:
        raise UsageError(f"the mode is one of {', '.join(_MODES)}, not {arguments.what[0]!r}")
    ask("SetSetting", "", key="policy.mode", value=arguments.what[0])
    return 0


def _reload(_arguments: Namespace) -> int:
    print(f"{ask('ReloadPolicy', 'rules')} rules are in force")
    return 0


def _elsewhere(place: str) -> Callable[[Namespace], int]:
    def run(arguments: Namespace) -> int:
        from importlib import import_module  # noqa: PLC0415 - as above

        module, _, function = place.partition(":")
        status: int = getattr(import_module(f"kmodd.cli.{module}"), function)(arguments)
        return status

    return run


_MANY = 1000
_ACTIONS: dict[str, tuple[Callable[[Namespace], int], tuple[str, ...], int, int]] = {
    "show": (_show, ("root",), 0, 0),
    "check": (_check, (*_FACTS, "root"), 1, _MANY),
    "lint": (_elsewhere("policyfiles:lint"), ("root",), 0, 0),
    "reload": (_reload, (), 0, 0),
    "mode": (_mode, (), 0, 1),
    "deny": (_elsewhere("policycommand:deny"), ("reason", "until", "unload", "runtime"), 1, _MANY),
    "allow": (_elsewhere("policycommand:allow"), ("reason", "until", "runtime"), 1, _MANY),
    "forget": (_elsewhere("policycommand:forget"), ("runtime",), 1, _MANY),
    "learn": (_elsewhere("policylearn:learn"), ("since", "diff", "write"), 0, 0),
    "groups": (_elsewhere("policyfiles:groups"), (), 0, 1),
    "preset": (_elsewhere("policyfiles:preset"), (), 0, 1),
    "export": (_elsewhere("policyfiles:export"), ("root", "modprobe_d"), 0, 0),
}
"""For each action what does it, its options, and how many words at the least and at the most."""
