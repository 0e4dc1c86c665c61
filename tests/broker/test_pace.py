"""Work that is begun over a few moments: in order, each once, and none waits for another's end."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable
from typing import Any

import pytest

from kmodd.broker import pace as pace_room
from kmodd.broker.pace import BUSY_AT_MOST, BUSY_WHILE, WHILE, Pace
from kmodd.broker.threads import Settle
from support.virtual import run


class Threads:
    """Threads that are begun, and do their work when told to. `full`: no more can be begun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[tuple[Callable[[], Any], Settle[Any]]] = []
        self.full = False
        monkeypatch.setattr(pace_room.threads, "start_thread", self.start)

    def start(self, name: str, work: Callable[[], Any], settle: Settle[Any]) -> None:
        assert name == "kmod_loader"
        if self.full:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable", "thread")
        self.begun.append((work, settle))

    def __len__(self) -> int:
        return len(self.begun)

    def do(self, number: int = 0) -> None:
        """Let a thread do all that it finds to do, and end."""
        work, settle = self.begun.pop(number)
        settle(work(), None)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    return Threads(monkeypatch)


class Work:
    """Pieces of work by number, what was done, and what was told."""

    def __init__(self, at_once: int, used: Callable[[], float] = lambda: 0.0) -> None:
        self.done: list[int] = []
        self.told: list[tuple[int | None, BaseException | None]] = []
        loop = asyncio.get_running_loop()
        self.pace: Pace[int] = Pace("kmod_loader", at_once, used=used, clock=loop.time)

    def begin(self, *numbers: int) -> None:
        for number in numbers:
            self.pace.begin(lambda number=number: self._do(number), self._tell)  # type: ignore[misc]

    def _do(self, number: int) -> int:
        self.done.append(number)
        if number < 0:
            raise ValueError(number)
        return number

    def _tell(self, result: int | None, error: BaseException | None) -> None:
        self.told.append((result, error))


def test_a_few_at_once_and_each_takes_on_the_next(threads: Threads) -> None:
    async def story() -> None:
        work = Work(at_once=2)
        work.begin(0, 1, 2, 3, 4)
        assert (len(threads), work.done) == (2, [])
        threads.do()
        assert work.done == [0, 2, 3, 4], "in order, by the thread that had nothing to do any more"
        await asyncio.sleep(0)
        threads.do()
        assert [result for result, _error in work.told] == [4, 0, 2, 3, 1]
        await asyncio.sleep(10 * WHILE)
        assert len(threads) == 0
        work.begin(5, 6, 7)
        assert len(threads) == 2

    run(story())


def test_nothing_waits_for_what_does_not_end(threads: Threads) -> None:
    async def story() -> None:
        work = Work(at_once=2)
        work.begin(*range(1000))
        for expected in (2, 4, 8, 16, 32):
            assert len(threads) == expected
            await asyncio.sleep(WHILE * 1.01)
        await asyncio.sleep(0.1)
        assert len(threads) == 1000
        while len(threads):
            threads.do()
        assert sorted(work.done) == list(range(1000))
        assert sorted(result for result, _error in work.told if result is not None) == list(range(1000))

    run(story())


def test_while_those_keep_the_processors_busy_others_begin_all_the_same(threads: Threads) -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        work = Work(at_once=2, used=loop.time)  # one processor, all the time
        work.begin(*range(100))
        await asyncio.sleep(WHILE * 1.01)
        for expected in range(3, 50):
            assert len(threads) == expected
            await asyncio.sleep(BUSY_WHILE)

    run(story())


def test_none_waits_for_long_however_busy_the_processors_are(threads: Threads) -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        work = Work(at_once=2, used=loop.time)
        work.begin(*range(1000))
        await asyncio.sleep(BUSY_AT_MOST / 2)
        assert len(threads) < 50
        await asyncio.sleep(BUSY_AT_MOST / 2 + 0.3)
        assert len(threads) == 1000
        while len(threads):
            threads.do()
        # Anew, for others.
        work.begin(*range(1000))
        await asyncio.sleep(BUSY_AT_MOST / 2)
        assert len(threads) < 50

    run(story())


def test_what_is_raised_is_told_and_hinders_nobody(threads: Threads) -> None:
    async def story() -> None:
        work = Work(at_once=1)
        work.begin(0, -1, 2)
        threads.do()
        await asyncio.sleep(0)
        assert work.done == [0, -1, 2]
        told = dict(work.told)
        assert told.pop(0) is told.pop(2) is None
        assert isinstance(told.pop(None), ValueError)

    run(story())


def test_a_thread_that_cannot_be_begun_is_told_each_time(threads: Threads) -> None:
    async def story() -> None:
        work = Work(at_once=2)
        work.begin(*range(2000))
        threads.full = True
        threads.do()  # does all that wait
        work.begin(*range(2000, 4000))
        await asyncio.sleep(1)
        assert sorted(work.done) == [0, *range(2, 2000)]
        errors = [error for _result, error in work.told if error is not None]
        assert len(errors) == 2000
        assert {error.errno for error in errors if isinstance(error, OSError)} == {errno.EAGAIN}
        threads.full = False
        work.begin(4000)
        threads.do(1)
        assert work.done[-1] == 4000

    run(story())


def test_a_thread_that_ends_before_it_does_anything(threads: Threads) -> None:
    async def story() -> None:
        work = Work(at_once=1)
        work.begin(0, 1)
        _work, settle = threads.begun.pop()
        settle(None, MemoryError())
        assert len(threads) == 1, "the next one's"
        [(result, error)] = work.told
        assert (result, type(error)) == (None, MemoryError)
        threads.do()
        assert work.told[1:] == [(1, None)]

    run(story())


def test_real_threads_do_each_piece_once() -> None:
    async def story() -> None:
        pace: Pace[int] = Pace("kmod_loader", 3)
        idents: set[int] = set()
        told: list[int | None] = []
        over = asyncio.Event()

        def settle(result: int | None, error: BaseException | None) -> None:
            assert error is None
            told.append(result)
            if len(told) == 500:
                over.set()

        def work(number: int) -> int:
            idents.add(threading.get_ident())
            return number

        for number in range(500):
            pace.begin(lambda number=number: work(number), settle)  # type: ignore[misc]
        await over.wait()
        assert sorted(number for number in told if number is not None) == list(range(500))

    asyncio.run(asyncio.wait_for(story(), 60))
