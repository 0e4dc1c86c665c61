"""Who a task is that is blocked in request_module(), as /proc tells it while the task cannot change.

Needs what `stacks` needs, and CAP_SYS_PTRACE for exe and the user namespace. A task is looked at through
its directory in /proc, opened once: should it end and its number go to another task, the reads fail.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass

from kmodd.kernel.cgroup import belongs_to
from kmodd.model import UNKNOWN_REQUESTER, Requester
from kmodd.names import printable

_CAPABLE = 1 << 16 | 1 << 21  # CAP_SYS_MODULE, CAP_SYS_ADMIN
_ESCAPED = re.compile(rb"\\([n\\])")
# One search for what stacks.waiting_for() and frames() would do in several: it is done for each request.
_ASKING = re.compile(
    r"^\[<[0-9a-f]+>\] call_usermodehelper_exec\+.*\n(?:.*\n)*?"
    r"\[<[0-9a-f]+>\] __request_module\+.*\n(?:\[<[0-9a-f]+>\] (\w+)[\w.]*\+)?",
    re.MULTILINE,
)
_TURNS = 4
_FLAGS = os.O_RDONLY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Status:
    """What a task's status file says of it (proc(5)); uid and gid are the effective ones."""

    comm: bytes
    state: str
    pid: int
    uid: int
    gid: int
    capabilities: int


def parse_status(raw: bytes) -> Status:
    r"""Return what a status file says. The kernel writes a line end in the name as `\n`, and `\` as `\\`.

    Raises:
        ValueError: it is not a status file.
    """
    name, _end, rest = raw.partition(b"\n")
    name = name.removeprefix(b"Name:\t")
    if b"\\" in name:
        name = _ESCAPED.sub(lambda found: b"\n" if found[1] == b"n" else b"\\", name)
    try:
        return Status(
            comm=name,
            state=_value(rest, b"State:\t")[:1].decode("ascii"),
            pid=int(_value(rest, b"Tgid:\t")),
            uid=int(_value(rest, b"\nUid:\t").split()[1]),
            gid=int(_value(rest, b"\nGid:\t").split()[1]),
            capabilities=int(_value(rest, b"CapEff:\t"), 16),
        )
    except IndexError as err:
        raise ValueError(f"not a status file: {err}") from err


def _value(rest: bytes, key: bytes) -> bytes:
    """Return a value; behind the first line nothing is of a task's own choosing."""
    start = rest.index(key) + len(key)
    return rest[start : rest.index(b"\n", start)]


def call_site(stack: str) -> str | None:
    """Return the function that called request_module(): the frame behind `__request_module`.

    Without what a compiler adds to the name of its copy of a function (`.isra.0`, `.part.0`). None where the
    stack is not that of a task that waits for its helper.
    """
    asking = _ASKING.search(stack)
    return None if asking is None else asking[1]


def waiting(tid: int, proc: str = "/proc") -> Requester | None:
    """Return who the task `tid` is; None where it does not wait in request_module() now.

    `pid` and `comm` are those of its process, `uid` and `gid` the task's effective ones. A kernel thread has
    no `exe`. `call_site` is a function of the kernel. What cannot be found out is None.
    """
    try:
        task = os.open(f"{proc}/{tid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        blocked = _blocked(task)
        if blocked is None:
            return None
        status, site = blocked
        comm = status.comm if status.pid == tid else _comm(f"{proc}/{status.pid}/comm")
        unit, container = _cgroup(task)
        return Requester(
            pid=status.pid,
            comm=None if comm is None else printable(comm),
            uid=status.uid,
            gid=status.gid,
            exe=_exe(task),
            unit=unit,
            container=container,
            privileged=_privileged(task, status, proc),
            call_site=site,
        )
    except (OSError, ValueError):
        return None  # it was killed while it was looked at
    finally:
        os.close(task)


def _blocked(task: int) -> tuple[Status, str | None] | None:
    """Return a task's status and call site where it sleeps in request_module().

    The stack is read last: who sleeps there after the status was read has slept all the time, and a task
    that sleeps changes neither its credentials nor its program. That of a running task may be an old one.
    """
    for _turn in range(_TURNS):
        status = parse_status(_read(task, "status"))
        if status.state == "R":
            os.sched_yield()  # it has started its helper and not come to wait for it yet
            continue
        if status.state != "D":
            return None
        asking = _ASKING.search(_read(task, "stack").decode("ascii", errors="replace"))
        return None if asking is None else (status, asking[1])
    return None


def known_by_number(tid: int, asked: int, proc: str = "/proc") -> Requester:
    """Return what may be said of a task that does not wait: its process, where it is as old as its request.

    `asked` is when it asked, CLOCK_BOOTTIME in ns. It may run another program since, as somebody else.
    """
    try:
        with open(f"{proc}/{tid}/stat", "rb") as file:
            stat = file.read(4096)
        started = int(stat[stat.rindex(b")") + 2 :].split()[19]) * (10**9 // os.sysconf("SC_CLK_TCK"))
        if started > asked:
            return UNKNOWN_REQUESTER
        with open(f"{proc}/{tid}/status", "rb") as file:
            return Requester(pid=parse_status(file.read(8192)).pid)
    except (OSError, ValueError, IndexError):
        return UNKNOWN_REQUESTER


def _privileged(task: int, status: Status, proc: str) -> bool | None:
    """Whether it has CAP_SYS_MODULE or CAP_SYS_ADMIN in PID 1's user namespace."""
    if not status.capabilities & _CAPABLE:
        return False
    try:
        return os.readlink("ns/user", dir_fd=task) == _initial(proc)
    except OSError:
        return None


@functools.lru_cache(maxsize=1)
def _initial(proc: str) -> str:
    """Return PID 1's user namespace, which it never leaves."""
    return os.readlink(f"{proc}/1/ns/user")


def _cgroup(task: int) -> tuple[str | None, str | None]:
    try:
        return belongs_to(_read(task, "cgroup"))
    except OSError:
        return None, None


def _exe(task: int) -> str | None:
    try:
        return printable(os.fsencode(os.readlink("exe", dir_fd=task)))
    except OSError:
        return None


def _comm(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read(64).removesuffix(b"\n")
    except OSError:
        return None


def _read(task: int, name: str) -> bytes:
    fd = os.open(name, _FLAGS, dir_fd=task)
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)
