"""The journal: written behind the daemon's back, read again, and never in the way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kmodd.model import Event
from kmodd.record import database as database_room
from kmodd.record import journal as journal_room
from kmodd.record.database import Database, NewerJournal, Reader
from kmodd.record.history import History
from kmodd.record.journal import Journal, seconds
from kmodd.record.select import Selection
from support import virtual

START = datetime(2026, 11, 25, 8, 0, 0, 123456, tzinfo=UTC)
DAY = 86400.0


async def at_once(_name: str, work: Callable[[], None]) -> None:
    """Stands for a thread."""
    work()


def event(number: int, **fields: Any) -> Event:
    return Event(number, START + timedelta(seconds=number), "request", {"name": f"name-{number}", **fields})


def journal(path: Path, keep: float = DAY * 10_000) -> Journal:
    return Journal(str(path), lambda: keep, at_once)


async def all_of(made: Journal, selection: Selection | None = None, count: int | None = None) -> list[int]:
    return [data["id"] async for data in made.history(selection or Selection(), count).events()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state/journal.db"


async def filled(path: Path, count: int, **fields: Any) -> Journal:
    made = journal(path)
    assert await made.open() == 0
    for number in range(1, count + 1):
        made.note(event(number, **fields))
    assert await made.flush(5)
    return made


def test_what_is_noted_is_there_after_a_restart(path: Path) -> None:
    async def story() -> None:
        first = await filled(path, 3)
        await first.close(5)
        second = journal(path)
        assert await second.open() == 3
        assert await all_of(second) == [1, 2, 3]
        second.note(event(4))
        # Not written yet, and shown all the same, once.
        assert await all_of(second) == [1, 2, 3, 4]
        await second.flush(5)
        assert await all_of(second) == [1, 2, 3, 4]
        await second.close(5)

    asyncio.run(story())


def test_an_event_comes_back_as_it_was(path: Path) -> None:
    fields = {
        "outcome": "loaded",
        "modules": ["a"],
        "requester": {"uid": 1000},
        "error": 'x\\x0a"\udcff\u2028',
        "n": None,
    }

    async def story() -> list[dict[str, Any]]:
        made = await filled(path, 1, **fields)
        return [data async for data in made.history(Selection(), None).events()]

    [found] = asyncio.run(story())
    assert found == event(1, **fields).as_json()


def test_events_wait_a_moment_and_are_written_together(path: Path) -> None:
    async def story() -> list[str]:
        threads: list[str] = []

        async def in_thread(name: str, work: Callable[[], None]) -> None:
            threads.append(name)
            work()

        made = Journal(str(path), lambda: DAY, in_thread)
        for number in range(1, 100):
            made.note(event(number))
        assert threads == []
        await made.flush(5)
        return threads

    assert asyncio.run(story()) == ["kmod_journal"]


def test_what_comes_while_events_are_written_waits_a_moment_too(path: Path) -> None:
    """Else the writer never rests while requests come, each batch a few events, and has them pay for it."""

    async def story() -> None:
        begun: list[str] = []
        go_on = asyncio.Event()

        async def in_thread(name: str, work: Callable[[], None]) -> None:
            begun.append(name)
            await go_on.wait()
            work()

        made = Journal(str(path), lambda: DAY * 10_000, in_thread)
        made.note(event(1))
        flushing = asyncio.get_running_loop().create_task(made.flush(5))
        await turns()
        assert len(begun) == 1
        flushing.cancel()
        made.note(event(2))
        go_on.set()
        await turns()
        assert (len(begun), made.waiting) == (1, 1)
        assert await made.flush(5)
        assert (len(begun), made.waiting) == (2, 0)
        assert await all_of(made) == [1, 2]

    async def turns() -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    asyncio.run(story())


@pytest.mark.parametrize("writing", [0.0, 0.02, 0.1])
def test_what_a_daemon_that_is_killed_loses_is_younger_than_a_second(path: Path, writing: float) -> None:
    """Whatever comes when: all at once, and more than one write takes, or one by one for a while."""

    async def story() -> list[float]:
        loop = asyncio.get_running_loop()
        noted: dict[int, float] = {}
        written: dict[int, float] = {}

        async def in_thread(name: str, work: Callable[[], None]) -> None:
            await asyncio.sleep(writing)
            work()
            # What is in the file from now on survives.
            known = len(written)
            written.update(dict.fromkeys(range(known + 1, in_file_count() + 1), loop.time()))

        def in_file_count() -> int:
            with contextlib.closing(sqlite3.connect(path)) as connection:
                (count,) = connection.execute("SELECT count(*) FROM events").fetchone()
            return int(count)

        made = Journal(str(path), lambda: DAY * 10_000, in_thread)

        def note(count: int) -> None:
            for _ in range(count):
                number = len(noted) + 1
                noted[number] = loop.time()
                made.note(event(number))

        note(2 * journal_room._BATCH + 500)
        for _ in range(300):
            await asyncio.sleep(0.007)
            note(1)
        while len(written) < len(noted):
            await asyncio.sleep(0.05)
        return [written[number] - noted[number] for number in noted]

    ages = virtual.run(story())
    # Each waits for others, behind a write in progress, and for its own.
    assert sorted(ages)[len(ages) // 4] >= journal_room.DELAY, "many are one write"
    assert max(ages) < 1.0
    assert max(ages[-150:]) <= journal_room.DELAY + 2 * writing + 1e-6, "those that come one by one"


def test_only_root_may_read_it(path: Path) -> None:
    asyncio.run(filled(path, 1))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("selection", "count", "wanted"),
    [
        (Selection(), 3, [1198, 1199, 1200]),
        (Selection(), 0, []),
        (Selection(), 5000, list(range(1, 1201))),
        (Selection(since=START + timedelta(seconds=1199)), None, [1199, 1200]),
        (Selection(name="name-7?"), 2, [78, 79]),
        (Selection(uid=1000), 1, [1200]),
        (Selection(uid=1001), None, []),
        (Selection(uid=1 << 80), None, []),
        (Selection(uid=-5), None, []),
        (Selection(since=datetime.min.replace(tzinfo=UTC)), 1, [1200]),
        (Selection(since=datetime.max.replace(tzinfo=UTC)), None, []),
        (Selection(outcome="denied"), None, []),
        (Selection(outcome="\udc80"), None, []),
        (Selection(event="load"), None, []),
        (Selection(event="request"), 1, [1200]),
    ],
)
def test_what_somebody_wants_of_it(
    path: Path, selection: Selection, count: int | None, wanted: list[int]
) -> None:
    async def story() -> list[int]:
        made = await filled(path, 1195, requester={"uid": 1000})
        for number in range(1196, 1201):
            made.note(event(number, requester={"uid": 1000}))
        return await all_of(made, selection, count)

    assert asyncio.run(story()) == wanted


@pytest.mark.parametrize("written", [True, False])
def test_denied_requests_are_looked_for_apart(path: Path, written: bool) -> None:
    def denied(number: int, kind: str = "request") -> Event:
        return Event(number, START, kind, {"outcome": "denied", "modules": ["m"], "denied_modules": ["m"]})

    async def story() -> tuple[list[int], list[int]]:
        made = await filled(path, 3)
        for number in range(4, 10):
            made.note(denied(number))
        made.note(denied(10, "load"))
        if written:
            assert await made.flush(5)
        loads = Selection(module="m", denied=False)
        denials = Selection(module="m", event="request", outcome="denied")
        return await all_of(made, loads, 2), await all_of(made, denials, 3)

    assert asyncio.run(story()) == ([10], [7, 8, 9])


def test_what_is_written_while_somebody_reads_is_not_shown_twice(path: Path) -> None:
    async def story() -> list[int]:
        made = await filled(path, 600)
        made.note(event(601))
        history = made.history(Selection(), None)
        found = []
        async for data in history.events():
            if not found:
                made.note(event(602))
                await made.flush(5)
            found.append(data["id"])
        return found

    assert asyncio.run(story()) == list(range(1, 602))


def test_old_ones_go(path: Path) -> None:
    async def story() -> list[int]:
        made = journal(path, keep=60)
        now = datetime.now(UTC)
        for number, age in enumerate((3600, 61, 59, 0), 1):
            made.note(Event(number, now - timedelta(seconds=age), "request"))
        await made.flush(5)
        return await all_of(made)

    assert asyncio.run(story()) == [3, 4]


def test_there_is_an_end_to_how_many(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmodd.record.database.EVENTS_MAX", 10)
    database = Database(str(path))
    database.append([event(number) for number in range(1, 26)], keep=DAY * 10_000)
    assert [data["id"] for data in Reader(str(path), 25, Selection(), None).page()] == list(range(16, 26))


def told(number: int, kind: str, outcome: str, *modules: str) -> Event:
    return Event(number, START, kind, {"outcome": outcome, "modules": list(modules)})


def test_at_the_bound_those_go_first_that_anybody_can_cause_without_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kmodd.record.database.EVENTS_MAX", 20)
    evidence = [
        told(1, "load", "loaded", "m"),
        told(2, "request", "loaded", "m"),
        told(3, "load", "failed", "needed"),
        told(4, "request", "timed-out"),
        Event(5, START, "unload", {"module": "m"}),
    ]
    denied = [told(number, "request", "denied") for number in range(6, 11)]
    absent = [told(11 + 2 * n + i, ("load", "request")[i], "not-found") for n in range(20) for i in range(2)]
    again = [told(number, "request", "already-live") for number in range(51, 81)]
    database = Database(str(path))
    database.append([*evidence, *denied, *absent], keep=DAY * 10_000)
    assert in_file(path) == [*range(1, 11), *range(41, 51)]
    # Where there are no more of them what else brought nothing in goes, and then only what did.
    database.append(again, keep=DAY * 10_000)
    assert in_file(path) == [*range(1, 6), *range(66, 81)]
    loads = [told(number, "load", "loaded", "m") for number in range(81, 98)]
    database.append([*loads, told(98, "request", "not-found")], keep=DAY * 10_000)
    assert in_file(path) == [4, 5, *range(81, 99)]
    assert database.last() == (98, 98), "the newest stay, and so do the numbers"
    database.close()


def test_at_the_bound_what_goes_is_not_looked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is there: what goes is found by an index, but for the one time that this is made."""

    def cost(folder: str, count: int) -> int:
        monkeypatch.setattr("kmodd.record.database.EVENTS_MAX", count)
        database = Database(str(path.parent / folder / "journal.db"))
        database.append([told(number, "load", "loaded", "m") for number in range(1, count)], keep=None)
        database.append(
            [told(count + n, "request", "not-found") for n in range(3 * count)], keep=DAY * 10_000
        )
        one = [told(4 * count, "request", "not-found")]
        found = steps(database, lambda: database.append(one, keep=DAY * 10_000))
        database.close()
        return found

    assert cost("large", 10_000) <= cost("small", 100) + 5


