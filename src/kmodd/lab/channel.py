"""The lab's end of the wire: never blocks on a write, reads with a deadline."""

import select
import socket
import time
from collections import deque
from collections.abc import Callable, Collection

from kmodd.lab import wire
from kmodd.lab.errors import LabError

_READ = 1 << 18


class Channel:
    """Frames to and from the agent."""

    def __init__(self, sock: socket.socket, died: Callable[[], LabError]) -> None:
        """Take a non-blocking socket; `died` says why when the guest closes it."""
        self._sock = sock
        self._died = died
        self._decoder = wire.Decoder()
        self._frames: deque[wire.Frame] = deque()
        self._out = bytearray()
        self._unread = 0

    def send(self, kind: wire.Kind, ident: int = 0, payload: bytes = b"") -> None:
        """Queue a frame; it leaves with this and later waits."""
        self._out += wire.encode(kind, ident, payload)

    def receive(self, deadline: float | None) -> wire.Frame | None:
        """The next frame, or None when `deadline` (time.monotonic) has passed.

        :raises LabError: the guest has ended
        """
        while not self._frames:
            if deadline is not None and time.monotonic() >= deadline:
                return None
            self.wait(deadline)
        return self._frames.popleft()

    def pending(self) -> wire.Frame | None:
        """The next frame if one is here already."""
        return self._frames.popleft() if self._frames else None

    def wait(self, deadline: float | None, also: Collection[int] = ()) -> set[int]:
        """Move bytes both ways once; tells which of `also` can be read.

        :raises LabError: the guest has ended
        """
        poll = select.poll()
        ours = self._sock.fileno()
        poll.register(ours, select.POLLIN | (select.POLLOUT if self._may_send() else 0))
        for fd in also:
            poll.register(fd, select.POLLIN)
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = dict(poll.poll(timeout))
        events = ready.pop(ours, 0)
        try:
            if events & select.POLLOUT:
                count = self._sock.send(self._out[: self._may_send()])
                self._unread += count
                del self._out[:count]
            if events & ~select.POLLOUT:
                data = self._sock.recv(_READ)
                if not data:
                    raise self._died()
                self._sort(self._decoder.feed(data))
        except BlockingIOError:
            pass
        except ConnectionError as error:
            raise self._died() from error
        return set(ready)

    def _may_send(self) -> int:
        """Bytes that may leave now."""
        return min(len(self._out), wire.WINDOW - self._unread)

    def _sort(self, frames: list[wire.Frame]) -> None:
        for frame in frames:
            if frame.kind is wire.Kind.CREDIT:
                self._unread -= int(frame.payload)
            else:
                self._frames.append(frame)
