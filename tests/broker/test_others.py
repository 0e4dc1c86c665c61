"""Loads and unloads that bypass kmodd: from the kernel's records to events, each once, with its task."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.broker.others import PENDING, Others
from kmodd.broker.own import Own
from kmodd.broker.removal import Remover
from kmodd.kernel.comings import Comings, Kind, Record
from kmodd.kernel.simulated import Installed, SimulatedKernel
from kmodd.model import Event
from support import virtual
from support.kept import KeptRecorder
from unit.test_requester import Proc

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


class Recorded(Comings):
    """What the kernel has recorded is what a test says; `late` is announced by no interrupt yet."""

    def __init__(self) -> None:
        super().__init__(())
        self.new: list[Record] = []
        self.late: list[Record] = []

    def drain(self, *, everywhere: bool = False) -> list[Record]:
        found, self.new = self.new, []
        if everywhere:
            found, self.late = found + self.late, []
        return found


class Kernel(SimulatedKernel):
    def __init__(self) -> None:
        super().__init__(())
        self.there: set[str] = set()

    def is_live(self, name: str) -> bool:
        return name in self.there

    def identity(self, name: str) -> str | None:
        return f"this {name}" if name in self.there else None


class Bench:
    def __init__(self, proc: Proc) -> None:
        self.now = 1_000_000_000_000
        self.comings = Recorded()
        self.own = Own(lambda: self.now)
        self.kernel = Kernel()
        self.recorder = KeptRecorder(now=lambda: NOON)
        self.running: dict[int, float] = {}
        self.others = Others(
            self.comings,
            self.own,
            self.kernel,
            self.recorder,
            lambda: self.running,
            proc=str(proc.root),
            clock=lambda: self.now,
            now=lambda: NOON,
        )

    def record(self, kind: Kind, tid: int, module: str = "", result: int = 0) -> None:
        self.now += 1000
        self.comings.new.append(Record(self.now, tid, kind, module, result))

    def loaded(self, tid: int, module: str, result: int | None = 0) -> None:
        """By insmod: the whole of it, of a module without an init function where `result` is None."""
        self.record(Kind.LOAD, tid, module)
        if result is not None:
            self.record(Kind.INIT, tid, result=result)
        if result:
            self.record(Kind.FREE, tid, module)
        else:
            self.kernel.there.add(module)

    def unloaded(self, tid: int, module: str) -> None:
        self.record(Kind.FREE, tid, module)
        self.kernel.there.discard(module)

    def kmodd_loaded(self, modules: list[str] | None, microseconds: int) -> None:
        """A load of kmodd's has ended, as the broker tells it."""
        self.running.clear()
        self.recorder.add("load", {"modules": modules, "request": 1, "duration_us": microseconds})

    def told(self) -> list[tuple[str, str, str | None, int]]:
        return [
            (
                event.event,
                event.fields.get("name") or event.fields["module"],
                event.fields.get("outcome"),
                event.fields["requester"]["pid"],
            )
            for event in self.recorder.events()
            if "requester" in event.fields
        ]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    proc = Proc(tmp_path)
    for tid in (77, 78, 79):
        proc.task(tid, name="insmod", uid=0, state="R", started=1)
    return Bench(proc)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    virtual.run(main())


def look(bench: Bench) -> None:
    async def main() -> None:
        bench.others.look()
        bench.others.end()()

    run(main)


def only(events: Iterable[Event]) -> Event:
    [event] = events
    return event


def test_a_load_by_insmod(bench: Bench) -> None:
    bench.loaded(77, "minix")
    bench.now += 2_000_000_000
    look(bench)
    event = only(bench.recorder.events())
    assert NOON - timedelta(seconds=2.1) < event.time < NOON - timedelta(seconds=1.9)
    shown = event.fields
    assert shown["requester"].pop("exe") == "/usr/bin/python3.11"
    assert shown == {
        "name": "minix",
        "outcome": "loaded",
        "status": 0,
        "modules": ["minix"],
        "duration_us": None,
        "error": None,
        "reasons": {},
        "identities": {"minix": "this minix"},
        "request": None,
        "requester": {
            "pid": 77,
            "comm": "insmod",
            "uid": 0,
            "gid": 0,
            "unit": None,
            "container": None,
            "privileged": False,
            "call_site": None,
            "kernel_thread": False,
            "cgroup": "/",
            "namespaces": [],
        },
    }


