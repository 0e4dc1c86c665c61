"""An instance of tracefs of our own: what is set in it, how its records are read, and how it ends.

An instance has buffers of its own: nobody else's tracing is touched, and nobody else's touches this.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Generic, Protocol, TypeVar

from kmodd.errors import KmoddError
from kmodd.kernel import ringbuffer
from kmodd.kernel.ringbuffer import EventFormat, Layout, MalformedBuffer

log = logging.getLogger(__name__)

TRACEFS = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
CLOCK = "mono"
"""An instance's clock (since Linux 4.1): CLOCK_MONOTONIC, one for all processors."""

_KIB = 16
"""KiB of each processor's buffer: at least 100 records."""
_AT_ONCE = 64


class Timed(Protocol):
    """What became of a record."""

    @property
    def time(self) -> int:
        """When it was recorded: CLOCK_MONOTONIC, ns."""


T = TypeVar("T", bound=Timed)


@dataclass(slots=True)
class Opened:
    """An instance in the kernel, and what of it is open here; where it is not, `problem` says why."""

    directory: str | None = None
    layout: Layout | None = None
    formats: dict[int, tuple[str, EventFormat]] = field(default_factory=dict)
    epoll: select.epoll | None = None
    files: list[int] = field(default_factory=list)
    problem: str | None = None


