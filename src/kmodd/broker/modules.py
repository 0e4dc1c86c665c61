"""Loads of single modules: one for each module at a time, whoever needs it (invariant 2), each in a thread.

This is where duplicates coalesce: two names that stand for one module, two modules that need a third.
"""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from kmodd.broker import commands
from kmodd.broker.deadlock import RunningLoad
from kmodd.broker.loader import Progress
from kmodd.broker.own import ByOthers, Own, nothing
from kmodd.broker.pace import Pace
from kmodd.broker.threads import start_thread
from kmodd.errors import KmoddError, errno_words
from kmodd.kernel import init, refusal
from kmodd.kernel.interface import Kernel
from kmodd.tree.plan import Action, Step


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a module could not be loaded. `status`: a negative errno, or a command's exit status.

    `denied`: the policy has come to deny it before it was begun.
    """

    module: str
    status: int
    words: str
    denied: bool = False


@dataclass(frozen=True, slots=True)
class Loaded:
    """How the load of a module ended.

    `brought_in`: what it brought in, in order; empty where somebody else had done it meanwhile.
    """

    failure: Failure | None = None
    brought_in: tuple[str, ...] = ()


class ModuleLoad:
    """The load of one module in progress."""

    __slots__ = ("begun", "module", "number", "session", "tid", "waiters")

    def __init__(self, number: int, module: str) -> None:
        self.number = number
        self.module = module
        self.begun = time.monotonic_ns()
        self.waiters: list[asyncio.Future[Loaded]] = []
        # These two are set by its thread, once: who is blocked when the module asks for another.
        self.tid: int | None = None
        self.session: int | None = None


class ModuleLoads:
    """The loads of modules in progress. All calls on the event loop.

    `own` is told what loads; `by_others` says what came in while a command ran, and not by it.
    """

    def __init__(
        self,
        kernel: Kernel,
        enter_root: Callable[[], None],
        next_number: Callable[[], int],
        own: Own | None = None,
        by_others: ByOthers = nothing,
    ) -> None:
        self._kernel = kernel
        self._enter_root = enter_root
        self._next_number = next_number
        self._own = own or Own()
        self._by_others = by_others
        self._in_flight: dict[str, ModuleLoad] = {}
        self._pace = Pace()

    def running(self) -> list[RunningLoad]:
        """Return them as the search for deadlocks sees them."""
        return [RunningLoad(load.number, load.session, load.tid) for load in self._in_flight.values()]

    async def load(self, step: Step, progress: Progress) -> tuple[Loaded, bool]:
        """Take a step; return how it ended, and whether another load had begun it."""
        load = self._in_flight.get(step.module)
        shared = load is not None
        if load is None:
            load = ModuleLoad(self._next_number(), step.module)
            self._in_flight[step.module] = load
        progress.awaits(load.number, shared=shared)
        # One for each: whoever gives up leaves the load to the others, and to the kernel.
        waiter: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        load.waiters.append(waiter)
        if not shared:
            self._pace.begin(partial(self._start, load, step))
        try:
            return await waiter, shared
        finally:
            progress.got(load.number)

    def _start(self, load: ModuleLoad, step: Step) -> None:
        """Start its thread; no task beside it: that would cost turns of the event loop for each module."""
        by_command = step.action is Action.RUN
        work = partial(self._command if by_command else self._insert, load, step)
        try:
            start_thread("kmod_loader", work, partial(self._ended, load, step))
        except OSError as err:
            self._ended(load, step, None, err)

    def _ended(self, load: ModuleLoad, step: Step, ended: Loaded | None, error: BaseException | None) -> None:
        del self._in_flight[step.module]
        self._pace.ended()
        if isinstance(error, OSError):
            ended = self._failed(step, error)
        elif ended is not None and step.action is Action.RUN and ended.brought_in:
            try:
                others = self._by_others(load.begun)
            except Exception as err:  # noqa: BLE001 - raised where it is awaited, as the thread's are
                ended, error = None, err
            else:
                brought_in = tuple(module for module in ended.brought_in if module not in others)
                ended = Loaded(ended.failure, brought_in)
        for waiter in load.waiters:
            if waiter.done():
                continue
            if ended is None:
                waiter.set_exception(error or RuntimeError("a load has ended without a word"))
            else:
                waiter.set_result(ended)

    @staticmethod
    def _failed(step: Step, err: OSError) -> Loaded:
        number = err.errno or errno.EIO
        what = f"cannot enter {init.ROOT}: " if err.filename == init.ROOT else ""
        return Loaded(Failure(step.module, -number, what + errno_words(number)))

    # In the loader's thread

    def _insert(self, load: ModuleLoad, step: Step) -> Loaded:
        module = step.module
        load.tid = threading.get_native_id()
        self._enter_root()
        if self._kernel.is_live(module):
            return Loaded()
        if step.path is None:
            return Loaded(Failure(module, -errno.ENOENT, "no file of that module is installed (ENOENT)"))
        with refusal.KernelLog() as log:
            try:
                with self._own.thread():
                    self._kernel.load(step.path, step.parameters)
            except OSError as err:
                number = err.errno or errno.EIO
                # It is there already; or its own init says so, of something that it registers.
                if number == errno.EEXIST and self._kernel.is_live(module):
                    return Loaded()
                if err.filename == step.path:  # it could not even be opened
                    return Loaded(Failure(module, -number, f"cannot open {step.path}: {errno_words(number)}"))
                return Loaded(Failure(module, -number, refusal.words(number, module, log)))
            except KmoddError as err:
                number = getattr(err, "errno", errno.ENOEXEC)
                return Loaded(Failure(module, -number, f"{step.path}: {err}"))
        return Loaded(None, (module,))

    def _command(self, load: ModuleLoad, step: Step) -> Loaded:
        """Run an `install` command as modprobe does, instead of loading the module."""
        assert step.command is not None
        self._enter_root()
        if self._kernel.is_live(step.module):
            return Loaded()  # by now: another request's command has brought it, or a step before this one
        before = frozenset(self._kernel.holders())
        with self._own.child() as started:

            def known(pid: int) -> None:
                load.session = pid
                started(pid)

            ended = commands.run(step.command, step.module, step.parameters, known)
        brought_in = tuple(module for module in self._kernel.holders() if module not in before)
        if ended.status == 0:
            return Loaded(None, brought_in)
        failure = Failure(step.module, commands.status(ended), f"its install command {commands.words(ended)}")
        return Loaded(failure, brought_in)
