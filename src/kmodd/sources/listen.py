"""Listening sockets: made in a directory that only root may write, accepted from without ever blocking."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import Callable

from kmodd.errors import KmoddError

log = logging.getLogger(__name__)

BACKLOG = 4096
_AT_ONCE = 64
_PAUSE = 0.1
_FULL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def bind(path: str, kind: int, mode: int) -> socket.socket:
    """Return a socket that listens at `path` with that mode; a dead one in its place is replaced.

    Raises:
        KmoddError: another daemon answers there, or the socket cannot be made.
    """
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        _make_way(path, kind)
        # The mode must hold from the first moment on: a looser one would let somebody in.
        old = os.umask(0o777 & ~mode)
        try:
            sock.bind(path)
        finally:
            os.umask(old)
        sock.listen(BACKLOG)
    except OSError as err:
        sock.close()
        raise KmoddError(f"cannot listen at {path}: {err.strerror or err}") from err
    except KmoddError:
        sock.close()
        raise
    return sock


def _make_way(path: str, kind: int) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise KmoddError(f"cannot listen at {path}: something that is no socket is there; remove it")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as probe:
        result = probe.connect_ex(path)
    if result in {0, errno.EAGAIN}:
        raise KmoddError(f"cannot listen at {path}: another kmodd answers there; stop it first")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


class Listener:
    """Accepts connections on the event loop and hands each over; the socket is closed with it.

    `path` is removed on close where the daemon made it (None: the service manager keeps it).
    """

    def __init__(
        self, sock: socket.socket, path: str | None, connected: Callable[[socket.socket], None]
    ) -> None:
        self._sock = sock
        self._path = path
        self._connected = connected
        self._resume: asyncio.TimerHandle | None = None
        self._accepting = False

    def start(self) -> None:
        """Begin to accept."""
        self._resume = None
        self._accepting = True
        asyncio.get_running_loop().add_reader(self._sock, self.accept)

    def close(self) -> None:
        """Accept no more; connections that nobody has accepted are reset, so their helpers fall back."""
        loop = asyncio.get_running_loop()
        if self._resume is not None:
            self._resume.cancel()
        loop.remove_reader(self._sock)
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
        self._sock.close()

    def accept(self) -> None:
        """Take whoever has connected."""
        if not self._accepting:
            return
        for _ in range(_AT_ONCE):
            try:
                conn, _address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as err:
                if err.errno not in _FULL:
                    raise
                # Without a pause the loop would spin on a socket that stays readable.
                log.error("cannot accept a connection: %s; trying again in %g s", err.strerror, _PAUSE)
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._sock)
                self._accepting = False
                self._resume = loop.call_later(_PAUSE, self.start)
                return
            conn.setblocking(False)
            self._connected(conn)
