"""Autoclean with the simulated kernel, in virtual time: what goes when, and what a request meanwhile gets."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest

from kmodd.broker import autoclean, handover, look, removal, sweep
from kmodd.broker.autoclean import Autoclean
from kmodd.broker.look import Around
from kmodd.broker.removal import Remover
from kmodd.broker.simulated import SimulatedLoader
from kmodd.broker.sweep import Pass
from kmodd.broker.unloads import Unloads
from kmodd.errors import InvalidName, KmoddError
from kmodd.kernel.simulated import Installed, SimulatedKernel
from kmodd.kernel.uses import Device, Kinds, StandsFor, Uses
from kmodd.model import Outcome, Result, Source
from kmodd.tree import modprobed
from kmodd.tree.modprobed import Config
from support import virtual
from support.bench import Bench

MODULES = (
    Installed("dep"),
    Installed("top", depends=("dep",), aliases=("net-pf-9",)),
    Installed("other"),
    Installed("slow", depends=("dep",), aliases=("alias-slow",), latency=12.0),
    Installed("third"),
    Installed("broken", depends=("dep",), error=errno.EIO),
    Installed("stuck", permanent=True),
)


class Kernel(SimulatedKernel):
    """One with devices, an exit that can be held up, and a hook right before an unload."""

    def __init__(self) -> None:
        super().__init__(MODULES)
        self.driven: set[str] = set()
        self.unloaded: list[str] = []
        self.refuses: dict[str, int] = {}

    def uses(self, name: str, stands_for: StandsFor) -> Uses:
        driven = Device("0000:00:03.0", "pci", name, "/sys/devices/x")
        return Uses(devices=(driven,)) if name in self.driven else Uses()

    def unload(self, name: str) -> None:
        if name in self.refuses:
            raise OSError(self.refuses[name], "no")
        super().unload(name)
        self.unloaded.append(name)


class Counts:
    """What the kernel would count."""

    def __init__(self) -> None:
        self.on = True
        self.problem: str | None = None
        self.gets: dict[str, int] | None = {}

    def start(self) -> None:
        self.on = True

    def stop(self) -> None:
        self.on = False

    def counts(self) -> Mapping[str, int] | None:
        return None if self.gets is None else dict(self.gets)

    def get(self, module: str) -> None:
        assert self.gets is not None
        self.gets[module] = self.gets.get(module, 0) + 1


class Configured:
    def __init__(self, text: str) -> None:
        self._text = text

    async def config(self) -> Config:
        config = Config()
        modprobed.parse(config, self._text, "/etc/modprobe.d/a.conf")
        return config

    def aliased(self, name: str) -> list[str]:
        return ["top"] if name == "net-pf-9" else []

    def kinds(self) -> Kinds:
        return Kinds(nodes={"other": (("other", "c10:77"),)})


class Machine:
    """Made inside a running virtual loop. Work of threads is done at once, or where a test lets it."""

    def __init__(
        self,
        config: str = "",
        counts: Counts | None = None,
        directory: str | None = None,
        kernel: Kernel | None = None,
        **settings: Any,
    ) -> None:
        self.kernel = Kernel() if kernel is None else kernel
        self.unloads = Unloads()
        self.counts = counts
        self.sealed = False
        self.no_root: OSError | None = None
        self.bench = Bench((), SimulatedLoader(self.kernel, self.unloads), **settings)
        self.bench.kernel = self.kernel
        self.bench.broker._identity = self.kernel.identity
        configured = Configured(config)
        self.remover = Remover(self.kernel, self.bench.recorder, configured, unloads=self.unloads)
        self.autoclean = Autoclean(
            self.kernel,
            self.bench.recorder,
            self.bench.settings,
            self.remover,
            self.unloads,
            Around(
                counts,
                configured,
                lambda: self.sealed,
                directory,
                self.enter_root,
                asyncio.get_running_loop().time,
            ),
        )
        self.bench.broker.on_by_hand = self.autoclean.claim

    def enter_root(self) -> None:
        if self.no_root is not None:
            raise self.no_root

    async def start(self) -> Machine:
        await self.autoclean.start()
        return self

    async def ask(self, name: str, source: Source = Source.KERNEL) -> Result:
        return await self.bench.ask(name, source=source)

    async def live(self) -> set[str]:
        await asyncio.sleep(0)
        return set(self.kernel.modules())

    async def after(self, seconds: float) -> set[str]:
        await asyncio.sleep(seconds)
        return await self.live()

    def events(self, kind: str) -> list[dict[str, Any]]:
        return self.bench.events(kind)


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(_name: str, work: Callable[[], Any]) -> Any:
        await asyncio.sleep(0)
        return work()

    monkeypatch.setattr(autoclean, "in_own_thread", at_once)
    monkeypatch.setattr(look, "in_own_thread", at_once)
    monkeypatch.setattr(handover, "in_own_thread", at_once)
    monkeypatch.setattr(removal, "in_own_thread", at_once)


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    virtual.run(story())


def test_s9_what_the_kernel_asked_for_goes_between_one_and_two_delays_after_its_last_use() -> None:
    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=60).start()
        await machine.ask("top")
        assert await machine.after(59) == {"dep", "top"}
        assert await machine.after(62) == set()
        assert machine.kernel.unloaded == ["top", "dep"], "what it held goes in the same pass"
        reasons = [event["reason"] for event in machine.events("unload")]
        assert reasons == ["nobody has used it for 60 s"] * 2
        [told] = machine.events("autoclean")
        assert (told["action"], told["modules"], told["size"], told["failed"]) == (
            "pass", ["top", "dep"], 2 * 16384, {},
        )  # fmt: skip
        state = machine.autoclean.as_json()
        assert (state["unloaded"], state["size"], state["modules"]) == (2, 2 * 16384, 0)

    run(story)


def test_a_use_between_two_passes_is_seen_where_the_kernel_counts() -> None:
    """Whether it is held at the moment of a pass says nothing."""

    async def story() -> None:
        counts = Counts()
        machine = await Machine(counts=counts, unload_delay=60).start()
        await machine.ask("other")
        for _ in range(10):
            await asyncio.sleep(30)
            counts.get("other")
            assert await machine.after(30) == {"other"}
        assert await machine.after(59) == {"other"}
        assert await machine.after(62) == set()

    run(story)


def test_without_counts_users_are_sampled_several_times_in_a_delay() -> None:
    async def story() -> None:
        machine = await Machine(unload_delay=60).start()
        assert machine.autoclean.as_json()["uses"] == "sampled"
        await machine.ask("other")
        for _ in range(4):
            await asyncio.sleep(28)
            machine.kernel.use("other", 1)
            await asyncio.sleep(16)
            machine.kernel.use("other", -1)
        assert await machine.after(44) == {"other"}
        assert await machine.after(32) == set()

    run(story)


def test_what_was_never_used_goes_once_it_is_older_than_a_delay() -> None:
    """It has not been taken since the pass before it came, so its first pass knows that."""

    async def story() -> None:
        counts = Counts()
        machine = await Machine(counts=counts, unload_delay=60).start()
        machine.kernel.load("dep")
        await machine.autoclean.mark(["dep"])
        machine.kernel.use("dep", 1)  # so that there are passes
        await asyncio.sleep(61)
        await machine.ask("other")
        assert await machine.after(58) == {"dep", "other"}
        assert await machine.after(62) == {"dep"}
        await machine.ask("other")
        counts.get("other")
        assert await machine.after(62) == {"dep", "other"}, "it was taken before its first pass"
        assert await machine.after(60) == {"dep"}

    run(story)


def test_counts_that_are_not_to_be_had_for_once_are_a_doubt() -> None:
    async def story() -> None:
        counts = Counts()
        machine = await Machine(counts=counts, unload_delay=60).start()
        await machine.ask("other")
        await asyncio.sleep(61)
        gets, counts.gets = counts.gets, None
        assert await machine.after(40) == {"other"}
        counts.gets = gets
        assert await machine.after(60) == set()

    run(story)


def test_counting_may_end_and_begin_while_it_runs() -> None:
    async def story() -> None:
        counts = Counts()
        machine = await Machine(counts=counts, unload_delay=60).start()
        await machine.ask("other")
        await asyncio.sleep(61)
        machine.bench.settings.set("tracing", False)
        await asyncio.sleep(1)
        assert machine.autoclean.as_json()["uses"] == "sampled"
        counts.get("other")
        machine.bench.settings.set("tracing", True)
        await asyncio.sleep(1)
        assert machine.autoclean.as_json()["uses"] == "counted"
        assert await machine.after(59) == {"other"}, "what was used meanwhile is in doubt"
        assert await machine.after(62) == set()

    run(story)


@pytest.mark.parametrize("source", [Source.API, Source.CLI])
def test_what_was_asked_for_by_hand_is_never_touched(source: Source) -> None:
    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=1).start()
        await machine.ask("top", source)
        await machine.ask("other")
        assert await machine.after(10) == {"top", "dep"}

    run(story)


def test_who_asks_by_hand_for_what_is_there_makes_it_theirs() -> None:
    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=60).start()
        await machine.ask("top")
        assert (await machine.ask("net-pf-9", Source.CLI)).outcome is Outcome.ALREADY_LIVE
        assert await machine.after(500) == {"top", "dep"}
        [told] = machine.events("autoclean")
        assert (told["action"], told["modules"]) == ("release", ["top"])

    run(story)


def test_what_others_have_brought_in_is_never_touched() -> None:
    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=1).start()
        machine.kernel.load("dep")
        machine.kernel.load("other")
        await machine.ask("top")
        assert await machine.after(10) == {"dep", "other"}

    run(story)


def test_one_that_others_have_unloaded_and_loaded_again_is_not_ours_any_more() -> None:
    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=60).start()
        await machine.ask("other")
        machine.kernel.unload("other")
        machine.kernel.load("other")
        assert await machine.after(500) == {"other"}
        assert machine.autoclean.as_json()["modules"] == 0

    run(story)


def test_a_mark_makes_it_ours() -> None:
    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=60).start()
        machine.kernel.load("other")
        assert await machine.autoclean.mark(["other", "absent"]) == ["other"]
        with pytest.raises(InvalidName):
            await machine.autoclean.mark(["a b"])
        assert await machine.autoclean.owned() == {"other"}
        assert await machine.after(125) == set()

    run(story)


def test_what_is_in_use_stays_and_has_a_whole_delay_afterwards() -> None:
    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=60).start()
        await machine.ask("other")
        machine.kernel.use("other", 1)
        assert await machine.after(600) == {"other"}
        machine.kernel.use("other", -1)
        assert await machine.after(59) == {"other"}
        assert await machine.after(62) == set()

    run(story)


def test_a_bound_device_keeps_its_driver_though_its_count_is_0() -> None:
    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=60).start()
        await machine.ask("other")
        machine.kernel.driven.add("other")
        assert await machine.after(600) == {"other"}
        made = await machine.autoclean.look()
        [verdict] = made.verdicts
        assert "pci driver other" in verdict.reason
        machine.kernel.driven.clear()
        assert await machine.after(125) == set()

    run(story)


def test_keep_and_delays_of_single_modules() -> None:
    async def story() -> None:
        settings = {"keep": ["o*er"], "unload_delays": ["dep=0", "t?p=300"]}
        machine = await Machine(counts=Counts(), unload_delay=60, **settings).start()
        await machine.ask("top")
        await machine.ask("other")
        assert await machine.after(299) == {"top", "dep", "other"}
        assert await machine.after(400) == {"dep", "other"}
        reasons = {each.module: each.reason for each in (await machine.autoclean.look()).verdicts}
        assert reasons == {
            "dep": "autoclean is off for it (unload_delay, unload_delays)",
            "other": "it is kept: the setting keep names it",
        }

    run(story)


def test_a_changed_delay_holds_at_once_and_0_stops_it() -> None:
    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=3600).start()
        await machine.ask("other")
        await asyncio.sleep(100)
        machine.bench.settings.set("unload_delay", 10)
        assert await machine.after(21) == set()
        machine.bench.settings.set("unload_delay", 0)
        await machine.ask("other")
        assert await machine.after(100_000) == {"other"}
        made = await machine.autoclean.run()
        assert (made.unloaded, machine.kernel.unloaded) == ((), ["other"])

    run(story)


def test_nothing_wakes_up_while_nothing_may_go() -> None:
    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=60, keep=["other"]).start()
        await machine.ask("other")
        machine.kernel.load("dep")
        passes = machine.autoclean.account.passes
        await asyncio.sleep(10_000)
        assert machine.autoclean.account.passes == passes == 0
        await machine.ask("stuck")
        await asyncio.sleep(10_000)
        assert machine.autoclean.account.passes == 1, "that it is permanent is known since"

    run(story)


def test_a_dry_run_changes_nothing_and_says_how_long_it_takes() -> None:
    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=60).start()
        await machine.ask("top")
        await asyncio.sleep(20)
        for _ in range(3):
            made = await machine.autoclean.look()
        shown = {each["module"]: each for each in made.as_json()["modules"]}
        assert shown["top"]["in_seconds"] is not None
        assert shown["top"]["goes"] is False
        assert shown["dep"]["reason"] == "it is used by top"
        assert await machine.live() == {"top", "dep"}
        assert machine.autoclean.account.passes == 0

    run(story)


def test_nothing_goes_while_kmodd_is_sealed() -> None:
    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=60).start()
        await machine.ask("other")
        machine.sealed = True
        assert await machine.after(300) == {"other"}
        [verdict] = (await machine.autoclean.look()).verdicts
        assert verdict.reason == "it is kept: kmodd is sealed, and would not let it in again"
        machine.sealed = False
        assert await machine.after(61) == set()

    run(story)


# Requests meanwhile


class Held:
    """The exit function of a module does not return until a test lets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: str, machine: Machine) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        unload = machine.kernel.unload
        running = []

        def exits(name: str) -> None:
            if name == module and not self.begun.is_set():
                running.append(name)
            else:
                unload(name)

        async def in_thread(_name: str, work: Callable[[], Any]) -> Any:
            await asyncio.sleep(0)
            done = work()
            if running and not self.begun.is_set():
                self.begun.set()
                await self.go_on.wait()
                unload(module)
            return done

        monkeypatch.setattr(machine.kernel, "unload", exits)
        monkeypatch.setattr(removal, "in_own_thread", in_thread)


