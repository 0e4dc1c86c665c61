"""What is installed now: read again whenever it has changed, and only then."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kmodd.broker.installed import PATIENCE, Installed
from kmodd.errors import KmoddError
from kmodd.kernel.uses import Kinds
from kmodd.tree import keep, snapshot
from kmodd.tree.snapshot import Snapshot
from kmodd.tree.watch import Watch


class Place:
    """A tree of its own, and one directory of modprobe.d."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.config = root / "modprobe.d"
        self.config.mkdir(mode=0o755)
        self.tree = root / "lib/modules/r"
        (self.tree / "kernel").mkdir(parents=True)
        (self.tree / "modules.dep").write_text("kernel/m.ko:\n")
        (self.tree / "modules.alias").write_text("alias fs-m m\n")
        monkeypatch.setattr(snapshot, "DIRECTORIES", (str(self.config),))
        monkeypatch.setattr(keep, "usable", lambda _release, _root="": str(self.tree))
        self.reads = 0

        def take(directory: str, *, only_trusted: bool) -> Snapshot:
            self.reads += 1
            return self.take(directory, only_trusted=only_trusted)

        self.take: Callable[..., Snapshot] = snapshot.take
        monkeypatch.setattr(snapshot, "take", take)

    def write(self, name: str, text: str) -> Path:
        path = self.config / name
        path.write_text(text)
        path.chmod(0o644)
        return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    tmp_path.chmod(0o755)
    return Place(tmp_path, monkeypatch)


class Held:
    """The next reads wait until they may end, as those of a file system that does not answer."""

    def __init__(self, place: Place) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        take = place.take

        def slow(directory: str, *, only_trusted: bool) -> Snapshot:
            found = take(directory, only_trusted=only_trusted)
            self.begun.set()
            self.go.wait()
            return found

        place.take = slow

    async def let_end(self, installed: Installed) -> None:
        """Have the read end, and wait until it has."""
        self.go.set()
        reading = installed._reading
        assert reading is not None
        await reading


def held_back(found: Snapshot) -> set[str]:
    return set(found.config.blacklist)


def run(story: Callable[[Installed], Any]) -> Any:
    return asyncio.run(story(Installed(lambda: "r", lambda: None)))


def test_it_is_read_again_only_after_a_change(place: Place) -> None:
    async def story(installed: Installed) -> None:
        for _ in range(3):
            assert held_back(await installed.current()) == set()
        assert place.reads == 1
        place.write("a.conf", "blacklist m\n")
        for _ in range(3):
            assert held_back(await installed.current()) == {"m"}
        assert place.reads == 2

    run(story)


def test_what_need_not_be_read_is_there_at_once(place: Place) -> None:
    """And a change that was noticed by a look which could not wait is not forgotten."""

    async def story(installed: Installed) -> None:
        assert installed.at_once() is None
        first = await installed.current()
        assert installed.at_once() is first
        place.write("a.conf", "blacklist m\n")
        assert installed.at_once() is None
        assert installed.at_once() is None
        changed = await installed.current()
        assert held_back(changed) == {"m"}
        assert installed.at_once() is changed

    run(story)


def test_a_change_of_owner_or_mode_is_a_change(place: Place) -> None:
    async def story(installed: Installed) -> None:
        path = place.write("a.conf", "blacklist m\n")
        path.chmod(0o666)
        assert held_back(await installed.current()) == set()
        path.chmod(0o644)
        assert held_back(await installed.current()) == {"m"}
        path.chmod(0o666)
        assert held_back(await installed.current()) == set()

    run(story)


def test_what_a_link_leads_to_may_change_too(place: Place, tmp_path: Path) -> None:
    async def story(installed: Installed) -> None:
        folder = tmp_path / "elsewhere"
        folder.mkdir(mode=0o755)
        (folder / "x.conf").write_text("options m a=1\n")
        (place.config / "x.conf").symlink_to(folder / "x.conf")
        assert held_back(await installed.current()) == set()
        (folder / "x.conf").write_text("blacklist m\n")
        assert held_back(await installed.current()) == {"m"}
        folder.chmod(0o777)
        (folder / "x.conf").write_text("blacklist m\n")
        assert held_back(await installed.current()) == set(), "others may put another file there"

    run(story)


def test_a_request_does_not_share_a_read_that_may_have_missed_a_change(place: Place) -> None:
    async def story(installed: Installed) -> None:
        await installed.current()
        held = Held(place)
        place.write("a.conf", "options m a=1\n")
        first = asyncio.ensure_future(installed.current())
        await asyncio.to_thread(held.begun.wait)
        place.write("b.conf", "blacklist m\n")
        second = asyncio.ensure_future(installed.current())
        await asyncio.sleep(0)
        held.go.set()
        assert held_back(await second) == {"m"}
        await first

    run(story)


