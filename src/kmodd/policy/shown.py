"""The policy and its answers as JSON has them: what the API and the command line show."""

from __future__ import annotations

from typing import Any

from kmodd.policy.files import Policy
from kmodd.policy.inforce import PolicyInForce
from kmodd.policy.rules import Facts, Wanted


def as_json(policy: Policy) -> dict[str, Any]:
    """Return the rules of a policy in order, with their places, and the files' texts."""
    return {
        "files_total": len(policy.files),
        "rules_total": len(policy.rules),
        "rules": [
            {
                "place": rule.place,
                "file": rule.file,
                "line": rule.line,
                **{key: _shown(value) for key, value in rule.text.items()},
                "mode": rule.mode.value,
            }
            for rule in policy.rules
        ],
        "files": [{"name": name, "text": text} for name, text in policy.texts],
    }


def _shown(value: object) -> Any:
    """Return a value of a rule: times as text."""
    return value if isinstance(value, str | int | bool | list) else str(value)


def checked(
    policy: PolicyInForce, facts: Facts, would_load: Wanted | None, problem: str | None
) -> dict[str, Any]:
    """Return what the policy says of a request, as `kmodd policy check --json` shows it."""
    judgement = policy.check(facts, lambda: would_load)
    rule = judgement.rule
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
        "requester": facts.requester.as_json(),
        "problem": problem,
    }