@pytest.mark.parametrize("name", ["top", "net-pf-9", "dep", "slow"])
def test_s10_who_asks_for_what_is_being_unloaded_waits_and_has_it_again(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Also where it is but a dependency of what is asked for."""

    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=60).start()
        await machine.ask("top")
        which = "dep" if name in {"dep", "slow"} else "top"
        held = Held(monkeypatch, which, machine)
        await held.begun.wait()
        asked = asyncio.ensure_future(machine.ask(name))
        await asyncio.sleep(1)
        assert not asked.done()
        held.go_on.set()
        result = await asked
        assert (result.outcome, result.status) == (Outcome.LOADED, 0)
        assert which in (result.modules or ())
        assert which in await machine.live()

    run(story)


def test_s10_what_is_asked_for_between_the_look_and_the_unload_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=60).start()
        await machine.ask("other")
        decide, answers = sweep.decide, []

        def asks(*arguments: Any) -> Any:
            answers.append(asyncio.ensure_future(machine.ask("other")))
            return decide(*arguments)

        monkeypatch.setattr(sweep, "decide", asks)
        await asyncio.sleep(200)
        monkeypatch.undo()
        outcomes = [(await answer).outcome for answer in answers]
        # Whoever was told that it is live finds it so.
        assert set(outcomes) <= {Outcome.ALREADY_LIVE, Outcome.LOADED}
        assert "other" in await machine.live() or outcomes[-1] is not Outcome.ALREADY_LIVE

    run(story)


def test_what_a_load_in_progress_needs_stays_however_long_that_takes() -> None:
    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=1).start()
        asked = asyncio.ensure_future(machine.ask("slow"))
        await asyncio.sleep(11)
        assert "dep" in await machine.live()
        assert (await asked).outcome is Outcome.LOADED

    run(story)


def test_a_pass_that_takes_long_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody began to use meanwhile stays; all that is still idle goes in the same pass."""

    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=60).start()
        names = [f"other{n}" for n in range(6)]
        machine.kernel.installed.update({name: Installed(name) for name in names})
        for name in names:
            await machine.ask(name)
        looks = []

        async def slowly(name: str, work: Callable[[], Any]) -> Any:
            done = work()
            if name == "kmod_unloader":
                await asyncio.sleep(0.9)
                looks.append(machine.kernel.unloaded[-1])
                if len(looks) == 4:
                    machine.kernel.driven.add(names[5])
            return done

        monkeypatch.setattr(removal, "in_own_thread", slowly)
        assert await machine.after(130) == {names[5]}
        assert machine.autoclean.account.passes == 2
        assert machine.events("autoclean")[-1]["modules"] == names[:5]

    run(story)