def test_list_does_not_claim_what_others_have_loaded(bench: Bench) -> None:
    kernel = SimulatedKernel((Installed("ours"), Installed("theirs")))
    remover = Remover(kernel, bench.recorder)
    for module in ("ours", "theirs"):
        kernel.load(module)
        bench.kernel.there.add(module)
    identities = {module: kernel.identity(module) for module in ("ours", "theirs")}
    for module, request in (("ours", 7), ("theirs", None)):
        bench.recorder.add(
            "load",
            {
                "request": request,
                "modules": [module],
                "identities": {module: identities[module]},
                "duration_us": 1,
            },
        )

    async def main() -> None:
        _modules, brought_in_by = await remover.live()
        assert brought_in_by == {"ours": 7}

    asyncio.run(main())


def test_an_unload_by_rmmod_and_by_a_task_that_has_gone(bench: Bench) -> None:
    bench.unloaded(78, "minix")
    bench.unloaded(4711, "ext4")
    look(bench)
    first, second = bench.recorder.events()
    assert (first.event, first.fields["module"], first.fields["reason"]) == ("unload", "minix", "by others")
    assert first.fields["requester"]["comm"] == "insmod"
    assert {key: value for key, value in second.fields["requester"].items() if value is not None} == {
        "pid": 4711
    }


def test_a_number_that_has_gone_to_another_task_tells_no_more_than_itself(
    bench: Bench, tmp_path: Path
) -> None:
    stat = tmp_path / "77/stat"
    stat.write_text(stat.read_text().replace(" 1\n", f" {1 << 50}\n"))
    bench.loaded(77, "minix")
    look(bench)
    who = only(bench.recorder.events()).fields["requester"]
    assert {key: value for key, value in who.items() if value is not None} == {"pid": 77}


def test_an_init_that_fails_is_told_with_its_errno_and_is_no_unload(bench: Bench) -> None:
    bench.loaded(77, "kmodd_fail", -errno.ENODEV)
    look(bench)
    shown = only(bench.recorder.events()).fields
    assert (shown["outcome"], shown["status"], shown["modules"]) == ("failed", -errno.ENODEV, [])
    assert shown["identities"] == {}
    assert shown["error"].startswith("cannot load kmodd_fail: its init function has failed: ")
    assert shown["error"].endswith("(ENODEV)")


def test_what_a_dead_daemon_was_loading_and_failed_to_is_no_unload(bench: Bench) -> None:
    bench.record(Kind.INIT, 4711, result=-errno.EINTR)
    bench.record(Kind.FREE, 4711, "kmodd_block")
    bench.record(Kind.INIT, 4712)
    bench.unloaded(4712, "minix")
    look(bench)
    assert bench.told() == [("unload", "minix", None, 4712)]


def test_a_module_without_init_is_told_once_it_is_live(bench: Bench) -> None:
    async def main() -> None:
        bench.record(Kind.LOAD, 77, "library")
        bench.others.look()
        await asyncio.sleep(0.5)
        assert bench.told() == []
        bench.kernel.there.add("library")
        await asyncio.sleep(1)
        assert bench.told() == [("load", "library", "loaded", 77)]
        bench.others.end()()

    run(main)


def test_an_init_that_takes_long_is_told_when_it_has_returned(bench: Bench) -> None:
    async def main() -> None:
        bench.record(Kind.LOAD, 77, "slow")
        bench.others.look()
        bench.loaded(78, "quick")
        bench.others.look()
        assert bench.told() == [("load", "quick", "loaded", 78)]
        bench.record(Kind.INIT, 77)
        bench.others.look()
        assert bench.told()[1:] == [("load", "slow", "loaded", 77)]
        bench.others.end()()

    run(main)


def test_loaded_unloaded_and_loaded_again_before_anybody_looked(bench: Bench) -> None:
    bench.loaded(77, "minix")
    bench.unloaded(78, "minix")
    bench.loaded(79, "minix")
    bench.loaded(77, "library", None)
    bench.unloaded(77, "library")
    look(bench)
    assert bench.told() == [
        ("load", "minix", "loaded", 77),
        ("unload", "minix", None, 78),
        ("load", "minix", "loaded", 79),
        ("load", "library", "loaded", 77),
        ("unload", "library", None, 77),
    ]
    identities = [event.fields.get("identities") for event in bench.recorder.events()]
    # Which coming the first one was is not known any more.
    assert identities == [{"minix": None}, None, {"minix": "this minix"}, {"library": None}, None]


def test_what_our_threads_do_is_not_told_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threading.get_native_id", lambda: 77)
    with bench.own.thread():
        bench.loaded(77, "minix")
        bench.loaded(77, "kmodd_fail", -errno.EIO)
        bench.unloaded(77, "ext4")
        # In the same moment somebody else loads another module.
        bench.loaded(78, "nls_cp437")
        bench.running[1] = bench.now / 1e9
        look(bench)
    assert bench.told() == [("load", "nls_cp437", "loaded", 78)]