class Instance(ABC, Generic[T]):
    """Without the right, or without tracefs, `problem` says why it is off.

    To make an instance and to remove it waits for the kernel: `open`, and what `let_go` returns, are for any
    thread. All else never blocks, and belongs to one.
    """

    name: ClassVar[str]
    """Its directory in tracefs' `instances`."""
    events: ClassVar[dict[str, tuple[str, ...]]]
    """The trace events that are recorded, as `system:event`, each with the fields that `decode` reads."""

    def __init__(self, roots: tuple[str, ...] = TRACEFS) -> None:
        self._roots = roots
        self._opened = Opened()
        self.problem: str | None = "not started"
        self.missed = 0
        """How many records, at least, were overwritten before they were read, or could not be read."""

    @abstractmethod
    def decode(self, event: str, record: EventFormat, time: int, raw: bytes) -> T:
        """Return what becomes of a record of one of the events.

        Raises:
            MalformedBuffer: it is not laid out as its format says.
        """

    @property
    def on(self) -> bool:
        """Whether anything is recorded."""
        return self._opened.epoll is not None

    def open(self) -> Opened:
        """Make the instance, or take over the one that a dead daemon left, with what it has recorded.

        Where that cannot be the kernel is as it was. What it returns is for `take`.
        """
        opened = Opened()
        try:
            problem = problem_with(partial(self._open, opened))
        except BaseException:
            self.remove(opened)
            raise
        if problem is not None:
            self.remove(opened)
            opened = Opened(problem=problem)
        return opened

    def take(self, opened: Opened) -> None:
        """Go on with what `open` has returned; where it is on already that is let go of by `let_go` first."""
        self._opened = opened
        self.problem = opened.problem

    def _open(self, opened: Opened) -> None:
        root = self._find()
        opened.layout = ringbuffer.layout(
            read(f"{root}/events/header_page"), read(f"{root}/events/header_event")
        )
        for event, fields in self.events.items():
            known = ringbuffer.event_format(read(f"{root}/{_path(event)}/format"))
            for field_name in ("common_type", "common_pid", *fields):
                known.field(field_name)
            opened.formats[known.id] = (event, known)
        directory = f"{root}/instances/{self.name}"
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        opened.directory = directory
        # A change of the clock or the size empties the buffer: what a dead daemon left may still be claimed.
        if f"[{CLOCK}]" not in read(f"{directory}/trace_clock"):
            write(f"{directory}/trace_clock", CLOCK)
        for name, value in (("buffer_size_kb", _KIB), ("buffer_percent", 0)):
            if not read(f"{directory}/{name}").startswith((f"{value}\n", f"{value} ")):
                write(f"{directory}/{name}", str(value))
        for event in self.events:
            write(f"{directory}/{_path(event)}/enable", "1")
        write(f"{directory}/tracing_on", "1")
        opened.epoll = select.epoll()
        for cpu in os.listdir(f"{directory}/per_cpu"):
            path = f"{directory}/per_cpu/{cpu}/trace_pipe_raw"
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            opened.files.append(fd)
            opened.epoll.register(fd, select.EPOLLIN)

    def _find(self) -> str:
        for root in self._roots:
            if os.path.isdir(f"{root}/instances"):
                for event in self.events:
                    if not os.path.isdir(f"{root}/{_path(event)}"):
                        raise KmoddError(f"this kernel does not have the trace event {event}")
                return root
        raise KmoddError(f"tracefs is not mounted at {self._roots[0]}")

    def let_go(self) -> Callable[[], None]:
        """Read it no more; return what removes it from the kernel."""
        opened, problem = self._opened, self.problem
        self.take(Opened(problem="stopped" if self.on else problem))
        return partial(self.remove, opened)

    def remove(self, opened: Opened) -> None:
        """Put the kernel back as it was before `open`, from any thread."""
        for fd in opened.files:
            os.close(fd)
        if opened.epoll is not None:
            opened.epoll.close()
        if opened.directory is None:
            return
        try:
            for event in self.events:
                with contextlib.suppress(OSError):  # a broken instance is removed as well
                    write(f"{opened.directory}/{_path(event)}/enable", "0")
            os.rmdir(opened.directory)
        except OSError as err:
            log.warning("cannot remove %s: %s", opened.directory, err.strerror)

    def fileno(self) -> int:
        """Return a descriptor that is readable once there are new records: an epoll(7) of all processors'."""
        assert self._opened.epoll is not None
        return self._opened.epoll.fileno()

    def drain(self, *, everywhere: bool = False) -> list[T]:
        """Return what has been recorded since the last time, oldest first.

        Only processors whose buffers have announced something are looked at, and one sub-buffer of each:
        the announcement comes by an interrupt of its own and may be late by a tick. `everywhere` reads all
        that there is.
        """
        if self._opened.epoll is None:
            return []
        found: list[T] = []
        if everywhere:
            for fd in self._opened.files:
                while self._take(fd, found):
                    pass
        else:
            for fd, events in self._opened.epoll.poll(0, _AT_ONCE):
                if events & select.EPOLLERR:
                    # A processor that has never been there, and would be reported each time.
                    self._opened.epoll.unregister(fd)
                else:
                    self._take(fd, found)
        if len(found) > 1:
            found.sort(key=lambda one: one.time)
        return found

    def _take(self, fd: int, found: list[T]) -> bool:
        """Read a sub-buffer of one processor; False where there is none."""
        assert self._opened.layout is not None
        try:
            page = os.read(fd, self._opened.layout.size)
        except OSError:
            return False
        if not page:
            return False
        try:
            taken = ringbuffer.parse(page, self._opened.layout)
        except MalformedBuffer:
            self.missed += 1
            return True
        self.missed += taken.missed + (taken.damaged is not None)
        for time, record in taken.records:
            try:
                self._record(time, record, found)
            except MalformedBuffer:
                self.missed += 1
        return True

    def _record(self, time: int, record: bytes, found: list[T]) -> None:
        # Another event is what somebody has switched on in our instance. The type's place is every event's.
        first = next(iter(self._opened.formats.values()))[1]
        known = self._opened.formats.get(first.fields["common_type"].read(record))
        if known is not None:
            found.append(self.decode(known[0], known[1], time, record))


def problem_with(start: Callable[[], None]) -> str | None:
    """Start something that needs tracefs; return why that cannot be, in words, or None."""
    try:
        start()
    except KmoddError as err:
        return str(err)
    except OSError as err:
        return why(err)
    return None


def _path(event: str) -> str:
    return f"events/{event.replace(':', '/')}"


def why(err: OSError) -> str:
    """Return why tracefs does not let us, in words."""
    if err.errno == errno.EPERM:
        return "the kernel does not let us trace: it is locked down (lockdown=confidentiality)"
    if err.errno in {errno.EACCES, errno.EROFS}:
        return f"no right to {err.filename}: {err.strerror}"
    return f"{err.filename or 'tracefs'}: {err.strerror}"


def read(path: str, limit: int = 65536) -> str:
    """Return what a file of tracefs says."""
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read(limit)


def write(path: str, value: str, flags: int = 0) -> None:
    """Set a file of tracefs.

    Raises:
        OSError: the kernel refuses; it has the path.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags)
    try:
        os.write(fd, value.encode("ascii"))
    except OSError as err:
        raise OSError(err.errno, err.strerror, path) from err
    finally:
        os.close(fd)