@pytest.mark.parametrize(
    ("text", "wanted"), [("1s", 1.0), ("90m", 5400.0), ("2h", 7200.0), ("30d", 30 * DAY), ("2w", 14 * DAY)]
)
def test_ages(text: str, wanted: float) -> None:
    assert seconds(text) == wanted


def steps(database: Database, work: Callable[[], object]) -> int:
    """How much SQLite has to do for something, in hundreds of its virtual machine's instructions."""
    counted = [0]

    def count() -> int:
        counted[0] += 1
        return 0

    assert database._connection is not None
    database._connection.set_progress_handler(count, 100)
    work()
    database._connection.set_progress_handler(None, 0)
    return counted[0]


def test_a_write_costs_the_same_however_much_is_there(path: Path) -> None:
    database = Database(str(path))
    database.append([event(1)], keep=None)
    one = [event(2)]
    first = steps(database, lambda: database.append(one, keep=None))
    database.append([event(number) for number in range(3, 20_000)], keep=None)
    assert steps(database, lambda: database.append(one, keep=None)) <= first + 1
    database.close()


def test_the_highest_number_is_not_that_of_the_last_event(path: Path) -> None:
    database = Database(str(path))
    # An event has its place by when it ended, its number by when it began.
    database.append([event(1), event(9), event(3), event(2)], keep=None)
    assert database.last() == (9, 4)
    database.close()


