"""Which modules autoclean may unload: those that came by themselves, and those that were marked.

Each is known as the one that was in the kernel then: one that somebody else has unloaded and loaded again is
no longer ours. Whoever asks by hand, through the API, for a module that came by itself makes it theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kmodd.model import Event

State = dict[str, dict[str, Any]]
"""What a later daemon takes over: of each module its `identity`, and whether it was `marked`."""


@dataclass(slots=True)
class Owned:
    """A module of ours, and when it was last touched (seconds of the caller's clock).

    `identity`: which coming of the module it is. `marked`: by hand, rather than brought in by a request of
    the kernel. `never`: it cannot be unloaded, whoever uses it. `gets`: how often it had been taken when it
    was last looked at, None where that is not known.
    """

    identity: str
    marked: bool
    touched: float
    used: bool = False
    never: bool = False
    gets: int | None = None


class Ours:
    """The modules of ours by name. All calls on the event loop. `clock`: seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._owned: dict[str, Owned] = {}
        self._claimed: dict[str, str] = {}
        self._changed: Callable[[], None] = lambda: None

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Call `changed()` whenever a module has become ours, or is not any more."""
        self._changed = changed

    def __len__(self) -> int:
        """How many there are, those too that have gone since."""
        return len(self._owned)

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
        gone = [
            module
            for module, owned in looked.items()
            if identities.get(module) != owned.identity and self._owned.get(module) is owned
        ]
        for module in gone:
            del self._owned[module]
        if gone:
            self._changed()

    # What makes a module ours, or somebody else's

    def note(self, event: Event) -> None:
        """Something has happened."""
        fields = event.fields
        match event.event:
            case "load" if fields["request"] is not None:
                for module in fields["modules"] or ():
                    identity = fields["identities"].get(module)
                    owned = self._owned.get(module)
                    if owned is not None and owned.marked and owned.identity == identity:
                        continue  # by modprobe -k, which this load has run
                    if module in fields["autoload"] and identity not in {None, self._claimed.get(module)}:
                        self._take(module, identity, marked=False)
                    else:
                        self._drop(module)
            case "unload":
                self._drop(fields["module"])
            case "autoclean" if fields["action"] == "mark":
                for module, identity in fields["identities"].items():
                    self._take(module, identity, marked=True)

    def claim(self, identities: Mapping[str, str | None]) -> list[str]:
        """Somebody has asked for these by hand, and has them: they are theirs, but what is marked stays so.

        Also those that a request of the kernel has brought in and not told of yet. Returns those that were
        ours.
        """
        released = []
        for module, identity in identities.items():
            owned = self._owned.get(module)
            if owned is not None and not owned.marked:
                released.append(module)
                self._drop(module)
            if identity is not None:
                self._claimed[module] = identity
        return released

    def _take(self, module: str, identity: str, *, marked: bool) -> None:
        self._owned[module] = Owned(identity, marked, touched=self._clock())
        self._changed()

    def _drop(self, module: str) -> None:
        if self._owned.pop(module, None) is not None:
            self._changed()

    # Across a restart

    def state(self) -> State:
        """Return what a later daemon is to know."""
        return {
            module: {"identity": owned.identity, "marked": owned.marked}
            for module, owned in self._owned.items()
        }

    def take_over(self, state: State) -> None:
        """Have what an earlier daemon knew be known.

        Nothing is known of what has used the modules in between; that they are the same ones is checked
        before any of them goes.
        """
        for module, known in state.items():
            self._owned.setdefault(module, Owned(known["identity"], known["marked"], touched=self._clock()))
        if state:
            self._changed()
