"""Autoclean: every `unload_delay` seconds what came by itself and is unused goes again (S9, S10).

When passes are made (`sweep`), and what they have come to; a module whose exit function hangs is told.
Nothing wakes up while there is nothing that may go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from kmodd.autoclean.keeplist import shipped
from kmodd.autoclean.limits import KEYS, Limits
from kmodd.autoclean.rule import seconds
from kmodd.broker.handover import Handover
from kmodd.broker.look import Around, Looking
from kmodd.broker.ours import Ours
from kmodd.broker.removal import Remover
from kmodd.broker.sweep import PATIENCE, Pass, Sweep, is_failure
from kmodd.broker.threads import in_own_thread
from kmodd.broker.unloads import Unloads
from kmodd.errors import InvalidName, KmoddError
from kmodd.kernel.interface import Kernel, Module
from kmodd.model import timestamp
from kmodd.names import check, normalise
from kmodd.record.recorder import Recorder
from kmodd.settings import Settings, Value

log = logging.getLogger(__name__)

MARKS_MAX = 20_000
"""More names than any kernel has modules; who marks is root, whose scripts may loop all the same."""
HANGS = 10.0
"""Seconds after which the unload of a module is said to hang; it goes on, for nobody can stop it."""
_SAMPLES = 4
"""Looks in each delay where the kernel does not count who takes a module."""
_SHORTEST = 0.25
"""Seconds between passes at the least, whatever the settings say."""


@dataclass(slots=True)
class Account:
    """What autoclean has done since the daemon's start. `size` is in bytes."""

    passes: int = 0
    unloaded: int = 0
    size: int = 0
    failed: int = 0
    last: datetime | None = None