def test_what_a_child_of_ours_does_and_what_others_do_meanwhile(bench: Bench, tmp_path: Path) -> None:
    stat = tmp_path / "79/stat"  # its session is 77's, as Proc has it; what that is here, is ours
    with bench.own.child() as started:
        bench.loaded(79, "ours")
        bench.running[1] = (bench.now - 5000) / 1e9

        async def main() -> None:
            bench.others.look()
            assert bench.told() == []  # whose child that is, is not known yet
            started(77)
            await asyncio.sleep(1)
            assert bench.told() == []
            stat.write_text(stat.read_text().replace(" 77 ", " 5 "))
            bench.loaded(79, "others")
            bench.others.look()
            assert bench.told() == [("load", "others", "loaded", 79)]
            assert set(bench.others.since(0)) == {"others"}
            assert set(bench.others.since(bench.now + 1)) == set()
            bench.others.end()()

        run(main)
    assert bench.others.missed == 0


@pytest.mark.parametrize(("reported", "told"), [(["gone"], []), ([], ["gone"]), (None, [])])
def test_a_task_that_has_gone_while_our_child_ran_is_decided_by_what_that_load_reports(
    bench: Bench, reported: list[str] | None, told: list[str]
) -> None:
    began = bench.now
    bench.running[1] = began / 1e9

    async def main() -> None:
        with bench.own.child() as started:
            started(20)
            bench.loaded(4711, "gone")
            bench.now += 1_000_000
            bench.others.look()
        assert bench.told() == []
        bench.kmodd_loaded(reported, (bench.now - began) // 1000)
        await asyncio.sleep(0)
        assert [module for _event, module, _outcome, _pid in bench.told()] == told
        bench.others.end()()

    run(main)


def test_what_is_pending_is_bounded_and_what_is_dropped_is_counted(bench: Bench) -> None:
    async def main() -> None:
        for n in range(PENDING + 5):
            bench.record(Kind.LOAD, 10_000 + n, f"m{n}")
        bench.others.look()
        assert len(bench.others._pending) == PENDING
        assert bench.others.missed == 5
        bench.others.end()()
        assert bench.others.missed == PENDING + 5

    run(main)


def test_tasks_that_bring_something_in_are_bounded(bench: Bench) -> None:
    async def main() -> None:
        for n in range(3000):
            bench.loaded(10_000 + n, f"m{n}")
            bench.others.look()
        assert len(bench.others._bringing_in) <= 1024
        assert len(bench.others._pending) == 0
        assert len(bench.told()) == 3000
        bench.others.end()()

    run(main)


def test_with_nothing_to_decide_there_is_no_timer(bench: Bench) -> None:
    async def main() -> None:
        bench.loaded(77, "minix")
        bench.others.look()
        assert bench.others._timer is None
        bench.record(Kind.LOAD, 77, "slow")
        bench.others.look()
        assert bench.others._timer is not None
        bench.others.end()()
        assert bench.others._timer is None

    run(main)


def test_a_name_that_would_be_a_path_is_not_looked_up(bench: Bench) -> None:
    bench.kernel.there.add("../x")
    bench.record(Kind.LOAD, 77, "../x")
    bench.record(Kind.INIT, 77)
    look(bench)
    assert only(bench.recorder.events()).fields["identities"] == {"../x": None}


@given(st.data())
def test_each_is_told_once_in_order_whatever_is_drained_when(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any story of several modules and tasks, cut anywhere: one event for each thing that happened."""
    bench = Bench(Proc(tmp_path_factory.mktemp("proc")))
    expected: list[tuple[str, str, str | None, int]] = []

    async def main() -> None:
        for _ in range(data.draw(st.integers(0, 12))):
            module = data.draw(st.sampled_from("abc"))
            tid = data.draw(st.integers(100, 103))
            if module in bench.kernel.there:
                bench.unloaded(tid, module)
                expected.append(("unload", module, None, tid))
            else:
                result = data.draw(st.sampled_from([0, 0, -5, None]))
                bench.loaded(tid, module, result)
                expected.append(("load", module, "failed" if result else "loaded", tid))
            if data.draw(st.booleans()):
                cut = data.draw(st.integers(0, len(bench.comings.new)))
                bench.comings.late = bench.comings.new[cut:]
                del bench.comings.new[cut:]
                bench.others.look()
                bench.comings.new, bench.comings.late = bench.comings.late, []
        bench.others.look()
        bench.others.end()()

    run(main)
    told = bench.told()
    assert sorted(told) == sorted(expected)
    for module in "abc":
        assert [one for one in told if one[1] == module] == [one for one in expected if one[1] == module]
    assert bench.others.missed == 0
