"""The loader that needs no modprobe: it resolves a name and hands each module to the kernel itself.

A closure is loaded along its dependencies, independent branches at once; each module in a thread of its own.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from kmodd.broker.deadlock import RunningLoad
from kmodd.broker.installed import Installed
from kmodd.broker.loader import Loader, Progress, Report, denied
from kmodd.broker.modules import DENIED, Failure, Loaded, ModuleLoads, without_a_word
from kmodd.broker.unloads import Unloads
from kmodd.errors import KernelError, KmoddError, errno_words
from kmodd.kernel.interface import Kernel
from kmodd.model import Outcome
from kmodd.settings import Settings
from kmodd.tree.index import NoTree
from kmodd.tree.plan import Action, Plan, Step, Target, Verdict, resolve
from kmodd.tree.snapshot import Snapshot

log = logging.getLogger(__name__)


class Live:
    """The modules that are live, each looked up when it is asked for: the kernel is the authority."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def __contains__(self, module: object) -> bool:
        """Whether it is live now."""
        return self._kernel.is_live(str(module))


@dataclass(slots=True)
class _Taken:
    """How far a target has come."""

    target: Target
    last: bool
    failure: Failure | None = None
    brought_in: list[str] = field(default_factory=list)
    shared: bool = False


def _to_load(step: Step, taken: _Taken, progress: Progress) -> bool:
    """Whether a step has anything to be loaded, and may."""
    if taken.failure is not None or step.action in {Action.NOTHING, Action.BUILT_IN}:
        return False
    if not progress.may_go_on():
        taken.failure = Failure(step.module, -errno.EPERM, DENIED, denied=True)
        return False
    return True


def _count(step: Step, loaded: Loaded, shared: bool, taken: _Taken, progress: Progress) -> None:
    """Note how the load of a step has ended."""
    taken.shared |= shared
    if not shared:
        taken.brought_in += loaded.brought_in
    if loaded.failure is None:
        if step.named and taken.last:
            # A post soft dependency may ask for this very name while it loads.
            progress.is_live()
        return
    if step.required:
        taken.failure = taken.failure or loaded.failure
    else:
        # As for modprobe: what a soft dependency comes to is nobody's affair but its own.
        log.info("soft dependency %s: %s", step.module, loaded.failure.words)


