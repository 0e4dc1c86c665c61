"""`kmodd policy learn`: from the journal, and from what is live, to a policy file."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime

from kmodd.cli.policy import ask
from kmodd.cli.policycommand import write
from kmodd.cli.resolve import sources
from kmodd.connection import Connection, Reply
from kmodd.errors import KmoddError, NotFound
from kmodd.policy import files
from kmodd.policy import learn as learning
from kmodd.policy.learn import Observed
from kmodd.policy.parse import parse as parse_file
from kmodd.policy.plans import wanted
from kmodd.policy.rules import Wanted
from kmodd.tree.plan import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


LEARNED = "50-learned.toml"


def learn(arguments: Namespace) -> int:
    """Print a policy that allows what the journal knows of; what it would deny is said on stderr."""
    observed = list(_observed(arguments.since))
    live = [module["name"] for module in ask("ListModules", "modules")]
    now = datetime.now(UTC)
    made = f"{now:%Y-%m-%d %H:%M} UTC, from {len(observed)} requests"
    text = learning.learn(observed, live, made, os.path.isfile)
    learned = parse_file(text, LEARNED, files.names())
    told = ask("GetPolicy", "policy")
    _say_simulated(observed, learning.simulate(learned.rules, observed, now))
    path = os.path.join(told["directory"], LEARNED)
    if arguments.diff:
        import difflib  # noqa: PLC0415 - for this option alone

        old = next((file["text"] for file in told["files"] if file["name"] == LEARNED), "")
        lines = difflib.unified_diff(old.splitlines(), text.splitlines(), path, "learned", lineterm="")
        print("\n".join(lines))
    elif not arguments.write:
        print(text, end="")
    if arguments.write:
        write(path, text)
        print(f"{path}: {ask('ReloadPolicy', 'rules')} rules are in force", file=sys.stderr)
    return 0


def _observed(since: str | None) -> Iterator[Observed]:
    """Yield the requests of the journal, with what their names stand for, as far as that can be said."""
    try:
        installed = sources(None, None)[:2]
    except KmoddError:
        installed = None
    known: dict[str, Wanted | None] = {}
    events = Connection().stream("Log", since=since)
    try:
        for reply in events:
            event = reply["event"]
            if event["event"] != "request":
                continue
            name = str(event["name"])
            if name not in known:
                known[name] = None
                if installed is not None:
                    with suppress(KmoddError):
                        known[name] = wanted(resolve(*installed, frozenset(), name))
                else:
                    known[name] = _by_daemon(name)
            yield learning.observed(event, _wanted(known[name], event))
    except Reply as reply:
        raise reply.as_error() from None


def _by_daemon(name: str) -> Wanted | None:
    """Return what a name stands for in the daemon's kernel, where that is not the one of this machine."""
    try:
        plan = ask("Resolve", "plan", name=name)
    except NotFound:
        return Wanted((), {}, frozenset())
    except KmoddError:
        return None
    targets = [str(target["module"]) for target in plan["targets"]]
    others = frozenset(str(step["module"]) for target in plan["targets"] for step in target["steps"])
    return Wanted(
        tuple(targets), {**dict.fromkeys(others, frozenset()), **dict.fromkeys(targets, others)}, others
    )


def _wanted(found: Wanted | None, event: dict[str, Any]) -> Wanted | None:
    """Return what a request stands for; what it has loaded counts where its name means nothing here."""
    loaded = [str(module) for module in event["modules"] or ()]
    if found is not None and (found.targets or not loaded):
        return found
    if loaded:
        return Wanted(tuple(loaded), {module: frozenset() for module in loaded}, frozenset(loaded))
    return Wanted((), {}, frozenset()) if event["outcome"] == "not-found" else None


def _say_simulated(observed: list[Observed], denied: list[tuple[Observed, Any]]) -> None:
    first = observed[0].time[:10] if observed else "the start"
    print(
        f"kmodd: of {len(observed)} requests since {first} this would deny {len(denied)}"
        + (":" if denied else ""),
        file=sys.stderr,
    )
    for request, judgement in denied[:20]:
        who = request.facts.requester
        by = f"uid {who.uid}  {who.exe or '-'}"
        print(f"    {request.time[:19]}  {request.facts.name}  {by}  {judgement.why}", file=sys.stderr)
    if len(denied) > 20:
        print(f"    and {len(denied) - 20} more", file=sys.stderr)
