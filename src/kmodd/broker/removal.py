"""Unloading on request, and what is live with the request that brought it in."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from functools import partial

from kmodd.broker.threads import in_own_thread
from kmodd.errors import KernelError, errno_words
from kmodd.kernel.interface import Kernel, Module
from kmodd.model import Event
from kmodd.names import check, normalise
from kmodd.record.recorder import Recorder


class Remover:
    """Unloads modules, never forced, each call in a thread of its own: a module's exit may hang."""

    def __init__(self, kernel: Kernel, recorder: Recorder) -> None:
        self._kernel = kernel
        self._recorder = recorder
        self._brought_in: dict[str, tuple[str | None, int]] = {}
        recorder.subscribe(self._note)

    def _note(self, event: Event) -> None:
        if event.event == "load":
            for module, identity in event.fields["identities"].items():
                self._brought_in[module] = (identity, event.fields["request"])

    def identity(self, module: str) -> str | None:
        """Return which coming of a module is in the kernel; None where it is not there."""
        return self._kernel.identity(module)

    async def live(self) -> tuple[Mapping[str, Module], dict[str, int]]:
        """Return the modules in the kernel, and for those that kmodd brought in the request's number.

        A module that somebody else has unloaded and loaded again since is no longer ours.
        """

        def look() -> tuple[Mapping[str, Module], dict[str, str | None]]:
            modules = self._kernel.modules()
            ours = [name for name in list(self._brought_in) if name in modules]
            return modules, {name: self._kernel.identity(name) for name in ours}

        modules, identities = await in_own_thread("kmod_list", look)
        self._brought_in = {
            name: noted
            for name, noted in self._brought_in.items()
            if name not in identities or (identities[name] is not None and noted[0] == identities[name])
        }
        return modules, {name: self._brought_in[name][1] for name in identities if name in self._brought_in}

    async def remove(self, name: str, *, holders: bool) -> list[str]:
        """Unload `name`, with `holders` those first that use it; return what was unloaded, in order.

        Raises:
            InvalidName: that is no module's name.
            KernelError: it is not there (ENOENT), or the kernel refuses; `errno` says why. What was
                unloaded until then stays unloaded.
        """
        plain = normalise(check(name.encode("utf-8", errors="surrogatepass")))
        order = await in_own_thread("kmod_list", lambda: self._order(plain, holders=holders))
        removed = []
        for module in order:
            try:
                await in_own_thread("kmod_unloader", partial(self._kernel.unload, module))
            except OSError as err:
                raise await self._refused(module, err) from err
            removed.append(module)
            self._recorder.add("unload", {"module": module, "reason": "requested"})
        return removed

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

    async def _refused(self, name: str, err: OSError) -> KernelError:
        number = err.errno or errno.EIO
        modules = await in_own_thread("kmod_list", self._kernel.modules)
        module = modules.get(name)
        why = errno_words(number)
        if module is not None and module.holders:
            why = f"it is used by {', '.join(module.holders)} (try --holders)"
        elif module is not None and module.permanent:
            why = "it is permanent: it has no exit function"
        elif module is not None and module.refcount:
            why = f"it has {module.refcount} user{'s' if module.refcount != 1 else ''}"
        return KernelError(f"cannot unload {name}: {why}", number)
