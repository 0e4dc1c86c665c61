"""`kmodd autoclean`: which modules would go, which stay and why, and a pass at once."""

from __future__ import annotations

import sys

from kmodd import plainjson
from kmodd.connection import Connection, Reply
from kmodd.errors import UsageError
from kmodd.views import show

TYPE_CHECKING = False  # as mypy reads it; importing typing would cost a third of Python's own start
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any


def autoclean(arguments: Namespace) -> int:
    """Show it, or make a pass; the exit status is 1 where a module could not be unloaded."""
    if arguments.now and arguments.dry_run:
        raise UsageError("--now unloads and --dry-run does not: give one of them")
    try:
        told = Connection().call("Autoclean", now=arguments.now or None)["result"]
    except Reply as reply:
        raise reply.as_error() from None
    if arguments.json:
        print(plainjson.dumps(told))
    else:
        _show(told, made=arguments.now)
    return 1 if told["failed"] else 0


def _show(told: dict[str, Any], *, made: bool) -> None:
    modules = told["modules"]
    if modules:
        rows = [["Module", "Size", "Goes" if not made else "Gone", "In", "Why"]]
        rows += [
            [
                module["module"],
                str(module["size"]),
                "yes" if module["goes"] else "no",
                "-" if module["in_seconds"] is None else f"{module['in_seconds']:.0f} s",
                module["reason"],
            ]
            for module in modules
        ]
        print(show.table(rows))
    else:
        print("no module in the kernel came by itself, or is marked: there is nothing to unload")
    if made:
        print(f"unloaded: {len(told['unloaded'])} modules, {told['size']} bytes")
    elif not told["delay"]:
        print("autoclean is off: the setting unload_delay is 0")
    for failed in told["failed"]:
        print(f"kmodd: {failed['error']}", file=sys.stderr)
