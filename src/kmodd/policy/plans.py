"""What a plan would load, as the policy looks at it."""

from __future__ import annotations

from kmodd.policy.rules import Wanted
from kmodd.tree.plan import Action, Plan, Verdict

_NOTHING = Wanted((), {}, frozenset())


def wanted(plan: Plan) -> Wanted:
    """Return the modules of a plan, those that are live or built in too, and what each needs."""
    if not plan.targets:
        return _NOTHING
    needs: dict[str, set[str]] = {}
    new: set[str] = set()
    # What modprobe.d blacklists is left out of the load, too, unless nothing else is in it.
    targets = [target for target in plan.targets if target.verdict is not Verdict.BLACKLISTED] or plan.targets
    for target in targets:
        needs.setdefault(target.module, set())
        if target.verdict is Verdict.LOAD and not target.steps:
            new.add(target.module)
        for step in target.steps:
            needs.setdefault(step.module, set()).update(target.steps[number].module for number in step.needs)
            if step.needed_by is not None:
                # A soft dependency belongs to the module that has it, whether it comes before or behind.
                needs.setdefault(step.needed_by, set()).add(step.module)
            if step.action in {Action.INSERT, Action.RUN}:
                new.add(step.module)
    return Wanted(
        tuple(target.module for target in targets),
        {module: frozenset(others) for module, others in needs.items()},
        frozenset(new),
    )
