"""What is installed and configured now: read when it is first asked for, and again after it has changed."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from kmodd.broker.threads import in_own_thread
from kmodd.errors import KmoddError
from kmodd.kernel.uses import Kinds
from kmodd.names import normalise
from kmodd.tree import keep, modprobed, snapshot
from kmodd.tree.index import NoTree
from kmodd.tree.modprobed import DIRECTORIES, Config
from kmodd.tree.snapshot import Snapshot
from kmodd.tree.watch import Watch

log = logging.getLogger(__name__)

PATIENCE = 30.0
"""Seconds that a request waits for the files to be read, where it is known what was installed before.

They may be another machine's that does not answer any more: what needs nothing of them goes on then.
"""


class Installed:
    """The modules of one release below PID 1's root. All calls on the event loop, which never waits.

    `enter_root` moves a thread to PID 1's root and working directory (S13).
    """

    def __init__(self, release: Callable[[], str], enter_root: Callable[[], None]) -> None:
        self._release = release
        self._enter_root = enter_root
        self._snapshot: Snapshot | None = None
        self._kinds: tuple[Snapshot, Kinds] | None = None
        self._watch: Watch | None = None
        self._root: tuple[str, str] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._forgotten = False
        self._late: str | None = None
        self._begun = 0.0
        self._problem: str | None = None
        self._error: KmoddError | None = None

    @property
    def problem(self) -> str | None:
        """Why the tree is not as it should be, in a sentence; None where it is."""
        return self._late or self._problem

    async def current(self) -> Snapshot:
        """Return what is installed now.

        Raises:
            KmoddError: nothing is, or it cannot be read; the message names the release.
        """
        if self._reading is not None:
            # Begun before this request came: what has changed since then it may have missed.
            await self._read_in_time(self._reading)
        self.at_once()
        if self._reading is not None:
            await self._read_in_time(self._reading)
        if self._snapshot is None:
            raise self._error or KmoddError("no modules are installed")
        return self._snapshot

    def at_once(self) -> Snapshot | None:
        """Return what is installed now where no file need be looked at.

        None: that look has begun, or nothing could be read; `current` tells.
        """
        if self._reading is None and self._changed():
            loop = asyncio.get_running_loop()
            self._reading, self._begun = loop.create_task(self._read()), loop.time()
            self._reading.add_done_callback(self._read_done)
        return None if self._reading is not None and self._late is None else self._snapshot

    async def _read_in_time(self, reading: asyncio.Task[None]) -> None:
        """Wait until the files are read; where that takes too long, what was known before still holds."""
        if self._late is not None:
            return
        left = self._begun + PATIENCE - asyncio.get_running_loop().time()
        patience = None if self._snapshot is None else max(0.0, left)
        done, _late = await asyncio.wait([reading], timeout=patience)
        if done:
            reading.result()
        elif reading is self._reading and self._late is None:
            self._late = (
                f"the modules of {self._release()} cannot be read within {PATIENCE:g} seconds; what was read "
                "before is kept"
            )
            log.error("%s", self._late)

    async def config(self) -> Config:
        """Return the configuration now, which holds where no modules are installed too.

        Raises:
            KmoddError: it cannot be read.
        """
        try:
            return (await self.current()).config
        except KmoddError:

            def work() -> Config:
                self._enter_root()
                return modprobed.load(DIRECTORIES, only_trusted=True)

            try:
                return await in_own_thread("kmod_tree", work)
            except OSError as err:
                raise KmoddError(f"cannot read modprobe.d: {err.strerror or err}") from err

    def aliased(self, name: str) -> list[str]:
        """Return the installed modules with an alias such as `fs-vfat`, as far as known; from any thread."""
        known = self._snapshot
        return [] if known is None else known.index.alias(normalise(name))

    def kinds(self) -> Kinds | None:
        """Return what aliases say of the installed modules, None while they are not known.

        It reads all aliases where they have changed: from a thread.
        """
        known = self._snapshot
        if known is None:
            return None
        if self._kinds is None or self._kinds[0] is not known:
            # As the index has them, with `_` for `-`.
            aliases = known.index.aliases()
            links = frozenset(module for alias, module in aliases if alias.startswith("rtnl_link_"))
            devices = frozenset(module for alias, module in aliases if ":" in alias)
            nodes: dict[str, tuple[tuple[str, str], ...]] = {}
            for module, node, device in known.index.devnames():
                nodes[module] = (*nodes.get(module, ()), (node, device))
            self._kinds = known, Kinds(links, devices, nodes)
        return self._kinds[1]

    @property
    def known(self) -> Snapshot | None:
        """What was installed when it was last looked at."""
        return self._snapshot

    def forget(self) -> None:
        """Have the next request look at the files again, whatever the watch says: on SIGHUP."""
        self._forgotten = True

    def _changed(self) -> bool:
        # PID 1's root is another after switch_root.
        return (
            self._forgotten or self._watch is None or self._watch.maybe_changed() or _identity() != self._root
        )

    def _read_done(self, reading: asyncio.Task[None]) -> None:
        self._reading = None
        late, self._late = self._late, None
        if reading.cancelled():
            return
        if (error := reading.exception()) is not None:
            log.error("cannot read what is installed: %s", error)
        elif late is not None and self._error is None:
            log.warning("the modules of %s have been read in the end", self._release())

    async def _read(self) -> None:
        old, release = self._snapshot, self._release()
        self._forgotten = False
        # The kernel waits for a grace period as it ends a watch: that is for the thread.
        watched, self._watch = self._watch, None

        def work() -> tuple[Snapshot | None, Watch | None, tuple[str, str] | None, KmoddError | None]:
            if watched is not None:
                watched.close()
            self._enter_root()
            directory = keep.usable(release)
            # First watch, then read: what changes in between is seen.
            root = _identity()
            watch = Watch((directory, snapshot.ROOT, *snapshot.places()))
            try:
                if old is not None and snapshot.sign(directory) == old.signature:
                    return old, watch, root, None
                return snapshot.take(directory, only_trusted=True), watch, root, None
            except KmoddError as err:
                return None, watch, root, err
            except BaseException:
                watch.close()
                raise

        try:
            found, watch, root, error = await in_own_thread("kmod_tree", work)
        except OSError as err:
            if watched is not None:
                watched.close()
            found, watch, root = None, None, None
            error = KmoddError(f"cannot read the modules of {release}: {err.strerror or err}")
        self._watch, self._root, self._error = watch, root, error
        self._take(found, error, release)

    def _take(self, found: Snapshot | None, error: KmoddError | None, release: str) -> None:
        before, known = self._problem, self._snapshot
        if isinstance(error, NoTree):
            self._snapshot = None
            self._error = NoTree(
                f"the modules of the running kernel {release} are not installed: {error}; an upgrade may "
                f"have replaced them: reboot into the installed kernel"
            )
            self._problem = str(self._error)
        elif error is not None:
            # A half-written file is an upgrade in progress: what was there before still holds.
            self._problem = f"{error}; what was read before is kept" if known else str(error)
        else:
            assert found is not None
            self._snapshot = found
            self._problem = None
            if found.index.scanned:
                self._problem = (
                    f"{found.index.directory} has no modules.dep: names are resolved from the modules "
                    f"themselves; run depmod {release}"
                )
            if found is not known:
                for problem in found.problems()[:20]:
                    log.warning("%s", problem)
        if self._problem is not None and self._problem != before:
            log.log(logging.WARNING if error is None else logging.ERROR, "%s", self._problem)


def _identity() -> tuple[str, str] | None:
    """Return which root PID 1 has, and in which mount namespace; None where that cannot be seen.

    Two names that the kernel has in memory: asking the root itself would touch its file system, which may be
    another machine's. A root that moves within the namespace is a mount, and the watch sees those.
    """
    try:
        return os.readlink("/proc/1/root"), os.readlink("/proc/1/ns/mnt")
    except OSError:
        return None
