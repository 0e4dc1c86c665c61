"""Whether a program is the one that its path names for everybody: it is on a mount of PID 1's.

Who may make a user namespace may mount what he likes over /usr/bin/mount in a mount namespace of his own, and
run it: /proc/PID/exe then says /usr/bin/mount. The mount that a file was opened on cannot be made up. Neither
that nor the list of mounts asks a file system anything, so none can make us wait.
"""

from __future__ import annotations

import os
import re

_MOUNT = re.compile(rb"^mnt_id:\t(\d+)$", re.MULTILINE)


def of_init(proc: str = "/proc") -> frozenset[int]:
    """Return the ids of the mounts in PID 1's mount namespace (proc_pid_mountinfo(5)); empty: not known."""
    try:
        with open(f"{proc}/1/mountinfo", "rb") as file:
            return frozenset(int(line.split(b" ", 1)[0]) for line in file)
    except (OSError, ValueError):
        return frozenset()


def of_program(task: int) -> int | None:
    """Return the id of the mount that a task's program is on; `task`: its directory in /proc, opened."""
    try:
        fd = os.open("exe", os.O_PATH | os.O_CLOEXEC, dir_fd=task)
    except OSError:
        return None
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
            found = _MOUNT.search(file.read(4096))
    except OSError:
        return None
    finally:
        os.close(fd)
    return None if found is None else int(found[1])