# The setting `journal`


class Switch:
    """Stands for the setting, and says so when it changes, as the daemon does."""

    def __init__(self, path: Path, on: bool) -> None:
        self.on = on
        self.journal = Journal(str(path), lambda: DAY * 10_000, at_once, lambda: self.on)

    def turn(self, number: int, on: bool) -> None:
        self.on = on
        self.journal.note(event(number, key="journal", new=on))


def in_file(path: Path) -> list[int]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM events ORDER BY seq")]


def test_while_it_is_off_events_are_in_memory_only(path: Path) -> None:
    async def story() -> None:
        switch = Switch(path, on=True)
        made = switch.journal
        made.note(event(1))
        switch.turn(2, on=False)
        made.note(event(3))
        assert await made.flush(5)
        # The last one in the file says why there is none behind it.
        assert in_file(path) == [1, 2]
        assert await all_of(made) == [1, 2, 3]
        assert made.on is False
        switch.turn(4, on=True)
        made.note(event(5))
        assert await made.flush(5)
        assert in_file(path) == await all_of(made) == [1, 2, 3, 4, 5]
        await made.close(5)

    asyncio.run(story())


def test_off_from_the_start_nothing_is_made_and_numbers_go_on(path: Path) -> None:
    async def story() -> None:
        nothing = Switch(path, on=False).journal
        assert await nothing.open() == 0
        nothing.note(event(1))
        await nothing.close(5)
        assert not path.parent.exists()
        await (await filled(path, 3)).close(5)
        before = in_file(path)
        made = Switch(path, on=False).journal
        assert await made.open() == 3
        made.note(event(4))
        assert await all_of(made) == [1, 2, 3, 4]
        await made.close(5)
        assert in_file(path) == before

    asyncio.run(story())


