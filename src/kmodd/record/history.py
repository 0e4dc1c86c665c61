"""What happened, for whoever asks: the journal's events, then those that are not in it yet."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from kmodd.model import Event
from kmodd.record.database import Reader
from kmodd.record.select import Selection, newest

log = logging.getLogger(__name__)


class History:
    """The events of one moment: those up to a place in the file, and those that waited then."""

    def __init__(
        self,
        path: str,
        until: int,
        waiting: Sequence[Event],
        selection: Selection,
        count: int | None,
        in_thread: Callable[[str, Callable[[], None]], Awaitable[None]],
        problem: str | None = None,
    ) -> None:
        """`problem`: why nothing is known of the file, in a sentence; None where that is not so."""
        self._path = path
        self._until = until
        self._selection = selection
        self._in_thread = in_thread
        self._waiting = newest(waiting, selection, count)
        self._count = None if count is None else count - len(self._waiting)
        self.problem = None if self._count == 0 else problem
        """Once all were yielded: why those of the file are not among them, or not all; None for all there."""

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield each as a JSON object, oldest first. Where the file cannot be read that is `problem`."""
        if self._until and self._count != 0:
            async for data in self._written():
                yield data
        for event in self._waiting:
            yield event.as_json()

    async def whole(self) -> list[dict[str, Any]]:
        """Return them all; where the file cannot be read none of it: the newest ones would be missing."""
        events = [data async for data in self.events()]
        return events if self.problem is None else [event.as_json() for event in self._waiting]

    async def _written(self) -> AsyncIterator[dict[str, Any]]:
        reader = Reader(self._path, self._until, self._selection, self._count)
        page: list[dict[str, Any]] = []

        def turn() -> None:
            page[:] = reader.page()

        try:
            while True:
                await self._in_thread("kmod_history", turn)
                if not page:
                    return
                for data in page:
                    yield data
        except (sqlite3.Error, OSError, ValueError) as err:
            self.problem = f"cannot read {self._path}: {words(err)}"
            log.error("%s", self.problem)


def words(err: BaseException) -> str:
    """Return what is wrong with a file, without its name."""
    return (isinstance(err, OSError) and err.strerror) or str(err)
