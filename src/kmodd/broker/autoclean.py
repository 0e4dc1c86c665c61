"""Autoclean: every `unload_delay` seconds what came by itself and is unused goes again (S9, S10).

When passes are made (`sweep`), and what they have come to; a module whose exit function hangs is told.
Nothing wakes up while there is nothing that may go.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from kmodd.autoclean.keeplist import shipped
from kmodd.autoclean.limits import KEYS, Limits
from kmodd.autoclean.rule import seconds
from kmodd.broker.look import Around, Looking
from kmodd.broker.ours import EVENTS, Ours
from kmodd.broker.removal import Remover
from kmodd.broker.sweep import PATIENCE, Pass, Sweep, is_failure
from kmodd.broker.threads import in_own_thread
from kmodd.broker.unloads import Unloads
from kmodd.errors import InvalidName
from kmodd.kernel.interface import Kernel, Module
from kmodd.model import Event, Outcome, Source, timestamp
from kmodd.names import check, normalise
from kmodd.record.history import History
from kmodd.record.recorder import Recorder
from kmodd.record.select import Selection
from kmodd.settings import Settings, Value

log = logging.getLogger(__name__)

TOLD = Selection(events=EVENTS)
"""The events of earlier daemons that count; the newest"""
TOLD_MAX = 50_000
"""of them: what came before those is kept."""
MARKS_MAX = 20_000
"""More names than any kernel has modules; who marks is root, whose scripts may loop all the same."""
HANGS = 10.0
"""Seconds after which a module's exit function is said to hang; it goes on, for nobody can stop it."""
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
        self._aliased = _no_aliases if around.installed is None else around.installed.aliased
        self._clock = around.clock
        self._limits = Limits(settings, shipped())
        self._ours = Ours(self._clock, self._aliased)
        self._ours.subscribe(self._arm)
        self._looking = Looking(kernel, self._ours, unloads, around)
        self._sweep = Sweep(self._looking, self._ours, remover, self._late)
        self._timer: asyncio.TimerHandle | None = None
        self._running: asyncio.Task[None] | None = None
        self._counting: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._hanging: set[str] = set()
        self._on = False
        self.account = Account()
        unloads.subscribe(self._ours.wanted)
        recorder.subscribe(self._note)
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
        identities = await self._identities(wanted)
        found = {name: identity for name, identity in identities.items() if identity is not None}
        if found:
            fields = {"action": "mark", "modules": list(found), "identities": found}
            self._recorder.add("autoclean", fields)
        return list(found)

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

    def _note(self, event: Event) -> None:
        self._ours.note(event)
        fields = event.fields
        if event.event != "request" or fields["source"] == Source.KERNEL.value:
            return
        if fields["outcome"] == Outcome.ALREADY_LIVE.value and (mine := self._ours.by_hand(fields["name"])):
            # Behind the request's own event, for whoever reads them in order.
            why = f"request {event.id} asked for it by hand"
            asyncio.get_running_loop().call_soon(self._release, mine, why)

    def _release(self, modules: list[str], why: str) -> None:
        self._recorder.add("autoclean", {"action": "release", "modules": modules, "reason": why})

    # Passes

    async def _count(self, *, wanted: bool) -> None:
        """Have the kernel count what takes modules, or no longer (the setting `tracing`)."""
        counts = self._use_counts
        if counts is None or wanted is counts.on:
            return
        async with self._turn:
            await in_own_thread("kmod_autoclean", counts.start if wanted else counts.stop)
            self._looking.forget_counts()
        if wanted and not counts.on:
            log.warning("uses of modules are sampled, not counted: %s", counts.problem)
        self._disarm()
        self._arm()

    async def start(self, history: History) -> None:
        """Begin, with what earlier daemons told of modules."""
        await self._count(wanted=self._settings.tracing)
        now = datetime.now(UTC)
        told = [
            (event, max(0.0, (now - datetime.fromisoformat(event["time"])).total_seconds()))
            async for event in history.events()
        ]
        self._ours.take_over(told)
        self._on = True
        self._arm()

    async def stop(self, patience: float) -> None:
        """Begin no more passes; let one that runs end for a while."""
        self._on = False
        self._disarm()
        if self._running is not None:
            await asyncio.wait([self._running], timeout=patience)
            self._running.cancel()
        if self._counting is not None:
            await asyncio.wait([self._counting], timeout=patience)
        if not self._turn.locked():
            await self._count(wanted=False)

    def _setting_changed(self, key: str, _old: Value, new: Value) -> None:
        """A changed delay holds at once, also for what waits already (S12)."""
        if key in KEYS:
            self._limits = Limits(self._settings, shipped())
            self._disarm()
            self._arm()
        if key == "tracing" and self._on:
            self._counting = asyncio.get_running_loop().create_task(self._count(wanted=bool(new)))

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
            self._limits.delay(module) and self._limits.kept(module) is None for module in self._ours.all()
        )

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self) -> None:
        self._timer = None
        self._running = asyncio.get_running_loop().create_task(self._pass_by_itself())

    async def _pass_by_itself(self) -> None:
        try:
            await self.run()
        except Exception:
            log.exception("autoclean: a pass has failed")
        finally:
            self._running = None
            self._arm()

    async def run(self, *, dry: bool = False) -> Pass:
        """Make a pass now, one at a time, and return what became of each module of ours; `dry`: only look."""
        async with self._turn:
            if dry:
                _look, verdicts, sizes = await self._sweep.judge(self._limits, dry=True)
                return Pass(tuple(verdicts), sizes)
            made = await self._sweep.run(self._limits)
        self._tell(made)
        return made

    def _late(self, module: str, size: int, work: asyncio.Task[None]) -> None:
        """The exit function of a module takes long."""
        telling = asyncio.get_running_loop().call_later(HANGS - PATIENCE, self._hangs, module)
        work.add_done_callback(lambda done: self._has_ended(module, size, done, telling))

    def _hangs(self, module: str) -> None:
        self._hanging.add(module)
        why = f"the exit function of {module} has not returned for {seconds(HANGS)}"
        log.warning("autoclean: %s; it may never", why)
        self._recorder.add("autoclean", {"action": "hangs", "modules": [module], "reason": why})

    def _has_ended(
        self, module: str, size: int, work: asyncio.Task[None], telling: asyncio.TimerHandle
    ) -> None:
        """Something that took long to unload has gone, or stays after all."""
        telling.cancel()
        if module in self._hanging:
            self._hanging.discard(module)
            log.info("autoclean: the exit function of %s has returned", module)
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
        if made.unloaded or made.failed:
            self._recorder.add(
                "autoclean",
                {
                    "action": "pass",
                    "modules": list(made.unloaded),
                    "size": made.size,
                    "failed": dict(made.failed),
                },
            )

    def as_json(self) -> dict[str, Any]:
        """Return the state, as `kmodd status` shows it."""
        account = self.account
        return {
            "delay": self._settings.unload_delay,
            "uses": "counted" if self._looking.counted else "sampled",
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


def _no_aliases(_name: str) -> Collection[str]:
    return ()