def test_a_place_that_is_read_only_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fill() -> None:
        await (await filled(path, 3)).close(5)

    asyncio.run(fill())
    # What a file system that is mounted read-only says to root.
    monkeypatch.setattr("kmodd.record.database.os.access", lambda *_arguments: False)

    async def story() -> list[int]:
        made = Switch(path, on=False).journal
        assert await made.open() == 3
        return await all_of(made)

    assert asyncio.run(story()) == [1, 2, 3]
    assert os.listdir(path.parent) == ["journal.db"]


def test_of_what_happens_while_it_is_off_the_newest_stay(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_room, "WAITING_MAX", 5)

    async def story() -> tuple[int, list[int]]:
        switch = Switch(path, on=False)
        for number in range(1, 9):
            switch.journal.note(event(number))
        return switch.journal.lost, await all_of(switch.journal)

    assert asyncio.run(story()) == (0, [4, 5, 6, 7, 8])


def test_a_disk_that_takes_nothing_is_left_alone_once_it_is_off(path: Path) -> None:
    path.parent.mkdir()
    (path.parent / "file").touch()

    async def story() -> None:
        switch = Switch(path.parent / "file/journal.db", on=True)
        made = switch.journal
        made.note(event(1))
        assert not await made.flush(5)
        assert made.problem is not None
        switch.turn(2, on=False)
        # The one try that was due; then no more.
        await made.flush(5)
        assert (made.problem, made.waiting) == (None, 0)
        assert await all_of(made) == [1, 2]
        await made.close(5)

    asyncio.run(story())


