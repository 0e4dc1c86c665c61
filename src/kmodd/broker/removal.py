"""Unloading on request, and what is live with the request that brought it in."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Protocol

from kmodd.broker import commands
from kmodd.broker.child import Ended
from kmodd.broker.own import Own
from kmodd.broker.threads import in_own_thread
from kmodd.broker.unloads import Unloads
from kmodd.errors import KernelError, KmoddError, errno_words
from kmodd.kernel import init
from kmodd.kernel.interface import Kernel, Module
from kmodd.model import Event
from kmodd.names import check, escape, normalise
from kmodd.record.recorder import Recorder
from kmodd.tree.modprobed import Command, Config


class Configured(Protocol):
    """What there is to know of a module outside the kernel; `installed.Installed` for Linux."""

    async def config(self) -> Config:
        """Return modprobe.d, without what others than root can change."""

    def aliased(self, name: str) -> Collection[str]:
        """Return the installed modules with an alias, as far as known."""


class Remover:
    """Unloads modules, never forced, each in a thread of its own: a module's exit may hang.

    `configured`: None in a simulated kernel, which has no configuration. `enter_root` moves a thread to
    PID 1's root (S13), where a `remove` command runs. `own` is told what unloads.
    """

    def __init__(
        self,
        kernel: Kernel,
        recorder: Recorder,
        configured: Configured | None = None,
        enter_root: Callable[[], None] = lambda: None,
        own: Own | None = None,
        unloads: Unloads | None = None,
    ) -> None:
        self._kernel = kernel
        self._unloads = unloads if unloads is not None else Unloads()
        self._own = own or Own()
        self._recorder = recorder
        self._configured = configured
        self._enter_root = enter_root
        self._brought_in: dict[str, tuple[str | None, int]] = {}
        self._by_command: set[str] = set()
        recorder.subscribe(self._note)

    def _note(self, event: Event) -> None:
        if event.event == "load" and event.fields["request"] is not None:
            for module, identity in event.fields["identities"].items():
                self._brought_in[module] = (identity, event.fields["request"])

    def identity(self, module: str) -> str | None:
        """Return which coming of a module is in the kernel; None where it is not there."""
        return self._kernel.identity(module)

    async def live(self) -> tuple[Mapping[str, Module], dict[str, int]]:
        """Return the modules in the kernel, and for those that kmodd brought in the request's number.

        A module that somebody else has unloaded and loaded again since is no longer ours.
        """
        noted = dict(self._brought_in)

        def look() -> tuple[Mapping[str, Module], dict[str, str | None]]:
            modules = self._kernel.modules()
            return modules, {name: self._kernel.identity(name) for name in noted if name in modules}

        modules, identities = await in_own_thread("kmod_list", look)
        for name, identity in identities.items():
            # What was noted while we looked is newer, and may well be ours.
            if (identity is None or noted[name][0] != identity) and self._brought_in.get(name) == noted[name]:
                del self._brought_in[name]
        return modules, {name: self._brought_in[name][1] for name in identities if name in self._brought_in}

    async def remove(
        self, name: str, *, holders: bool, may: Callable[[str], object] = lambda _module: None
    ) -> list[str]:
        """Unload `name`, with `holders` those first that use it; return what was unloaded, in order.

        `may` is called for each of them before any goes, and raises where that one is not to.

        Raises:
            InvalidName: that is no module's name.
            KernelError: it is not there (ENOENT), or the kernel refuses, or its `remove` command has
                failed; `errno` says why. What was unloaded until then stays unloaded.
        """
        plain = normalise(check(name.encode("utf-8", errors="surrogatepass")))
        order = await in_own_thread("kmod_list", lambda: self._order(plain, holders=holders))
        for module in order:
            may(module)
        removed = []
        commanded = False
        for module in order:
            # Whoever gives up stops what would come next; what has begun goes on, and is recorded.
            commanded |= await asyncio.shield(self._one(module, commanded=commanded))
            removed.append(module)
        return removed

    async def _one(self, module: str, *, commanded: bool) -> bool:
        """Unload one module, and return whether a command did."""
        command = None
        # A command that came before may have taken others with it, as `modprobe -r` does.
        if not commanded or await self._is_there(module):
            command = await self._command(module)
            if command is not None:
                await self._run(module, command)
            else:
                await self._unload(module)
        self._record(module)
        return command is not None

    async def commanded(self, modules: Collection[str]) -> set[str]:
        """Return those that modprobe.d has a `remove` command for; all of them where it cannot be read."""
        if self._configured is None:
            return set()
        try:
            config = await self._configured.config()
        except KmoddError:
            return set(modules)
        return {module for module in modules if any(True for _command in config.remove.find((module,)))}

    async def remove_idle(
        self, module: str, reason: str, used: Callable[[], str | None], gone: Callable[[], None]
    ) -> None:
        """Unload a module that nobody uses, and only by the kernel's own means: no command is run.

        `used` looks once more, in the thread that unloads, and returns what uses it after all, in words;
        `gone` is called there once it has gone.

        Raises:
            KernelError: it stays; `errno` is EBUSY where `used` has found something.
        """
        self._begin(module)
        with self._unloads.going(module):

            def work() -> None:
                if (why := used()) is not None:
                    raise KernelError(f"cannot unload {module}: {why}", errno.EBUSY)
                self._unload_here(module)
                gone()

            try:
                await in_own_thread("kmod_unloader", work)
            except OSError as err:
                raise await self._refused(module, err) from err
        self._record(module, reason)

    def _begin(self, module: str) -> None:
        if module in self._unloads:
            raise KernelError(f"cannot unload {module}: it is being unloaded already", errno.EALREADY)

    def _record(self, module: str, reason: str = "requested") -> None:
        self._recorder.add("unload", {"module": module, "reason": reason})

    def _order(self, name: str, *, holders: bool) -> list[str]:
        modules = self._kernel.modules()
        if name not in modules:
            raise KernelError(f"cannot unload {name}: it is not in the kernel", errno.ENOENT)
        order: dict[str, None] = {}

        def visit(module: str) -> None:
            for holder in modules[module].holders if holders else ():
                if holder in modules and holder not in order:
                    visit(holder)
            order[module] = None

        visit(name)
        return list(order)

    async def _is_there(self, module: str) -> bool:
        return module in await in_own_thread("kmod_list", self._kernel.modules)

    async def _unload(self, module: str) -> None:
        self._begin(module)
        with self._unloads.going(module):
            try:
                await in_own_thread("kmod_unloader", partial(self._unload_here, module))
            except OSError as err:
                raise await self._refused(module, err) from err

    def _unload_here(self, module: str) -> None:
        with self._own.thread():
            self._kernel.unload(module)

    async def _refused(self, name: str, err: OSError) -> KernelError:
        number = err.errno or errno.EIO
        why = await in_own_thread("kmod_list", lambda: self._why_refused(name, number))
        return KernelError(f"cannot unload {name}: {why}", number)

    def _why_refused(self, name: str, number: int) -> str:
        module = self._kernel.modules().get(name)
        why = errno_words(number)
        if module is not None and module.holders:
            why = f"it is used by {', '.join(module.holders)} (try --holders)"
        elif module is not None and module.permanent:
            why = "it is permanent: it has no exit function"
        elif module is not None and module.refcount:
            stands_for = self._configured.aliased if self._configured is not None else lambda _name: ()
            why = self._kernel.uses(name, stands_for).words(module.refcount)
        return why

    # By a command of modprobe.d

    async def _command(self, module: str) -> Command | None:
        """Return the first `remove` line for a module's name, as modprobe takes it."""
        if self._configured is None:
            return None
        try:
            config = await self._configured.config()
        except KmoddError as err:
            # There may be a command that keeps it, or that must be run before it goes.
            raise KernelError(f"cannot unload {module}: {err}", errno.EIO) from err
        return next(iter(config.remove.find((module,))), None)

    async def _run(self, module: str, command: Command) -> None:
        """Let the command unload a module.

        Raises:
            KernelError: it cannot be run, it has failed, or it has left the module there. `status` is the
                command's exit status, 128 and the number of the signal where one ended it.
        """
        which = f"its remove command ({escape(os.fsencode(str(command.place)))})"
        if module in self._by_command:
            # Also where it asks for that itself, as by `kmodd remove`: it would go on for ever.
            raise KernelError(f"cannot unload {module}: {which} is running already", errno.EALREADY)
        self._by_command.add(module)
        try:
            ended = await in_own_thread("kmod_unloader", lambda: self._run_here(module, command.command))
        except OSError as err:
            number = err.errno or errno.EIO
            what = f"cannot enter {init.ROOT}" if err.filename == init.ROOT else f"cannot run {which}"
            raise KernelError(f"cannot unload {module}: {what}: {errno_words(number)}", number) from err
        finally:
            self._by_command.discard(module)
        there = await self._is_there(module)
        if ended.status:
            what = f"cannot unload {module}:" if there else f"{module} is unloaded, but"
            if not there:
                self._record(module)
            raise KernelError(
                f"{what} {which} {commands.words(ended)}", errno.EIO, status=commands.status(ended)
            )
        if there:
            words = f"cannot unload {module}: {which} ended with success and left it in the kernel"
            raise KernelError(f"{words}: {errno_words(errno.EPERM)}", errno.EPERM)

    def _run_here(self, module: str, command: str) -> Ended:
        self._enter_root()
        with self._own.child() as started:
            return commands.run(command, module, "", started)
