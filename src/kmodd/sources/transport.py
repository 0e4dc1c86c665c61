"""asyncvarlink's transport for a peer that calls, waits for the reply and calls again, as nearly all do.

The base class tells the loop's selector of each pause in reading and of each reply to be sent. A pause is
over before there is anything to read, and a reply nearly always goes out at once: so the selector is told of
neither unless it has to be.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, runtime_checkable

from asyncvarlink import VarlinkTransport

_OVERLOOKED_MAX = 8
"""Turns of the loop: between a reply and the end of its call there are half as many."""


@runtime_checkable
class HearsOfMore(Protocol):
    """A protocol that wants to know of what comes while it takes no message: it may be the peer's end."""

    def something_to_read(self) -> None:
        """Called once in a pause."""


class ApiTransport(VarlinkTransport):
    """Made for asyncvarlink 0.3, whose `_paused`, `_recvfd`, `_sendfd` and `_sendqueue` it knows."""

    _registered = False
    """Whether the selector looks for something to read."""
    _overlooked = 0
    """How often in this pause it has told of something."""

    def pause_reading(self) -> None:
        """Take no message until `resume_reading`; the selector is told when one comes."""
        self._paused = True

    def resume_reading(self) -> None:
        """Take messages again."""
        self._resume_reading()

    def _resume_reading(self) -> None:
        if self._closing or self._recvfd is None or not self._paused:
            return
        self._paused = False
        self._overlooked = 0
        if not self._registered:
            self._registered = True
            self._loop.add_reader(self._recvfd.fileno(), self._readable)

    def _readable(self) -> None:
        if not self._paused:
            self._handle_read()
        elif self._overlooked < _OVERLOOKED_MAX:
            # The next call of a peer that has its reply: the pause ends within these turns of the loop.
            self._overlooked += 1
        else:
            self._forget()
            if isinstance(self._protocol, HearsOfMore):
                self._protocol.something_to_read()

    def _forget(self) -> None:
        if self._registered and self._recvfd is not None:
            self._registered = False
            self._loop.remove_reader(self._recvfd.fileno())

    def _close_receiver(self, exc: Exception | None = None) -> None:
        self._forget()
        super()._close_receiver(exc)

    def send_message(self, data: bytes, fds: list[int] | None = None) -> asyncio.Future[None]:
        """Send a message at once where the peer has room for it; the future is done when it has gone out."""
        if fds or self._closing or self._sendfd is None or self._sendqueue:
            return super().send_message(data, fds)
        try:
            sent = self._do_write([data], [])
        except OSError:
            sent = 0  # no room, or nobody there: the base class finds out which, and says so
        if sent < len(data):
            return super().send_message(data[sent:], fds)
        done: asyncio.Future[None] = self._loop.create_future()
        done.set_result(None)
        return done
