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


def without_a_word() -> Exception:
    """Return what is raised where a defect of ours has ended a load."""
    return RuntimeError("a load has ended without a word")


@dataclass(frozen=True, slots=True)
class Loaded:
    """How the load of a module ended.

    `brought_in`: what it brought in, in order; empty where somebody else had done it meanwhile.
    """

    failure: Failure | None = None
    brought_in: tuple[str, ...] = ()


Told = Callable[[Loaded | None, bool, BaseException | None], None]
"""Told how a module's load has ended, whether another had begun it, or what defect of ours has ended it."""
DENIED = "the policy has come to deny it to all who asked"


@dataclass(frozen=True, slots=True)
class _Waiter:
    """Who waits for a module's load, and what it was to be."""

    step: Step
    progress: Progress
    told: Told
    shared: bool


class ModuleLoad:
    """The load of one module in progress, and for whom."""

    __slots__ = ("begun", "module", "number", "session", "tid", "waiters")

    def __init__(self, number: int, module: str) -> None:
        self.number = number
        self.module = module
        self.begun = time.monotonic_ns()
        self.waiters: list[_Waiter] = []
        # Set by its thread: who is blocked when the module asks for another. The thread goes on to other
        # loads, so its id is this one's only as long as it works on this.
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
        self._pace: Pace[Loaded] = Pace("kmod_loader")

    def running(self) -> list[RunningLoad]:
        """Return them as the search for deadlocks sees them."""
        return [RunningLoad(load.number, load.session, load.tid) for load in self._in_flight.values()]

    async def load(self, step: Step, progress: Progress) -> tuple[Loaded, bool]:
        """Take a step; return how it ended, and whether another load had begun it."""
        # One for each: whoever gives up leaves the load to the others, and to the kernel.
        waiter: asyncio.Future[tuple[Loaded, bool]] = asyncio.get_running_loop().create_future()

        def told(loaded: Loaded | None, shared: bool, error: BaseException | None) -> None:
            if waiter.done():
                return
            if loaded is None:
                waiter.set_exception(error or without_a_word())
            else:
                waiter.set_result((loaded, shared))

        self.begin(step, progress, told)
        return await waiter

    def begin(self, step: Step, progress: Progress, told: Told) -> None:
        """Take a step; `told` is called once, when it has ended, and not before this returns.

        There is no task beside its thread: that would cost turns of the event loop for each module.
        """
        load = self._in_flight.get(step.module)
        shared = load is not None
        if load is None:
            load = ModuleLoad(self._next_number(), step.module)
            self._in_flight[step.module] = load
        try:
            progress.awaits(load.number, shared=shared)
            load.waiters.append(_Waiter(step, progress, told, shared))
            if not shared:
                work = partial(self._command if step.action is Action.RUN else self._insert, load, step)
                self._pace.begin(work, partial(self._ended, load, step))
        except BaseException:
            if not shared:
                del self._in_flight[step.module]  # or whoever needs it would wait for nothing
            raise

    def _ended(self, load: ModuleLoad, step: Step, ended: Loaded | None, error: BaseException | None) -> None:
        del self._in_flight[step.module]
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
        denied = ended is not None and ended.failure is not None and ended.failure.denied
        for waiter in load.waiters:
            waiter.progress.got(load.number)
            if denied and waiter.progress.may_go_on():
                # It came to wait only once that was found, and may have it.
                try:
                    self.begin(waiter.step, waiter.progress, waiter.told)
                except Exception as err:  # noqa: BLE001 - raised where it is awaited: others wait, too
                    waiter.told(None, False, err)
            else:
                waiter.told(ended, waiter.shared, error)

    @staticmethod
    def _failed(step: Step, err: OSError) -> Loaded:
        number = err.errno or errno.EIO
        what = f"cannot enter {init.ROOT}: " if err.filename == init.ROOT else ""
        return Loaded(Failure(step.module, -number, what + errno_words(number)))

    # In the loader's thread

    @staticmethod
    def _denied(load: ModuleLoad) -> Loaded | None:
        """Return how it ends where none of those who asked may have it any more: it may have had to wait."""
        if any(waiter.progress.may_go_on() for waiter in list(load.waiters)):
            return None
        return Loaded(Failure(load.module, -errno.EPERM, DENIED, denied=True))

    def _insert(self, load: ModuleLoad, step: Step) -> Loaded:
        if (denied := self._denied(load)) is not None:
            return denied
        load.tid = threading.get_native_id()
        try:
            return self._insert_here(step)
        finally:
            # The next load has this thread before the event loop knows that this one has ended: what that
            # module asks for is no request of this one's, and not in the name of who asked for this one.
            load.tid = None

    def _insert_here(self, step: Step) -> Loaded:
        module = step.module
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
        if (denied := self._denied(load)) is not None:
            return denied
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