def test_a_damaged_file_is_left_alone_while_it_is_off(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("no database at all, for sure" * 100)
    before = path.read_bytes()

    async def story() -> None:
        made = Switch(path, on=False).journal
        assert await made.open() == 0
        assert made.problem is None

    asyncio.run(story())
    assert path.read_bytes() == before


# What goes wrong


@pytest.mark.parametrize("memory", [[], [event(4)]])
def test_a_file_that_cannot_be_read_is_told(path: Path, memory: list[Event]) -> None:
    def spoil() -> None:
        os.unlink(f"{path}-wal")
        path.write_text("no database at all, for sure" * 100)

    async def story() -> None:
        made = await filled(path, 3)
        for waiting in memory:
            made.note(waiting)
        spoil()
        for shown in (one_by_one, History.whole):
            history = made.history(Selection(), None)
            assert [data["id"] for data in await shown(history)] == [each.id for each in memory]
            assert history.problem == f"cannot read {path}: file is not a database"
        nothing = made.history(Selection(), 0)
        assert (await nothing.whole(), nothing.problem) == ([], None)

    async def one_by_one(history: History) -> list[dict[str, Any]]:
        return [data async for data in history.events()]

    asyncio.run(story())


def test_half_of_what_happened_is_no_story(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Reader.page

    def fails_behind_the_first(self: Reader) -> list[dict[str, Any]]:
        if self._after is not None:
            raise sqlite3.DatabaseError("database disk image is malformed")
        return page(self)

    async def story() -> None:
        made = await filled(path, 3)
        monkeypatch.setattr(Reader, "page", fails_behind_the_first)
        history = made.history(Selection(), None)
        assert await history.whole() == []
        assert history.problem == f"cannot read {path}: database disk image is malformed"

    asyncio.run(story())


def test_a_file_that_was_never_opened_is_not_an_empty_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        await (await filled(path, 3)).close(5)
        monkeypatch.setattr("kmodd.record.database._BUSY", 0.01)
        monkeypatch.setattr(journal_room, "_RETRIES", (0.0,))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN EXCLUSIVE")
        made = journal(path)
        assert await made.open() == 0
        made.note(event(4))
        history = made.history(Selection(), None)
        assert [data["id"] for data in await history.whole()] == [4]
        assert history.problem == f"cannot read {path}: database is locked"
        other.execute("ROLLBACK")
        other.close()
        assert await made.flush(5)
        history = made.history(Selection(), None)
        assert [data["id"] for data in await history.whole()] == [1, 2, 3, 4]
        assert history.problem is None

    asyncio.run(story())


def test_a_full_disk_costs_nothing_but_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_room, "_RETRIES", (0.0,))
    full = [True]
    append = Database.append

    def no_room(self: Database, *arguments: Any, **options: Any) -> int:
        if full[0]:
            raise sqlite3.OperationalError("database or disk is full")
        return append(self, *arguments, **options)

    monkeypatch.setattr(Database, "append", no_room)

    async def story() -> None:
        made = journal(path)
        made.note(event(1))
        assert not await made.flush(5)
        assert made.problem == f"cannot write {path}: database or disk is full"
        assert await all_of(made) == [1]
        full[0] = False
        assert await made.flush(5)
        assert made.problem is None
        assert await all_of(made) == [1]

    asyncio.run(story())


def test_what_does_not_fit_in_memory_is_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_room, "WAITING_MAX", 5)

    async def story() -> tuple[int, list[int]]:
        made = journal(path)
        for number in range(1, 9):
            made.note(event(number))
        await made.flush(5)
        return made.lost, await all_of(made)

    assert asyncio.run(story()) == (3, [1, 2, 3, 4, 5])


@pytest.mark.parametrize("damage", ["no database at all, for sure" * 100, "SQLite format 3\0" + "x" * 5000])
def test_a_file_that_is_no_database_is_put_aside(
    path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_room, "_RETRIES", (0.0,))
    path.parent.mkdir()
    path.write_text(damage)

    async def story() -> list[int]:
        made = journal(path)
        assert await made.open() == 0
        made.note(event(1))
        for _ in range(3):
            if await made.flush(5):
                break
        assert made.problem is None
        return await all_of(made)

    assert asyncio.run(story()) == [1]
    assert Path(f"{path}.damaged").read_text() == damage


def test_damage_in_the_middle_is_found_and_put_aside(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_room, "_RETRIES", (0.0,))

    def damage() -> None:
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (size - 4096))

    async def story() -> list[int]:
        made = await filled(path, 2000)
        await made.close(5)
        damage()
        again = journal(path)
        await again.open()
        again.note(event(1))
        for _ in range(3):
            if await again.flush(5):
                break
        return await all_of(again)

    assert asyncio.run(story()) == [1]
    assert Path(f"{path}.damaged").exists()


def test_a_locked_file_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmodd.record.database._BUSY", 0.01)
    monkeypatch.setattr(journal_room, "_RETRIES", (0.0,))

    async def story() -> None:
        made = await filled(path, 1)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        made.note(event(2))
        assert not await made.flush(5)
        assert "locked" in (made.problem or "")
        assert await all_of(made) == [1, 2]
        other.execute("ROLLBACK")
        other.close()
        assert await made.flush(5)
        assert await all_of(made) == [1, 2]

    asyncio.run(story())


