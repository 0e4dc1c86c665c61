"""The rule of autoclean (S9): from what is known of kmodd's own modules to which of them go, and why; pure.

As in 1998: who has not been used since the last pass but one goes, so that a use always buys a whole delay.
What is in doubt stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kmodd.kernel.interface import ModuleState

ALL_MAX = 3
"""Holders that a sentence names."""
_AT_ONCE = 0.001
"""Seconds that count as none: what sums of times are off by."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A module that kmodd brought in by itself, or that was marked, as it is at one moment.

    Times are seconds of one clock. `delay`: how long it may be unused, 0 for ever. `touched`: when it was
    last known to be used or asked for, never before it came. `used`: whether it was ever seen used. `uses`:
    what is known to use it, in words, None for nothing. `kept`: why it is never unloaded, None where it may
    be. `wanted`: whether a request is bringing it in, or needs it, right now. `going`: whether it is being
    unloaded. `refcount` counts its holders, too.
    """

    module: str
    size: int
    state: ModuleState
    permanent: bool
    refcount: int | None
    holders: tuple[str, ...]
    delay: float
    touched: float
    used: bool = False
    uses: str | None = None
    kept: str | None = None
    wanted: bool = False
    going: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a module, and why, in words.

    `left`: seconds until it would go if nobody used it; 0 where it goes, None where time does not count.
    """

    module: str
    goes: bool
    reason: str
    left: float | None = None


def own_users(refcount: int, holders: Iterable[str]) -> int:
    """Return how many use a module without being modules: each holder counts once in its reference count."""
    return max(0, refcount - len(tuple(holders)))


def decide(candidates: Iterable[Candidate], now: float) -> list[Verdict]:
    """Return a verdict on each: those that go first, each behind all that hold it, then those that stay.

    What is held only by modules that go may go behind them.
    """
    known = {candidate.module: candidate for candidate in candidates}
    going: dict[str, Verdict] = {}
    staying: dict[str, Verdict] = {}
    on_the_way: set[str] = set()

    def judge(name: str) -> None:
        if name in going or name in staying:
            return
        on_the_way.add(name)
        candidate = known[name]
        for holder in candidate.holders:
            # Modules that hold each other there are not; who says so stays.
            if holder in known and holder not in on_the_way:
                judge(holder)
        on_the_way.discard(name)
        verdict = _judge(candidate, now, going)
        (going if verdict.goes else staying)[name] = verdict

    for name in known:
        judge(name)
    return [*going.values(), *(staying[name] for name in known if name in staying)]


def _judge(candidate: Candidate, now: float, going: Mapping[str, Verdict]) -> Verdict:
    name = candidate.module
    if why := _never(candidate) or _in_use(candidate, going):
        return Verdict(name, False, why)
    # A clock does not go back; should what is known say so, it was used now.
    idle = max(0.0, now - candidate.touched)
    left = candidate.delay - idle
    if left > _AT_ONCE:
        return Verdict(
            name,
            False,
            f"it was {'last used' if candidate.used else 'loaded or asked for'} {seconds(idle)} ago",
            left,
        )
    return Verdict(name, True, f"nobody has used it for {seconds(idle)}", 0)


def _never(candidate: Candidate) -> str | None:
    if candidate.kept is not None:
        return f"it is kept: {candidate.kept}"
    if candidate.permanent:
        return "it is permanent: it has no exit function"
    if candidate.refcount is None:
        return "this kernel cannot unload modules"
    if not candidate.delay > 0:
        return "autoclean is off for it (unload_delay, unload_delays)"
    return None


def _in_use(candidate: Candidate, going: Mapping[str, Verdict]) -> str | None:
    if candidate.going:
        return "it is being unloaded"
    if candidate.state is not ModuleState.LIVE:
        return "it is being loaded" if candidate.state is ModuleState.COMING else "it is being unloaded"
    if candidate.wanted:
        return "a request needs it now"
    if holders := [holder for holder in candidate.holders if holder not in going]:
        return f"it is used by {_list(holders)}"
    assert candidate.refcount is not None
    if candidate.uses is not None:
        return candidate.uses
    if users := own_users(candidate.refcount, candidate.holders):
        return f"it has {users} user{'s' if users != 1 else ''}"
    return None


def _list(names: list[str]) -> str:
    left = len(names) - ALL_MAX
    return ", ".join(names[:ALL_MAX]) + (f" and {left} more" if left > 0 else "")


def seconds(value: float) -> str:
    """Return a time in words: `0.5 s`, `59 s`, `12 min`, `3 h`, `2 d`."""
    for unit, length, until in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 48 * 3600)):
        if value < until:
            amount = value / length
            return f"{amount:.1f} {unit}" if amount < 1 else f"{amount:.0f} {unit}"
    return f"{value / 86400:.0f} d"
