"""A broker on the simulated kernel, with what a test needs to look at it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import Any

from kmodd.broker.broker import Broker
from kmodd.broker.loader import Loader
from kmodd.broker.simulated import SimulatedLoader
from kmodd.broker.tickets import Ticket
from kmodd.kernel.interface import BlockedTask
from kmodd.kernel.simulated import Installed, SimulatedKernel
from kmodd.model import Result, Source
from kmodd.settings import Settings
from support.kept import KeptRecorder


class Bench:
    """Make it inside a running (virtual) loop."""

    def __init__(
        self, installed: Iterable[Installed] = (), loader: Loader | None = None, **settings: Any
    ) -> None:
        self.kernel = SimulatedKernel(installed)
        self.settings = Settings(settings)
        self.recorder = KeptRecorder(now=lambda: datetime.now(UTC))
        self.loader = loader or SimulatedLoader(self.kernel)
        self.broker = Broker(self.loader, self.settings, self.recorder, self._blocked)
        self.statuses: dict[int, list[int]] = {}
        self.results: dict[int, list[Result]] = {}
        if isinstance(self.loader, SimulatedLoader):
            self.loader.request_module = self.nested

    async def _blocked(self, sessions: Collection[int], threads: Collection[int]) -> list[BlockedTask]:
        return self.kernel.blocked_tasks(sessions, threads)

    async def nested(self, name: str) -> int:
        told: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.broker.submit(name.encode(), Source.KERNEL, on_status=told.set_result)
        return await told

    def submit(self, name: str | bytes, source: Source = Source.KERNEL, **more: Any) -> Ticket:
        """Submit a request whose every answer is kept, so that a second one would show."""
        raw = name.encode() if isinstance(name, str) else name
        statuses: list[int] = []
        results: list[Result] = []
        ticket = self.broker.submit(raw, source, on_status=statuses.append, on_result=results.append, **more)
        self.statuses[ticket.request.id] = statuses
        self.results[ticket.request.id] = results
        return ticket

    async def ask(self, name: str | bytes, **more: Any) -> Result:
        """Submit a request and wait for its result."""
        ticket = self.submit(name, **more)
        while ticket.result is None:
            await asyncio.sleep(0.001)
        return ticket.result

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event.as_json() for event in self.recorder.events() if event.event == kind]

    def assert_all_answered_once(self) -> None:
        for number, statuses in self.statuses.items():
            assert len(statuses) == 1, f"request {number} was told {statuses}"
            assert len(self.results[number]) == 1, f"request {number} got {self.results[number]}"
            assert self.results[number][0].status == statuses[0]
        told = {event["id"] for event in self.events("request")}
        assert set(self.statuses) <= told, "a request is missing in the record"
        assert not self.broker.running()
        assert not self.broker.waiting()
        assert not self.kernel.blocked
