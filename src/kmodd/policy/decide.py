"""The decision: from rules, a request, and what it would load, to allow or deny. Pure.

The rules are gone through in order for all modules of the plan. A rule decides on the modules that its
`module` matches, one without `module` on all that are left; the first that denies any denies the request. An
allow rule with `module` allows the modules that it names and those that they need; a later rule denies one
of the latter only by naming it, not by meaning everything.

A stranger of the API is let by rules that name peers only: no other allow rule is there for him, and every
module of the plan has to be one that such a rule allows, or that one needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from kmodd.model import Decision
from kmodd.policy.patterns import Union, plain
from kmodd.policy.rules import REQUEST, Action, Facts, Mode, Rule, Wanted

SEAL = "seal"
"""What a decision names as its rule where the seal denies."""

Over = Callable[[Rule, Facts], bool]
"""Whether the rate of a rule is exceeded by a request."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the policy says of a request. `rule`: the one that decided; None where none did.

    `decision` is what is recorded: where a rule in audit mode would have denied, `allowed` is true and the
    decision is that one. `lets_peer`: whether rules let this very peer of the API have all of it, if it is a
    stranger.
    """

    allowed: bool
    decision: Decision
    rule: Rule | None = None
    lets_peer: bool = False

    @property
    def why(self) -> str:
        """The place and the reason of a denial: `30-desktop.toml:2: CVE-2026-31431`."""
        if self is GONE:
            return "the policy: whoever asked has ended before it was known who that is"
        if self is NO_RIGHT:
            return "the policy: no rule lets this user"
        if self.rule is None:
            sealed = self.decision.rule == SEAL
            return (
                "the seal: no rule of the policy lists it" if sealed else "what denies the module that asks"
            )
        return f"{self.rule.place}: {self.rule.reason}" if self.rule.reason else self.rule.place


ALLOWED = Judgement(allowed=True, decision=Decision())
CLOSED = Judgement(allowed=False, decision=Decision("deny"))
"""What a module asks for as it loads, once all who asked for the module have been denied it."""
GONE = Judgement(allowed=False, decision=Decision("deny", "gone", Mode.ENFORCE.value))
"""Nobody waits for it any more, and who it was nobody can say: else killing him would make a user unknown."""
NO_RIGHT = Judgement(allowed=False, decision=Decision("deny"))
"""A peer of the API that is not root, and that no rule lets."""


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Rules in force, in order: `enforced` alone, and `considered`, those in audit mode too."""

    enforced: tuple[Rule, ...] = ()
    considered: tuple[Rule, ...] = ()
    _whatever: tuple[tuple[Rule, ...], tuple[Rule, ...]] = field(init=False, compare=False, repr=False)
    _names: Union = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        both = (self.enforced, self.considered)
        whatever = [tuple(rule for rule in rules if rule.name is None) for rules in both]
        names = [rule.name for rule in self.considered if rule.name is not None]
        object.__setattr__(self, "_whatever", (whatever[0], whatever[1]))
        object.__setattr__(self, "_names", Union.of(names))

    def asking_for(self, name: str) -> tuple[tuple[Rule, ...], tuple[Rule, ...]]:
        """Return both without the rules that ask for other names: most rules name some, most names none."""
        return (self.enforced, self.considered) if self._names.may_match(plain(name)) else self._whatever

    @classmethod
    def of(cls, rules: Iterable[Rule], mode: Mode) -> RuleSet:
        """Choose from rules by their modes and by that of the whole policy, of which the weaker counts."""
        all_of_them = tuple(rules)

        def at_least(wanted: Mode) -> tuple[Rule, ...]:
            if mode.strength < wanted.strength:
                return ()
            return tuple(rule for rule in all_of_them if rule.mode.strength >= wanted.strength)

        return cls(at_least(Mode.ENFORCE), at_least(Mode.AUDIT))


@dataclass(frozen=True, slots=True)
class _Walk:
    """How a walk through rules ended. `unlisted`: the modules that no rule has allowed."""

    action: Action
    rule: Rule | None
    unlisted: frozenset[str]


