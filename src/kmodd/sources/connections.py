"""API connections: who is at the other end, how many they may have, and what when they go away."""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import time
from collections import Counter
from functools import partial
from typing import Any

from asyncvarlink import VarlinkInterfaceRegistry
from asyncvarlink.message import VarlinkMethodCall
from asyncvarlink.serverprotocol import VarlinkInterfaceServerProtocol
from asyncvarlink.types import FileDescriptorArray, JSONObject

from kmodd.record.systemlog import Limit
from kmodd.sources import peer
from kmodd.sources.peer import Peer
from kmodd.sources.replies import current_peer
from kmodd.sources.strangers import StrangerSocket
from kmodd.sources.transport import ApiTransport

log = logging.getLogger(__name__)

SOCKET = "io.kmodd"

MESSAGE_MAX = 64 * 1024
"""Bytes a call may have: the longest name with every byte escaped, and much to spare."""

PER_USER = 64
ALL_USERS = 256
"""Connections of one user and of all users together, root not counted: they must not use up our files."""


class ApiProtocol(VarlinkInterfaceServerProtocol):
    """A connection that knows its peer, bounds what it takes, and notices a caller that goes away.

    Calls are served one after the other, the next only when the peer has read the reply to the last: a peer
    that calls and calls costs no more memory than one reply, and stops only itself.

    While a call is served nothing is read, so a peer's end would go unnoticed until the answer: the transport
    tells once of something to read. Where that is anything else (a pipelined call) its end is not noticed.
    """

    def __init__(self, registry: VarlinkInterfaceRegistry, who: Peer, sock: socket.socket) -> None:
        super().__init__(registry)
        self._who = who
        self._watched = sock
        self._served: asyncio.Future[None] | None = None
        self._pending = 0
        self._unread = 0
        self._read = _nothing

    def message_received(self, data: bytes, fds: FileDescriptorArray | None) -> None:
        """Drop a peer whose message does not end."""
        self._pending = self._pending + len(data) if b"\0" not in data else len(data.rpartition(b"\0")[2])
        if self._pending > MESSAGE_MAX or len(data) > MESSAGE_MAX:
            log.warning("dropped an API connection of uid %d: message too long", self._who.uid)
            self.close()
            return
        try:
            super().message_received(data, fds)
        except (RecursionError, ValueError):
            # JSON nested or numbers long beyond what Python reads: no call.
            self.close()
            return
        if self._transport is not None and data.count(b"\0") > 1:
            # Several calls at once: no more of them until these are served, when the base class resumes.
            self._transport.pause_reading()

    def error_received(self, err: Exception, data: bytes, fds: FileDescriptorArray | None) -> None:  # noqa: ARG002
        """Drop a peer that does not speak varlink: it would wait for an answer for ever."""
        self.close()

    def request_received(
        self, obj: JSONObject, fds: FileDescriptorArray | None
    ) -> asyncio.Future[None] | None:
        """Serve a call; it is done, and the next one's turn, when its replies have gone out."""
        served: asyncio.Future[None] | None = super().request_received(obj, fds)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def look(_served: object = None) -> None:
            if not self._unread and (served is None or served.done()) and not done.done():
                done.set_result(None)

        if served is not None:
            served.add_done_callback(look)
        elif not self._unread:
            return None
        self._read = look
        return done

    def send_message(
        self, obj: JSONObject, fds: list[int] | None = None, autoclose: bool = True
    ) -> asyncio.Future[None]:
        """Count what the peer has not read yet."""
        sent: asyncio.Future[None] = super().send_message(obj, fds, autoclose)
        self._unread += 1
        sent.add_done_callback(self._sent)
        return sent

    def _sent(self, sent: asyncio.Future[None]) -> None:
        self._unread -= 1
        sent.exception()
        self._read()

    def call_received(
        self, call: VarlinkMethodCall, fds: FileDescriptorArray | None
    ) -> asyncio.Future[None] | None:
        """Serve a call as the peer that it is; stop serving it when the peer has gone."""
        token = current_peer.set(self._who)
        try:
            served: asyncio.Future[None] | None = super().call_received(call, fds)
        finally:
            current_peer.reset(token)
        if served is None or served.done():
            return served
        if self._watched.fileno() < 0:
            served.cancel()
            return None
        # A cancelled call must look to the base class like one that has ended without an answer.
        outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._served = served
        served.add_done_callback(partial(self._ended, outcome))
        return outcome

    def something_to_read(self) -> None:
        """Stop serving a call whose peer has gone; what else there is to read has to wait for its end."""
        if self._served is None:
            return
        try:
            more = self._watched.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        # One that has only finished sending still waits for its answer (POLLRDHUP without POLLHUP).
        if not more and (self._watched.fileno() < 0 or _hung_up(self._watched)):
            # First what waits to be sent fails, so that the call is not cancelled in the middle of a reply.
            if self._transport is not None:
                self._transport.abort()
            self._served.cancel()

    def _ended(self, outcome: asyncio.Future[None], served: asyncio.Future[None]) -> None:
        self._served = None
        if served.cancelled():
            outcome.set_result(None)
        elif (error := served.exception()) is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(None)


def _nothing() -> None:
    pass


def _hung_up(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _fd, events in poll.poll(0))


class ApiSource:
    """Takes API connections from anyone, but only so many."""

    def __init__(self, registry: VarlinkInterfaceRegistry) -> None:
        self._registry = registry
        self._open: Counter[int] = Counter()
        self._transports: set[ApiTransport] = set()
        self._refusals = Limit(time.monotonic)

    def connected(self, sock: socket.socket) -> None:
        """Serve one connection."""
        who = peer.credentials(sock)
        if not who.is_root:
            sock = StrangerSocket(sock.family, sock.type, sock.proto, fileno=sock.detach())
            sock.setblocking(False)
        users = sum(count for uid, count in self._open.items() if uid != 0)
        if not who.is_root and (self._open[who.uid] >= PER_USER or users >= ALL_USERS):
            may, missed = self._refusals.take()
            if may:
                more = f" ({missed} more refusals before were not logged)" if missed else ""
                log.warning("refused an API connection of uid %d: too many are open%s", who.uid, more)
            sock.close()
            return
        self._open[who.uid] += 1
        protocol = ApiProtocol(self._registry, who, sock)
        # Without a predictor of boundaries the transport reads once for each turn of the loop. With one it
        # reads as long as there is something, and a peer that goes on sending would have the loop for itself.
        transport = ApiTransport(asyncio.get_running_loop(), sock, sock, protocol, boundary_predictor=None)
        self._transports.add(transport)
        transport.closed_future.add_done_callback(partial(self._closed, transport, who.uid))

    def _closed(self, transport: ApiTransport, uid: int, _future: asyncio.Future[Any]) -> None:
        self._transports.discard(transport)
        self._open[uid] -= 1
        if not self._open[uid]:
            del self._open[uid]

    def close(self) -> None:
        """Close every connection."""
        for transport in list(self._transports):
            transport.close()