class _AtOnce:
    """The steps of a target, each taken as soon as those have ended that it needs; none after a failure.

    Not a task for each: in a closure of a hundred modules those cost more than all else on the event loop.
    """

    def __init__(self, steps: Sequence[Step], loads: ModuleLoads, taken: _Taken, progress: Progress) -> None:
        """Begin."""
        self._steps = steps
        self._loads = loads
        self._taken = taken
        self._progress = progress
        self._missing = [len(set(step.after)) for step in steps]
        self._behind: list[list[int]] = [[] for _ in steps]
        for number, step in enumerate(steps):
            for other in set(step.after):
                self._behind[other].append(number)
        self._left = len(steps)
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once all have ended; what it raises is a defect of ours."""
        try:
            self._take([number for number, missing in enumerate(self._missing) if not missing])
        except Exception as err:  # noqa: BLE001 - raised where it is awaited: what has begun ends for nobody
            self.over.set_exception(err)

    def _take(self, ready: list[int]) -> None:
        """Take steps that are ready, and those that are once these have nothing to be loaded."""
        ready.reverse()
        while ready and not self.over.done():
            number = ready.pop()
            step = self._steps[number]
            if _to_load(step, self._taken, self._progress):
                self._loads.begin(step, self._progress, partial(self._told, number))
            else:
                ready += reversed(self._has_ended(number))

    def _has_ended(self, number: int) -> list[int]:
        """Return the steps that are ready now that one has ended."""
        self._left -= 1
        if not self._left:
            self.over.set_result(None)
        ready = []
        for other in self._behind[number]:
            self._missing[other] -= 1
            if not self._missing[other]:
                ready.append(other)
        return ready

    def _told(self, number: int, loaded: Loaded | None, shared: bool, error: BaseException | None) -> None:
        if self.over.done():
            return  # the daemon stops, or another step has met a defect
        if loaded is None:
            self.over.set_exception(error or without_a_word())
            return
        try:
            _count(self._steps[number], loaded, shared, self._taken, self._progress)
            self._take(self._has_ended(number))
        except Exception as err:  # noqa: BLE001 - raised where it is awaited: others wait for this load, too
            if not self.over.done():
                self.over.set_exception(err)


class InProcessLoader:
    """Loads by finit_module(2)."""

    def __init__(
        self,
        settings: Settings,
        kernel: Kernel,
        installed: Installed,
        loads: ModuleLoads,
        unloads: Unloads | None = None,
    ) -> None:
        self.unloads = unloads if unloads is not None else Unloads()
        self._settings = settings
        self._kernel = kernel
        self._live = Live(kernel)
        self._installed = installed
        self._loads = loads

    def running(self) -> list[RunningLoad]:
        """Return the loads of modules in progress."""
        return self._loads.running()

    async def plan(self, name: str) -> tuple[Plan, str]:
        """Return what a load of `name` would do, and for which release.

        Raises:
            KmoddError: the modules are not installed, or the name's brackets do not pair.
        """
        snapshot = await self._installed.current()
        return self._plan(snapshot, name), snapshot.index.release

    def _plan(self, snapshot: Snapshot, name: str) -> Plan:
        return resolve(snapshot.index, snapshot.config, self._live, name)

    def load(self, name: str, progress: Progress) -> Report | Coroutine[Any, Any, Report]:
        """Load every module that `name` stands for, in modprobe's order; the last one's status counts."""
        snapshot = self._installed.at_once()
        if snapshot is None:
            return self._load_later(name, progress)
        try:
            plan = self._plan(snapshot, name)
        except KmoddError as err:
            return self.no_plan(name, err, progress)
        if self.unloads.busy(plan.modules()):
            return self._load_later(name, progress)
        begun = self._begin(plan, snapshot.index.release, progress)
        return self._carry_out(plan, progress) if begun is None else begun

    async def _load_later(self, name: str, progress: Progress) -> Report:
        """Load it once it is known what is installed, and nothing of it is being unloaded."""
        try:
            plan, release = await self.settled(name)
        except KmoddError as err:
            return self.no_plan(name, err, progress)
        return self._begin(plan, release, progress) or await self._carry_out(plan, progress)

    @staticmethod
    def no_plan(name: str, err: KmoddError, progress: Progress) -> Report:
        """Have the requests judged by nothing; return the report where there is no plan."""
        if not progress.may_begin(lambda: None):
            return denied(name)
        number = errno.ENOENT if isinstance(err, NoTree) else errno.EINVAL
        if isinstance(err, KernelError):
            number = err.errno
        return Report(Outcome.FAILED, -number, (), f"cannot load {name}: {err}")

    def _begin(self, plan: Plan, release: str, progress: Progress) -> Report | None:
        """Have the requests judged; return the report where there is nothing to load."""
        if not progress.may_begin(lambda: plan):
            return denied(plan.name)
        self.unloads.touch(plan.modules())
        if not plan.targets:
            error = f"cannot load {plan.name}: no module of that name or alias is installed for {release}"
            return Report(Outcome.NOT_FOUND, -errno.ENOENT, (), error)
        if any(target.steps for target in plan.targets):
            return None
        return self._report(plan, [_Taken(target, last=False) for target in plan.targets])

    async def _carry_out(self, plan: Plan, progress: Progress) -> Report:
        taken = []
        with self.unloads.needing(plan.modules()):
            for target in plan.targets:
                last = target is plan.targets[-1]
                taken.append(await self._take(_Taken(target, last=last), progress))
        return self._report(plan, taken)

    async def settled(self, name: str) -> tuple[Plan, str]:
        """Return the plan once nothing of it is being unloaded: what goes is loaded again.

        Raises:
            KmoddError: as `plan`.
        """
        return await self.unloads.settled(partial(self.plan, name), lambda found: found[0].modules())

    async def _take(self, taken: _Taken, progress: Progress) -> _Taken:
        target = taken.target
        if self._settings.serial or len(target.steps) < 2:
            for step in target.steps:
                if taken.failure is None:
                    await self._step(step, taken, progress)
        else:
            await _AtOnce(target.steps, self._loads, taken, progress).over
        return taken

    async def _step(self, step: Step, taken: _Taken, progress: Progress) -> None:
        if _to_load(step, taken, progress):
            _count(step, *await self._loads.load(step, progress), taken, progress)

    # What is told

    def _report(self, plan: Plan, taken: Sequence[_Taken]) -> Report:
        modules: dict[str, None] = {}
        for each in taken:
            modules.update(dict.fromkeys(each.brought_in))
        brought_in = tuple(modules)
        reasons = _reasons(plan, brought_in)
        # As for modprobe: what is blacklisted is left out, and the last of the others counts.
        wanted = [each for each in taken if each.target.verdict is not Verdict.BLACKLISTED] or taken
        last = self._outcome(plan.name, wanted[-1])
        if last.status == 0 and last.outcome is not Outcome.LOADED and brought_in:
            return Report(Outcome.LOADED, 0, brought_in, reasons=reasons)
        return Report(last.outcome, last.status, brought_in, last.error, reasons)

    def _outcome(self, name: str, taken: _Taken) -> Report:
        target, module = taken.target, taken.target.module
        match target.verdict:
            case Verdict.LIVE:
                return Report(Outcome.ALREADY_LIVE, 0)
            case Verdict.BUILT_IN:
                return Report(Outcome.BUILT_IN, 0)
            case Verdict.BLACKLISTED:
                error = f"cannot load {name}: {module} is blacklisted by {target.blacklisted_at}"
                return Report(Outcome.DENIED, -errno.EPERM, (), error)
            case Verdict.LOAD:
                pass
        if taken.failure is not None:
            return self._failed(name, module, taken.failure)
        own = next((step for step in target.steps if step.module == module), None)
        if own is not None and own.action is Action.RUN and own.path is not None:
            return self._after_command(name, module)
        if taken.brought_in or taken.shared:
            return Report(Outcome.LOADED, 0)
        return Report(Outcome.ALREADY_LIVE, 0)

    @staticmethod
    def _failed(name: str, module: str, failure: Failure) -> Report:
        which = name if name.replace("-", "_") == module else f"{name} ({module})"
        if failure.module != module:
            which = f"{which}: cannot load its dependency {failure.module}"
        outcome = Outcome.DENIED if failure.denied else Outcome.FAILED
        return Report(outcome, failure.status, (), f"cannot load {which}: {failure.words}")

    def _after_command(self, name: str, module: str) -> Report:
        """An `install` command has ended with success: `/bin/true` is how many hold a module back."""
        if self._kernel.is_live(module):
            return Report(Outcome.LOADED, 0)
        error = (
            f"cannot load {name}: the install command of {module} in modprobe.d ended with success and did "
            f"not load it: {errno_words(errno.EPERM)}"
        )
        return Report(Outcome.DENIED, -errno.EPERM, (), error)


def _reasons(plan: Plan, modules: Sequence[str]) -> dict[str, str]:
    """Return why each of these modules was loaded: what the plan says; of what a command brought, nothing."""
    found: dict[str, str] = {}
    for target in plan.targets:
        for step in target.steps:
            if step.module in modules:
                found.setdefault(step.module, target.why if step.needed_by is None else step.reason)
    return found


class ChosenLoader:
    """One of two loaders, as the setting modprobe_path says when a load begins (S12)."""

    def __init__(self, settings: Settings, in_process: InProcessLoader, external: Loader) -> None:
        self._settings = settings
        self._in_process = in_process
        self._external = external

    def running(self) -> list[RunningLoad]:
        """Return the loads of modules in progress."""
        return [*self._in_process.running(), *self._external.running()]

    def load(self, name: str, progress: Progress) -> Report | Coroutine[Any, Any, Report]:
        """Load by modprobe where its path is set, else in this process."""
        if self._settings.modprobe_path:
            return self._by_modprobe(name, progress)
        return self._in_process.load(name, progress)

    async def _by_modprobe(self, name: str, progress: Progress) -> Report:
        plan: Plan | None = None
        try:
            plan = (await self._in_process.settled(name))[0]
        except KmoddError as err:
            if isinstance(err, KernelError):
                return self._in_process.no_plan(name, err, progress)
            if progress.judged_by_plan():
                # What it would load nobody can say, and so not whether that is denied.
                progress.may_begin(lambda: None)
                return Report(Outcome.FAILED, -errno.ENOENT, (), f"cannot load {name}: {err}")
        if not progress.may_begin(lambda: plan):
            return denied(name)
        with self._in_process.unloads.needing(() if plan is None else plan.modules()):
            report = self._external.load(name, progress)
            return report if isinstance(report, Report) else await report