class Autoclean:
    """All calls on the event loop."""

    def __init__(
        self,
        kernel: Kernel,
        recorder: Recorder,
        settings: Settings,
        remover: Remover,
        unloads: Unloads,
        around: Around,
    ) -> None:
        self._kernel = kernel
        self._recorder = recorder
        self._settings = settings
        self._unloads = unloads
        self._use_counts = around.use_counts
        self._clock = around.clock
        self._limits = Limits(settings, shipped())
        self._ours = Ours(self._clock)
        self._handover = Handover(self._ours, around.directory) if around.directory is not None else None
        self._ours.subscribe(self._changed)
        self._looking = Looking(kernel, self._ours, unloads, around)
        self._sweep = Sweep(self._looking, self._ours, remover, self._late)
        self._timer: asyncio.TimerHandle | None = None
        self._running: asyncio.Task[Pass] | None = None
        self._counting: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._hanging: set[str] = set()
        self._on = False
        self._failed: dict[str, str] = {}
        self.account = Account()
        unloads.subscribe(self._ours.wanted)
        recorder.subscribe(self._ours.note)
        settings.subscribe(self._setting_changed)

    # What is ours

    async def mark(self, names: Iterable[str]) -> list[str]:
        """Mark those of these modules that are in the kernel, as `modprobe -k` did in 1998; return them.

        Raises:
            InvalidName: one of them is no module's name; nothing is marked then.
        """
        wanted = [normalise(check(name.encode("utf-8", errors="surrogatepass"))) for name in names]
        if len(wanted) > MARKS_MAX:
            raise InvalidName(f"{len(wanted)} names in one call; at most {MARKS_MAX} are taken")
        live, identities = await in_own_thread(
            "kmod_list",
            lambda: (self._kernel.modules(), {name: self._kernel.identity(name) for name in wanted}),
        )
        # What is part of the kernel image may have a directory in sysfs, too.
        found = {name: identity for name, identity in identities.items() if name in live and identity}
        if found:
            fields = {"action": "mark", "modules": list(found), "identities": found}
            self._recorder.add("autoclean", fields)
        return list(found)

    def claim(self, modules: Iterable[str]) -> None:
        """Somebody has asked for these by hand, and has them: they are not ours to unload any more."""
        # Those that are ours, and those that a load still needs, whose event would make them ours.
        meant = [each for each in modules if self._ours.get(each) or self._unloads.is_needed(each)]
        released = self._ours.claim({module: self._kernel.identity(module) for module in meant})
        if released:
            why = "somebody asked for it by hand"
            self._recorder.add("autoclean", {"action": "release", "modules": released, "reason": why})

    def _changed(self) -> None:
        if self._handover is not None:
            self._handover.change()
        self._arm()

    async def owned(self) -> frozenset[str]:
        """Return the modules of ours that are in the kernel."""
        noted = self._ours.all()
        self._ours.still(await self._identities(noted), noted)
        return frozenset(self._ours.all())

    async def _identities(self, names: Iterable[str]) -> dict[str, str | None]:
        wanted = list(names)
        if not wanted:
            return {}
        return await in_own_thread(
            "kmod_list", lambda: {name: self._kernel.identity(name) for name in wanted}
        )

    def idle_since(self, module: Module) -> str | None:
        """Return when a module of ours was last touched, as far as is known, where nothing holds it now."""
        owned = self._ours.get(module.name)
        if owned is None or module.refcount != 0:
            return None
        return timestamp(datetime.now(UTC) - timedelta(seconds=max(0.0, self._clock() - owned.touched)))

    # Passes

    async def start(self) -> None:
        """Begin, with what an earlier daemon knew. Whatever goes wrong is told, and costs no more."""
        try:
            if self._handover is not None:
                await self._handover.take_over()
            await self._count()
        except Exception:
            log.exception("autoclean: it begins without what an earlier daemon knew, or without counting")
        self._on = True
        self._arm()

    def pause(self) -> None:
        """Begin no more passes, and no more unloads in one that runs: the daemon stops."""
        self._on = False
        self._sweep.stopping = True
        self._disarm()

    async def stop(self, patience: float) -> None:
        """Let what runs end, for so many seconds at the most."""
        self.pause()
        left = [task for task in (self._running, self._counting) if task is not None]
        if left:
            await asyncio.wait(left, timeout=patience)
        if self._handover is not None:
            await self._handover.written(patience)
        if not self._turn.locked():
            await self._count(stopping=True)

    async def settled(self) -> None:
        """Wait until the kernel counts, or does not, as the setting `tracing` says."""
        if self._counting is not None:
            await asyncio.wait([self._counting])

    async def _count(self, *, stopping: bool = False) -> None:
        """Have the kernel count what takes modules as long as the setting `tracing` is true."""
        counts = self._use_counts
        if counts is None:
            return
        async with self._turn:
            wanted = self._settings.tracing and not stopping
            if wanted is counts.on:
                return
            await in_own_thread("kmod_autoclean", counts.start if wanted else counts.stop)
            self._looking.forget_counts()
        if wanted and not counts.on:
            log.warning("uses of modules are sampled, not counted: %s", counts.problem)
        self._disarm()
        self._arm()

    def _setting_changed(self, key: str, _old: Value, _new: Value) -> None:
        """A changed delay holds at once, also for what waits already (S12)."""
        if key in KEYS:
            self._limits = Limits(self._settings, shipped())
            self._disarm()
            self._arm()
        if key == "tracing":
            self._counting = asyncio.get_running_loop().create_task(self._count())

    def _arm(self) -> None:
        """Have a pass made, where anything may go; a daemon without such modules does not wake up."""
        if not self._on or self._timer is not None or self._running is not None:
            return
        pause = self._limits.shortest
        if not pause or not self._any_may_go():
            return
        if not self._looking.counted:
            pause /= _SAMPLES
        self._timer = asyncio.get_running_loop().call_later(max(_SHORTEST, pause), self._begin)

    def _any_may_go(self) -> bool:
        return any(
            not owned.never and self._limits.may_go(module) for module, owned in self._ours.all().items()
        )

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self) -> None:
        self._timer = None
        self._running = asyncio.get_running_loop().create_task(self._pass())
        self._running.add_done_callback(self._pass_ended)

    def _pass_ended(self, running: asyncio.Task[Pass]) -> None:
        self._running = None
        error = None if running.cancelled() else running.exception()
        if isinstance(error, KmoddError):
            log.warning("autoclean: nothing goes: %s", error)
        elif error is not None:
            log.error("autoclean: a pass has failed: %s", error, exc_info=error)
        self._arm()

    async def run(self) -> Pass:
        """Make a pass now, one at a time, and return what became of each module of ours.

        Who does not wait for it any more does not end it.

        Raises:
            KmoddError: it cannot be found out what uses the modules.
        """
        return await asyncio.shield(asyncio.get_running_loop().create_task(self._pass()))

    async def look(self) -> Pass:
        """Return what would become of each module of ours now; nothing is changed.

        Raises:
            KmoddError: as `run`.
        """
        return await asyncio.shield(asyncio.get_running_loop().create_task(self._look()))

    async def _look(self) -> Pass:
        async with self._turn:
            _look, verdicts, sizes = await self._sweep.judge(self._limits, dry=True)
        return Pass(tuple(verdicts), sizes)

    async def _pass(self) -> Pass:
        async with self._turn:
            made = await self._sweep.run(lambda: self._limits)
        self._tell(made)
        return made

    def _late(self, module: str, size: int, work: asyncio.Task[None]) -> None:
        """The unload of a module takes long."""
        telling = asyncio.get_running_loop().call_later(HANGS - PATIENCE, self._hangs, module)
        work.add_done_callback(lambda done: self._has_ended(module, size, done, telling))

    def _hangs(self, module: str) -> None:
        self._hanging.add(module)
        self._unloads.hangs(module)
        why = f"the unload of {module} has not ended for {seconds(HANGS)}"
        log.warning("autoclean: %s; it may never", why)
        self._recorder.add("autoclean", {"action": "hangs", "modules": [module], "reason": why})

    def _has_ended(
        self, module: str, size: int, work: asyncio.Task[None], telling: asyncio.TimerHandle
    ) -> None:
        """Something that took long to unload has gone, or stays after all."""
        telling.cancel()
        if module in self._hanging:
            self._hanging.discard(module)
            log.info("autoclean: the unload of %s has ended", module)
        if work.cancelled():
            return
        error = work.exception()
        if error is None:
            self.account.unloaded += 1
            self.account.size += size
        elif is_failure(error):
            self.account.failed += 1
            log.warning("autoclean: %s", error)

    def _tell(self, made: Pass) -> None:
        account = self.account
        account.passes += 1
        account.last = datetime.now(UTC)
        account.unloaded += len(made.unloaded)
        account.failed += len(made.failed)
        account.size += made.size
        failed, self._failed = self._failed, dict(made.failed)
        if made.unloaded or self._failed != failed:  # what goes on failing is told once
            self._recorder.add(
                "autoclean",
                {
                    "action": "pass",
                    "modules": list(made.unloaded),
                    "size": made.size,
                    "failed": dict(made.failed),
                },
            )

    @property
    def uses(self) -> str:
        """How it is seen what takes a module: `counted`, by the kernel, or `sampled`."""
        return "counted" if self._looking.counted else "sampled"

    def as_json(self) -> dict[str, Any]:
        """Return the state, as `kmodd status` shows it."""
        account = self.account
        return {
            "delay": self._settings.unload_delay,
            "uses": self.uses,
            "problem": None if self._use_counts is None else self._use_counts.problem,
            "modules": len(self._ours),
            "passes": account.passes,
            "last_pass": None if account.last is None else timestamp(account.last),
            "unloaded": account.unloaded,
            "size": account.size,
            "failed": account.failed,
            "hanging": sorted(self._hanging),
            "waited": self._unloads.waited,
        }
