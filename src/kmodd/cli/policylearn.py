"""`kmodd policy learn`: from the journal, and from what is live, to a policy file."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache

from kmodd.cli.policy import ask
from kmodd.cli.policycommand import write
from kmodd.cli.resolve import sources
from kmodd.connection import Connection, Reply
from kmodd.errors import KmoddError, NotFound
from kmodd.names import escape, printable
from kmodd.policy import files
from kmodd.policy import learn as learning
from kmodd.policy.learn import Observed, Simulated
from kmodd.policy.plans import wanted
from kmodd.policy.rules import Wanted
from kmodd.tree.plan import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kmodd.tree.index import Index
    from kmodd.tree.modprobed import Config


LEARNED = "50-learned.toml"
_KNOWN_MAX = 10_000
_SHOWN_MAX = 20


def learn(arguments: Namespace) -> int:
    """Print a policy that allows what the journal knows of; what would then be denied is said on stderr."""
    live = [module["name"] for module in ask("ListModules", "modules")]
    told = ask("GetPolicy", "policy")
    now = datetime.now(UTC)
    journal = _Journal()
    text = learning.learn(journal.read(arguments.since), live, f"{now:%Y-%m-%d %H:%M} UTC", os.path.isfile)
    in_force = {file["name"]: file["text"] for file in told["files"]}
    known = files.names()
    result = files.assemble(files.with_file(in_force, LEARNED, text), known)
    # All of the journal, whatever was learned from: another pass, as it may not fit into memory.
    found = learning.simulate(result, files.assemble(in_force, known), journal.read(None), now)
    _say_simulated(found, journal.began, now)
    path = os.path.join(told["directory"], LEARNED)
    if arguments.diff:
        import difflib  # noqa: PLC0415 - for this option alone

        old = in_force.get(LEARNED, "")
        lines = difflib.unified_diff(old.splitlines(), text.splitlines(), path, "learned", lineterm="")
        print("\n".join(lines))
    elif not arguments.write:
        print(text, end="")
    if arguments.write:
        write(path, text)
        print(f"{path}: {ask('ReloadPolicy', 'rules')} rules are in force", file=sys.stderr)
    return 0


class _Journal:
    """The requests of the journal, with what their names stand for, as far as that can be said."""

    def __init__(self) -> None:
        self.began: datetime | None = None
        """When the first event was, of those that were read last."""
        self._known = lru_cache(_KNOWN_MAX)(self._resolve)
        self._installed: tuple[Index, Config] | None = None
        with suppress(KmoddError):
            self._installed = sources(None, None)[:2]

    def read(self, since: str | None) -> Iterator[Observed]:
        """Yield them, oldest first."""
        self.began = None
        try:
            for reply in Connection().stream("Log", since=since):
                event = reply["event"]
                self.began = self.began or datetime.fromisoformat(event["time"])
                if event["event"] == "request":
                    yield learning.observed(event, _wanted(self._known(str(event["name"])), event))
        except Reply as reply:
            raise reply.as_error() from None

    def _resolve(self, name: str) -> Wanted | None:
        if self._installed is None:
            return _by_daemon(name)
        with suppress(KmoddError):
            return wanted(resolve(*self._installed, frozenset(), name))
        return None


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


def _say_simulated(found: Simulated, began: datetime | None, now: datetime) -> None:
    """Say how many requests would be denied, and which, first of all those that are not denied now."""
    span = "" if began is None else f" in {_span((now - began).total_seconds())}"
    already = f", of which the policy in force denies {found.already} already" if found.already else ""
    end = ":" if found.denied else ""
    print(
        f"kmodd: of {found.requests} requests{span} this would deny {found.denied}{already}{end}",
        file=sys.stderr,
    )
    shown = sorted(found.kinds.items(), key=lambda item: (item[0].already, -item[1]))[:_SHOWN_MAX]
    for kind, count in shown:
        who = f"uid {'-' if kind.uid is None else kind.uid}  {'-' if kind.exe is None else _word(kind.exe)}"
        why = printable(kind.why.encode("utf-8", "backslashreplace")) + (", as now" if kind.already else "")
        print(f"    {count} x {_word(kind.name)}  {who}  {why}", file=sys.stderr)
    if rest := found.denied - sum(count for _kind, count in shown):
        print(f"    and {rest} more", file=sys.stderr)


def _word(text: str) -> str:
    """Return what a stranger chose as one word, so that he writes no other column or line."""
    return escape(text.encode("utf-8", "backslashreplace"))


def _span(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return "less than 2 minutes"
