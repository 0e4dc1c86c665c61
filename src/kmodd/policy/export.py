"""The denials that hold for everybody as lines of modprobe.d, for loads that pass kmodd by. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from kmodd.policy.rules import REQUEST, Action, Mode, Rule

_CONDITIONS = (
    "name", "source", "privileged", "uid", "gid", "user", "group", "exe", "unit", "container", "call_site",
    "rate",
)  # fmt: skip


def modprobe_d(rules: Sequence[Rule], installed: Iterable[str], now: datetime, made: str) -> str:
    """Return a file for modprobe.d. Each module is one that some rule denies to everybody, whoever asks.

    modprobe does not know who asks: a rule that looks at the requester, at the name or at a rate is left
    out, and so is a module that an earlier rule may allow. `install` holds for dependencies too, and ends
    with a failure that the caller is told, which `blacklist` does not.
    """
    lines = [f"# Made by `kmodd policy export --modprobe-d`, {made}."]
    denied: dict[str, Rule] = {}
    left_out: list[str] = []
    settled: set[str] = set()
    modules = sorted(installed)
    for rule in rules:
        if rule.mode is not Mode.ENFORCE or rule.ended(now) or REQUEST not in rule.operation:
            continue
        hits = {
            module
            for module in modules
            if module not in settled and (rule.module is None or rule.module.matches(module))
        }
        conditions = [field for field in _CONDITIONS if getattr(rule, field) is not None]
        if rule.action is Action.ALLOW:
            settled |= hits
        elif conditions:
            left_out.append(f"# {rule.place} is left out: it asks for {', '.join(conditions)}")
        else:
            denied.update(dict.fromkeys(hits, rule))
            settled |= hits
    lines += left_out
    for module in sorted(denied):
        rule = denied[module]
        until = f", until {rule.until:%Y-%m-%d}" if rule.until is not None else ""
        lines += [
            f"# {rule.place}: {rule.reason or 'no reason given'}{until}",
            f"install {module} /bin/false",
        ]
    return "\n".join(lines) + "\n"
