"""The loader in the daemon, on a tree of its own and a kernel that does as it is told."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kmodd.broker import threads as threads_room
from kmodd.broker.broker import Broker
from kmodd.broker.inprocess import InProcessLoader
from kmodd.broker.loader import Report
from kmodd.broker.modules import ModuleLoads
from kmodd.broker.pace import Pace
from kmodd.broker.threads import Settle
from kmodd.broker.tickets import Asker, Ticket
from kmodd.model import Outcome, Requester, Source
from kmodd.policy.files import Policy
from kmodd.policy.inforce import PolicyInForce
from kmodd.record.recorder import Recorder
from kmodd.settings import Settings
from kmodd.tree import modprobed
from kmodd.tree.index import Index
from kmodd.tree.plan import Plan
from kmodd.tree.snapshot import Snapshot
from support.policies import taken

PATIENCE = 60.0


class Kernel:
    """Live modules; what a load does may be said for each."""

    release = "r"

    def __init__(self) -> None:
        self.live: dict[str, None] = {}
        self.calls: list[tuple[str, str]] = []
        self.does: dict[str, Callable[[], None]] = {}

    def is_live(self, module: str) -> bool:
        return module in self.live

    def holders(self) -> Mapping[str, tuple[str, ...]]:
        return dict.fromkeys(self.live, ())

    def load(self, path: str, parameters: str = "") -> None:
        module = os.path.basename(path).partition(".")[0]
        self.calls.append((module, parameters))
        self.does.get(module, lambda: None)()
        self.live[module] = None


class Progress:
    """What the loader tells."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.allowed = True

    def may_begin(self, plan: Callable[[], Plan | None]) -> bool:
        return plan is not None

    def judged_by_plan(self) -> bool:
        return False

    def may_go_on(self) -> bool:
        return self.allowed

    def awaits(self, number: int, *, shared: bool) -> None:
        pass

    def got(self, number: int) -> None:
        pass

    def session(self, session: int) -> None:
        pass

    def is_live(self) -> None:
        self.told.append("live")

    def report_awaited(self) -> bool:
        return True

    def status(self, status: int) -> None:
        self.told.append(status)


class World:
    """A tree of modules with what they need, aliases and modprobe.d; a loader in it."""

    def __init__(self, root: Path, needs: dict[str, str], aliases: str = "", config: str = "") -> None:
        (root / "kernel").mkdir()
        lines = [
            f"kernel/{name}.ko:" + "".join(f" kernel/{other}.ko" for other in others.split())
            for name, others in needs.items()
        ]
        (root / "modules.dep").write_text("".join(line + "\n" for line in lines))
        (root / "modules.alias").write_text("# made up\n" + aliases)
        index, rules = Index(str(root)), modprobed.Config()
        modprobed.parse(rules, config, "a.conf")
        snapshot = Snapshot(index, rules, ())

        class Installed:
            looked = True

            def at_once(self) -> Snapshot | None:
                return snapshot if self.looked else None

            async def current(self) -> Snapshot:
                return snapshot

        self.installed = Installed()

        self.kernel = Kernel()
        self.loads = ModuleLoads(self.kernel, lambda: None, itertools.count(1).__next__)  # type: ignore[arg-type]
        self.loader = InProcessLoader(Settings(), self.kernel, self.installed, self.loads)  # type: ignore[arg-type]

    def load(self, name: str) -> Report:
        return asyncio.run(self.carry_out(name, Progress()))

    async def carry_out(self, name: str, progress: Progress) -> Report:
        begun = self.loader.load(name, progress)
        return begun if isinstance(begun, Report) else await begun


def refuse(number: int) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(number, os.strerror(number), "finit_module")

    return fail


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("absent", Outcome.NOT_FOUND),
        ("here", Outcome.ALREADY_LIVE),
        ("alias-here", Outcome.ALREADY_LIVE),
        ("alias-held", Outcome.DENIED),
        ("[", Outcome.FAILED),
    ],
)
def test_what_needs_nothing_loaded_is_known_at_once(tmp_path: Path, name: str, outcome: Outcome) -> None:
    """Without a turn of the event loop: there is none here."""
    aliases = "alias alias-here here\nalias alias-held held\n"
    world = World(tmp_path, {"here": "", "held": ""}, aliases, "blacklist held")
    world.kernel.live["here"] = None
    report = world.loader.load(name, Progress())
    assert isinstance(report, Report)
    assert (report.outcome, report.modules) == (outcome, ())
    world.installed.looked = False
    assert world.load(name) == report, "the same as where the files have to be looked at first"