def test_one_whose_exit_hangs_is_told_and_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=60).start()
        held = Held(monkeypatch, "top", machine)
        await machine.ask("top")
        await machine.ask("other")
        await held.begun.wait()
        assert await machine.after(15) == {"top", "dep"}, "the other one has gone"
        assert machine.autoclean.as_json()["hanging"] == ["top"]
        told = machine.events("autoclean")[-1]
        assert (told["action"], told["modules"]) == ("hangs", ["top"])
        assert told["reason"] == "the unload of top has not ended for 10 s"
        made = await machine.autoclean.look()
        assert {each.module: each.reason for each in made.verdicts}["top"] == "it is being unloaded"
        assert (await machine.ask("other")).outcome is Outcome.LOADED, "others load and unload on"
        held.go_on.set()
        await asyncio.sleep(1)
        assert machine.autoclean.as_json()["hanging"] == []
        assert machine.events("unload")[-1]["module"] == "top"
        assert machine.autoclean.as_json()["unloaded"] == 2

    run(story)


def test_a_module_that_finds_a_user_in_between_is_no_failure() -> None:
    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=60).start()
        await machine.ask("other")
        for number in (errno.EAGAIN, errno.EBUSY):
            machine.kernel.refuses["other"] = number
            made = await _pass_after(machine, 130)
            assert (made.unloaded, made.failed) == ((), {})
        machine.kernel.refuses["other"] = errno.EIO
        made = await _pass_after(machine, 130)
        assert "EIO" in made.failed["other"]
        again = await machine.autoclean.run()
        assert again.failed == {}, "not each time anew"

    run(story)


