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
from collections.abc import Iterable

_MASK = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
"""IN_MODIFY, ATTRIB, CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE, DELETE_SELF, MOVE_SELF."""


class Watch:
    """Some directories, and the mounts of PID 1's namespace."""

    def __init__(self, directories: Iterable[str], mounts: str = "/proc/1/mountinfo") -> None:
        """Watch these and, of those that are not there, the nearest directory above that is."""
        self._inotify = -1
        self._mounts = -1
        self._blind = False
        self._poll = select.poll()
        libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._inotify < 0:
            self._blind = True  # no instance left, or no inotify: then every answer is "maybe"
            return
        for path in {_nearest(path) for path in directories}:
            if libc.inotify_add_watch(self._inotify, os.fsencode(path), ctypes.c_uint32(_MASK)) < 0:
                self._blind = True
        self._poll.register(self._inotify, select.POLLIN)
        with contextlib.suppress(OSError):
            self._mounts = os.open(mounts, os.O_RDONLY | os.O_CLOEXEC)
            self._poll.register(self._mounts, select.POLLPRI)
            self._poll.poll(0)

    def maybe_changed(self) -> bool:
        """Return whether anything happened there since the last answer."""
        if self._blind:
            return True
        if not self._poll.poll(0):
            return False
        with contextlib.suppress(BlockingIOError):
            while os.read(self._inotify, 65536):
                pass
        return True

    def close(self) -> None:
        """Watch no more."""
        for fd in (self._inotify, self._mounts):
            if fd >= 0:
                os.close(fd)
        self._inotify = self._mounts = -1
        self._blind = True


def _nearest(path: str) -> str:
    while path != "/" and not os.path.isdir(path):
        path = os.path.dirname(path)
    return path
