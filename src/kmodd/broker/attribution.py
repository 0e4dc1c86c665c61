"""Which load brought in which module, where an external modprobe does the loading.

The kernel does not tell who loaded a module. What is known: the modules that were there before a load's
modprobe started, and after it ended. A module that came in between belongs to that load if no other
load in progress at the time can have brought it. Else a module that a request names, and what that one
uses, belongs to that request's load. What is still in doubt modprobe is asked about: what does the name
stand for? If that leaves it open, the load that ends first has it. A module is never told of two loads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from kmodd.names import normalise

Holders = Mapping[str, tuple[str, ...]]
"""The modules in the kernel, the one that came first first, each with the modules that use it."""


@dataclass(eq=False, slots=True)
class Window:
    """The time of one load: what was live before it (None until that is read), and after it."""

    name: str
    before: frozenset[str] | None = None
    after: tuple[str, ...] | None = None
    claimed: set[str] = field(default_factory=set)
    rivals: list[Window] = field(default_factory=list)

    def appeared(self) -> list[str]:
        """Return what came in while this load ran, in order."""
        before = self.before or frozenset()
        return [name for name in self.after or () if name not in before]

    def may_have_loaded(self, module: str) -> bool:
        """Return whether this load can have brought in a module that is live now."""
        came_later = self.before is None or module not in self.before
        return came_later and (self.after is None or module in self.after)


def used_by(module: str, holders: Holders) -> set[str]:
    """Return a module with all that it uses, directly or not; empty where it is not in the kernel."""
    if module not in holders:
        return set()
    uses: dict[str, list[str]] = {}
    for used, users in holders.items():
        for user in users:
            uses.setdefault(user, []).append(used)
    found, todo = {module}, [module]
    while todo:
        for used in uses.get(todo.pop(), ()):
            if used not in found:
                found.add(used)
                todo.append(used)
    return found


class Attribution:
    """The loads in progress and what each can have brought in. All calls on the event loop."""

    def __init__(self) -> None:
        self._open: set[Window] = set()

    def begin(self, name: str) -> Window:
        """A load begins; every load in progress is its rival, and it theirs. Then set its `before`."""
        window = Window(name)
        for other in self._open:
            other.rivals.append(window)
            window.rivals.append(other)
        self._open.add(window)
        return window

    def end(self, window: Window, after: Holders) -> list[str]:
        """A load has ended: claim what is surely its own, return what is in doubt."""
        window.after = tuple(after)
        self._open.discard(window)
        taken = {module for rival in window.rivals for module in rival.claimed}
        contested: list[str] = []
        for module in window.appeared():
            if any(rival.may_have_loaded(module) for rival in window.rivals):
                contested.append(module)
            else:
                window.claimed.add(module)
        contested = [module for module in contested if module not in taken]
        if not contested:
            return []
        own = used_by(normalise(window.name), after)
        window.claimed.update(module for module in contested if module in own)
        others: set[str] = set()
        for rival in window.rivals:
            others |= used_by(normalise(rival.name), after)
        return [module for module in contested if module not in own and module not in others]

    def settle(self, window: Window, doubtful: Iterable[str], closure: Collection[str]) -> list[str]:
        """Return all the modules of an ended load in order, given what its name stands for.

        `closure` are the modules that modprobe would load for the name.
        """
        taken = {module for rival in window.rivals for module in rival.claimed}
        window.claimed.update(module for module in doubtful if module in closure and module not in taken)
        window.rivals.clear()
        return [module for module in window.appeared() if module in window.claimed]

    def drop(self, window: Window) -> None:
        """A load has come to nothing, or nobody waits for what it did."""
        self._open.discard(window)
        window.rivals.clear()