async def _pass_after(machine: Machine, seconds: float) -> Pass:
    machine.bench.settings.set("unload_delay", 3600)
    await asyncio.sleep(seconds)
    machine.bench.settings.set("unload_delay", 60)
    return await machine.autoclean.run()


def test_the_device_file_that_asks_for_a_module_stays_when_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=60).start()
        calls: list[tuple[str, Any, bool]] = []
        node = look.Node("/dev/other", 0o20600, 0, 0, 77)

        def seen(entries: Any) -> tuple[look.Node, ...]:
            calls.append(("seen", entries, machine.kernel.is_live("other")))
            return (node,)

        def put_back(found: Any) -> list[str]:
            calls.append(("put back", found, machine.kernel.is_live("other")))
            raise OSError(errno.EROFS, "read-only")

        monkeypatch.setattr(look.nodes, "seen", seen)
        monkeypatch.setattr(look.nodes, "put_back", put_back)
        may = [False]
        monkeypatch.setattr(look.nodes, "can_be_made", lambda: may[0])
        await machine.ask("other")
        machine.no_root = OSError(errno.EACCES, "Permission denied")
        await asyncio.sleep(125)
        assert await machine.live() == {"other"}
        assert not machine.events("autoclean")
        may[0] = True
        await asyncio.sleep(60)
        assert calls == []
        machine.no_root = None
        machine.kernel.refuses["other"] = errno.EBUSY
        await asyncio.sleep(60)
        assert {what for what, *_rest in calls} == {"seen"}
        del machine.kernel.refuses["other"]
        assert await machine.after(70) == set(), "and that it cannot be put back stops nothing"
        assert calls[-2:] == [("seen", (("other", "c10:77"),), True), ("put back", (node,), False)]

    run(story)


