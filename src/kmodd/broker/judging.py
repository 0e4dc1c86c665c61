"""Who of those that asked for a load may have it: the policy asked at its plan, and again as it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

from kmodd.policy.decide import CLOSED, Judgement
from kmodd.policy.inforce import PolicyInForce
from kmodd.policy.plans import wanted
from kmodd.policy.rules import Facts, Wanted
from kmodd.tree.plan import Plan

DENIED_MAX = 64
"""Modules that are told of a denied request: a name may stand for thousands, and be asked for again."""


class Gate:
    """One load's. It is open as long as the policy lets one of those who asked, gone ones included."""

    __slots__ = ("_owners", "_plan", "_policy", "_wanted", "judged")

    def __init__(self, policy: PolicyInForce) -> None:
        self._policy = policy
        self._owners: set[Facts] = set()
        self._plan: Callable[[], Plan | None] = lambda: None
        self._wanted: list[Wanted | None] = []
        self.judged = False
        """Whether what would be loaded is known, so that whoever joins is judged at once."""

    def judge_by(self, plan: Callable[[], Plan | None]) -> None:
        """Take what would be loaded; it is asked for where there is a rule at all, and once."""
        self._plan = plan
        self.judged = True

    def judge(self, asked: Iterable[Facts], *, again: bool = False) -> Judgement:
        """Judge a request; of several in whose name it is made one that may is enough, and nobody is not."""
        denial: Judgement | None = None
        for facts in asked:
            judgement = self._policy.judge(facts, self._would_load, again=again)
            if judgement.allowed:
                self._owners.add(facts)
                return judgement
            denial = denial or judgement
        return denial or CLOSED

    def judge_again(self) -> None:
        """The policy has changed: whoever may no longer have it owns the load no more."""
        for facts in list(self._owners):
            if not self._policy.judge(facts, self._would_load, again=True).allowed:
                self._owners.discard(facts)

    @property
    def open(self) -> bool:
        """Whether somebody may have it."""
        return bool(self._owners)

    @property
    def owners(self) -> frozenset[Facts]:
        """In whose name the load is made."""
        return frozenset(self._owners)

    def what_it_stands_for(self) -> tuple[str, ...] | None:
        """Return the modules that its name stands for and those that would come with them, if known."""
        would = self._would_load()
        if would is None:
            return None
        found = dict.fromkeys(would.targets)
        found.update(dict.fromkeys(module for module in would.needs if module in would.new))
        return tuple(islice(found, DENIED_MAX))

    def _would_load(self) -> Wanted | None:
        if not self._wanted:
            plan = self._plan()
            self._wanted.append(None if plan is None else wanted(plan))
        return self._wanted[0]