def test_without_modules_one_look_is_enough(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    looks = []

    async def story(installed: Installed) -> None:
        place.tree.rename(place.tree.with_name("gone"))
        take = place.take

        def look(directory: str, *, only_trusted: bool) -> Snapshot:
            looks.append(directory)
            return take(directory, only_trusted=only_trusted)

        place.take = look
        for _ in range(50):
            with pytest.raises(KmoddError, match="of the running kernel r are not installed"):
                await installed.current()
        assert len(looks) == 1
        place.tree.with_name("gone").rename(place.tree)
        assert "m" in set((await installed.current()).index.modules())

    run(story)
    assert len([record for record in caplog.records if "not installed" in record.message]) == 1


@pytest.mark.parametrize("error", [RecursionError("deep"), OSError(5, "EIO"), MemoryError()])
def test_a_read_that_fails_leaks_nothing(place: Place, error: BaseException) -> None:
    async def story(installed: Installed) -> None:
        def fail(directory: str, *, only_trusted: bool) -> Snapshot:
            raise error

        place.take = fail
        counts = []
        for _ in range(4):
            with pytest.raises((KmoddError, type(error))):
                await installed.current()
            counts.append(len(os.listdir("/proc/self/fd")))
        assert counts[1:] == counts[:-1]

    run(story)


def test_sighup_looks_again_whatever_the_watch_says(place: Place) -> None:
    async def story(installed: Installed) -> None:
        await installed.current()
        place.write("a.conf", "blacklist m\n")
        assert installed._watch is not None
        installed._watch.maybe_changed()  # noticed, and lost
        assert held_back(await installed.current()) == set()
        installed.forget()
        assert held_back(await installed.current()) == {"m"}

    run(story)


def test_what_aliases_say_of_modules(place: Place) -> None:
    (place.tree / "modules.dep").write_text("kernel/m.ko:\nkernel/bonding.ko:\nkernel/e1000.ko:\n")
    aliases = "alias fs-m m\nalias rtnl-link-bond bonding\nalias pci:v00008086d0000100Esv*sd*bc*sc*i* e1000\n"
    (place.tree / "modules.alias").write_text(aliases)
    (place.tree / "modules.devname").write_text("m mapper/m c10:236\nm m2 b7:0\n")

    async def story(installed: Installed) -> None:
        assert installed.kinds() is None
        await installed.current()
        assert installed.kinds() == Kinds(
            frozenset({"bonding"}), frozenset({"e1000"}), {"m": (("mapper/m", "c10:236"), ("m2", "b7:0"))}
        )

    run(story)


def test_files_that_cannot_be_read_hold_nobody_up_for_ever(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kmodd.broker.installed.PATIENCE", 0.0)

    async def story(installed: Installed) -> None:
        first = await installed.current()
        held = Held(place)
        place.write("a.conf", "blacklist m\n")
        assert await installed.current() is first
        await asyncio.to_thread(held.begun.wait)
        # From now on nobody waits, and there is still one read alone.
        assert installed.at_once() is first
        assert await installed.current() is first
        assert installed.problem == (
            "the modules of r cannot be read within 0 seconds; what was read before is kept"
        )
        await held.let_end(installed)
        await asyncio.sleep(0)
        assert installed.problem is None
        assert held_back(await installed.current()) == {"m"}
        assert place.reads == 2

    run(story)
    assert [record.message for record in caplog.records] == [
        "the modules of r cannot be read within 0 seconds; what was read before is kept",
        "the modules of r have been read in the end",
    ]


def test_the_patience_is_that_with_a_read(place: Place) -> None:
    async def story(installed: Installed) -> None:
        first = await installed.current()
        held = Held(place)
        place.write("a.conf", "blacklist m\n")
        assert installed.at_once() is None
        await asyncio.to_thread(held.begun.wait)
        installed._begun -= PATIENCE  # as if it had been going on for that long
        assert await installed.current() is first
        await held.let_end(installed)

    run(story)


def test_a_read_that_fails_in_the_end_has_not_been_read(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kmodd.broker.installed.PATIENCE", 0.0)

    async def story(installed: Installed) -> None:
        first = await installed.current()
        held = Held(place)
        take = place.take

        def fail(directory: str, *, only_trusted: bool) -> Snapshot:
            take(directory, only_trusted=only_trusted)
            raise KmoddError("modules.dep is cut off")

        place.take = fail
        place.write("a.conf", "blacklist m\n")
        assert await installed.current() is first
        await held.let_end(installed)
        await asyncio.sleep(0)
        assert installed.problem == "modules.dep is cut off; what was read before is kept"

    run(story)
    assert "in the end" not in caplog.text


def test_where_nothing_is_known_a_request_waits_for_the_files(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kmodd.broker.installed.PATIENCE", 0.0)

    async def story(installed: Installed) -> None:
        held = Held(place)
        waiting = asyncio.ensure_future(installed.current())
        await asyncio.to_thread(held.begun.wait)
        assert not waiting.done()
        held.go.set()
        assert "m" in set((await waiting).index.modules())

    run(story)


def test_sighup_during_a_read_is_not_lost(place: Place) -> None:
    async def story(installed: Installed) -> None:
        held = Held(place)
        waiting = asyncio.ensure_future(installed.current())
        await asyncio.to_thread(held.begun.wait)
        place.write("a.conf", "blacklist m\n")
        installed.forget()
        held.go.set()
        await waiting
        assert installed._watch is not None
        installed._watch.maybe_changed()
        assert held_back(await installed.current()) == {"m"}

    run(story)


def test_a_watch_is_ended_in_a_thread(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []
    close = Watch.close

    def noted(watch: Watch) -> None:
        ended.append(threading.get_ident())
        close(watch)

    monkeypatch.setattr(Watch, "close", noted)

    async def story(installed: Installed) -> None:
        await installed.current()
        place.write("a.conf", "blacklist m\n")
        await installed.current()
        installed.forget()
        await installed.current()

    run(story)
    assert len(ended) == 2
    assert threading.get_ident() not in ended


def test_what_is_whole_again_is_no_problem_any_more(place: Place) -> None:
    async def story(installed: Installed) -> None:
        first = await installed.current()
        take = place.take

        def fail(directory: str, *, only_trusted: bool) -> Snapshot:
            raise KmoddError("modules.dep is cut off")

        place.take = fail
        path = place.write("a.conf", "blacklist m\n")
        assert await installed.current() is first
        assert installed.problem == "modules.dep is cut off; what was read before is kept"
        place.take = take
        path.unlink()
        assert held_back(await installed.current()) == set()
        assert installed.problem is None

    run(story)