def test_a_remove_command_keeps_it() -> None:
    async def story() -> None:
        machine = await Machine("remove other /bin/false\n", counts=Counts(), unload_delay=60).start()
        await machine.ask("other")
        assert await machine.after(200) == {"other"}
        [verdict] = (await machine.autoclean.look()).verdicts
        assert verdict.reason.startswith("it is kept: modprobe.d has a remove command for it")

    run(story)


# Across a restart


def test_a_later_daemon_knows_what_it_may_clean(tmp_path: Path) -> None:
    async def story() -> None:
        first = await Machine(counts=Counts(), directory=str(tmp_path), unload_delay=0).start()
        for name in ("top", "other", "third"):
            await first.ask(name)
        await first.ask("third", Source.CLI)
        first.kernel.unload("other")
        first.kernel.load("other")
        await asyncio.sleep(1)
        later = await Machine(
            counts=Counts(), directory=str(tmp_path), kernel=first.kernel, unload_delay=60
        ).start()
        assert await later.after(59) == {"top", "dep", "other", "third"}, "a whole delay from the restart on"
        assert await later.after(70) == {"other", "third"}
        assert later.autoclean.as_json()["modules"] == 0
        # And the one after that knows that nothing is left.
        assert json.loads((tmp_path / "autoclean.json").read_text()) == {}

    run(story)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"other": 1}', '{"other": {"identity": 1, "marked": false}}']
)
def test_what_an_earlier_daemon_knew_may_be_damaged_and_then_nothing_is_ours(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "autoclean.json").write_text(text)

    async def story() -> None:
        machine = await Machine(counts=Counts(), directory=str(tmp_path), unload_delay=1).start()
        machine.kernel.load("other")
        assert await machine.after(10) == {"other"}
        await machine.ask("top")
        assert await machine.after(10) == {"other"}, "it goes on all the same"

    run(story)


