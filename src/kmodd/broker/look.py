"""What autoclean sees before it decides: the modules of ours, what uses them, and when they were touched.

It looks in a thread and decides nothing: `autoclean.rule` does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from kmodd.autoclean.limits import Limits
from kmodd.autoclean.rule import Candidate, own_users
from kmodd.broker.ours import Ours, Owned
from kmodd.broker.threads import in_own_thread
from kmodd.broker.unloads import Unloads
from kmodd.errors import KmoddError
from kmodd.kernel import nodes
from kmodd.kernel.interface import Kernel, Module
from kmodd.kernel.nodes import Node
from kmodd.kernel.uses import Kinds, Uses

log = logging.getLogger(__name__)

LOOK_MAX = 30.0
"""Seconds that a look may take."""
OLD = 2.0
"""Seconds after which what was seen does not count any more."""
_SEALED = "kmodd is sealed, and would not let it in again"
_COMMANDED = "modprobe.d has a remove command for it, or cannot be read"


class UseCounts(Protocol):
    """How often each module has been taken, as the kernel counts it; `kernel.usecounts` for Linux."""

    problem: str | None

    @property
    def on(self) -> bool:
        """Whether it is counted."""

    def start(self) -> None:
        """Begin to count; blocks."""

    def stop(self) -> None:
        """Count no more; blocks."""

    def counts(self) -> Mapping[str, int] | None:
        """Return how often; None where that is not known, and those before are not to be compared. Blocks."""


class Aliases(Protocol):
    """What is installed, as far as autoclean asks; `installed.Installed` for Linux. From any thread."""

    def aliased(self, name: str) -> Collection[str]:
        """Return the installed modules of an alias, as far as they are known."""

    def kinds(self) -> Kinds | None:
        """Return what aliases say of the installed modules; None: they are not known. Blocks."""


@dataclass(frozen=True, slots=True)
class Around:
    """What autoclean looks at beside the kernel and the settings.

    `use_counts`: None where nothing can be counted. `installed`: what aliases there are, None in a simulated
    kernel. `sealed`: whether what goes may not come in again; then nothing goes. `directory`: where a later
    daemon finds what is ours, None for nowhere. `enter_root` moves a thread to PID 1's root, where device
    files are. `clock`: seconds.
    """

    use_counts: UseCounts | None = None
    installed: Aliases | None = None
    sealed: Callable[[], bool] = lambda: False
    directory: str | None = None
    enter_root: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True)
class Look:
    """All modules at one moment; of ours which ones they are, what uses them, how often each was taken."""

    began: float
    ended: float
    owned: Mapping[str, Owned]
    modules: Mapping[str, Module]
    identities: Mapping[str, str | None]
    uses: Mapping[str, str]
    gets: Mapping[str, int] | None


class Looking:
    """Looks, and remembers how often each module had been taken. On the event loop, unless said otherwise."""

    def __init__(self, kernel: Kernel, ours: Ours, unloads: Unloads, around: Around) -> None:
        self._kernel = kernel
        self._ours = ours
        self._unloads = unloads
        self._use_counts = around.use_counts
        self._aliased = _no_aliases if around.installed is None else around.installed.aliased
        self._kinds = Kinds if around.installed is None else around.installed.kinds
        self._sealed = around.sealed
        self._enter_root = around.enter_root
        self.clock = around.clock
        self._nodes: dict[str, tuple[Node, ...]] = {}
        self._gets: Mapping[str, int] | None = None
        self._lost = False
        self._last: asyncio.Task[Look] | None = None

    @property
    def counted(self) -> bool:
        """Whether the kernel counts what takes modules."""
        return self._use_counts is not None and self._use_counts.on

    def forget_counts(self) -> None:
        """What was counted until now is not to be compared with what will be."""
        self._gets = None
        for owned in self._ours.all().values():
            owned.gets = None

    async def look(self) -> Look:
        """Look in a thread of its own.

        Raises:
            KmoddError: a look has not ended for half a minute, this one or one before it.
        """
        if self._last is None or self._last.done():
            self._last = asyncio.get_running_loop().create_task(self._look())
        done, _pending = await asyncio.wait([self._last], timeout=LOOK_MAX)
        if not done:
            # Whatever holds it up, as an exit function does that hangs with a lock of the kernel's.
            raise KmoddError(f"to find out what uses modules takes longer than {LOOK_MAX:.0f} s")
        return self._last.result()

    async def _look(self) -> Look:
        owned, counts = self._ours.all(), self._use_counts
        if self._lost:
            self._lost = False
            self.forget_counts()

        def look() -> Look:
            began = self.clock()
            # What is taken from now on is seen by the next look; the other way round it would never be.
            gets = counts.counts() if counts is not None and counts.on else None
            modules = self._kernel.modules()
            identities = {name: self._kernel.identity(name) for name in owned}
            unheld = [name for name in owned if name in modules and not _own_users(modules[name])]
            uses = self._kernel.uses_of(unheld, self._aliased, self._kinds())
            words = {name: _in_words(use) for name, use in uses.items() if use}
            return Look(began, self.clock(), owned, modules, identities, words, gets)

        found = await in_own_thread("kmod_autoclean", look)
        # What is counted from then on is not to be compared with what was.
        self._lost |= self.counted and found.gets is None
        return found

    def candidates(
        self, look: Look, limits: Limits, commanded: Collection[str], *, dry: bool
    ) -> list[Candidate]:
        """Return what is known of each module of ours, and, unless `dry`, note which of them were used.

        `commanded`: those that modprobe.d has a `remove` command for.
        """
        self._ours.still(look.identities, look.owned)
        candidates = []
        sealed = _SEALED if self._sealed() else None
        for name, owned in self._ours.all().items():
            module = look.modules.get(name)
            if module is None or look.owned.get(name) is not owned:
                continue  # it came while we looked, and waits for the next look
            owned.never = module.permanent or module.refcount is None
            gets = None if look.gets is None else look.gets.get(name, 0)
            touched, used = self._touched(owned, module, look, gets)
            if not dry:
                owned.touched, owned.used, owned.gets = touched, used, gets
            candidates.append(
                Candidate(
                    name,
                    module.size,
                    module.state,
                    module.permanent,
                    module.refcount,
                    module.holders,
                    limits.delay(name),
                    touched,
                    used,
                    look.uses.get(name),
                    sealed or (_COMMANDED if name in commanded else limits.kept(name)),
                    wanted=self._unloads.is_needed(name),
                    going=name in self._unloads,
                )
            )
        if not dry:
            self._gets = look.gets
        return candidates

    def _touched(self, owned: Owned, module: Module, look: Look, gets: int | None) -> tuple[float, bool]:
        """Return when a module was last touched, as far as is known, and whether it was ever used."""
        in_use = bool(_own_users(module)) or module.name in look.uses
        before = owned.gets
        if before is None and self._gets is not None:
            before = self._gets.get(module.name, 0)  # it has come since the last look
        taken = gets is not None and before is not None and gets != before
        in_doubt = gets is not None and before is None
        touched = max(owned.touched, look.began) if in_use or taken or in_doubt else owned.touched
        return touched, owned.used or in_use or taken

    def in_use(self, module: str, owned: Owned, look: Look) -> str | None:
        """Return what uses a module after all, None for nothing: in the thread that unloads it, right before.

        Requests that come from now on wait until it has gone; those that came since the look are known by
        what they have touched.
        """
        if owned.touched > look.began or self._unloads.is_needed(module):
            return "a request has just asked for it"
        if self._ours.get(module) is not owned:
            return "it is not kmodd's any more"
        if self._sealed():
            return _SEALED
        if self.clock() - look.ended > OLD:
            return "what has been seen may be so no more"
        if self._kernel.identity(module) != owned.identity:
            return "another one of its name is there now"
        kinds = self._kinds()
        uses = self._kernel.uses_of([module], self._aliased, kinds)[module]
        if uses:
            return _in_words(uses)
        entries = kinds.nodes.get(module) if kinds is not None else None
        return (self._nodes_lost(module, entries) if entries else None) or self._taken_since(module, owned)

    def _nodes_lost(self, module: str, entries: Iterable[tuple[str, str]]) -> str | None:
        """Remember the device files that go with a module; return why they could not be put back."""
        if not nodes.can_be_made():
            return "its device file would go with it, and kmodd has no right to put that back (CAP_MKNOD)"
        try:
            self._enter_root()
        except OSError as err:
            return f"its device file cannot be looked after: {err.strerror}"
        self._nodes[module] = nodes.seen(entries)
        return None

    def gone(self, module: str) -> None:
        """Put back what has gone with a module, and others need to have it come again; in the same thread."""
        try:
            nodes.put_back(self._nodes.pop(module, ()))
        except OSError as err:
            log.warning(
                "autoclean: %s took its device file with it, which cannot be put back: %s", module, err
            )

    def _taken_since(self, module: str, owned: Owned) -> str | None:
        if owned.gets is None or self._use_counts is None:
            return None
        gets = self._use_counts.counts()
        if gets is None:
            self._lost = True
            return "it is not known whether it has just been used"
        return "it has just been used" if gets.get(module, 0) != owned.gets else None


def _no_aliases(_name: str) -> Collection[str]:
    return ()


def _in_words(uses: Uses) -> str:
    return f"it is in use: {uses.told()}"


def _own_users(module: Module) -> int:
    return own_users(module.refcount or 0, module.holders)
