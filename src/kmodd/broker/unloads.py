"""Which modules are being unloaded: whoever asks for one of them meanwhile waits, then has it loaded again.

All calls on the event loop. Between a look at this and what is done then nothing is awaited, so no request is
told that a module is live which goes behind its back.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TypeVar

from kmodd.errors import KernelError, errno_words

T = TypeVar("T")


class Unloads:
    """The unloads of our own in progress, and who wants to know what is asked for."""

    def __init__(self) -> None:
        self._going: dict[str, asyncio.Future[None]] = {}
        self._hung: set[str] = set()
        self.waited = 0
        """How many requests have waited for an unload."""
        self._needed: Counter[str] = Counter()
        self._told: list[Callable[[Iterable[str]], None]] = []

    def __contains__(self, module: object) -> bool:
        """Whether a module is being unloaded."""
        return module in self._going

    def busy(self, modules: Iterable[str]) -> bool:
        """Whether one of these is being unloaded."""
        return bool(self._going) and any(module in self._going for module in modules)

    @contextlib.contextmanager
    def going(self, module: str) -> Iterator[None]:
        """Inside this context the module is being unloaded; of one module there is one at a time."""
        if module in self._going:
            raise RuntimeError(f"{module} is being unloaded already")
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._going[module] = ended
        try:
            yield
        finally:
            del self._going[module]
            self._hung.discard(module)
            if not ended.done():
                ended.set_result(None)

    def subscribe(self, told: Callable[[Iterable[str]], None]) -> None:
        """Call `told(modules)` when a request comes to need modules, and when it does not any more."""
        self._told.append(told)

    def needing(self, modules: Iterable[str]) -> Needing:
        """Inside this context a request loads these, or says that they are live."""
        return Needing(self, tuple(modules))

    def need(self, modules: Iterable[str]) -> None:
        """A request begins to load these."""
        self._needed.update(modules)
        self.touch(modules)

    def need_no_more(self, modules: Iterable[str]) -> None:
        """A request that loaded these has ended."""
        for module in modules:
            self._needed[module] -= 1
            if not self._needed[module]:
                del self._needed[module]
        self.touch(modules)

    def is_needed(self, module: str) -> bool:
        """Whether a request needs a module now."""
        return module in self._needed

    def touch(self, modules: Iterable[str]) -> None:
        """A request needs these, if only to say that they are live."""
        for told in self._told:
            told(modules)

    def hangs(self, module: str) -> None:
        """The unload of a module does not end: whoever needs the module waits no longer."""
        ended = self._going.get(module)
        if ended is not None and not ended.done():
            self._hung.add(module)
            ended.set_result(None)

    async def settled(self, find: Callable[[], Awaitable[T]], modules: Callable[[T], Iterable[str]]) -> T:
        """Return what `find` finds once none of its `modules` is being unloaded.

        Raises:
            KernelError: EBUSY, one of them is, and it does not end; or what `find` raises.
        """
        found, waits = await find(), False
        while self._going:
            ends = [self._going[module] for module in modules(found) if module in self._going]
            if not ends:
                break
            if hung := next((module for module in modules(found) if module in self._hung), None):
                raise KernelError(
                    f"{hung} is being unloaded, and that does not end: {errno_words(errno.EBUSY)}",
                    errno.EBUSY,
                )
            self.waited += not waits
            waits = True
            await asyncio.wait(ends)
            found = await find()
        return found


class Needing:
    """What `Unloads.needing` returns: each load that waits has one, and a generator is six times as large."""

    __slots__ = ("_modules", "_unloads")

    def __init__(self, unloads: Unloads, modules: tuple[str, ...]) -> None:
        self._unloads = unloads
        self._modules = modules

    def __enter__(self) -> None:
        """Begin."""
        self._unloads.need(self._modules)

    def __exit__(self, *_error: object) -> None:
        """End."""
        self._unloads.need_no_more(self._modules)
