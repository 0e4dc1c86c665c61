"""Autoclean: every `unload_delay` seconds what came by itself and is unused goes again (S9, S10).

A pass looks at the kernel in a thread, decides (`autoclean.rule`), and unloads one module after the other,
each in a thread of its own: one whose exit hangs is told, and holds up no other. Nothing wakes up while there
is nothing that may go.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from kmodd.autoclean.keeplist import shipped
from kmodd.autoclean.limits import KEYS, Limits
from kmodd.autoclean.rule import Candidate, Verdict, decide, own_users, seconds
from kmodd.broker.ours import EVENTS, Ours, Owned
from kmodd.broker.removal import Remover
from kmodd.broker.threads import in_own_thread
from kmodd.broker.unloads import Unloads
from kmodd.errors import InvalidName, KernelError
from kmodd.kernel.interface import Kernel, Module
from kmodd.kernel.uses import Uses
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
_PATIENCE = 1.0
"""Seconds that a pass waits for a module's exit function before it goes on with the next module."""
_OLD = 5.0
"""Seconds after which what a pass has seen does not count any more."""
_SAMPLES = 4
"""Looks in each delay where the kernel does not count who takes a module."""
_SHORTEST = 0.25
"""Seconds between passes at the least, whatever the settings say."""
_COMMANDED = "modprobe.d has a remove command for it, or cannot be read"
_SEALED = "kmodd is sealed, and would not let it in again"
_DISTURBED = frozenset({errno.EAGAIN, errno.EBUSY, errno.ENOENT, errno.EPERM})
"""What delete_module(2) says of one that has found a user, or has gone, in between, or of all modules where
kernel.modules_disabled is set: no failure."""


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

    def link_makers(self) -> Collection[str] | None:
        """Return those that make network interfaces of a kind; None: not known. Blocks."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What a pass has seen: all modules, and of ours which ones they are and what uses them."""

    began: float
    owned: Mapping[str, Owned]
    modules: Mapping[str, Module]
    identities: Mapping[str, str | None]
    uses: Mapping[str, str]
    gets: Mapping[str, int] | None


