"""Follows kmodd's log, as `kmodd log --follow` does, in a thread of its own."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self

from kmodd.connection import Connection
from kmodd.errors import Unreachable

_PATIENCE = 30.0
"""Seconds for something that takes one at most."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the log tells of it when it has ended."""

    name: str
    source: str
    outcome: str
    modules: tuple[str, ...]
    begun: datetime
    took: timedelta
    shared: bool
    """Whether another request had started its load."""

    @classmethod
    def from_event(cls, event: dict[str, Any]) -> Self:
        """Read an event of the kind `request`."""
        return cls(
            event["name"],
            event["source"],
            event["outcome"],
            tuple(event["modules"] or ()),
            datetime.fromisoformat(event["time"]),
            timedelta(microseconds=event["duration_us"]),
            event["coalesced_with"] is not None,
        )

    @property
    def ended(self) -> datetime:
        """When its record was complete; whoever asked was told then or before."""
        return self.begun + self.took


class Follower:
    """What one daemon after the other has told; each request is passed to `show` as it comes."""

    def __init__(self, show: Callable[[Request], None]) -> None:
        self._show = show
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._of_this_daemon = 0
        self.requests: list[Request] = []

    def attach(self) -> None:
        """Follow the daemon that serves now, from its first event on.

        :raises KmoddError: there is none
        """
        self._of_this_daemon = 0
        # The journal has what the daemons before it told, too.
        since = f"{status()['uptime_s']}s"
        self._thread = threading.Thread(target=self._follow, args=(Connection(), since), daemon=True)
        self._thread.start()

    def settle(self) -> bool:
        """Wait until every request that the daemon has had is told; False: it does not come to that."""
        total = int(status()["requests"]["total"])
        with self._changed:
            return bool(self._changed.wait_for(lambda: self._of_this_daemon >= total, _PATIENCE))

    def wait_end(self) -> bool:
        """Wait until the daemon has gone, and all that it told is shown."""
        assert self._thread is not None
        self._thread.join(_PATIENCE)
        return not self._thread.is_alive()

    def _follow(self, connection: Connection, since: str) -> None:
        try:
            for reply in connection.stream("Log", follow=True, since=since):
                event = reply["event"]
                if event["event"] == "request":
                    self._take(Request.from_event(event))
        except Unreachable:
            return

    def _take(self, request: Request) -> None:
        self._show(request)
        with self._changed:
            self.requests.append(request)
            self._of_this_daemon += 1
            self._changed.notify_all()


def status() -> dict[str, Any]:
    """What `kmodd status --json` shows.

    :raises KmoddError: there is no daemon
    """
    answer: dict[str, Any] = Connection().call("GetStatus")["status"]
    return answer