def test_what_is_denied_is_known_at_once(tmp_path: Path) -> None:
    class Denying(Progress):
        def may_begin(self, plan: Callable[[], Plan | None]) -> bool:
            found = plan()
            self.told.append(None if found is None else found.loads())
            return False

    world = World(tmp_path, {"m": "d", "d": ""})
    progress = Denying()
    for name in ("m", "absent", "["):
        report = world.loader.load(name, progress)
        assert isinstance(report, Report)
        assert report.outcome is Outcome.DENIED
    assert progress.told == [["d", "m"], [], None]
    assert world.kernel.calls == []


def test_an_init_that_says_exists_is_no_success(tmp_path: Path) -> None:
    world = World(tmp_path, {"m": "d", "d": ""})
    world.kernel.does["m"] = refuse(errno.EEXIST)
    report = world.load("m")
    assert (report.outcome, report.status, report.modules) == (Outcome.FAILED, -errno.EEXIST, ("d",))
    assert report.error == "cannot load m: File exists (EEXIST)"
    world.kernel.does["d"] = refuse(errno.EEXIST)
    world.kernel.live.clear()
    assert world.load("m").error == "cannot load m: cannot load its dependency d: File exists (EEXIST)"


def test_somebody_else_was_faster(tmp_path: Path) -> None:
    world = World(tmp_path, {"m": ""})

    def meanwhile() -> None:
        world.kernel.live["m"] = None
        refuse(errno.EEXIST)()

    world.kernel.does["m"] = meanwhile
    assert (world.load("m").outcome, world.load("m").status) == (Outcome.ALREADY_LIVE, 0)


@pytest.mark.parametrize("aliases", ["alias fs-x m\nalias fs-x n\n", "alias fs-x n\nalias fs-x m\n"])
def test_what_is_blacklisted_of_several_is_left_out(tmp_path: Path, aliases: str) -> None:
    world = World(tmp_path, {"m": "", "n": ""}, aliases, "blacklist n\n")
    report = world.load("fs-x")
    assert (report.outcome, report.status, report.modules) == (Outcome.LOADED, 0, ("m",))


def test_denied_where_all_are_blacklisted(tmp_path: Path) -> None:
    world = World(tmp_path, {"m": "", "n": ""}, "alias fs-x m\nalias fs-x n\n", "blacklist n\nblacklist m\n")
    report = world.load("fs-x")
    assert (report.outcome, report.status, world.kernel.calls) == (Outcome.DENIED, -errno.EPERM, [])


def test_a_module_that_two_patterns_match_is_loaded_once_where_it_comes_first(tmp_path: Path) -> None:
    world = World(tmp_path, {"a": "", "b": ""}, "alias x:1* a\nalias x:12* b\nalias x:*3 a\n")
    assert world.load("x:123").modules == ("a", "b")
    assert world.kernel.calls == [("a", ""), ("b", "")]


def test_its_own_name_is_free_again_while_post_soft_dependencies_load(tmp_path: Path) -> None:
    world = World(tmp_path, {"x": "", "y": "", "z": ""}, config="softdep x pre: z post: y\n")

    async def story() -> tuple[Report, list[Any], Report]:
        loop = asyncio.get_running_loop()
        progress, asked = Progress(), loop.create_future()
        inner: list[Report] = []

        def init_of_y() -> None:
            told = list(progress.told)
            answer = asyncio.run_coroutine_threadsafe(world.carry_out("x", Progress()), loop)
            inner.append(answer.result(10))
            loop.call_soon_threadsafe(asked.set_result, told)

        world.kernel.does["y"] = init_of_y
        report = await world.carry_out("x", progress)
        return report, await asked, inner[0]

    report, told, inner = asyncio.run(story())
    assert (report.outcome, report.modules) == (Outcome.LOADED, ("z", "x", "y"))
    assert told == ["live"], "a request for x that comes now is a load of its own"
    assert inner.outcome is Outcome.ALREADY_LIVE


def test_an_install_command_is_not_run_for_what_is_live_by_then(tmp_path: Path) -> None:
    count = tmp_path / "count"
    # In modprobe's order, what stands last in modules.dep comes first.
    world = World(tmp_path, {"b": "x slow", "x": "", "slow": ""}, config=f"install x echo ran >>{count}\n")
    world.loader._settings.set("serial", True)
    world.kernel.does["slow"] = lambda: world.kernel.live.setdefault("x")
    report = world.load("b")
    assert [module for module, _parameters in world.kernel.calls] == ["slow", "b"]
    assert report.status == 0
    assert not count.exists()