def test_where_it_cannot_be_written_nothing_old_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that somebody has claimed since must not come back to us."""

    async def story() -> None:
        machine = await Machine(counts=Counts(), directory=str(tmp_path), unload_delay=0).start()
        await machine.ask("other")
        await asyncio.sleep(1)
        assert "other" in (tmp_path / "autoclean.json").read_text()

        def full(*_arguments: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(handover.files, "write", full)
        await machine.ask("other", Source.CLI)
        await asyncio.sleep(1)
        assert not (tmp_path / "autoclean.json").exists()

    run(story)


# Whose it is where loads are shared


def test_who_asks_by_hand_while_the_kernels_load_goes_on_has_it() -> None:
    """By the same name, and by another one for the same module."""

    async def story() -> None:
        for other in ("slow", "alias-slow"):
            machine = await Machine(counts=Counts(), unload_delay=1).start()
            asked = asyncio.ensure_future(machine.ask("slow"))
            await asyncio.sleep(5)
            by_hand = asyncio.ensure_future(machine.ask(other, Source.API))
            assert (await asked).status == (await by_hand).status == 0
            assert await machine.after(20) == {"slow", "dep"}, other
            assert machine.autoclean.as_json()["modules"] == 0

    run(story)


def test_one_whose_request_by_hand_fails_has_claimed_nothing() -> None:
    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=60).start()
        await machine.ask("other")
        assert (await machine.ask("nothing-of-that-name", Source.API)).status != 0
        assert (await machine.ask("broken", Source.API)).status != 0
        assert await machine.after(125) == {"dep"}, "of a load by hand that failed nothing is ours"

    run(story)


def test_what_is_marked_while_it_is_being_loaded_stays_marked() -> None:
    """By `modprobe -k` as the external modprobe: the load is told of behind the mark."""

    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=60).start()
        asked = asyncio.ensure_future(machine.ask("slow", Source.API))
        await asyncio.sleep(5)
        assert await machine.autoclean.mark(["dep"]) == ["dep"]
        await asked
        machine.kernel.unload("slow")
        assert await machine.after(130) == set()

    run(story)


def test_what_is_marked_stays_marked() -> None:
    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=60).start()
        machine.kernel.load("other")
        await machine.autoclean.mark(["other"])
        await machine.ask("other", Source.CLI)
        assert await machine.after(130) == set()

    run(story)


def test_what_a_hanging_unload_keeps_from_its_requesters_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They do not pile up in the kernel, which has 50 places for them."""

    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=60).start()
        held = Held(monkeypatch, "top", machine)
        await machine.ask("top")
        await held.begun.wait()
        asked = asyncio.ensure_future(machine.ask("top"))
        await asyncio.sleep(5)
        assert not asked.done()
        await asyncio.sleep(6)
        result = await asked
        assert (result.outcome, result.status) == (Outcome.FAILED, -errno.EBUSY)
        assert "that does not end" in (result.error or "")
        began = asyncio.get_running_loop().time()
        assert (await machine.ask("net-pf-9")).status == -errno.EBUSY
        assert asyncio.get_running_loop().time() - began < 0.1
        held.go_on.set()
        await asyncio.sleep(1)
        assert (await machine.ask("top")).outcome is Outcome.LOADED

    run(story)


