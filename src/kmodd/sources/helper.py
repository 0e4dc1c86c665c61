"""The kernel's requests: each is one connection of the helper to a SEQPACKET socket that only root may use.

Packets (helper/kmodd-helper.c is the other end):
- from the helper: the name with a NUL behind it, so that the empty name is a packet too;
- to the helper: `a` accepted, wait for the status without a limit; `s` and a byte, the status (0 done,
  1 not); `f` fall back to the real modprobe. A connection that ends without a status is a fallback too.
  `a` is left out where the status is known soon, as it is of a name that needs nothing loaded: each packet
  wakes the helper, which costs as much as all that is done here.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket

from kmodd.broker.broker import Broker
from kmodd.broker.tickets import NOBODY, Asker, Ticket
from kmodd.model import Source
from kmodd.names import KERNEL_MAX, escape
from kmodd.record.recorder import Recorder
from kmodd.sources import peer
from kmodd.sources.whoasked import Claim, WhoAsked

log = logging.getLogger(__name__)

SOCKET = "helper.sock"
ACCEPTED = b"a"
FALL_BACK = b"f"
DONE = b"s\x00"
FAILED = b"s\x01"

_PACKET_MAX = 8192
# As numbers: to combine two flags of an enum takes longer than the call.
_NOW = int(socket.MSG_DONTWAIT)
_PEEK = int(socket.MSG_DONTWAIT | socket.MSG_PEEK)
_QUIETLY = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_HAND_OVER = 5.0
"""Seconds that a connection may take to send its name; the helper sends it at once."""
_SOON = 0.1
"""Seconds after which a helper is told that it is waited for: it waits ten times as long for that."""
_FEW = 2
"""Loads in progress with which a helper's name is taken at once."""
_TRIES, _TRY_AGAIN = 25, 0.004
"""How often, and after how many seconds first, a task is looked at again that does not sleep yet.

Each pause is longer by as much as the first: 1.3 s in all, longer than whoasked keeps the record of
a task that does not wait. A group of tasks that has used up its share of the processors (cpu.max) is
held back for a tenth of a second, or as long as its period.
"""


class HelperConnection:
    """One request of the kernel."""

    __slots__ = (
        "_accepted",
        "_broker",
        "_claim",
        "_loop",
        "_over",
        "_recorder",
        "_sock",
        "_ticket",
        "_timer",
        "_watched",
        "_who",
    )

    def __init__(self, sock: socket.socket, broker: Broker, recorder: Recorder, who: WhoAsked | None) -> None:
        self._sock = sock
        self._broker = broker
        self._recorder = recorder
        self._who = who
        self._claim: Claim | None = None
        self._loop = asyncio.get_running_loop()
        self._ticket: Ticket | None = None
        self._over = self._accepted = False
        self._timer: asyncio.TimerHandle | None = None
        self._watched = False
        # Nearly always the name is there already: then no look at the loop's selector is paid for it.
        if not self._receive() and not self._yield_and_receive():
            self._watch()
            self._timer = self._loop.call_later(_HAND_OVER, self._close)

    def _receive(self) -> bool:
        """Take the name, or learn that the helper has gone; False where nothing is there yet."""
        try:
            packet = self._sock.recv(_PACKET_MAX, _NOW)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            packet = b""
        if self._ticket is not None or not packet:
            self._gone()
            return True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._request(packet)
        return True

    def _yield_and_receive(self) -> bool:
        """Let a helper go on whose own connect(2) has taken it off this processor, and look again."""
        os.sched_yield()
        return self._receive()

    def _request(self, packet: bytes) -> None:
        if self._broker.stopping or not packet.endswith(b"\0"):
            self._answer(FALL_BACK)
            return
        if self._hung_up():
            # A helper that has waited for a second in vain has fallen back: the real modprobe does it.
            name = escape(packet[:-1])
            log.warning("a helper that waited for more than a second fell back: %s", name)
            self._recorder.add("daemon", {"action": "fallback", "name": name})
            self._close()
            return
        self._who_asked(packet[:-1], _TRIES)

    def _who_asked(self, name: bytes, tries: int) -> None:
        """Find out who asks, and hand the request over.

        Now, and not in a thread: who asked stays as it is until it is answered. A task that has started its
        helper and was taken off its processor before it slept is looked at again. One that never sleeps has
        gone on without its answer, as another program: one of its threads has executed that, and it has the
        number of the one that asked.
        """
        asker = NOBODY
        if self._who is not None:
            claim = self._who.claim(name)
            if claim.early and tries:
                self._who.release(claim)
                if tries == _TRIES:
                    self._accept()  # or it falls back before we know
                self._loop.call_later(_TRY_AGAIN * (1 + _TRIES - tries), self._who_asked, name, tries - 1)
                return
            self._claim = claim
            asker = Asker(claim.requester, tid=claim.tid, gone=claim.gone or claim.early)
        ticket = self._broker.submit(
            name,
            Source.KERNEL,
            longest=KERNEL_MAX,
            asker=asker,
            on_status=self._status,
        )
        if not self._over:
            self._ticket = ticket
            # Where many are served this one may have waited for long, and the packet is no matter; and how
            # long a load takes that goes on already nobody knows.
            if self._broker.loads_running > _FEW or ticket.shares_a_load:
                self._accept()
            else:
                self._timer = self._loop.call_later(_SOON, self._accept)
            self._watch()

    def _accept(self) -> None:
        """Tell the helper to wait, once; if it has gone just now, that is seen by watching it."""
        self._timer = None
        if not self._accepted:
            self._accepted = True
            self._send(ACCEPTED)

    def _hung_up(self) -> bool:
        """Whether the helper has gone; it says nothing but its name."""
        try:
            return not self._sock.recv(1, _PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True

    def _watch(self) -> None:
        """Learn when the name comes, or that the helper has gone."""
        self._watched = True
        self._loop.add_reader(self._sock.fileno(), self._receive)

    def _status(self, status: int) -> None:
        if status == -errno.ESHUTDOWN:
            self._answer(FALL_BACK)
        else:
            self._answer(DONE if status == 0 else FAILED)

    def _answer(self, packet: bytes) -> None:
        self._over = True
        self._send(packet)
        self._close()

    def _send(self, packet: bytes) -> bool:
        try:
            self._sock.send(packet, _QUIETLY)
        except OSError:
            return False
        return True

    def _gone(self) -> None:
        if self._ticket is not None:
            self._broker.leave(self._ticket)
        self._close()

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._who is not None and self._claim is not None:
            self._who.release(self._claim)
            self._claim = None
        if self._watched:
            self._watched = False
            self._loop.remove_reader(self._sock.fileno())
        self._over = True
        self._sock.close()


class HelperSource:
    """Takes helper connections; refuses those of anyone but root.

    Without `who` it is not known who asked: the helpers are not those of the running kernel.
    """

    def __init__(self, broker: Broker, recorder: Recorder, who: WhoAsked | None = None) -> None:
        self._broker = broker
        self._recorder = recorder
        self._who = who

    def connected(self, sock: socket.socket) -> None:
        """Serve one connection."""
        if not peer.is_root(sock):
            who = peer.credentials(sock, groups=False)
            log.warning("refused a helper connection of uid %d (pid %d)", who.uid, who.pid)
            sock.close()
            return
        HelperConnection(sock, self._broker, self._recorder, self._who)