@dataclass(slots=True)
class Account:
    """What autoclean has done since the daemon's start. `size` is in bytes."""

    passes: int = 0
    unloaded: int = 0
    size: int = 0
    failed: int = 0
    last: datetime | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass: the verdicts, what went, and what could not."""

    verdicts: tuple[Verdict, ...]
    sizes: Mapping[str, int]
    unloaded: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "modules": [
                {
                    "module": verdict.module,
                    "goes": verdict.goes,
                    "reason": verdict.reason,
                    "in_seconds": None if verdict.left is None else round(verdict.left, 1),
                    "size": self.sizes[verdict.module],
                }
                for verdict in self.verdicts
            ],
            "unloaded": [{"module": module, "size": self.sizes[module]} for module in self.unloaded],
            "failed": [{"module": module, "error": error} for module, error in self.failed.items()],
            "size": sum(self.sizes[module] for module in self.unloaded),
        }


@dataclass(frozen=True, slots=True)
class Around:
    """What autoclean looks at beside the kernel and the settings.

    `use_counts`: None where nothing can be counted. `installed`: what aliases there are, None in a simulated
    kernel. `sealed`: whether what goes may not come in again; then nothing goes. `clock`: seconds.
    """

    use_counts: UseCounts | None = None
    installed: Aliases | None = None
    sealed: Callable[[], bool] = lambda: False
    clock: Callable[[], float] = time.monotonic


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
        self._remover = remover
        self._unloads = unloads
        self._use_counts = around.use_counts
        self._aliased = _no_aliases if around.installed is None else around.installed.aliased
        self._link_makers = frozenset if around.installed is None else around.installed.link_makers
        self._sealed = around.sealed
        self._clock = around.clock
        self._limits = Limits(settings, shipped())
        self._ours = Ours(self._clock, self._aliased)
        self._ours.subscribe(self._arm)
        self._timer: asyncio.TimerHandle | None = None
        self._running: asyncio.Task[None] | None = None
        self._counting: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._hanging: set[str] = set()
        self._gets: Mapping[str, int] | None = None
        """What was counted at the last pass, None where that is not known."""
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
            self._gets = None
            for owned in self._ours.all().values():
                owned.gets = None
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
        if not self._counted:
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
            look = await in_own_thread("kmod_autoclean", self._look())
            commanded = {name for name in look.owned if await self._remover.has_command(name)}
            candidates = self._candidates(look, commanded, dry=dry)
            if not dry:
                self._gets = look.gets
            verdicts = decide(candidates, look.began)
            sizes = {candidate.module: candidate.size for candidate in candidates}
            if dry:
                return Pass(tuple(verdicts), sizes)
            made = await self._unload_those(look, verdicts, sizes)
        self._tell(made)
        return made

    @property
    def _counted(self) -> bool:
        return self._use_counts is not None and self._use_counts.on

    def _look(self) -> Callable[[], _Look]:
        owned, stands_for, counts = self._ours.all(), self._aliased, self._use_counts

        def look() -> _Look:
            began = self._clock()
            # What is taken from now on is seen by the next pass; the other way round it would never be.
            gets = counts.counts() if counts is not None and counts.on else None
            modules = self._kernel.modules()
            mine = [name for name in owned if name in modules]
            identities = {name: self._kernel.identity(name) for name in owned}
            unheld = [
                name for name in mine if not own_users(modules[name].refcount or 0, modules[name].holders)
            ]
            uses = self._kernel.uses_of(unheld, stands_for, self._link_makers())
            words = {name: _in_words(use) for name, use in uses.items() if use}
            return _Look(began, owned, modules, identities, words, gets)

        return look

    def _candidates(self, look: _Look, commanded: Collection[str], *, dry: bool) -> list[Candidate]:
        """Return what is known of each module of ours, and, unless `dry`, note which of them were used."""
        self._ours.still(look.identities, look.owned)
        candidates = []
        sealed = _SEALED if self._sealed() else None
        for name, owned in self._ours.all().items():
            module = look.modules.get(name)
            if module is None or look.owned.get(name) is not owned:
                continue  # it came while we looked, and waits for the next pass
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
                    self._limits.delay(name),
                    touched,
                    used,
                    look.uses.get(name),
                    sealed or (_COMMANDED if name in commanded else self._limits.kept(name)),
                    wanted=self._unloads.is_needed(name),
                    going=name in self._unloads,
                )
            )
        return candidates

    def _touched(self, owned: Owned, module: Module, look: _Look, gets: int | None) -> tuple[float, bool]:
        """Return when a module was last touched, as far as is known, and whether it was ever used."""
        in_use = bool(_own_users(module)) or module.name in look.uses
        before = owned.gets
        if before is None and self._gets is not None:
            before = self._gets.get(module.name, 0)  # it has come since the last pass
        taken = gets is not None and before is not None and gets != before
        in_doubt = gets is not None and before is None
        touched = max(owned.touched, look.began) if in_use or taken or in_doubt else owned.touched
        return touched, owned.used or in_use or taken

    async def _unload_those(self, look: _Look, verdicts: list[Verdict], sizes: Mapping[str, int]) -> Pass:
        unloaded: list[str] = []
        failed: dict[str, str] = {}
        told: list[Verdict] = []
        for verdict in verdicts:
            if not verdict.goes:
                told.append(verdict)
                continue
            module = verdict.module
            owned = self._ours.get(module)
            if owned is None:
                told.append(Verdict(module, False, "it is another one than a moment ago"))
                continue
            try:
                gone = await self._one(module, sizes[module], owned, verdict.reason, look.began)
            except KernelError as err:
                if err.errno not in _DISTURBED:
                    failed[module] = str(err)
                    # Not each time anew, if it is its own nature.
                    owned.touched = max(owned.touched, look.began)
                told.append(Verdict(module, False, str(err)))
            else:
                if gone:
                    unloaded.append(module)
                told.append(verdict if gone else Verdict(module, False, "it is being unloaded"))
        return Pass(tuple(told), sizes, tuple(unloaded), failed)

    async def _one(self, module: str, size: int, owned: Owned, reason: str, looked: float) -> bool:
        """Unload one module; False where that takes long: the pass goes on meanwhile.

        Raises:
            KernelError: it stays: it has found a user, or the kernel has refused.
        """
        work = asyncio.get_running_loop().create_task(
            self._remover.remove_idle(module, reason, lambda: self._in_use(module, owned, looked))
        )
        done, _pending = await asyncio.wait([work], timeout=_PATIENCE)
        if done:
            work.result()
            return True
        telling = asyncio.get_running_loop().call_later(HANGS - _PATIENCE, self._hangs, module)
        work.add_done_callback(lambda done: self._has_ended(module, size, done, telling))
        return False

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
        elif not isinstance(error, KernelError) or error.errno not in _DISTURBED:
            self.account.failed += 1
            log.warning("autoclean: %s", error)

    def _in_use(self, module: str, owned: Owned, looked: float) -> str | None:
        """Return what uses a module after all, None for nothing: in the thread that unloads it, right before.

        Requests that come from now on wait until it has gone; those that came since the pass has looked are
        known by what they have touched.
        """
        if owned.touched > looked or self._unloads.is_needed(module):
            return "a request has just asked for it"
        if self._clock() - looked > _OLD:
            return "the pass has taken too long, and what it has seen may be so no more"
        if self._kernel.identity(module) != owned.identity:
            return "another one of its name is there now"
        makers = self._link_makers()
        if makers is None or module in makers:
            uses = self._kernel.uses_of([module], self._aliased, makers)[module]
        else:
            uses = self._kernel.uses(module, self._aliased)
        if uses:
            return _in_words(uses)
        if owned.gets is not None and self._use_counts is not None:
            gets = self._use_counts.counts()
            if gets is not None and gets.get(module, 0) != owned.gets:
                return "it has just been used"
        return None

    def _tell(self, made: Pass) -> None:
        account = self.account
        account.passes += 1
        account.last = datetime.now(UTC)
        account.unloaded += len(made.unloaded)
        account.failed += len(made.failed)
        size = sum(made.sizes[module] for module in made.unloaded)
        account.size += size
        if made.unloaded or made.failed:
            self._recorder.add(
                "autoclean",
                {
                    "action": "pass",
                    "modules": list(made.unloaded),
                    "size": size,
                    "failed": dict(made.failed),
                },
            )

    def as_json(self) -> dict[str, Any]:
        """Return the state, as `kmodd status` shows it."""
        account = self.account
        return {
            "delay": self._settings.unload_delay,
            "uses": "counted" if self._counted else "sampled",
            "problem": None if self._use_counts is None else self._use_counts.problem,
            "modules": len(self._ours),
            "passes": account.passes,
            "last_pass": None if account.last is None else timestamp(account.last),
            "unloaded": account.unloaded,
            "size": account.size,
            "failed": account.failed,
            "hanging": sorted(self._hanging),
        }


def _no_aliases(_name: str) -> Collection[str]:
    return ()


def _in_words(uses: Uses) -> str:
    return f"it is in use: {uses.told()}"


def _own_users(module: Module) -> int:
    return own_users(module.refcount or 0, module.holders)
