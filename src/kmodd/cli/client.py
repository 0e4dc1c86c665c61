"""The commands that ask the daemon."""

from __future__ import annotations

import os
import sys

from kmodd import names, plainjson
from kmodd.connection import Connection, Reply
from kmodd.errors import KmoddError, NotFound, Unreachable, UsageError
from kmodd.views import show

TYPE_CHECKING = False  # as mypy reads it; importing typing would cost a third of Python's own start
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any


_USER_MAX = 64
"""Bytes of a user's name that are shown."""


def _print_json(value: object) -> None:
    print(plainjson.dumps(value), flush=True)


def _tell(text: str) -> None:
    """Print a line of what is being done, which goes on where nobody reads it."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)


def _complain(err: KmoddError) -> int:
    print(f"kmodd: {err}", file=sys.stderr)
    return err.exit_status


def _checked(name: str) -> str:
    return names.check(os.fsencode(name))


def request(arguments: Namespace) -> int:
    """`kmodd request`: one after the other; the exit status is the first failure's."""
    wanted = [_checked(name) for name in arguments.name]
    connection = Connection()
    status = 0
    for name in wanted:
        try:
            result = connection.call(
                "RequestModule",
                name=name,
                source="cli",
                timeout=arguments.timeout,
                wait=False if arguments.no_wait else None,
            )["result"]
        except Reply as reply:
            if arguments.json and reply.parameters.get("result") is not None:
                _tell(plainjson.dumps(reply.parameters["result"]))
            failed = _complain(reply.as_error())
            status = status or failed
            continue
        if arguments.json:
            _tell(plainjson.dumps(result))
        elif result["outcome"] is None:
            _tell(f"{name}: asked, as request {result['id']}")
        else:
            modules = "" if not result["modules"] else ": " + " ".join(result["modules"])
            took = show.milliseconds(result["duration_us"])
            _tell(f"{name}: {show.outcome(result['outcome'])}{modules} ({took})")
    return status


def remove(arguments: Namespace) -> int:
    """`kmodd remove`."""
    wanted = [_checked(name) for name in arguments.name]
    connection = Connection()
    status = 0
    for name in wanted:
        try:
            removed = connection.call("RemoveModule", name=name, holders=arguments.holders or None)["removed"]
        except Reply as reply:
            error = reply.as_error()
            if arguments.json:
                _tell(plainjson.dumps({"name": name, "removed": [], "error": str(error)}))
            failed = _complain(error)
            status = status or failed
            continue
        if arguments.json:
            _tell(plainjson.dumps({"name": name, "removed": removed, "error": None}))
        else:
            _tell(f"{name}: unloaded" + (f" with {' '.join(removed[:-1])}" if removed[1:] else ""))
    return status


def _ask(method: str, what: str, **parameters: Any) -> Any:
    try:
        return Connection().call(method, **parameters)[what]
    except Reply as reply:
        raise reply.as_error() from None
    except KeyError:
        raise Unreachable(f"what answers is not kmodd: {method} returned no {what}") from None


def list_modules(arguments: Namespace) -> int:
    """`kmodd list`."""
    modules = _ask("ListModules", "modules")
    if arguments.json:
        for module in modules:
            _print_json(module)
        return 0
    rows = [["Module", "Size", "Refs", "State", "Brought in by", "Autoclean", "Used by"]]
    rows += [
        [
            module["name"],
            str(module["size"]),
            "-" if module["refcount"] is None else str(module["refcount"]),
            module["state"] + (" permanent" if module["permanent"] else ""),
            "-" if module["brought_in_by"] is None else f"request {module['brought_in_by']}",
            _autoclean_words(module),
            " ".join(module["holders"]) or "-",
        ]
        for module in modules
    ]
    print(show.table(rows))
    return 0


def _autoclean_words(module: dict[str, Any]) -> str:
    if not module["autoclean"]:
        return "-"
    idle = module["idle_since"]
    return f"yes, {module['uses']}" if idle is None else f"idle since {idle[11:19]}, {module['uses']}"


def why(arguments: Namespace) -> int:
    """`kmodd why`: the exit status is 3 where nothing is known of a module."""
    from kmodd.views.story import story  # noqa: PLC0415 - dates, for nothing else

    wanted = [_checked(name) for name in arguments.module]
    connection = Connection()
    status = 0
    for name in wanted:
        try:
            told = connection.call("Why", module=name)["origin"]
        except Reply as reply:
            raise reply.as_error() from None
        if arguments.json:
            _print_json(told)
        else:
            _name_users(told)
            print(story(told, told["module"]))
        if told.get("problem") is not None:
            status = KmoddError.exit_status
        elif told["load"] is None and told.get("denied") is None and not told["live"]:
            status = status or NotFound.exit_status
    return status


def _name_users(told: dict[str, Any]) -> None:
    """Give each requester the name that its uid has here; in a container it may be somebody else's."""
    events = [told[what] for what in ("load", "request", "unload", "denied") if told.get(what)]
    for requester in filter(None, (event.get("requester") for event in events)):
        if requester["uid"] is not None and not requester["container"]:
            requester["user"] = _user(requester["uid"])


def _user(uid: int) -> str | None:
    import pwd  # noqa: PLC0415 - for nothing else

    try:
        return names.printable(os.fsencode(pwd.getpwuid(uid).pw_name), _USER_MAX)
    except (KeyError, OverflowError, OSError):
        return None