def test_a_file_that_was_removed_or_hidden_is_begun_anew(path: Path) -> None:
    async def story() -> list[int]:
        made = await filled(path, 3)
        path.parent.rename(path.parent.with_name("hidden"))
        made.note(event(4))
        assert await made.flush(5)
        return await all_of(made)

    assert asyncio.run(story()) == [4]


def test_a_later_versions_file_is_left_alone(path: Path) -> None:
    database = Database(str(path))
    database.append([event(1)], keep=None)
    database.close()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(NewerJournal, match="later version of kmodd"):
        Database(str(path)).append([event(2)], keep=None)
    assert path.read_bytes() == before


NEXT_STEP = "ALTER TABLE events ADD COLUMN gid INTEGER; UPDATE events SET gid = -1;"


def version(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (found,) = connection.execute("PRAGMA user_version").fetchone()
    return int(found)


def content(path: Path) -> list[str]:
    """All that is in a file: its tables as they were made, and their rows."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def test_an_earlier_versions_file_is_brought_up_with_its_events(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        await (await filled(path, 3)).close(5)
        before = version(path)
        monkeypatch.setattr(database_room, "_MIGRATIONS", (*database_room._MIGRATIONS, NEXT_STEP))
        made = journal(path)
        assert await made.open() == 3
        assert (made.problem, version(path)) == (None, before + 1)
        made.note(event(4))
        assert await made.flush(5)
        assert await all_of(made) == [1, 2, 3, 4]
        await made.close(5)

    asyncio.run(story())
    with contextlib.closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT id, gid FROM events ORDER BY seq").fetchall()
    assert rows == [(1, -1), (2, -1), (3, -1), (4, None)], "each step is taken once"


def test_a_step_that_fails_midway_leaves_the_file_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_room, "_RETRIES", (0.0,))
    steps_before = database_room._MIGRATIONS

    async def story() -> None:
        await (await filled(path, 3)).close(5)
        before = version(path), content(path)
        fails = f"{NEXT_STEP} INSERT INTO nowhere VALUES (1);"
        monkeypatch.setattr(database_room, "_MIGRATIONS", (*steps_before, fails))
        made = journal(path)
        assert await made.open() == 0
        made.note(event(4))
        assert not await made.flush(5)
        # Nobody is in its way, and it says so: here, and to whoever asks what happened.
        assert made.problem == f"cannot write {path}: no such table: nowhere"
        history = made.history(Selection(), None)
        assert [data["id"] for data in await history.whole()] == [4]
        assert history.problem == f"cannot read {path}: no such table: nowhere"
        assert (version(path), content(path)) == before
        # A version that can do it loses nothing.
        monkeypatch.setattr(database_room, "_MIGRATIONS", (*steps_before, NEXT_STEP))
        assert await made.flush(5)
        assert made.problem is None
        assert await all_of(made) == [1, 2, 3, 4]
        await made.close(5)

    asyncio.run(story())


def test_a_place_where_nothing_can_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    async def story() -> str | None:
        made = journal(tmp_path / "file/journal.db")
        assert await made.open() == 0
        return made.problem

    assert asyncio.run(story()) == f"cannot write {tmp_path}/file/journal.db: File exists"


KILLED = """
import asyncio, json, os, signal, sys
from datetime import UTC, datetime
from kmodd.broker.threads import in_own_thread
from kmodd.model import Event
from kmodd.record.journal import Journal
async def main():
    made = Journal(sys.argv[1], lambda: 1e9, in_own_thread)
    number = await made.open()
    print("ready", flush=True)
    while True:
        for _ in range(50):
            number += 1
            made.note(Event(number, datetime.now(UTC), "request", {"name": "x" * 200}))
        await made.flush(5)
        print(number, flush=True)
asyncio.run(main())
"""


def test_sigkill_loses_nothing_that_was_written_and_damages_nothing(path: Path) -> None:
    written = 0
    for turn in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(turn + 1):
            written = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        written = int(rest[-1]) if rest else written
        process.stdout.close()
        process.wait()
        with sqlite3.connect(path) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            ids = [row[0] for row in connection.execute("SELECT id FROM events ORDER BY seq")]
        assert ids[:written] == list(range(1, written + 1))
        written = len(ids)
