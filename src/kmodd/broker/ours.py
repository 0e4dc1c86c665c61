"""Which modules autoclean may unload: those that came by themselves, and those that were marked.

Each is known as the one that was in the kernel then: one that somebody else has unloaded and loaded again is
no longer ours. A later daemon takes over from the journal what it finds in the kernel still. Whoever asks by
hand, through the API, for a module that came by itself makes it theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kmodd.model import Event
from kmodd.names import normalise

EVENTS = frozenset({"load", "unload", "autoclean"})
"""The events that tell of it."""


@dataclass(slots=True)
class Owned:
    """A module of ours, and when it was last touched. Times are seconds of the caller's clock.

    `identity`: which coming of the module it is. `marked`: by hand, rather than brought in by a request of
    the kernel. `gets`: how often it had been taken when it was last looked at, None where that is not known.
    """

    identity: str
    marked: bool
    loaded: float
    touched: float
    used: bool = False
    gets: int | None = None


class Ours:
    """The modules of ours by name. All calls on the event loop.

    `clock`: seconds. `aliased` returns the installed modules of an alias, as far as they are known.
    """

    def __init__(
        self, clock: Callable[[], float], aliased: Callable[[str], Collection[str]] = lambda _name: ()
    ) -> None:
        self._clock = clock
        self._aliased = aliased
        self._owned: dict[str, Owned] = {}
        self._changed: Callable[[], None] | None = None
        self._heard: set[str] | None = set()
        """Modules that something has been heard of, until what was before has been taken over."""

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Call `changed()` whenever a module has become ours."""
        self._changed = changed

    def __len__(self) -> int:
        """How many there are, those too that have gone since."""
        return len(self._owned)

    def __contains__(self, module: object) -> bool:
        """Whether a module of that name is ours, as far as is known."""
        return module in self._owned

    def get(self, module: str) -> Owned | None:
        """Return what is known of one."""
        return self._owned.get(module)

    def all(self) -> dict[str, Owned]:
        """Return them, by name."""
        return dict(self._owned)

    def wanted(self, modules: Iterable[str]) -> None:
        """These have just been asked for."""
        for module in modules:
            owned = self._owned.get(module)
            if owned is not None:
                owned.touched = self._clock()

    def still(self, identities: Mapping[str, str | None], looked: Mapping[str, Owned]) -> None:
        """Drop those that are not in the kernel any more, or as another; `looked`: what was known then."""
        for module, owned in looked.items():
            if identities.get(module) != owned.identity and self._owned.get(module) is owned:
                del self._owned[module]

    # From events, as they happen or as the journal has them

    def note(self, event: Event) -> None:
        """Something has happened."""
        self._note(event.event, event.fields, 0.0)

    def take_over(self, told: Iterable[tuple[dict[str, Any], float]]) -> None:
        """Have what an earlier daemon told be known: events, oldest first, and how many seconds ago each was.

        What has been heard of since this one began is newer. Nothing is known of what has used the modules in
        between; that they are the same ones is checked before any of them goes.
        """
        before = Ours(self._clock, self._aliased)
        for event, ago in told:
            before._note(event["event"], event, ago)
        heard, self._heard = self._heard, None
        now = self._clock()
        for module, owned in before._owned.items():
            if module not in self._owned and (heard is None or module not in heard):
                owned.touched = now
                self._owned[module] = owned

    def _note(self, kind: str, fields: Mapping[str, Any], ago: float) -> None:
        modules = fields.get("modules") or ()
        identities = fields.get("identities") or {}
        match kind:
            case "load" if fields.get("request") is not None:
                for module in modules:
                    if fields.get("autoload") and identities.get(module) is not None:
                        self._take(module, identities[module], marked=False, ago=ago)
                    else:
                        self._drop(module)
            case "unload":
                self._drop(fields["module"])
            case "autoclean" if fields.get("action") == "mark":
                for module, identity in identities.items():
                    self._take(module, identity, marked=True, ago=ago)
            case "autoclean" if fields.get("action") == "release":
                for module in modules:
                    self._drop(module)

    def _take(self, module: str, identity: str, *, marked: bool, ago: float) -> None:
        now = self._clock()
        self._hear(module)
        self._owned[module] = Owned(identity, marked, loaded=now - ago, touched=now - ago)
        if self._changed is not None:
            self._changed()

    def _drop(self, module: str) -> None:
        self._hear(module)
        self._owned.pop(module, None)

    def _hear(self, module: str) -> None:
        if self._heard is not None:
            self._heard.add(module)

    def by_hand(self, name: str) -> list[str]:
        """Return which modules of ours somebody means who asks by hand for what is live already."""
        meant = dict.fromkeys((normalise(name), *self._aliased(name)))
        return [module for module in meant if module in self._owned and not self._owned[module].marked]
