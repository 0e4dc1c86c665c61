"""Starts that are spread over a few moments: in order, each once, and none waits for another's end."""

from __future__ import annotations

import asyncio

from kmodd.broker.pace import WHILE, Pace
from support.virtual import run


def test_a_few_at_once_then_one_at_each_end() -> None:
    async def story() -> None:
        begun: list[int] = []
        pace = Pace(at_once=2)
        for number in range(5):
            pace.begin(lambda number=number: begun.append(number))  # type: ignore[misc]
        assert begun == [0, 1]
        pace.ended()
        assert begun == [0, 1, 2]
        pace.ended()
        pace.ended()
        assert begun == [0, 1, 2, 3, 4]
        await asyncio.sleep(10 * WHILE)
        assert begun == [0, 1, 2, 3, 4]

    run(story())


def test_nothing_waits_for_what_does_not_end() -> None:
    async def story() -> None:
        begun: list[int] = []
        pace = Pace(at_once=2)
        for number in range(1000):
            pace.begin(lambda number=number: begun.append(number))  # type: ignore[misc]
        for expected in (2, 4, 8, 16, 32):
            assert len(begun) == expected
            await asyncio.sleep(WHILE * 1.01)
        await asyncio.sleep(0.1)
        assert begun == list(range(1000))
        # Once all of them have ended it is as it was.
        for _ in range(1000):
            pace.ended()
        for number in range(1000, 1003):
            pace.begin(lambda number=number: begun.append(number))  # type: ignore[misc]
        assert begun[1000:] == [1000, 1001]

    run(story())
