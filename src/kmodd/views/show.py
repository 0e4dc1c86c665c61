"""How things look on a terminal: aligned, coloured there and plain in a pipe."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # as mypy reads it; importing typing would cost a third of Python's own start
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_COLOURS = {
    "loaded": "32",
    "already-live": "36",
    "built-in": "36",
    "not-found": "33",
    "denied": "35",
    "failed": "31",
    "timed-out": "31",
    "deadlock": "31",
}


def coloured() -> bool:
    """Return whether stdout takes colours (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def colour(text: str, code: str) -> str:
    """Return `text` in an ANSI colour where stdout takes colours."""
    return f"\x1b[{code}m{text}\x1b[0m" if coloured() else text


def outcome(name: str, width: int = 0) -> str:
    """Return an outcome in its colour, padded to `width`."""
    return colour(name.ljust(width), _COLOURS.get(name, "0"))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned columns; the last column is left as it is."""
    if not rows:
        return ""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)) + "  " + row[-1]
        for row in rows
    )


def milliseconds(microseconds: int | None) -> str:
    """Return a duration for people."""
    return "-" if microseconds is None else f"{microseconds / 1000:.1f} ms"


def task(requester: dict[str, Any]) -> str:
    """Return a task that is known as people say it: `insmod (pid 77, uid 0)`, with its `user` if there is."""
    if requester.get("kernel_thread"):
        return f"a kernel thread ({requester['comm']})"
    facts = [f"pid {requester['pid']}"]
    if requester["uid"] is not None:
        facts.append(f"uid {requester['uid']}")
    if requester.get("user"):
        facts.append(requester["user"])
    facts += [f"{what} {requester[what]}" for what in ("unit", "container") if requester[what]]
    return f"{requester['comm'] or 'a task'} ({', '.join(facts)})"


def asker(request: dict[str, Any]) -> str:
    """Return who has made a request, as people say it."""
    requester = request["requester"]
    if requester["pid"] is None:
        return "a task that is not known" if request["source"] == "kernel" else "somebody"
    return task(requester)


def _local(time: str) -> str:
    """Return an event's time as it is here, as `--since` takes it: `2026-11-23 09:00:00.123`."""
    from datetime import datetime  # noqa: PLC0415 - nothing else here needs it, and it is no small thing

    here = datetime.fromisoformat(time).astimezone().replace(tzinfo=None)
    return here.isoformat(" ", "milliseconds")


def _decision_words(event: dict[str, Any]) -> str:
    """Return which rule has denied a request, or would have."""
    decision = event.get("decision")
    if decision is None or decision["action"] != "deny":
        return ""
    by = decision["rule"] or "no rule lets this user"
    return f"  (denied by {by})" if decision["mode"] != "audit" else f"  (would be denied by {by})"


def event_line(event: dict[str, Any]) -> str:
    """Return one event as one line: local time, source, name, outcome, milliseconds, modules, who asked."""
    time = _local(event["time"])
    kind = event["event"]
    if kind in {"request", "load"}:
        modules = "?" if event["modules"] is None else " ".join(event["modules"]) or "-"
        source = event["source"] if kind == "request" else "load"
        line = (
            f"{time}  {source:<6}  {event['name']:<28}  {outcome(event['outcome'], 12)}  "
            f"{milliseconds(event['duration_us']):>11}  {modules}"
        )
        if kind == "load":
            return f"{line}  (by {task(event['requester'])})" if event.get("requester") else line
        shared = event["coalesced_with"]
        line += f"  (shares the load of request {shared})" if shared else ""
        return f"{line}{_decision_words(event)}  (by {asker(event)})"
    if kind == "unload":
        by = f": {task(event['requester'])}" if event.get("requester") else ""
        return f"{time}  {'unload':<6}  {event['module']:<28}  {event['reason']}{by}"
    if kind == "setting":
        return f"{time}  {'tune':<6}  {event['key']:<28}  {event['old']!r} -> {event['new']!r}"
    if kind == "policy":
        rules = f"{event['rules']} rules, {event['mode']}" + (", sealed" if event["sealed"] else "")
        return f"{time}  {'policy':<6}  {event['action']:<28}  {event['error'] or rules}"
    rest = " ".join(f"{key}={value}" for key, value in event.items() if key not in {"id", "time", "event"})
    return f"{time}  {kind:<6}  {rest}"
