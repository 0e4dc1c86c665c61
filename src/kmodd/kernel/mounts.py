"""Whether a program is the one that its path names for everybody: it is on a mount of PID 1's.

Who may make a user namespace may mount what he likes over /usr/bin/mount in a mount namespace of his own, and
run it: /proc/PID/exe then says /usr/bin/mount. The mount that a file was opened on cannot be made up. Neither
that nor the list of mounts asks a file system anything, so none can make us wait.
"""

from __future__ import annotations

import functools
import os
import re
import select

_MOUNT = re.compile(rb"^mnt_id:\t(\d+)$", re.MULTILINE)
_PROC = "/proc"


def of_init(proc: str = _PROC) -> frozenset[int]:
    """Return the ids of the mounts in PID 1's mount namespace (proc_pid_mountinfo(5)); empty: not known."""
    try:
        if proc == _PROC:
            return _watched(os.readlink(f"{proc}/1/ns/mnt")).ids()
        with open(f"{proc}/1/mountinfo", "rb") as file:
            return _ids(file.read())
    except (OSError, ValueError):
        return frozenset()


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
        if self._changes.poll(0) or self._known is None:
            self._known = None  # should this fail it is tried again
            os.lseek(self._file, 0, os.SEEK_SET)
            parts = []
            while part := os.read(self._file, 1 << 16):
                parts.append(part)
            self._known = _ids(b"".join(parts))
        return self._known


@functools.lru_cache(maxsize=1)
def _watched(_namespace: str) -> _Mountinfo:
    """Return PID 1's list; it is another file's where PID 1 has moved to another mount namespace."""
    return _Mountinfo()


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
