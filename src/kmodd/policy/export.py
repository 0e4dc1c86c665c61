"""The denials that hold for everybody as lines of modprobe.d, for loads that pass kmodd by. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from kmodd.policy.rules import REQUEST, Action, Mode, Rule

_CONDITIONS = (
    "name", "source", "privileged", "uid", "gid", "user", "group", "exe", "unit", "container", "call_site",
    "rate",
)  # fmt: skip


def modprobe_d(
    rules: Sequence[Rule],
    installed: Iterable[str],
    needed_by: Callable[[str], Iterable[str]],
    now: datetime,
    made: str,
) -> str:
    """Return a file for modprobe.d. Each module is one that some rule denies to everybody, whoever asks.

    modprobe does not know who asks: a rule that looks at the requester, at the name or at a rate is left
    out, and so is a module that an earlier rule may allow. `install` holds for dependencies too, and ends
    with a failure that the caller is told, which `blacklist` does not. So what a module needs that somebody
    may have, as `needed_by` tells it, is left out where no rule names it. What such a module asks for as it
    loads nobody can tell before: a request that a rule about everything would not be asked about.
    """
    lines = [f"# Made by `kmodd policy export --modprobe-d`, {made}."]
    denied: dict[str, Rule] = {}
    left_out: list[str] = []
    settled: set[str] = set()
    needed: set[str] = set()
    modules = frozenset(installed)
    for rule in rules:
        if rule.mode is not Mode.ENFORCE or rule.ended(now) or REQUEST not in rule.operation:
            continue
        hits = {module for module in modules - settled if rule.module is None or rule.module.matches(module)}
        conditions = [field for field in _CONDITIONS if getattr(rule, field) is not None]
        if rule.action is Action.ALLOW:
            needed.update(*map(needed_by, hits))
        elif conditions:
            left_out.append(f"# {rule.place} is left out: it asks for {', '.join(conditions)}")
            continue
        else:
            hits -= {
                module for module in hits & needed if rule.module is None or not rule.module.names(module)
            }
            denied.update(dict.fromkeys(hits, rule))
        settled |= hits
    lines += left_out
    for module in sorted(denied):
        rule = denied[module]
        until = f", until {rule.text.get('until')}" if rule.until is not None else ""
        lines += [
            # A backslash at its end would join the next line to it.
            f"# {rule.place}: {rule.reason or 'no reason given'}{until}".rstrip("\\"),
            f"install {module} /bin/false",
        ]
    return "\n".join(lines) + "\n"
