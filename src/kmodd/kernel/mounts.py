"""Whether a program is the one that its path names for everybody: it is on a mount of PID 1's.

Who may make a user namespace may mount what he likes over /usr/bin/mount in a mount namespace of his own, and
run it: /proc/PID/exe then says /usr/bin/mount. The mount that a file was opened on cannot be made up. Neither
that nor the list of mounts asks a file system anything, so none can make us wait.
"""

from __future__ import annotations

import os
import re
import select

_MOUNT = re.compile(rb"^mnt_id:\t(\d+)$", re.MULTILINE)
_PROC = "/proc"


def everybodys(mount: int | None, proc: str = _PROC) -> bool:
    """Whether a mount, by its id, is one of PID 1's mount namespace; False where that is not known."""
    try:
        if proc == _PROC:
            return _INIT.has(mount)
        with open(f"{proc}/1/mountinfo", "rb") as file:
            return mount in _ids(file.read())
    except (OSError, ValueError):
        return False


def _ids(mountinfo: bytes) -> frozenset[int]:
    return frozenset(int(line.split(b" ", 1)[0]) for line in mountinfo.splitlines())


class _Mountinfo:
    """The list of PID 1's mounts, which a machine may have thousands of: read again when it has changed."""

    def __init__(self) -> None:
        self._file = os.open(f"{_PROC}/1/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        # The kernel announces to each that has it open what has changed since that one last asked (proc(5)).
        self._changes = select.poll()
        self._changes.register(self._file, select.POLLPRI)
        self._known: frozenset[int] | None = None

    def __del__(self) -> None:
        os.close(self._file)

    def ids(self) -> frozenset[int]:
        """Return their ids.

        Raises:
            OSError, ValueError: the list cannot be read.
        """
        if self._changes.poll(0) or self._known is None:
            self._known = None  # should this fail it is tried again
            os.lseek(self._file, 0, os.SEEK_SET)
            parts = []
            while part := os.read(self._file, 1 << 16):
                parts.append(part)
            self._known = _ids(b"".join(parts))
        return self._known


class _Init:
    """The mounts of the namespace that PID 1 is in."""

    def __init__(self) -> None:
        self._namespace = ""
        self._mounts: _Mountinfo | None = None

    def has(self, mount: int | None) -> bool:
        """Whether a mount is one of them.

        Raises:
            OSError, ValueError: that cannot be read.
        """
        if self._mounts is not None and mount in self._mounts.ids():
            return True
        # PID 1 may have moved to another namespace. It costs a system call, and the numbers of the old one's
        # mounts are given to no other while we have its list open: only what is missing there is looked for.
        namespace = os.readlink(f"{_PROC}/1/ns/mnt")
        if namespace == self._namespace:
            return False
        self._namespace, self._mounts = "", _Mountinfo()
        found = mount in self._mounts.ids()
        self._namespace = namespace
        return found


_INIT = _Init()


def of_program(task: int) -> int | None:
    """Return the id of the mount that a task's program is on; `task`: its directory in /proc, opened."""
    try:
        program = os.open("exe", os.O_PATH | os.O_CLOEXEC, dir_fd=task)
    except OSError:
        return None
    try:
        # Not open(): a file object of Python's costs as much as the rest, for each request.
        info = os.open(f"/proc/self/fdinfo/{program}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = _MOUNT.search(os.read(info, 4096))
        finally:
            os.close(info)
    except OSError:
        return None
    finally:
        os.close(program)
    return None if found is None else int(found[1])
