"""Tracing switched on and off: what waits for the kernel is a thread's, and the last word counts."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from kmodd.broker.others import Others
from kmodd.broker.own import Own
from kmodd.kernel.comings import Comings
from kmodd.kernel.instance import Opened
from kmodd.kernel.simulated import SimulatedKernel
from kmodd.kernel.tracing import Tracing
from kmodd.record.recorder import Recorder
from kmodd.sources import tracer as tracers
from kmodd.sources.tracer import Tracer
from kmodd.sources.whoasked import WhoAsked
from unit.test_tracing import LOADS, Tracefs


class Slow(Tracing):
    """The kernel takes as long as a test says; what is done in it is noted with the thread that does it."""

    def __init__(self, root: str) -> None:
        super().__init__((root,))
        self.done: list[tuple[str, bool]] = []
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Event()

    def _note(self, what: str) -> None:
        self.begun.set()
        self.go.wait()
        self.done.append((what, threading.current_thread() is threading.main_thread()))

    def open(self) -> Opened:
        self._note("opened")
        return super().open()

    def let_go(self) -> Callable[[], None]:
        end = super().let_go()

        def rest() -> None:
            self._note("removed")
            end()

        return rest


class Bench:
    def __init__(self, root: Path) -> None:
        self.wanted = True
        self.accepted = 0
        self.requests = Tracefs(root)
        self.loads = Tracefs(root, "kmodd-loads", LOADS)
        self.tracing = Slow(str(root))
        kernel = SimulatedKernel(())
        self.others = Others(Comings((str(root),)), Own(), kernel, Recorder(), dict)
        self.who = WhoAsked(self.tracing)
        self.tracer = self.made(self.who)

    def made(self, who: WhoAsked | None) -> Tracer:
        return Tracer(self.tracing, self.others, who, lambda: self.wanted, self.accept)

    def accept(self) -> None:
        self.accepted += 1

    def set(self, wanted: bool) -> None:
        self.wanted = wanted
        self.tracer.changed()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    return Bench(tmp_path)


async def until(check: Callable[[], bool]) -> None:
    """Let the loop turn until something holds, which takes a few turns."""
    for _ in range(1000):
        if check():
            return
        await asyncio.sleep(0)
    raise AssertionError("it does not come to hold")


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


def test_on_and_off_in_threads(bench: Bench) -> None:
    async def story() -> None:
        tracer, before = bench.tracer, len(os.listdir("/proc/self/fd"))
        await tracer.switch()
        assert tracer.as_json() == {
            "on": True, "problem": None, "missed": 0,
            "loads_on": True, "loads_problem": None, "loads_missed": 0,
        }  # fmt: skip
        await tracer.switch()
        bench.set(False)
        await tracer.settled()
        told = tracer.as_json()
        assert (told["on"], told["loads_on"]) == (False, False)
        assert told["problem"] == told["loads_problem"] == "the setting tracing is false"
        assert bench.requests.set("events/module/module_request/enable").startswith("0")
        assert len(os.listdir("/proc/self/fd")) == before
        assert bench.tracing.done == [("opened", False), ("removed", False)]

    run(story())


def test_the_loop_goes_on_and_the_last_word_counts(bench: Bench) -> None:
    async def story() -> None:
        bench.tracing.go.clear()
        tracer = bench.tracer
        bench.set(True)
        settled = asyncio.ensure_future(tracer.settled())
        await asyncio.to_thread(bench.tracing.begun.wait)
        assert not bench.tracing.on
        # Each waits for the one before, and then for nothing where that is as the setting says by then.
        for wanted in (False, True, False, True, False):
            bench.set(wanted)
        await asyncio.sleep(0)
        assert not settled.done()
        bench.tracing.go.set()
        await settled
        assert not bench.tracing.on
        assert bench.tracing.done == [("opened", False), ("removed", False)]
        bench.set(True)
        await tracer.settled()
        assert bench.tracing.on
        await tracer.stop(60)
        assert tracer.as_json()["problem"] == "stopped"

    run(story())


def test_a_kernel_that_takes_long_does_not_hold_up_a_stop(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        await bench.tracer.switch()
        bench.tracing.go.clear()
        await bench.tracer.stop(0)
        assert "the kernel takes long to end our tracing" in caplog.text
        assert not bench.tracing.on
        bench.tracing.go.set()
        await bench.tracer.settled()
        bench.set(True)
        await bench.tracer.settled()
        assert not bench.tracing.on, "it has been stopped"

    run(story())


def test_where_no_thread_can_be_started(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_thread(_name: str, _work: Callable[[], Any]) -> Any:
        raise BlockingIOError(11, "Resource temporarily unavailable", "thread")

    async def story() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(tracers, "in_own_thread", no_thread)
            await bench.tracer.switch()
            assert bench.tracer.as_json()["problem"] == "cannot begin: Resource temporarily unavailable"
            bench.set(False)
            await bench.tracer.settled()
        bench.set(True)
        await bench.tracer.settled()
        assert bench.tracing.on
        monkeypatch.setattr(tracers, "in_own_thread", no_thread)
        await bench.tracer.stop(60)
        assert bench.tracing.done == [("removed", True), ("opened", False), ("removed", True)]
        assert bench.requests.set("events/module/module_request/enable").startswith("0")

    run(story())


def test_helpers_are_taken_once_their_requesters_have_been_looked_at(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise OSError(5, "Input/output error")

    async def story() -> None:
        await bench.tracer.switch()
        bench.requests.record(0, time.monotonic_ns(), 10, b"name")
        await until(lambda: bench.accepted == 1)
        assert [asked.name for asked in bench.who._records] == [b"name"]
        # A defect costs nobody their answer, and is told once.
        monkeypatch.setattr(bench.who, "look_ahead", fail)
        bench.requests.record(0, time.monotonic_ns(), 10, b"name")
        await until(lambda: bench.accepted == 2)
        assert caplog.text.count("who asks is found out when the helper comes") == 1
        for _ in range(10):
            await asyncio.sleep(0)
        assert bench.accepted == 2, "nothing is read any more that could not be read"
        bench.tracer.stop_at_once()
        assert not bench.tracing.on

    run(story())


def test_where_it_is_off_from_the_start(bench: Bench) -> None:
    async def story() -> None:
        bench.wanted = False
        tracer = bench.made(bench.who)
        await tracer.switch()
        told = tracer.as_json()
        assert told["problem"] == told["loads_problem"] == "the setting tracing is false"
        assert bench.tracing.done == []

    run(story())


def test_a_defect_in_one_instance_leaves_none(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Opened:
        raise RuntimeError("a defect")

    async def story() -> None:
        before = len(os.listdir("/proc/self/fd"))
        monkeypatch.setattr(bench.others, "open", broken)
        bench.tracer.changed()
        await bench.tracer.settled()
        assert not bench.tracing.on
        assert len(os.listdir("/proc/self/fd")) == before
        assert bench.requests.set("events/module/module_request/enable").startswith("0")

    run(story())


def test_another_kernels_helpers_are_not_traced(bench: Bench) -> None:
    async def story() -> None:
        tracer = bench.made(None)
        await tracer.switch()
        told = tracer.as_json()
        assert (told["on"], told["loads_on"]) == (False, False)
        assert told["problem"] == told["loads_problem"] == tracers.NOT_OURS
        await tracer.stop(60)
        assert bench.tracing.done == []

    run(story())
