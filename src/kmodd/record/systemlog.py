"""To the systemd journal with structured fields, else to syslog (S14); no name can forge a line.

The journal's native protocol (systemd.io, "Native Journal Protocol") gives each value its length, so
that a line end in it stays in it. All that comes from strangers is escaped before it is here all the same.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from kmodd.model import Event

JOURNAL = "/run/systemd/journal/socket"
SYSLOG = "/dev/log"

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_DAEMON = 3 << 3
_REST = "rest"
_QUIET_OUTCOMES = frozenset({"loaded", "already-live", "built-in"})

log = logging.getLogger("kmodd")


def encode(fields: Mapping[str, str]) -> bytes:
    """Return a journal datagram: `KEY=value`, or `KEY`, length and value where it has a line end."""
    out = bytearray()
    for key, value in fields.items():
        data = value.encode("utf-8", errors="backslashreplace")
        if b"\n" in data:
            out += key.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
        else:
            out += key.encode() + b"=" + data + b"\n"
    return bytes(out)


class _Datagrams(logging.Handler):
    """Sends each record as a datagram; a log that does not take one at once is never waited for.

    Not logging.handlers.SysLogHandler: that one makes a new socket when a send fails, a blocking one.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self.lost = 0

    def datagram(self, record: logging.LogRecord) -> bytes:
        """Return a record as the log takes it."""
        raise NotImplementedError

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; count it as lost where that cannot be done at once."""
        try:
            self._socket.sendto(self.datagram(record), self._path)
        except OSError:
            self.lost += 1

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()


class JournalHandler(_Datagrams):
    """To the systemd journal."""

    def datagram(self, record: logging.LogRecord) -> bytes:
        """Return the fields that every record has, and those it brings along."""
        return encode(
            {
                "MESSAGE": self.format(record),
                "PRIORITY": str(_PRIORITIES.get(record.levelno, 5)),
                "SYSLOG_IDENTIFIER": "kmodd",
                **getattr(record, "fields", {}),
            }
        )


class SyslogHandler(_Datagrams):
    """To syslog, facility daemon (syslog(3))."""

    def datagram(self, record: logging.LogRecord) -> bytes:
        """Return `<priority>kmodd[pid]: message`."""
        priority = _DAEMON | _PRIORITIES.get(record.levelno, 5)
        message = self.format(record).encode("utf-8", errors="backslashreplace")
        return b"<%d>kmodd[%d]: %s" % (priority, os.getpid(), message)


def handler(journal: str = JOURNAL, syslog: str = SYSLOG) -> logging.Handler:
    """Return where log records go on this machine: the journal, syslog, or stderr where neither is."""
    if os.path.exists(journal):
        return JournalHandler(journal)
    if os.path.exists(syslog):
        return SyslogHandler(syslog)
    chosen = logging.StreamHandler(sys.stderr)
    chosen.setFormatter(logging.Formatter(f"kmodd[{os.getpid()}]: %(message)s"))
    return chosen


class Limit:
    """At most `burst` messages in `period` seconds; then one that says how many were left out."""

    def __init__(self, clock: Callable[[], float], burst: int = 50, period: float = 10.0) -> None:
        self._clock = clock
        self._burst = burst
        self._period = period
        self._start = clock()
        self._count = 0

    def take(self) -> tuple[bool, int]:
        """Return whether a message may go, and how many were left out in the period that has just ended."""
        missed = 0
        now = self._clock()
        if now - self._start >= self._period:
            missed = max(0, self._count - self._burst)
            self._start, self._count = now, 0
        self._count += 1
        return self._count <= self._burst, missed


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What was left out in a period: how many messages, and the key of the most of them."""

    count: int
    most: Hashable


class Limits:
    """How many messages may go in `period` seconds: `burst` of each key, and `total` of all.

    The first of each key goes even then, so that one who loops hides nobody. The keys of a period are
    bounded; what is behind them shares what one key has.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        burst: int = 50,
        total: int = 200,
        keys: int = 256,
        period: float = 10.0,
    ) -> None:
        self._clock = clock
        self._burst = burst
        self._total = total
        self._keys = keys
        self._period = period
        self._start = clock()
        self._gone: Counter[Hashable] = Counter()
        self._missed: Counter[Hashable] = Counter()

    def take(self, key: Hashable) -> tuple[bool, LeftOut | None]:
        """Return whether a message may go, and what was left out in the period that has just ended."""
        left_out = None
        now = self._clock()
        if now - self._start >= self._period:
            if self._missed:
                left_out = LeftOut(self._missed.total(), self._missed.most_common(1)[0][0])
            self._start = now
            self._gone.clear()
            self._missed.clear()
        if key not in self._gone and len(self._gone) >= self._keys:
            key = _REST
        gone = self._gone[key]
        if gone and (gone >= self._burst or self._gone.total() >= self._total):
            self._missed[key] += 1
            return False, left_out
        self._gone[key] += 1
        return True, left_out


class EventLog:
    """Logs each failed request: a recorder's listener.

    One who loops cannot flood the log, nor hide what is refused to others: the limit is each uid's own.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._limits = Limits(clock)

    def __call__(self, event: Event) -> None:
        """Log a request that did not end well, or that the policy would have denied if it only told so."""
        if event.event != "request":
            return
        fields = event.fields
        told = _told(fields)
        if fields["outcome"] in _QUIET_OUTCOMES and told is None:
            return
        may, left_out = self._limits.take(fields["requester"]["uid"])
        if left_out is not None:
            log.warning(
                "%d messages about failed requests were left out, most of them of %s",
                left_out.count,
                _whose(left_out.most),
            )
        if not may:
            return
        pid = fields["requester"]["pid"]
        who = f" (pid {pid}, uid {fields['requester']['uid']})" if pid is not None else ""
        log.warning(
            "request %d from %s%s: %s: %s",
            event.id,
            fields["source"],
            who,
            fields["outcome"],
            ": ".join(words for words in (fields["error"] or fields["name"], told) if words),
            extra={
                "fields": {
                    "KMODD_EVENT": "request",
                    "KMODD_ID": str(event.id),
                    "KMODD_SOURCE": fields["source"],
                    "KMODD_NAME": fields["name"],
                    "KMODD_OUTCOME": fields["outcome"],
                    "KMODD_STATUS": str(fields["status"]),
                    "KMODD_RULE": (fields.get("decision") or {}).get("rule") or "",
                    "KMODD_MODE": (fields.get("decision") or {}).get("mode") or "",
                }
            },
        )


def _told(fields: Mapping[str, Any]) -> str | None:
    """Return what a rule in audit mode would have done to a request; None where there was none."""
    decision = fields.get("decision") or {}
    if decision.get("action") != "deny" or decision.get("mode") != "audit":
        return None
    return f"would be denied by {decision['rule']}" + (f": {fields['reason']}" if fields["reason"] else "")


def _whose(key: Hashable) -> str:
    if key is _REST:
        return "many users"
    return "tasks that are not known" if key is None else f"uid {key}"