def test_a_look_that_does_not_end_holds_up_no_request_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=60).start()
        await machine.ask("other")
        go_on = asyncio.Event()
        looks = []

        async def for_ever(_name: str, work: Callable[[], Any]) -> Any:
            looks.append(1)
            await go_on.wait()
            return work()

        monkeypatch.setattr(look, "in_own_thread", for_ever)
        with pytest.raises(KmoddError, match="takes longer than 30 s"):
            await machine.autoclean.look()
        assert (await machine.ask("other")).outcome is Outcome.ALREADY_LIVE
        with pytest.raises(KmoddError):
            await machine.autoclean.look()
        assert len(looks) == 1, "the one that hangs is waited for, and no other is begun"
        go_on.set()
        assert await machine.after(130) == set()

    run(story)


def test_who_does_not_wait_for_a_pass_does_not_end_it() -> None:
    async def story() -> None:
        machine = await Machine(counts=Counts(), unload_delay=60).start()
        await machine.ask("top")
        await asyncio.sleep(119)
        machine.bench.settings.set("unload_delay", 50)
        waiting = asyncio.ensure_future(machine.autoclean.run())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(1)
        assert await machine.live() == set()
        assert machine.events("autoclean")[-1]["modules"] == ["top", "dep"]

    run(story)


def test_a_setting_or_a_seal_counts_for_the_pass_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(what: Callable[[Machine], None]) -> None:
        async def story() -> None:
            machine = await Machine(counts=Counts(), unload_delay=60).start()
            await machine.ask("other")
            decide = sweep.decide

            def meanwhile(*arguments: Any) -> Any:
                verdicts = decide(*arguments)
                if any(verdict.goes for verdict in verdicts):
                    what(machine)
                return verdicts

            with monkeypatch.context() as patched:
                patched.setattr(sweep, "decide", meanwhile)
                assert await machine.after(130) == {"other"}
            assert not machine.events("unload")

        run(story)

    stops(lambda machine: machine.bench.settings.set("unload_delay", 0))
    stops(lambda machine: machine.bench.settings.set("keep", ["other"]))
    stops(lambda machine: setattr(machine, "sealed", True))
    stops(lambda machine: machine.autoclean.pause())
    stops(lambda machine: machine.autoclean.claim(["other"]))


@pytest.mark.parametrize("what", ["counts", "device", "request", "identity"])
def test_what_happens_between_verdict_and_unload_keeps_it(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Once, in the pass in which it would go: the last check, in the unloading thread, sees it."""

    async def story() -> None:
        counts = Counts()
        machine = await Machine(counts=counts, unload_delay=60).start()
        await machine.ask("other")
        decide, seen = sweep.decide, []

        def meanwhile(*arguments: Any) -> Any:
            verdicts = decide(*arguments)
            if any(verdict.goes for verdict in verdicts) and not seen:
                seen.append(machine.kernel.identity("other"))
                if what == "counts":
                    counts.get("other")
                elif what == "device":
                    machine.kernel.driven.add("other")
                elif what == "request":
                    machine.unloads.touch(["other"])
                    machine.autoclean._ours._owned[
                        "other"
                    ].touched += 0.001  # the clock of a test stands still
                else:
                    SimulatedKernel.unload(machine.kernel, "other")
                    machine.kernel.load("other")
            return verdicts

        monkeypatch.setattr(sweep, "decide", meanwhile)
        assert await machine.after(125) == {"other"}
        assert seen
        assert machine.kernel.unloaded == []
        assert not machine.events("autoclean"), "it is no failure"

    run(story)