def status(arguments: Namespace) -> int:
    """`kmodd status`."""
    state = _ask("GetStatus", "status")
    if arguments.json:
        _print_json(state)
        return 0
    hook = state["hook"]
    outcomes = ", ".join(f"{count} {name}" for name, count in state["requests"]["outcomes"].items())
    hooked = "on" if hook["on"] else f"off (kernel.modprobe is {hook['modprobe']!r})"
    requests, loads = state["requests"], state["loads"]
    rows = [
        [
            "daemon",
            f"kmodd {state['version']}, {state['state']}, pid {state['pid']}, up {state['uptime_s']:.0f} s",
        ],
        ["kernel", _kernel_words(state["kernel"])],
        ["hook", hook["error"] or hooked],
        *_tree_rows(state["tree"]),
        ["tracing", _tracing_words(state["tracing"])],
        ["policy", _policy_words(state["policy"])],
        ["requests", f"{requests['total']} ({outcomes or 'none yet'}), {requests['waiting']} waiting"],
        ["loads", f"{loads['total']}, {loads['running']} running"],
        ["autoclean", _cleaning_words(state["autoclean"])],
        ["journal", _journal_words(state["journal"])],
        *(["setting", f"{key} = {plainjson.dumps(value)}"] for key, value in state["settings"].items()),
    ]
    print(show.table(rows))
    return 0


def _kernel_words(kernel: dict[str, Any]) -> str:
    closed = ", loads and unloads nothing until the next boot (kernel.modules_disabled)"
    return f"{kernel['type']} {kernel['release']}" + (closed if kernel["modules_disabled"] else "")


def _policy_words(policy: dict[str, Any]) -> str:
    words = [policy["mode"], f"{policy['rules']} rules in {policy['files']} files"]
    if policy["sealed"]:
        words.append("sealed")
    return ", ".join(words) + (f"; {policy['problem']}" if policy["problem"] else "")


def _cleaning_words(state: dict[str, Any]) -> str:
    if not state["delay"]:
        return f"off (unload_delay is 0), {state['unloaded']} modules unloaded"
    every = f"every {state['delay']:g} s, uses are {state['uses']}"
    went = f"{state['modules']} modules came by themselves or are marked, {state['unloaded']} unloaded"
    hangs = f"; the exit of {' '.join(state['hanging'])} has not returned" if state["hanging"] else ""
    return f"{every}: {went} ({state['size']} bytes){hangs}"


def _journal_words(journal: dict[str, Any]) -> str:
    words = [journal["path"] if journal["on"] else "off: events are in memory only", journal["problem"]]
    if journal["lost"]:
        words.append(f"{journal['lost']} events lost")
    return ", ".join(word for word in words if word)


def _tracing_words(tracing: dict[str, Any]) -> str:
    asks = "on: who asks is known" if tracing["on"] else f"off: {tracing['problem']}"
    if not tracing["loads_on"]:
        why = f" ({tracing['loads_problem']})" if tracing["on"] else ""
        asks += f"; loads by others are not seen{why}"
    else:
        asks += ", and loads by others are seen"
    missed = tracing["missed"] + tracing["loads_missed"]
    return asks + (f"; records lost, at least: {missed}" if missed else "")


def _tree_rows(tree: dict[str, Any] | None) -> list[list[str]]:
    if tree is None:
        return []
    rows = []
    if tree["directory"] is not None:
        rows.append(["tree", f"{tree['directory']}, {tree['modules']} modules, from {tree['from']}"])
    rows += [["problem", problem] for problem in (tree["problem"], *tree["skipped"]) if problem]
    return rows


def tune(arguments: Namespace) -> int:
    """`kmodd tune`: changes first, then shows what was named; all of it where nothing was."""
    connection = Connection()
    try:
        for item in arguments.setting:
            key, equals, text = item.partition("=")
            if equals:
                value = _value(text)
                if value is None:
                    raise UsageError(f"{key} takes a value, not null")
                connection.call("SetSetting", key=key, value=value)
        found = {item["key"]: item for item in connection.call("GetSettings")["settings"]}
    except Reply as reply:
        raise reply.as_error() from None
    wanted = [item.partition("=")[0] for item in arguments.setting] or list(found)
    for key in wanted:
        if key not in found:
            raise UsageError(f"unknown setting {key!r}: there are {', '.join(found)}")
    if arguments.json:
        _print_json({key: found[key]["value"] for key in wanted})
    else:
        rows = [[key, "=", plainjson.dumps(found[key]["value"])] for key in wanted]
        print(show.table(rows))
    return 0


def _value(text: str) -> object:
    try:
        return plainjson.loads(text)
    except ValueError:
        return text


def log(arguments: Namespace) -> int:
    """`kmodd log`."""
    events = Connection().stream(
        "Log",
        follow=arguments.follow or None,
        since=arguments.since,
        module=arguments.module,
        name=arguments.name,
        outcome=arguments.outcome,
        uid=arguments.uid,
        count=arguments.lines,
    )
    try:
        for reply in events:
            if arguments.json:
                _print_json(reply["event"])
            else:
                print(show.event_line(reply["event"]), flush=True)
    except Reply as reply:
        error = reply.as_error()
        if arguments.follow and reply.error == "io.kmodd.JournalUnreadable":
            error = KmoddError(f"{error}; `kmodd log -f -n 0` follows what comes")
        raise error from None
    return 0
