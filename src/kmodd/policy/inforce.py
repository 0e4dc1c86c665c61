"""The policy in force: rules, their mode, the seal. It judges each request, and may change at any time."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from kmodd.policy.decide import ALLOWED, GONE, NO_RIGHT, Judgement, Over, RuleSet, decide
from kmodd.policy.files import Policy
from kmodd.policy.rates import Rates
from kmodd.policy.rules import Action, Facts, Mode, Rule, Wanted


def _now() -> datetime:
    return datetime.now(UTC)


def _within(_rule: Rule, _facts: Facts) -> bool:
    return False


class PolicyInForce:
    """All calls on the event loop; judging never blocks."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, now: Callable[[], datetime] = _now
    ) -> None:
        self._now = now
        self._rates = Rates(clock)
        self._policy = Policy()
        self._mode = Mode.ENFORCE
        self._rules = RuleSet()
        self._sealed = False
        self._asks_for_exe = False
        self._listeners: list[Callable[[], None]] = []
        self.problem: str | None = None
        """Why the files are not what is in force, in a sentence; None where they are."""

    @property
    def policy(self) -> Policy:
        """The files that are in force."""
        return self._policy

    @property
    def mode(self) -> Mode:
        """How much all of it counts; not of the seal, which does as long as it is there."""
        return self._mode

    @property
    def sealed(self) -> bool:
        """Whether nothing new comes in but what a rule allows."""
        return self._sealed

    @property
    def active(self) -> bool:
        """Whether there is anything that a request could be denied by."""
        return self._sealed or bool(self._rules.considered)

    @property
    def lets_peers(self) -> bool:
        """Whether any rule could give a right to a peer of the API that is not root."""
        return any(rule.action is Action.ALLOW and rule.names_peers for rule in self._rules.enforced)

    @property
    def asks_for_exe(self) -> bool:
        """Whether any rule looks at the requester's program."""
        return self._asks_for_exe

    @property
    def asks_for_groups(self) -> bool:
        """Whether any rule looks at the requester's groups."""
        return any(rule.gid is not None or rule.group is not None for rule in self._rules.considered)

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener()` after each change: what was allowed may be denied now."""
        self._listeners.append(listener)

    def replace(self, policy: Policy) -> None:
        """Put other files in force."""
        self._policy = policy
        self._rates.forget()
        self._change()

    def set_mode(self, mode: Mode) -> None:
        """Change how much all of it counts."""
        self._mode = mode
        self._change()

    def seal(self, sealed: bool) -> None:
        """Close the seal, or open it."""
        self._sealed = sealed
        self._change()

    def _change(self) -> None:
        self._rules = RuleSet.of(self._policy.rules, self._mode)
        self._asks_for_exe = any(rule.exe is not None for rule in self._rules.considered)
        for listener in list(self._listeners):
            listener()

    def judge(self, facts: Facts, wanted: Callable[[], Wanted | None], *, again: bool = False) -> Judgement:
        """Return whether a request may go on. `wanted` is called where there are rules at all.

        `again`: it has been judged, and counted, before: no rate is against it now.
        """
        return self._judge(facts, wanted, _within if again else self._rates.take)

    def check(self, facts: Facts, wanted: Callable[[], Wanted | None]) -> Judgement:
        """Return what would be said of such a request if it came now; it is not counted."""
        return self._judge(facts, wanted, self._rates.look)

    def _judge(self, facts: Facts, wanted: Callable[[], Wanted | None], over: Over) -> Judgement:
        judgement = ALLOWED
        if facts.gone and (self._sealed or self._rules.enforced):
            return GONE
        if self.active:
            judgement = decide(self._rules, facts, wanted(), self._now(), over, sealed=self._sealed)
        # What a module asks for as it loads belongs to that module, which the peer has been let have.
        if facts.stranger and not facts.nested and judgement.allowed and not judgement.lets_peer:
            return NO_RIGHT
        return judgement
