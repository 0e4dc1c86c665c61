"""The policy and its answers as JSON has them: what the API and the command line show."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from kmodd.model import Requester, Source
from kmodd.policy import files
from kmodd.policy.inforce import PolicyInForce
from kmodd.policy.rules import Facts, Wanted


def as_json(policy: PolicyInForce, root: str) -> dict[str, Any]:
    """Return a policy as `kmodd policy show --json` prints it: its rules in order, and the files' texts.

    `directory` is where files of commands go below `root`, `runtime_directory` where those that a boot ends.
    """
    of = policy.policy
    return {
        "mode": policy.mode.value,
        "sealed": policy.sealed,
        "problem": policy.problem,
        "directory": files.place(root),
        "runtime_directory": files.place(root, runtime=True),
        "files_total": len(of.files),
        "rules_total": len(of.rules),
        "rules": [
            {
                "place": rule.place,
                "file": rule.file,
                "line": rule.line,
                **{key: _shown(value) for key, value in rule.text.items()},
                "mode": rule.mode.value,
            }
            for rule in of.rules
        ],
        "files": [{"name": name, "text": text} for name, text in of.texts],
    }


def _shown(value: object) -> Any:
    """Return a value of a rule: times as text."""
    return value if isinstance(value, str | int | bool | list) else str(value)


def supposed(
    name: str,
    source: str | None,
    *,
    privileged: bool | None = None,
    groups: Collection[int] | None = None,
    **facts: Any,
) -> Facts:
    """Return a request that is asked about. `facts`: those of `Requester`; what is not given is not known.

    It comes from the kernel where `source` is not given. Who has uid 0 is taken to be privileged, and others
    not to be, where that is not given.
    """
    uid = facts.get("uid")
    if privileged is None and uid is not None:
        privileged = uid == 0
    known = None if groups is None else tuple(groups)
    requester = Requester(privileged=privileged, groups=known, **facts)
    asked_by = Source(source or Source.KERNEL.value)
    return Facts(name, asked_by, requester, stranger=asked_by in {Source.API, Source.CLI} and uid != 0)


def checked(
    policy: PolicyInForce, facts: Facts, would_load: Wanted | None, problem: str | None
) -> dict[str, Any]:
    """Return what the policy says of a request, as `kmodd policy check --json` shows it.

    `groups_unknown`: whether rules ask for groups, and not all of the requester's are known.
    """
    judgement = policy.check(facts, lambda: would_load)
    rule = judgement.rule
    who = facts.requester
    return {
        "name": facts.name,
        "modules": None if would_load is None else sorted(would_load.modules),
        "allowed": judgement.allowed,
        "decision": judgement.decision.as_json(),
        "file": None if rule is None else rule.file,
        "line": None if rule is None else rule.line,
        "reason": None if rule is None else rule.reason,
        "why": None if judgement.allowed and rule is None else judgement.why,
        "rate": None if rule is None or rule.rate is None else rule.rate.text,
        "sealed": policy.sealed,
        "mode": policy.mode.value,
        "source": facts.source.value,
        "requester": who.as_json(),
        "groups_unknown": (who.gid is None or who.groups is None) and policy.asks_for_groups,
        "problem": problem,
    }