def decide(
    rules: RuleSet, facts: Facts, wanted: Wanted | None, now: datetime, over: Over, *, sealed: bool = False
) -> Judgement:
    """Return what the policy says. `wanted` is None where it is not known what would be loaded.

    With `sealed` only what a rule allows may come in, whatever its mode; what loads nothing is not refused.
    """
    known: dict[tuple[str, int], bool] = {}

    def over_once(rule: Rule, request: Facts) -> bool:
        # A request is counted once, however often it is looked at.
        key = (rule.file, rule.line)
        if key not in known:
            known[key] = over(rule, request)
        return known[key]

    enforced, considered = rules.asking_for(facts.name)
    done = _walk(enforced, facts, wanted, now, over_once)
    would = done
    if len(considered) != len(enforced):
        would = _walk(considered, facts, wanted, now, over_once)
    if done.action is Action.DENY:
        return Judgement(False, _decision(done.rule, Mode.ENFORCE), done.rule)
    if sealed and facts.operation == REQUEST and _is_news(considered, facts, wanted, now, over_once):
        return Judgement(False, Decision("deny", SEAL, Mode.ENFORCE.value))
    lets_peer = done.rule is not None and not done.unlisted
    if would.action is Action.DENY:
        return Judgement(True, _decision(would.rule, Mode.AUDIT), would.rule, lets_peer)
    if done.rule is None:
        return ALLOWED
    return Judgement(True, _decision(done.rule, Mode.ENFORCE), done.rule, lets_peer)


def _decision(rule: Rule | None, mode: Mode) -> Decision:
    assert rule is not None
    return Decision(rule.action.value, rule.place, mode.value, rule.reason)


def _is_news(rules: Sequence[Rule], facts: Facts, wanted: Wanted | None, now: datetime, over: Over) -> bool:
    """Whether something would come in that no rule lists; of one that would only deny it nothing is said."""
    listing = [rule for rule in rules if rule.action is Action.ALLOW]
    walk = _walk(listing, facts, wanted, now, over)
    if wanted is None:
        return walk.rule is None
    return bool(walk.unlisted & wanted.new)


def _walk(rules: Sequence[Rule], facts: Facts, wanted: Wanted | None, now: datetime, over: Over) -> _Walk:
    modules = frozenset() if wanted is None else wanted.modules
    left, covered = modules, modules if facts.nested else frozenset()
    allowed_by: Rule | None = None
    for rule in rules:
        if rule.ended(now) or not rule.asks_for(facts):
            continue
        if facts.stranger and rule.action is Action.ALLOW and not rule.names_peers:
            continue
        if not (hits := _hits(rule, wanted, left, covered, facts)):
            continue
        if rule.rate is not None and not _exceeds(rule, facts, over):
            continue
        if rule.action is Action.DENY:
            return _Walk(Action.DENY, rule, left)
        allowed_by = allowed_by or rule
        left -= hits
        if wanted is not None:
            covered |= wanted.needed_by(hits)
        if not left:
            break
    return _Walk(Action.ALLOW, allowed_by, left - covered)


def _exceeds(rule: Rule, facts: Facts, over: Over) -> bool:
    """Whether a request exceeds a rule's rate. Who is not known shares nobody's, unless the rule says so."""
    return (facts.known or rule.unknown) and over(rule, facts)


_WHOLE = frozenset({""})
"""What a rule hits in a request that names no module: the request itself."""


def _hits(
    rule: Rule, wanted: Wanted | None, left: frozenset[str], covered: frozenset[str], facts: Facts
) -> frozenset[str]:
    """Return the modules that a rule decides on; empty where it does not match."""
    if rule.module is None:
        if facts.nested and rule.name is not None:
            return left or _WHOLE
        # What is left, once a rule has allowed some, is what those need: general rules do not mean that.
        return left if left - covered else (frozenset() if left or facts.nested else _WHOLE)
    if wanted is None:
        return _WHOLE if rule.unknown else frozenset()
    if rule.any_module and left - covered:
        return left
    return frozenset(module for module in left if rule.module.names(module))
