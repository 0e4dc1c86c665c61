"""How much of what is installed can be had through requests of the kernel, and by whom: pure counting."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from kmodd.policy.reach import Reach, reach, reachable_aliases
from kmodd.tree.glob import is_literal
from kmodd.tree.index import Index
from kmodd.tree.modprobed import Config

May = Callable[[Reach, str, frozenset[str]], bool]
"""Whether the policy lets who is that have a name asked for, which stands for these modules."""
Closure = Callable[[str], Iterable[str]]
"""All modules that a request for a name would load: what they need too."""


@dataclass(frozen=True, slots=True)
class Reachable:
    """An installed module, and the names by which somebody can make the kernel ask for it.

    `names`: with `_` for `-`, each with the least that one has to be. None: no call asks for it, so it is
    only had with what needs it.
    """

    module: str
    names: tuple[tuple[str, Reach], ...]

    @property
    def least(self) -> Reach | None:
        """The least that one has to be; None where no call asks for it."""
        found = [who for _name, who in self.names]
        return next((who for who in Reach if who in found), None)


@dataclass(frozen=True, slots=True)
class Exposure:
    """How many modules could be had by whom; the lists are sorted.

    Who may do more can also be who may do less (setuid(2), unshare(2)), so each list holds the one before.
    `live`, `used` and `live_or_used` count installed modules: those that are live, that were ever used.
    """

    anyone: tuple[str, ...]
    user_namespace: tuple[str, ...]
    privileged: tuple[str, ...]
    installed: int
    live: int
    used: int
    live_or_used: int

    def of(self, who: Reach) -> tuple[str, ...]:
        """Return the modules that who is that could have."""
        match who:
            case Reach.ANYONE:
                return self.anyone
            case Reach.USER_NAMESPACE:
                return self.user_namespace
            case Reach.PRIVILEGED:
                return self.privileged

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "installed": self.installed,
            "live": self.live,
            "used": self.used,
            "live_or_used": self.live_or_used,
            "reachable": {
                who.name.lower(): {"count": len(self.of(who)), "modules": list(self.of(who))} for who in Reach
            },
        }


def reachable(index: Index, config: Config) -> list[Reachable]:
    """Return every installed module with its names, those that modprobe.d gives it among them.

    An alias of modprobe.d for what is not installed, and one with wildcards, is left out.
    """
    names: dict[str, dict[str, Reach]] = {module: {} for module in index.modules()}
    for name, module, who in reachable_aliases(index):
        if module in names:
            names[module][name] = who
    for alias in config.aliases.items:
        configured = reach(alias.pattern) if is_literal(alias.pattern) else None
        if configured is not None and alias.module in names:
            names[alias.module][alias.pattern] = configured
    return [Reachable(module, tuple(found.items())) for module, found in names.items()]


def exposure(
    modules: Iterable[Reachable], may: May, closure: Closure, live: AbstractSet[str], used: AbstractSet[str]
) -> Exposure:
    """Count what can be had: of each name that somebody can have asked for, what it loads, if they may.

    `may` is asked at most three times for a name, and not where it would make no difference. The time is that
    of a few thousand closures and decisions: not for an event loop.
    """
    installed: set[str] = set()
    names: dict[str, Reach] = {}
    for each in modules:
        installed.add(each.module)
        names.update(each.names)
    had: dict[Reach, set[str]] = {who: set() for who in Reach}
    for name, least in names.items():
        wanted = frozenset(closure(name)) & installed
        for who in Reach:
            if who.covers(least) and not wanted <= had[who] and may(who, name, wanted):
                had[who] |= wanted
    had[Reach.USER_NAMESPACE] |= had[Reach.ANYONE]
    had[Reach.PRIVILEGED] |= had[Reach.USER_NAMESPACE]
    return Exposure(
        anyone=tuple(sorted(had[Reach.ANYONE])),
        user_namespace=tuple(sorted(had[Reach.USER_NAMESPACE])),
        privileged=tuple(sorted(had[Reach.PRIVILEGED])),
        installed=len(installed),
        live=len(installed & live),
        used=len(installed & used),
        live_or_used=len(installed & (live | used)),
    )
