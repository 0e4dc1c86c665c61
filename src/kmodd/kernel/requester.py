"""Who a task is, as /proc tells it: one that is blocked in request_module() cannot change meanwhile.

Needs what `stacks` needs, and CAP_SYS_PTRACE for exe and the user namespace. A task is looked at through
its directory in /proc, opened once: should it end and its number go to another task, the reads fail, those of
its files that are open already too.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from typing import NamedTuple

from kmodd.kernel import mounts, stacks
from kmodd.kernel.cgroup import belongs_to
from kmodd.model import UNKNOWN_REQUESTER, Requester
from kmodd.names import printable

_CAPABLE = 1 << 16 | 1 << 21  # CAP_SYS_MODULE, CAP_SYS_ADMIN
_ESCAPED = re.compile(rb"\\([n\\])")
# In the order of fs/proc/array.c, with room for other kernels' lines. Behind the first line nothing is of a
# task's own choosing.
_STATUS = re.compile(
    rb"Name:\t(.*)\n(?:Umask:.*\n)?State:\t([A-Za-z]).*\nTgid:\t(\d+)\n(?:.*\n){0,8}?"
    rb"Uid:\t\d+\t(\d+)\t.*\nGid:\t\d+\t(\d+)\t.*\n(?:.*\n){0,8}?Groups:\t([\d ]*)\n"
)
_CAP_EFF = re.compile(rb"^CapEff:\t([0-9a-f]+)\n", re.MULTILINE)
# One search for what stacks.waiting_for() and frames() would do in several: it is done for each request.
_ASKING = re.compile(
    r"^\[<[0-9a-f]+>\] call_usermodehelper_exec\+.*\n(?:.*\n)*?"
    r"\[<[0-9a-f]+>\] __request_module\+.*\n(?:\[<[0-9a-f]+>\] (\w+)[\w.]*\+)?",
    re.MULTILINE,
)
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD, include/linux/sched.h: set when a task is made, never afterwards
_KWORKER = re.compile(rb"^(kworker/[\w:]+)[+-].*", re.DOTALL)
_TURNS = 4
_CHUNK, _LONGEST = 1 << 16, 1 << 20
_FLAGS = os.O_RDONLY | os.O_CLOEXEC


class Status(NamedTuple):
    """What a task's status file says of it (proc(5)); uid and gid are the effective ones.

    `memory`: whether it has any of its own, as all but kernel threads and tasks that end have.
    """

    comm: bytes
    state: str
    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...]
    memory: bool
    capabilities: int


def parse_status(raw: bytes) -> Status:
    r"""Return what a status file says. The kernel writes a line end in the name as `\n`, and `\` as `\\`.

    Raises:
        ValueError: it is not a status file.
    """
    begin = _STATUS.match(raw)
    end = None if begin is None else _CAP_EFF.search(raw, begin.end())
    if begin is None or end is None:
        raise ValueError("not a status file")
    name, state, pid, uid, gid, groups = begin.groups()
    if b"\\" in name:
        name = _ESCAPED.sub(lambda found: b"\n" if found[1] == b"n" else b"\\", name)
    return Status(
        comm=name,
        state=state.decode("ascii"),
        pid=int(pid),
        uid=int(uid),
        gid=int(gid),
        groups=tuple(map(int, groups.split())),
        memory=raw.find(b"\nVmSize:\t", begin.end() - 1, end.start()) >= 0,
        capabilities=int(end[1], 16),
    )


@dataclass(frozen=True, slots=True)
class Stat:
    """What a task's stat file says of it. `started`: CLOCK_BOOTTIME, ns, not later than it was."""

    session: int
    kernel_thread: bool
    started: int


def parse_stat(raw: bytes) -> Stat:
    """Return what a stat file says; the last `)` ends the task's name, which may hold anything.

    Raises:
        ValueError: it is not a stat file.
    """
    fields = raw[raw.rindex(b")") + 2 :].split()
    try:
        return Stat(
            session=int(fields[3]),
            kernel_thread=bool(int(fields[6]) & _KERNEL_THREAD),
            started=int(fields[19]) * (10**9 // os.sysconf("SC_CLK_TCK")),
        )
    except IndexError as err:
        raise ValueError(f"not a stat file: {err}") from err


def call_site(stack: str) -> str | None:
    """Return the function that called request_module(): the frame behind `__request_module`.

    Without what a compiler adds to the name of its copy of a function (`.isra.0`, `.part.0`). None where the
    stack is not that of a task that waits for its helper.
    """
    asking = _ASKING.search(stack)
    return None if asking is None else asking[1]


def is_there(tid: int, proc: str = "/proc") -> bool:
    """Whether a task has not ended; one that was killed is not there, even before its parent knows."""
    try:
        with open(f"{proc}/{tid}/stat", "rb") as file:
            raw = file.read(4096)
        return raw[raw.rindex(b")") + 2 :][:1] not in {b"Z", b"X", b"x"}
    except (OSError, ValueError):
        return False


def waiting(tid: int, proc: str = "/proc", *, check_exe: bool = False) -> Requester | None:
    """Return who the task `tid` is; None where it does not wait in request_module() now.

    `pid` and `comm` are those of its process, `uid`, `gid` and `groups` the task's effective ones. A kernel
    thread has no `exe`. `call_site` is a function of the kernel. What cannot be found out is None.
    `check_exe`: find out whether the path of its program means the same to everybody.
    """
    try:
        task = _open(tid, proc)
    except OSError:
        return None
    try:
        return _waiting(task, tid, proc, check_exe=check_exe)
    finally:
        os.close(task)


def _waiting(task: int, tid: int, proc: str, *, check_exe: bool) -> Requester | None:
    try:
        blocked = _blocked(task, proc)
        if blocked is None:
            return None
        status, site = blocked
        kernel_thread = _is_kernel_thread(task, status)
        doubtful = not (check_exe and mounts.everybodys(mounts.of_program(task), proc))
        return _facts(
            task, tid, status, proc, kernel_thread=kernel_thread, call_site=site, exe_doubtful=doubtful
        )
    except (OSError, ValueError):
        return None  # it was killed while it was looked at


@dataclass(frozen=True, slots=True)
class Look:
    """A look at a task that slept in request_module(), and what tells whether it has run since.

    `schedstat`: that file of its, open. `switches`: how often it had been given a processor before the look.
    """

    requester: Requester
    schedstat: int
    switches: int

    def holds(self) -> bool:
        """Whether it has not run since the look: then it waits still, and is what it was."""
        try:
            return _switches(self.schedstat) == self.switches
        except (OSError, ValueError):
            return False

    def close(self) -> None:
        """Let go of the task; to be called once."""
        os.close(self.schedstat)


def look(tid: int, proc: str = "/proc", *, check_exe: bool = False) -> Look | None:
    """Return what `waiting` does, to be used later; None also where nothing would tell whether it holds.

    The count is read before wchan, which names a function only while a task is on no run queue (get_wchan()
    in kernel/sched/core.c, Linux 5.16): a task whose count stays has slept from then on. On User-mode Linux,
    where wchan does not tell that, nothing does.
    """
    try:
        task = _open(tid, proc)
    except OSError:
        return None
    try:
        schedstat = os.open("schedstat", _FLAGS, dir_fd=task)
    except OSError:
        os.close(task)
        return None
    found = None
    try:
        switches = _switches(schedstat)
        who = _waiting(task, tid, proc, check_exe=check_exe)
        if who is not None and switches and not stacks.user_mode(proc):
            found = Look(who, schedstat, switches)
    except (OSError, ValueError):
        pass  # it has ended, or this kernel does not count
    finally:
        os.close(task)
        if found is None:
            os.close(schedstat)
    return found


def _switches(schedstat: int) -> int:
    """Return how often a task has been given a processor; 0: not counted (CONFIG_SCHED_INFO).

    Raises:
        OSError: it has ended.
        ValueError: the kernel does not say.
    """
    _running, _waiting, switches = os.pread(schedstat, 256, 0).split()
    return int(switches)


def _facts(
    task: int,
    tid: int,
    status: Status,
    proc: str,
    *,
    kernel_thread: bool | None,
    call_site: str | None,
    exe_doubtful: bool = False,
) -> Requester:
    comm = status.comm if status.pid == tid else _comm(f"{proc}/{status.pid}/comm")
    unit, container = _cgroup(task)
    return Requester(
        pid=status.pid,
        comm=None if comm is None else printable(comm),
        uid=status.uid,
        gid=status.gid,
        groups=status.groups,
        exe=_exe(task),
        unit=unit,
        container=container,
        privileged=_privileged(task, status, proc),
        call_site=call_site,
        kernel_thread=kernel_thread,
        exe_doubtful=exe_doubtful,
    )


def _blocked(task: int, proc: str) -> tuple[Status, str | None] | None:
    """Return a task's status and call site where it sleeps in request_module().

    The stack is read last: who sleeps there after the status was read has slept all the time, and a task
    that sleeps changes neither its credentials nor its program. That of a running task may be an old one.
    """
    for _turn in range(_TURNS):
        status = parse_status(_read(task, "status"))
        if status.state == "R":
            os.sched_yield()  # it has started its helper and not come to wait for it yet
            continue
        if status.state != "D" or not stacks.may_read(_read(task, "wchan"), proc):
            return None
        asking = _ASKING.search(_read(task, "stack").decode("ascii", errors="replace"))
        return None if asking is None else (status, asking[1])
    return None


def known_by_number(tid: int, asked: int, proc: str = "/proc") -> Requester:
    """Return what may be said of a task that does not wait, where it is as old as its request.

    Of a user's no more than its process: it may run another program since, as somebody else. A kernel thread
    stays one, with the credentials that it was made with. `asked` is when it asked, CLOCK_BOOTTIME in ns.
    """
    try:
        task = _open(tid, proc)
    except OSError:
        return UNKNOWN_REQUESTER
    try:
        stat = parse_stat(_read(task, "stat"))
        if stat.started > asked:
            return UNKNOWN_REQUESTER
        status = parse_status(_read(task, "status"))
        if not stat.kernel_thread:
            return Requester(pid=status.pid)
        return Requester(
            pid=status.pid,
            # What a worker of the kernel's works on now is not what it worked on then.
            comm=printable(_KWORKER.sub(rb"\1", status.comm)),
            uid=status.uid,
            gid=status.gid,
            groups=status.groups,
            privileged=_privileged(task, status, proc),
            kernel_thread=True,
        )
    except (OSError, ValueError):
        return UNKNOWN_REQUESTER
    finally:
        os.close(task)


@dataclass(frozen=True, slots=True)
class Seen:
    """A task as it was found after it had done something, and its session id; None where it has gone."""

    requester: Requester
    session: int | None = None


def seen(tid: int, done: int, proc: str = "/proc") -> Seen:
    """Return who the task is that did something at `done` (CLOCK_BOOTTIME, ns), as ps(1) would show it now.

    No more than its number where it has gone, and that may be another's by now.
    """
    gone = Seen(Requester(pid=tid))
    try:
        task = _open(tid, proc)
    except OSError:
        return gone
    try:
        stat = parse_stat(_read(task, "stat"))
        if stat.started > done:
            return gone
        status = parse_status(_read(task, "status"))
        who = _facts(task, tid, status, proc, kernel_thread=stat.kernel_thread, call_site=None)
        return Seen(who, stat.session)
    except (OSError, ValueError):
        return gone
    finally:
        os.close(task)


def peer(pid: int, uid: int, proc: str = "/proc") -> Requester:
    """Return what its process adds to a peer's uid, as ps(1) would show it now; what cannot be read is None.

    `uid`: the peer's when it connected. Only of root's it is told whether it is privileged, and only
    where its process still is root's.
    """
    try:
        task = _open(pid, proc)
    except OSError:
        return UNKNOWN_REQUESTER
    try:
        status = parse_status(_read(task, "status"))
        unit, container = _cgroup(task)
        return Requester(
            pid=pid,
            comm=printable(status.comm),
            exe=_exe(task),
            exe_doubtful=uid != 0,
            unit=unit,
            container=container,
            privileged=_privileged(task, status, proc) if uid == status.uid == 0 else None,
            kernel_thread=False,  # those have no sockets of this kind
        )
    except (OSError, ValueError):
        return UNKNOWN_REQUESTER
    finally:
        os.close(task)


def _open(tid: int, proc: str) -> int:
    return os.open(f"{proc}/{tid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _is_kernel_thread(task: int, status: Status) -> bool:
    """Whether a task is a kernel thread; no file is read for one that has memory of its own."""
    return not status.memory and parse_stat(_read(task, "stat")).kernel_thread


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
        data = os.read(fd, _CHUNK)
        if len(data) == _CHUNK:
            # A task may have 65,536 groups, and so hide what its status says behind them.
            while len(data) < _LONGEST and (more := os.read(fd, _CHUNK)):
                data += more
        return data
    finally:
        os.close(fd)
