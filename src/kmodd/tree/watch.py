"""Whether the files of a tree or of modprobe.d may have changed: asked before each request, without waiting.

inotify(7) notes a change before the call that made it returns, and /proc/PID/mountinfo (proc(5)) a mount; to
ask costs one system call, which touches no file system. Nothing wakes a daemon up: what is noted is read when
somebody asks.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
from collections.abc import Iterable

_MASK = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
"""IN_MODIFY, ATTRIB, CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE, DELETE_SELF, MOVE_SELF."""
_EVENT = struct.Struct("=iIII")


class Watch:
    """Some directories, and the mounts of PID 1's namespace."""

    def __init__(self, directories: Iterable[str], mounts: str = "/proc/1/mountinfo") -> None:
        """Watch these and, of those that are not there, the nearest directory above that is."""
        self._inotify = -1
        self._mounts = -1
        self._blind = False
        self._wanted: dict[int, set[str] | None] = {}
        """For each watch the names that matter; None: all do."""
        self._poll = select.poll()
        libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._inotify < 0:
            self._blind = True  # no instance left, or no inotify: then every answer is "maybe"
            return
        for path in sorted(directories):
            while self._add(libc, *_nearest(path)):
                pass  # it has come into being meanwhile
        self._poll.register(self._inotify, select.POLLIN)
        with contextlib.suppress(OSError):
            self._mounts = os.open(mounts, os.O_RDONLY | os.O_CLOEXEC)
            self._poll.register(self._mounts, select.POLLPRI)
            self._poll.poll(0)

    def _add(self, libc: ctypes.CDLL, there: str, missing: str | None) -> bool:
        """Watch a directory; return whether the one that was missing in it is there by now."""
        number = libc.inotify_add_watch(self._inotify, os.fsencode(there), ctypes.c_uint32(_MASK))
        if number < 0:
            self._blind = True
        elif missing is None:
            self._wanted[number] = None
        else:
            inside = os.path.join(there, missing)
            names = self._wanted.setdefault(number, set())
            if names is not None:
                names.add(missing)
            if os.path.isdir(inside):
                return True
            if os.path.islink(inside):  # to a directory that may come
                target = os.path.realpath(inside)
                while target != inside and self._add(libc, *_nearest(target)):
                    pass
        return False

    def maybe_changed(self) -> bool:
        """Return whether anything happened there since the last answer."""
        if self._blind:
            return True
        ready = self._poll.poll(0)
        if not ready:
            return False
        changed = any(fd != self._inotify for fd, _events in ready)
        with contextlib.suppress(BlockingIOError):
            while events := os.read(self._inotify, 65536):
                changed = changed or self._matter(events)
        return changed

    def _matter(self, events: bytes) -> bool:
        """Whether any of some events may be a change: in /run, say, files come and go all the time."""
        at = 0
        while at < len(events):
            number, _mask, _cookie, length = _EVENT.unpack_from(events, at)
            at += _EVENT.size
            name = os.fsdecode(events[at : at + length].rstrip(b"\0"))
            at += length
            names = self._wanted.get(number)
            # Without a name it is the directory itself, or the kernel's queue that was full.
            if names is None or not name or name in names:
                return True
        return False

    def close(self) -> None:
        """Watch no more."""
        for fd in (self._inotify, self._mounts):
            if fd >= 0:
                os.close(fd)
        self._inotify = self._mounts = -1
        self._blind = True


def _nearest(path: str) -> tuple[str, str | None]:
    """Return the nearest directory that is there, and the name that is missing in it, if any."""
    missing = None
    while path != "/" and not os.path.isdir(path):
        path, missing = os.path.split(path)
    return path, missing