class Held:
    """Threads that begin when they are told to: a module's load may have to wait for others."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[tuple[Callable[[], Any], Settle[Any]]] = []
        monkeypatch.setattr(
            threads_room, "start_thread", lambda _name, work, settle: self.begun.append((work, settle))
        )

    def do(self) -> None:
        work, settle = self.begun.pop(0)
        settle(work(), None)


@pytest.mark.parametrize("name", ["m", "many"])
def test_a_denial_counts_for_what_has_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The policy was asked before; the load had to wait for its turn since."""
    world = World(tmp_path, {"d": "", "m": "", "many": "d m"})

    async def story() -> Report:
        held, progress = Held(monkeypatch), Progress()
        report = asyncio.ensure_future(world.carry_out(name, progress))
        await asyncio.sleep(0)
        progress.allowed = False
        while held.begun:
            held.do()
        return await report

    report = asyncio.run(story())
    assert (report.outcome, report.status, report.modules) == (Outcome.DENIED, -errno.EPERM, ())
    assert world.kernel.calls == []


@pytest.mark.parametrize("found", [False, True])
def test_who_may_have_it_has_it_though_another_who_began_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: bool
) -> None:
    """`found`: that nobody may have it is found out first, and is being told when the other one comes."""
    world = World(tmp_path, {"m": ""})

    async def story() -> tuple[Report, Report]:
        held, denied = Held(monkeypatch), Progress()
        first = asyncio.ensure_future(world.carry_out("m", denied))
        await asyncio.sleep(0)
        denied.allowed = False
        work, settle = held.begun.pop()
        result = work() if found else None
        second = asyncio.ensure_future(world.carry_out("m", Progress()))
        await asyncio.sleep(0)
        settle(result if found else work(), None)
        while held.begun:
            held.do()
        return await first, await second

    first, second = asyncio.run(story())
    assert (second.outcome, second.status) == (Outcome.LOADED, 0)
    assert first.outcome is (Outcome.DENIED if found else Outcome.LOADED)
    assert world.kernel.calls == [("m", "")]


def test_a_defect_in_a_step_ends_its_request_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, {"d": "", "m": "", "many": "d m"})

    class Broken(Progress):
        def is_live(self) -> None:
            raise ZeroDivisionError

    async def story() -> Report:
        broken = asyncio.ensure_future(world.carry_out("many", Broken()))
        other = asyncio.ensure_future(world.carry_out("many", Progress()))
        with pytest.raises(ZeroDivisionError):
            await broken
        return await other

    assert asyncio.run(story()).outcome is Outcome.LOADED
    assert sorted(module for module, _parameters in world.kernel.calls) == ["d", "m", "many"]


def test_what_a_module_asks_for_is_not_asked_by_the_one_before_it(tmp_path: Path) -> None:
    """One thread loads two modules; the second asks before the event loop knows that the first is done."""
    world = World(tmp_path, {"mine": "", "theirs": "", "x": ""})
    world.loads._pace = Pace("kmod_loader", 1)
    policy = PolicyInForce()
    policy.replace(Policy((taken('[[rule]]\naction = "deny"\nmodule = "x"\nuid = 1000\n'),)))

    async def nobody(*_arguments: object) -> list[Any]:
        return []

    async def story() -> Ticket:
        broker = Broker(world.loader, Settings(), Recorder(), nobody, policy=policy)
        go_on, asks, answered = threading.Event(), threading.Event(), threading.Event()
        tids: list[int] = []

        def theirs() -> None:
            tids.append(threading.get_native_id())
            asks.set()
            answered.wait(PATIENCE)

        world.kernel.does = {"mine": lambda: go_on.wait(PATIENCE) and None, "theirs": theirs}
        over = asyncio.Event()
        for name, uid in ((b"mine", 0), (b"theirs", 1000)):
            asker = Asker(Requester(pid=uid + 1, uid=uid))
            broker.submit(name, Source.KERNEL, asker=asker, on_result=lambda _result: over.set())
        while not world.kernel.calls:
            await asyncio.sleep(0)
        # From here on the event loop hears of nothing, as in a long turn.
        go_on.set()
        assert asks.wait(PATIENCE)
        nested = broker.submit(b"x", Source.KERNEL, asker=Asker(Requester(pid=3, uid=0), tid=tids[0]))
        answered.set()
        await over.wait()
        await broker.stop(PATIENCE)
        return nested

    nested = asyncio.run(story())
    assert nested.result is not None
    assert nested.result.outcome is Outcome.DENIED
