"""Tracing switched on and off: who asks, and what others load.

To make an instance of tracefs, and to remove one, waits for the kernel: for grace periods, for its locks,
and for code that is patched on all processors; a quarter of a second was seen under emulation. A thread does
it, and requests are answered meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from typing import Any

from kmodd.broker.others import Others
from kmodd.broker.threads import in_own_thread
from kmodd.kernel.instance import Opened
from kmodd.kernel.tracing import Tracing
from kmodd.sources.whoasked import WhoAsked

log = logging.getLogger(__name__)

SWITCHED_OFF = "the setting tracing is false"
NOT_OURS = "only requests of the running kernel, to the machine's own daemon, are traced"


class Tracer:
    """Has both instances as the setting `tracing` says. All calls on the event loop.

    `who`: None where the helpers are not those of the running kernel. `accept` takes the helpers that have
    come by now.
    """

    def __init__(
        self,
        tracing: Tracing,
        others: Others,
        who: WhoAsked | None,
        wanted: Callable[[], bool],
        accept: Callable[[], None],
    ) -> None:
        self._tracing = tracing
        self._others = others
        self._who = who
        self._wanted = wanted
        self._accept = accept
        self._turn = asyncio.Lock()
        self._switching: set[asyncio.Task[None]] = set()
        self._reading: int | None = None
        self._on = self._stopped = False
        tracing.problem = others.problem = NOT_OURS if who is None else SWITCHED_OFF

    async def switch(self) -> None:
        """Have it as the setting says now, once what is being switched is."""
        async with self._turn:
            wanted = self._wanted() and not self._stopped
            if self._who is None or wanted is self._on:
                return
            self._on = wanted
            if wanted:
                await self._switch_on()
            else:
                await self._switch_off("stopped" if self._stopped else SWITCHED_OFF)

    def changed(self) -> None:
        """The setting is another one."""
        self._begin(self.switch())

    async def settled(self) -> None:
        """Wait until it is as the setting says."""
        while self._switching:
            await asyncio.wait(self._switching)

    async def stop(self, patience: float) -> None:
        """Put the kernel back as it was, for so many seconds at the most; the rest is for a later daemon."""
        self._stopped = True
        self._begin(self.switch())
        _done, late = await asyncio.wait(self._switching, timeout=patience)
        if late:
            log.warning("the kernel takes long to end our tracing: its instances may be left")

    def stop_at_once(self) -> None:
        """Put the kernel back as it was, however long that takes: nobody is served."""
        self._stopped = True
        for rest in self._let_go("stopped"):
            rest()

    def as_json(self) -> dict[str, Any]:
        """Return what `kmodd status` shows of it."""
        return {
            "on": self._tracing.on,
            "problem": self._tracing.problem,
            "missed": self._tracing.missed,
            "loads_on": self._others.on,
            "loads_problem": self._others.problem,
            "loads_missed": self._others.missed,
        }

    def _begin(self, switching: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(switching)
        self._switching.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._switching.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("cannot switch tracing: %s", error)

    async def _switch_on(self) -> None:
        def work() -> tuple[Opened, Opened]:
            requests = self._tracing.open()
            try:
                return requests, self._others.open()
            except BaseException:
                self._tracing.remove(requests)
                raise

        try:
            requests, loads = await in_own_thread("kmod_tracing", work)
        except OSError as err:
            requests = loads = Opened(problem=f"cannot begin: {err.strerror}")
        self._tracing.take(requests)
        # On a single processor the helper waits while we look whenever that is, and waking us costs more.
        if self._tracing.on and len(os.sched_getaffinity(0)) > 1:
            self._reading = self._tracing.fileno()
            asyncio.get_running_loop().add_reader(self._reading, self._look_ahead)
        self._others.begin(loads)
        if self._tracing.problem is not None:
            log.warning("it will often not be known who asked: %s", self._tracing.problem)
        elif self._others.problem is not None:
            log.warning("it will not be known what others load: %s", self._others.problem)

    async def _switch_off(self, why: str) -> None:
        ends = self._let_go(why)

        def work() -> None:
            for end in ends:
                end()

        try:
            await in_own_thread("kmod_tracing", work)
        except BlockingIOError:  # no thread can be started
            work()

    def _let_go(self, why: str) -> list[Callable[[], None]]:
        """Read neither any more; return what puts the kernel back."""
        self._look_ahead_no_more()
        if self._who is not None:
            self._who.forget()
        ends = [self._tracing.let_go(), self._others.end()]
        self._tracing.problem = self._others.problem = why
        return ends

    def _look_ahead_no_more(self) -> None:
        if self._reading is not None:
            asyncio.get_running_loop().remove_reader(self._reading)
            self._reading = None

    def _look_ahead(self) -> None:
        """Somebody has asked; a defect of ours, or of tracefs, costs no more than what this saves."""
        assert self._who is not None
        try:
            self._who.look_ahead()
        except Exception:
            log.exception("who asks is found out when the helper comes, and no earlier")
            self._look_ahead_no_more()
        # It has come meanwhile, most times: that saves a turn of the loop.
        self._accept()
