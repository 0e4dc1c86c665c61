"""The loader of the simulated kernel: the same walk, in memory, on the event loop."""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from kmodd.broker.deadlock import RunningLoad
from kmodd.broker.loader import Progress, Report, denied
from kmodd.broker.unloads import Unloads
from kmodd.errors import KernelError, errno_words
from kmodd.kernel.interface import BlockedTask, Wait
from kmodd.kernel.simulated import SimulatedKernel
from kmodd.model import Outcome
from kmodd.names import normalise
from kmodd.tree.lookup import Found
from kmodd.tree.plan import Action, Plan, Step, Target, Verdict

_PID_MAX = 1 << 22
"""The highest pid that Linux gives (PID_MAX_LIMIT): the sessions of real peers are below it."""


class SimulatedLoader:
    """Loads in a `SimulatedKernel`. `request_module` is the kernel's way back to the broker (nesting)."""

    def __init__(self, kernel: SimulatedKernel, unloads: Unloads | None = None) -> None:
        self._unloads = unloads if unloads is not None else Unloads()
        self._kernel = kernel
        self._sessions = itertools.count(_PID_MAX + 1)
        self._changes: dict[str, list[asyncio.Future[None]]] = {}
        kernel.watch(self._changed)
        self.request_module: Callable[[str], Awaitable[int]] | None = None

    async def load(self, name: str, progress: Progress) -> Report:
        """Load every module that `name` stands for, each behind its dependencies."""
        session = next(self._sessions)
        progress.session(session)
        try:
            plan, _release = await self._unloads.settled(
                partial(self.find_plan, name), lambda found: found[0].modules()
            )
        except KernelError as err:
            progress.may_begin(lambda: None)
            return Report(Outcome.FAILED, -err.errno, (), f"cannot load {name}: {err}")
        if not progress.may_begin(lambda: plan):
            return denied(name)
        if not plan.targets:
            return Report(
                Outcome.NOT_FOUND, 1, (), f"cannot load {name}: no such module in the simulated kernel"
            )
        with self._unloads.needing(plan.modules()):
            return await self._load_those(name, progress, session)

    async def _load_those(self, name: str, progress: Progress, session: int) -> Report:
        found = self._kernel.resolve(name)
        loaded: list[str] = []
        builtin = True
        for target in found:
            for module in self._kernel.closure(target):
                installed = self._kernel.installed.get(module)
                if installed is not None and installed.builtin:
                    continue
                builtin = False
                if not progress.may_go_on():
                    reasons = self._reasons(name, found, loaded)
                    return replace(denied(name), modules=tuple(loaded), reasons=reasons)
                try:
                    if await self._load_one(module, session):
                        loaded.append(module)
                except OSError as err:
                    number = err.errno or errno.EIO
                    which = module if module == target else f"{target}: cannot load its dependency {module}"
                    error = f"cannot load {which}: {errno_words(number)}"
                    return Report(Outcome.FAILED, -number, tuple(loaded), error)
        if loaded:
            return Report(Outcome.LOADED, 0, tuple(loaded), reasons=self._reasons(name, found, loaded))
        return Report(Outcome.BUILT_IN if builtin else Outcome.ALREADY_LIVE, 0)

    def _reasons(self, name: str, targets: list[str], loaded: list[str]) -> dict[str, str]:
        own = Found.NAME.value if targets == [normalise(name)] else f"{Found.ALIAS.value} {name}"
        steps = {step.module: step.reason for target in targets for step in self._steps(target)}
        return {module: own if module in targets else steps[module] for module in loaded}

    async def find_plan(self, name: str) -> tuple[Plan, str]:
        """Return what a load of `name` would do, and for which release."""
        return self.plan(name), self._kernel.release

    def plan(self, name: str) -> Plan:
        """Return what a load of `name` would do."""
        kernel = self._kernel
        targets = []
        for module in kernel.resolve(name):
            why, verdict = Found.NAME if module == normalise(name) else Found.ALIAS, Verdict.LOAD
            if kernel.is_live(module):
                verdict = Verdict.LIVE
            elif kernel.installed[module].builtin:
                verdict = Verdict.BUILT_IN
            steps = self._steps(module) if verdict is Verdict.LOAD else ()
            targets.append(Target(module, why.value, verdict, steps))
        return Plan(name, tuple(targets))

    def _steps(self, target: str) -> tuple[Step, ...]:
        order = self._kernel.closure(target)
        steps = []
        for module in order:
            installed = self._kernel.installed.get(module)
            needs = self._needs(module)
            needed_by = next((other for other in order if module in self._needs(other)), None)
            action = Action.NOTHING if self._kernel.is_live(module) else Action.INSERT
            if installed is not None and installed.builtin:
                action = Action.BUILT_IN
            reason = "requested" if module == target else f"dependency of {needed_by}"
            after = tuple(sorted(order.index(other) for other in needs if other in order))
            steps.append(
                Step(module, action, reason, needed_by, True, None, "", None, after, module == target, after)
            )
        return tuple(steps)

    def _needs(self, module: str) -> tuple[str, ...]:
        installed = self._kernel.installed.get(module)
        return installed.depends if installed is not None else ()

    def running(self) -> list[RunningLoad]:
        """None: a load of a name waits for modules in the session that it is known by."""
        return []

    async def _load_one(self, module: str, session: int) -> bool:
        """Load one module; False if it was live, or another load brought it in meanwhile."""
        kernel = self._kernel
        while True:
            try:
                if kernel.begin(module):
                    break
            except FileExistsError:
                return False
            change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._changes.setdefault(module, []).append(change)
            await self._blocked(change, BlockedTask(session, session, Wait.MODULE, frozenset({module})))
        installed = kernel.installed[module]
        if installed.latency:
            await asyncio.sleep(installed.latency)
        for name in installed.requests:
            assert self.request_module is not None
            asked = asyncio.ensure_future(self.request_module(name))
            await self._blocked(asked, BlockedTask(session, session, Wait.REQUEST, frozenset({module})))
        kernel.finish(module)
        return True

    async def _blocked(self, what: Awaitable[object], task: BlockedTask) -> None:
        self._kernel.blocked[task.tid] = task
        try:
            await what
        finally:
            self._kernel.blocked.pop(task.tid, None)

    def _changed(self, module: str) -> None:
        for change in self._changes.pop(module, []):
            if not change.done():
                change.set_result(None)
