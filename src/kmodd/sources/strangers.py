"""Sockets of strangers: no descriptors are taken from them, and closing one never blocks the event loop.

A message on a Unix socket may carry open files (unix(7), SCM_RIGHTS). Whoever receives such a message, asks
for them or not, or closes a socket that one waits in, may be the last to hold them and then closes them: a
TCP socket that lingers or a file of the peer's own file system lets that take as long as the peer likes.
"""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
import threading
from collections import deque
from typing import Any

_SO_PASSRIGHTS = 83  # include/uapi/asm-generic/socket.h, since Linux 6.16
_CLOSERS_MAX = 64


def take_no_descriptors(listening: socket.socket) -> None:
    """Have the kernel refuse descriptors that are sent; where it cannot yet, `StrangerSocket` does."""
    with contextlib.suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)


class StrangerSocket(socket.socket):
    """A connection whose peer may send descriptors along, which ends it."""

    def recvmsg(
        self,
        bufsize: int,
        ancbufsize: int = 0,  # noqa: ARG002 - the base class's
        flags: int = 0,
    ) -> tuple[bytes, list[Any], int, Any]:
        """Receive without any descriptor.

        A look (MSG_PEEK) takes no reference that could be the last one, and tells by MSG_CTRUNC that there
        are descriptors, for which it has no room.

        Raises:
            ConnectionResetError: descriptors were sent along.
        """
        data, _none, told, address = super().recvmsg(bufsize, 0, flags | socket.MSG_PEEK)
        if told & socket.MSG_CTRUNC:
            raise ConnectionResetError(errno.ECONNRESET, "descriptors were sent along, which nobody takes")
        if data:
            super().recv(len(data))  # as much as was looked at: what came meanwhile may carry some
        return data, [], told, address

    def close(self) -> None:
        """Close; where descriptors wait to be received, in a thread of its own."""
        if self.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            self.shutdown(socket.SHUT_RD)  # nothing more can be sent
        try:
            while self.recvmsg(65536, 0, socket.MSG_DONTWAIT)[0]:
                pass
        except ConnectionResetError:
            _closers.add(socket.socket(self.family, self.type, self.proto, fileno=self.detach()))
            return
        except OSError:
            pass
        super().close()


class _Closers:
    """At most so many threads, each with one socket at a time; other sockets wait for one of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[socket.socket] = deque()
        self._running = 0

    def add(self, sock: socket.socket) -> None:
        """Close a socket, in its time."""
        with self._lock:
            self._waiting.append(sock)
            if self._running == _CLOSERS_MAX:
                return
            self._running += 1
        try:
            threading.Thread(target=self._work, name="kmod_close", daemon=True).start()
        except RuntimeError:
            with self._lock:
                self._running -= 1

    def _work(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        while True:
            with self._lock:
                if not self._waiting:
                    self._running -= 1
                    return
                sock = self._waiting.popleft()
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                while sock.recv(65536):
                    pass
            sock.close()


_closers = _Closers()
