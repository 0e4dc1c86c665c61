"""How often requesters have asked: a bucket for each rule with a rate and each user, bounded in number."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from kmodd.policy.rules import Facts, Rule

BUCKETS_MAX = 8192
"""Buckets at the most; of more the one that was least used of late is forgotten, and so is full again."""


class Rates:
    """Counts requests. All calls on the event loop; `clock` in seconds, monotonic.

    A bucket holds as many requests as the rate names and fills again evenly in its time: a requester may
    use all of it at once and then has to wait.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._buckets: OrderedDict[tuple[str, int, int | None], tuple[float, float]] = OrderedDict()

    def take(self, rule: Rule, facts: Facts) -> bool:
        """Count a request; return whether it exceeds the rule's rate."""
        left = self._left(rule, facts)
        over = left < 1.0
        self._buckets[self._key(rule, facts)] = (left if over else left - 1.0, self._clock())
        self._buckets.move_to_end(self._key(rule, facts))
        if len(self._buckets) > BUCKETS_MAX:
            self._buckets.popitem(last=False)
        return over

    def look(self, rule: Rule, facts: Facts) -> bool:
        """Return whether one more request would exceed the rule's rate, without counting it."""
        return self._left(rule, facts) < 1.0

    def forget(self) -> None:
        """Begin anew: the rules are others now."""
        self._buckets.clear()

    @staticmethod
    def _key(rule: Rule, facts: Facts) -> tuple[str, int, int | None]:
        return rule.file, rule.line, facts.requester.uid

    def _left(self, rule: Rule, facts: Facts) -> float:
        assert rule.rate is not None
        full = float(rule.rate.count)
        left, since = self._buckets.get(self._key(rule, facts), (full, self._clock()))
        return min(full, left + (self._clock() - since) * full / rule.rate.seconds)
