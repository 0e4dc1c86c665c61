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
    ) -> None:
        self._path = path
        self._until = until
        self._selection = selection
        self._in_thread = in_thread
        self._waiting = newest(waiting, selection, count)
        self._count = None if count is None else count - len(self._waiting)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield each as a JSON object, oldest first. Where the file cannot be read they begin later."""
        if self._until and self._count != 0:
            async for data in self._written():
                yield data
        for event in self._waiting:
            yield event.as_json()

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
            log.error("cannot read %s: %s", self._path, err)
