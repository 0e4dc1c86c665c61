"""How long a module may be unused, and which never go: from the settings, and the list that comes along."""

from __future__ import annotations

from collections.abc import Iterable

from kmodd.autoclean.keeplist import Keep
from kmodd.names import normalise
from kmodd.policy.patterns import Globs
from kmodd.settings import Settings

KEYS = frozenset({"unload_delay", "unload_delays", "keep"})
"""The settings that this is made of."""


class Limits:
    """What holds now; made anew when one of the settings has changed."""

    def __init__(self, settings: Settings, shipped: Iterable[Keep]) -> None:
        self._delay = settings.unload_delay
        self._delays = [
            (Globs.of([glob], names=True), delay if self._delay else 0.0)
            for glob, delay in settings.unload_delays
        ]
        self._keep = Globs.of(settings.keep, names=True)
        self._shipped = [(Globs.of([keep.glob], names=True), keep.reason) for keep in shipped]

    @property
    def shortest(self) -> float:
        """Seconds of the shortest delay that any module may have; 0: none ever goes."""
        return min(
            (delay for delay in (self._delay, *(each for _globs, each in self._delays)) if delay), default=0.0
        )

    def delay(self, module: str) -> float:
        """Return how many seconds a module may be unused; 0: for ever."""
        name = normalise(module)
        return next((delay for globs, delay in self._delays if globs.matches(name)), self._delay)

    def may_go(self, module: str) -> bool:
        """Whether a module may ever go."""
        return self.delay(module) > 0 and self.kept(module) is None

    def kept(self, module: str) -> str | None:
        """Return why a module is never unloaded; None where it may be."""
        name = normalise(module)
        if self._keep.matches(name):
            return "the setting keep names it"
        return next((reason for globs, reason in self._shipped if globs.matches(name)), None)
