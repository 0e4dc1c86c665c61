"""A recorder that keeps its events, for a test to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from kmodd.model import Event
from kmodd.record.recorder import Recorder


def _now() -> datetime:
    return datetime.now(UTC)


class KeptRecorder(Recorder):
    def __init__(self, now: Callable[[], datetime] = _now) -> None:
        super().__init__(now)
        self._kept: list[Event] = []
        self.subscribe(self._kept.append)

    def events(self) -> Iterator[Event]:
        """Return them in the order in which they ended."""
        return iter(list(self._kept))
