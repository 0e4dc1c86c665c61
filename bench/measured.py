"""What was measured, and the ratios made of it; pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Rounds = Sequence[Sequence[float]]
"""Samples of one variant, a list for each round; in any unit."""
Statistic = Callable[[Sequence[float]], float]

median: Statistic = statistics.median


def p99(samples: Sequence[float]) -> float:
    """Return the value that one in a hundred is above (the nearest rank)."""
    ranked = sorted(samples)
    return ranked[math.ceil(0.99 * len(ranked)) - 1]


@dataclass(frozen=True, slots=True)
class Ratio:
    """One variant against another, measured in turns.

    `rounds` has the ratio of the medians (or p99) of each round. What else the machine does changes within
    minutes, not within a round: so only what was measured in one round is compared. `limit` is what the ratio
    may be at the most, where somebody has said so.
    """

    case: str
    what: str
    rounds: tuple[float, ...]
    ours_ms: float
    peers_ms: float
    limit: float | None = None

    @property
    def value(self) -> float:
        """Return the median of the rounds."""
        return statistics.median(self.rounds)

    @property
    def spread(self) -> tuple[float, float]:
        """Return the quartiles of the rounds: half of them lie between."""
        if len(self.rounds) < 2:
            return self.rounds[0], self.rounds[0]
        low, _middle, high = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return low, high

    @property
    def met(self) -> bool | None:
        """Return whether it is within its limit; None where it has none."""
        return None if self.limit is None else self.value <= self.limit

    def as_json(self) -> dict[str, Any]:
        """Return all of it as a JSON object."""
        return {
            "case": self.case,
            "what": self.what,
            "ratio": self.value,
            "spread": list(self.spread),
            "rounds": list(self.rounds),
            "ours_ms": self.ours_ms,
            "peers_ms": self.peers_ms,
            "limit": self.limit,
            "met": self.met,
        }


@dataclass(frozen=True, slots=True)
class Figure:
    """Something that is compared with a number, not with a peer: memory, wake-ups. In `unit`s."""

    case: str
    what: str
    value: float
    unit: str = ""
    limit: float | None = None

    @property
    def met(self) -> bool | None:
        """Return whether it is within its limit; None where it has none."""
        return None if self.limit is None else self.value <= self.limit

    def as_json(self) -> dict[str, Any]:
        """Return all of it as a JSON object."""
        return {
            "case": self.case,
            "what": self.what,
            "value": self.value,
            "unit": self.unit,
            "limit": self.limit,
            "met": self.met,
        }


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must hold for the figures to mean anything, and the numbers that say so."""

    what: str
    holds: bool
    figures: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return all of it as a JSON object."""
        return {"what": self.what, "holds": self.holds, "figures": self.figures}


@dataclass(frozen=True, slots=True)
class Measured:
    """What a workload gave; `notes` are sentences on what could not be measured."""

    ratios: tuple[Ratio, ...]
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return all of it as a JSON object."""
        return {
            "ratios": [ratio.as_json() for ratio in self.ratios],
            "figures": [figure.as_json() for figure in self.figures],
            "checks": [check.as_json() for check in self.checks],
            "notes": list(self.notes),
        }


def ratio(
    case: str,
    what: str,
    ours: Rounds,
    peers: Rounds,
    *,
    statistic: Statistic = median,
    limit: float | None = None,
) -> Ratio:
    """Compare samples in nanoseconds of the same rounds."""
    if not ours or len(ours) != len(peers):
        raise ValueError(f"{case}, {what}: {len(ours)} rounds against {len(peers)}")
    mine, theirs = (statistic([sample for each in rounds for sample in each]) for rounds in (ours, peers))
    each = tuple(statistic(one) / statistic(other) for one, other in zip(ours, peers, strict=True))
    return Ratio(case, what, each, mine / 1e6, theirs / 1e6, limit)
