"""The loader of 1998: a `kmod_loader` for each request runs modprobe and waits for it (S3, S5, S6, S8)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from kmodd.broker import child
from kmodd.broker.attribution import Attribution, Holders, Window
from kmodd.broker.deadlock import RunningLoad
from kmodd.broker.loader import Progress, Report
from kmodd.broker.own import ByOthers, Own, nothing
from kmodd.broker.threads import in_own_thread
from kmodd.errors import errno_words
from kmodd.kernel import init
from kmodd.kernel.interface import Kernel
from kmodd.model import Outcome
from kmodd.names import normalise, printable
from kmodd.settings import Settings

log = logging.getLogger(__name__)

_NORMAL, _BEHIND = 0, 19
_QUEUE_MAX = 200
_RECENT, _RECENT_MAX = 10.0, 1000
"""For how many seconds a success is remembered, and of how many names."""
_MULTI_CALL = frozenset({"kmod", "modprobe"})


@dataclass(frozen=True, slots=True)
class _Explanation:
    """What `modprobe --show-depends NAME` says: the modules in order, built in, or why not."""

    closure: tuple[str, ...] = ()
    built_in: bool = False
    found: bool = True
    words: str = ""
    asked: bool = False
    """Whether modprobe was asked at all."""


class _Recent:
    """The names for which modprobe has just succeeded, and of which a module of that name was live then.

    Many tasks that need one module at once (a device on each processor, say) ask one after the other
    too, as the kernel lets only 50 through. While such a name is remembered, and the kernel says that the
    module is live, modprobe would find nothing to do.
    """

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def note(self, name: str) -> None:
        """Remember a name from now on, for a while."""
        now = asyncio.get_running_loop().time()
        if len(self._until) >= _RECENT_MAX:
            self._until = {name: until for name, until in self._until.items() if until > now}
        if len(self._until) < _RECENT_MAX:
            self._until[name] = now + _RECENT

    def holds(self, name: str) -> bool:
        """Whether a name is remembered."""
        return self._until.get(name, 0.0) > asyncio.get_running_loop().time()


class ModprobeLoader:
    """Runs the setting `modprobe_path` with `modprobe_args` and the name as one last argument.

    `enter_root` moves the loader's thread to PID 1's root and working directory (S13). `own` is told of each
    modprobe; `by_others` says what came in while one ran, and not by it.
    """

    def __init__(
        self,
        settings: Settings,
        kernel: Kernel,
        enter_root: Callable[[], None],
        own: Own | None = None,
        by_others: ByOthers = nothing,
    ) -> None:
        self._settings = settings
        self._kernel = kernel
        self._enter_root = enter_root
        self._own = own or Own()
        self._by_others = by_others
        self._attribution = Attribution()
        self._in_turn = asyncio.Lock()
        self._queued = 0
        self._recent = _Recent()

    async def load(self, name: str, progress: Progress) -> Report:
        """Run modprobe for `name`; tell the status as soon as it is known, then find out the rest."""
        path = self._settings.modprobe_path
        argv = [path, *self._settings.modprobe_args, name]
        window = self._attribution.begin(name)
        begun = time.monotonic_ns()
        try:
            ended, after = await self._run(path, argv, window, progress)
        except OSError as err:
            self._attribution.drop(window)
            return self._could_not_run(path, name, err, progress)
        except BaseException:
            self._attribution.drop(window)
            raise
        if ended is None:
            self._attribution.drop(window)
            progress.status(0)
            return Report(Outcome.ALREADY_LIVE, 0)
        status = ended.status if ended.status >= 0 else 128 - ended.status
        progress.status(status)
        if after is None:
            self._attribution.drop(window)
            return (
                _failure(path, name, ended, _Explanation(), None)
                if status
                else Report(Outcome.LOADED, 0, None)
            )

        others = self._by_others(begun)
        of_loads = {module: users for module, users in after.items() if module not in others}
        doubtful = self._attribution.end(window, of_loads)
        by_its_name = normalise(name) in after
        if status == 0 and by_its_name:
            self._recent.note(name)
        explanation = _Explanation()
        if status or doubtful or not (window.claimed or by_its_name):
            explanation = await self._explain(path, name, progress)
        modules = self._attribution.settle(window, doubtful, explanation.closure)
        if status == 0:
            return _success(path, name, explanation, modules, after)
        return _failure(path, name, ended, explanation, tuple(modules))

    def running(self) -> list[RunningLoad]:
        """None: modprobe loads the modules, all of them in the session that the load is known by."""
        return []

    async def _run(
        self, path: str, argv: list[str], window: Window, progress: Progress
    ) -> tuple[child.Ended | None, Holders | None]:
        """Run modprobe in a loader of its own; return how it ended and what is live then.

        None for the first where it is not needed, for the second where that cannot be read.
        """
        loop = asyncio.get_running_loop()
        recent = self._recent.holds(window.name)

        def begun(before: frozenset[str], pid: int) -> None:
            window.before = before
            progress.session(pid)

        def work() -> tuple[child.Ended | None, Holders | None]:
            self._enter_root()
            live = self._kernel.holders()
            if recent and normalise(window.name) in live:
                return None, live
            before = frozenset(live)

            def started(pid: int) -> None:
                with contextlib.suppress(RuntimeError):  # the daemon has stopped and closed its loop
                    loop.call_soon_threadsafe(begun, before, pid)

            with self._own.child() as known:

                def has_pid(pid: int) -> None:
                    known(pid)
                    started(pid)

                ended = child.run(path, argv, has_pid)
            try:
                return ended, self._kernel.holders()
            except OSError:
                return ended, None

        return await in_own_thread("kmod_loader", work)

    def _could_not_run(self, path: str, name: str, err: OSError, progress: Progress) -> Report:
        number = err.errno or 5
        what = f"enter {init.ROOT}" if err.filename == init.ROOT else f"run {path}"
        error = f"cannot load {name}: cannot {what}: {errno_words(number)}"
        log.error("%s", error)
        progress.status(-number)
        return Report(Outcome.FAILED, -number, (), error)

    async def _explain(self, path: str, name: str, progress: Progress) -> _Explanation:
        """Ask modprobe what the name stands for, without loading; only kmod's is known to answer that.

        Where nobody waits for it, one after the other and behind everything else: in a storm of requests
        it must not take the processors from those whose requesters wait. Where too many are waited for
        already it is left out: the status stands, and what failed is told as failed.
        """
        if progress.report_awaited():
            return await self._ask(path, name, _NORMAL)
        if self._queued >= _QUEUE_MAX:
            return _Explanation(closure=(normalise(name),))
        self._queued += 1
        try:
            async with self._in_turn:
                return await self._ask(path, name, _BEHIND)
        finally:
            self._queued -= 1

    async def _ask(self, path: str, name: str, niceness: int) -> _Explanation:
        def work() -> child.Ended | None:
            self._enter_root()
            if niceness != _NORMAL:
                # Of the calling thread only, and of what it starts (setpriority(2)).
                with contextlib.suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
            if os.path.basename(os.path.realpath(path)) not in _MULTI_CALL:
                return None
            return child.run(path, [path, "--show-depends", "--", name], lambda _pid: None)

        try:
            ended = await in_own_thread("kmod_explain", work)
        except OSError as err:
            log.warning("cannot ask %s about %s: %s", path, name, errno_words(err.errno or 5))
            return _Explanation(closure=(normalise(name),))
        if ended is None:
            return _Explanation(closure=(normalise(name),))
        return _parse(ended)


def _parse(ended: child.Ended) -> _Explanation:
    """Read the lines of `--show-depends`: `insmod PATH OPTIONS`, `builtin NAME`, `install COMMAND`."""
    closure, built_in = [], False
    for line in ended.output.decode("utf-8", errors="replace").splitlines():
        word, _, rest = line.partition(" ")
        if word == "insmod":
            file = os.path.basename(rest.split(" ", 1)[0])
            closure.append(normalise(file.partition(".ko")[0]))
        elif word == "builtin":
            built_in = True
    words = printable(ended.output)
    return _Explanation(
        tuple(closure), built_in and not closure, "not found in directory" not in words, words, asked=True
    )


def _success(path: str, name: str, explanation: _Explanation, modules: list[str], after: Holders) -> Report:
    if modules:
        return Report(Outcome.LOADED, 0, tuple(modules))
    if explanation.built_in:
        return Report(Outcome.BUILT_IN, 0)
    if explanation.asked and not any(module in after for module in (normalise(name), *explanation.closure)):
        # What modprobe does with a blacklisted alias, and where the install command is /bin/true.
        error = f"cannot load {name}: {path} ended with success and loaded nothing: modprobe.d holds it back"
        return Report(Outcome.DENIED, 0, (), error)
    return Report(Outcome.ALREADY_LIVE, 0)


def _failure(
    path: str, name: str, ended: child.Ended, explanation: _Explanation, modules: tuple[str, ...] | None
) -> Report:
    if ended.status < 0:
        words = f"{path} was killed by signal {-ended.status} ({signal.strsignal(-ended.status)})"
        status = 128 - ended.status
    else:
        words, status = f"{path} ended with exit status {ended.status}", ended.status
    said = printable(ended.output) or ("" if explanation.found else explanation.words)
    error = f"cannot load {name}: {words}" + (f": {said}" if said else "")
    outcome = Outcome.FAILED if explanation.found or ended.status < 0 else Outcome.NOT_FOUND
    return Report(outcome, status, modules, error)
