"""Every state change is an event (invariant 6). This numbers them, and tells the listeners."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from kmodd.model import Event

log = logging.getLogger(__name__)

Listener = Callable[[Event], None]


def _now() -> datetime:
    return datetime.now(UTC)


class Recorder:
    """Events, numbered from 1 in the order in which things began. It keeps none: the journal does."""

    def __init__(self, now: Callable[[], datetime] = _now) -> None:
        self._ids = itertools.count(1)
        self._listeners: list[Listener] = []
        self._now = now
        self.recorded = 0

    def go_on_from(self, number: int) -> None:
        """Number events from the one behind `number` on: those of an earlier daemon have the others."""
        self._ids = itertools.count(number + 1)

    def next_id(self) -> int:
        """Return a number that no other event has."""
        return next(self._ids)

    def add(self, event: str, fields: dict[str, Any]) -> Event:
        """Record something that happens now."""
        return self.add_at(event, self.next_id(), self._now(), fields)

    def add_at(self, event: str, number: int, time: datetime, fields: dict[str, Any]) -> Event:
        """Record something that began at `time` and was given its number then."""
        made = Event(number, time, event, fields)
        self.recorded += 1
        for listener in list(self._listeners):
            try:
                listener(made)
            except Exception:
                log.exception("an event's listener failed")
        return made

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener(event)` for each new event; return how to stop that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)
