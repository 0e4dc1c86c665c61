"""Who a task is, as /proc tells it: one that is blocked in request_module() cannot change meanwhile.

Needs what `stacks` needs, and CAP_SYS_PTRACE for exe and the user namespace. A task is looked at through
its directory in /proc, opened once: should it end and its number go to another task, the reads fail, those of
its files that are open already too.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from dataclasses import dataclass
from typing import NamedTuple

from kmodd.kernel import mounts, stacks
from kmodd.kernel.cgroup import Group, belongs_to
from kmodd.model import UNKNOWN_REQUESTER, Requester
from kmodd.names import printable

_CAPABLE = 1 << 16 | 1 << 21  # CAP_SYS_MODULE, CAP_SYS_ADMIN
_ESCAPED = re.compile(rb"\\([n\\])")
# In the order of fs/proc/array.c, with room for other kernels' lines. Behind the first line nothing is of a
# task's own choosing.
_STATUS = re.compile(
    rb"Name:\t(.*)\n(?:Umask:.*\n)?State:\t([A-Za-z]).*\nTgid:\t(\d+)\n(?:.*\n){0,8}?"
    rb"Uid:\t\d+\t(\d+)\t.*\nGid:\t\d+\t(\d+)\t.*\n(?:.*\n){0,8}?Groups:\t([\d ]*)\n"
    rb"(?:NStgid:\t(.*)\n)?"
)
_CAP_EFF = re.compile(rb"^CapEff:\t([0-9a-f]+)\n", re.MULTILINE)
# One search for what stacks.waiting_for() and frames() would do in several: it is done for each request.
_ASKING = re.compile(
    r"^\[<[0-9a-f]+>\] call_usermodehelper_exec\+.*\n(?:.*\n)*?"
    r"\[<[0-9a-f]+>\] __request_module\+.*\n(?:\[<[0-9a-f]+>\] (\w+)[\w.]*\+)?",
    re.MULTILINE,
)
_KINDS = frozenset({"mnt", "net", "user"})
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD, include/linux/sched.h: set when a task is made, never afterwards
_KWORKER = re.compile(rb"^(kworker/[\w:]+)[+-].*", re.DOTALL)
_RAN = "schedstat"
"""The file of a task that tells how often it has been given a processor."""
_TURNS = 4
RECENT = 4
"""Tasks whose files stay open, up to six for each."""
_CHUNK, _LONGEST = 1 << 16, 1 << 20
_FLAGS = os.O_RDONLY | os.O_CLOEXEC


class Status(NamedTuple):
    """What a task's status file says of it (proc(5)); uid and gid are the effective ones.

    `pids`: how many pid namespaces it has a number in, from that of /proc on. `memory`: whether it has any of
    its own, as all but kernel threads and tasks that end have.
    """

    comm: bytes
    state: str
    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...]
    pids: int
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
    name, state, pid, uid, gid, groups, numbers = begin.groups()
    if b"\\" in name:
        name = _ESCAPED.sub(lambda found: b"\n" if found[1] == b"n" else b"\\", name)
    return Status(
        comm=name,
        state=state.decode("ascii"),
        pid=int(pid),
        uid=int(uid),
        gid=int(gid),
        groups=tuple(map(int, groups.split())),
        pids=1 if numbers is None else len(numbers.split()),
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


class Task:
    """A task's directory in /proc, and those of its files that have been read: to read one anew is one call.

    What it opens it closes when nobody has it any more.
    """

    __slots__ = ("_directory", "_files")

    def __init__(self, tid: int, proc: str) -> None:
        """Open the directory.

        Raises:
            OSError: there is no such task.
        """
        self._files: dict[str, int] = {}
        self._directory = -1
        self._directory = os.open(f"{proc}/{tid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def __del__(self) -> None:
        self.narrow()

    def read(self, name: str) -> bytes:
        """Return what a file says now.

        Raises:
            OSError: the task has ended, or the kernel does not let us.
        """
        fd = self._files.get(name)
        if fd is None:
            fd = self._files[name] = os.open(name, _FLAGS, dir_fd=self._directory)
        data = part = os.pread(fd, _CHUNK, 0)
        # A task may have 65,536 groups, and so hide what its status says behind them.
        while len(part) == _CHUNK and len(data) < _LONGEST:
            part = os.pread(fd, _CHUNK, len(data))
            data += part
        return data

    def link(self, name: str) -> str:
        """Return where a link of its points.

        Raises:
            OSError: as `read`.
        """
        return os.readlink(name, dir_fd=self._directory)

    def mount_of_exe(self) -> int | None:
        """Return the id of the mount that its program is on."""
        return mounts.of_program(self._directory)

    def narrow(self, *keep: str) -> None:
        """Close all but some of the files: no other can be read from then on."""
        for name in self._files.keys() - set(keep):
            os.close(self._files.pop(name))
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1


class _Recent:
    """The tasks that were looked at last: who asks for one name often asks for more, as for each protocol."""

    def __init__(self) -> None:
        self._tasks: dict[tuple[str, int], Task] = {}

    def take(self, tid: int, proc: str, first: str) -> tuple[Task, bytes]:
        """Return a task, and what its file `first` says now.

        Raises:
            OSError: there is no such task.
        """
        task = self._tasks.pop((proc, tid), None)
        said = b""
        if task is not None:
            with contextlib.suppress(OSError):
                said = task.read(first)
        if task is None or not said:  # or it has ended, and its number is another's
            task = Task(tid, proc)
            said = task.read(first)
        self._tasks[proc, tid] = task
        if len(self._tasks) > RECENT:
            # A look at it may still go on.
            self._tasks.pop(next(iter(self._tasks))).narrow(_RAN)
        return task, said

    def forget(self) -> None:
        """Let go of all."""
        for task in self._tasks.values():
            task.narrow(_RAN)
        self._tasks.clear()


_RECENT = _Recent()


def forget() -> None:
    """Let go of the tasks that were looked at: nobody will be for a while."""
    _RECENT.forget()


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
        task, status = _RECENT.take(tid, proc, "status")
        return _waiting(task, status, tid, proc, check_exe=check_exe)
    except (OSError, ValueError):
        return None  # it has ended, or was killed while it was looked at


def _waiting(task: Task, status: bytes, tid: int, proc: str, *, check_exe: bool) -> Requester | None:
    blocked = _blocked(task, status, proc)
    if blocked is None:
        return None
    found, site = blocked
    kernel_thread = _is_kernel_thread(task, found)
    doubtful = not check_exe or task.mount_of_exe() not in mounts.of_init(proc)
    return _facts(task, tid, found, proc, kernel_thread=kernel_thread, call_site=site, exe_doubtful=doubtful)


@dataclass(frozen=True, slots=True)
class Look:
    """A look at a task that slept in request_module(), and what tells whether it has run since.

    `switches`: how often it had been given a processor before the look.
    """

    requester: Requester
    task: Task
    switches: int

    def holds(self) -> bool:
        """Whether it has not run since the look: then it waits still, and is what it was."""
        try:
            return _switches(self.task.read(_RAN)) == self.switches
        except (OSError, ValueError):
            return False


def look(tid: int, proc: str = "/proc", *, check_exe: bool = False) -> Look | None:
    """Return what `waiting` does, to be used later; None also where nothing would tell whether it holds.

    The count is read before wchan, which names a function only while a task is on no run queue (get_wchan()
    in kernel/sched/core.c, Linux 5.16): a task whose count stays has slept from then on. On User-mode Linux,
    where wchan does not tell that, nothing does.
    """
    try:
        task, ran = _RECENT.take(tid, proc, _RAN)
        switches = _switches(ran)
        who = _waiting(task, task.read("status"), tid, proc, check_exe=check_exe)
    except (OSError, ValueError):
        return None  # it has ended, or this kernel does not count
    return None if who is None or not switches or stacks.user_mode(proc) else Look(who, task, switches)


def _switches(schedstat: bytes) -> int:
    """Return how often a task has been given a processor; 0: not counted (CONFIG_SCHED_INFO).

    Raises:
        ValueError: the kernel does not say.
    """
    _running, _waiting, switches = schedstat.split()
    return int(switches)


def _facts(
    task: Task,
    tid: int,
    status: Status,
    proc: str,
    *,
    kernel_thread: bool | None,
    call_site: str | None,
    exe_doubtful: bool = False,
) -> Requester:
    comm = status.comm if status.pid == tid else _comm(f"{proc}/{status.pid}/comm")
    group = _cgroup(task)
    return Requester(
        pid=status.pid,
        comm=None if comm is None else printable(comm),
        uid=status.uid,
        gid=status.gid,
        groups=status.groups,
        exe=_exe(task),
        unit=group.unit,
        container=group.container,
        privileged=_privileged(task, status, proc),
        call_site=call_site,
        kernel_thread=kernel_thread,
        cgroup=group.path,
        namespaces=_namespaces(task, status, proc),
        exe_doubtful=exe_doubtful,
    )


def _blocked(task: Task, raw: bytes, proc: str) -> tuple[Status, str | None] | None:
    """Return a task's status and call site where it sleeps in request_module(); `raw`: its status file.

    The stack is read last: who sleeps there after the status was read has slept all the time, and a task
    that sleeps changes neither its credentials nor its program. That of a running task may be an old one.
    """
    for _turn in range(_TURNS):
        status = parse_status(raw)
        if status.state == "R":
            os.sched_yield()  # it has started its helper and not come to wait for it yet
            raw = task.read("status")
            continue
        if status.state != "D" or not stacks.may_read(task.read("wchan"), proc):
            return None
        asking = _ASKING.search(task.read("stack").decode("ascii", errors="replace"))
        return None if asking is None else (status, asking[1])
    return None


def known_by_number(tid: int, asked: int, proc: str = "/proc") -> Requester:
    """Return what may be said of a task that does not wait, where it is as old as its request.

    Of a user's no more than its process: it may run another program since, as somebody else. A kernel thread
    stays one, with the credentials that it was made with. `asked` is when it asked, CLOCK_BOOTTIME in ns.
    """
    try:
        task = Task(tid, proc)
        stat = parse_stat(task.read("stat"))
        if stat.started > asked:
            return UNKNOWN_REQUESTER
        status = parse_status(task.read("status"))
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
        task = Task(tid, proc)
        stat = parse_stat(task.read("stat"))
        if stat.started > done:
            return gone
        status = parse_status(task.read("status"))
        who = _facts(task, tid, status, proc, kernel_thread=stat.kernel_thread, call_site=None)
        return Seen(who, stat.session)
    except (OSError, ValueError):
        return gone


def peer(pid: int, uid: int, proc: str = "/proc") -> Requester:
    """Return what its process adds to a peer's uid, as ps(1) would show it now; what cannot be read is None.

    `uid`: the peer's when it connected. Only of root's it is told whether it is privileged, and only
    where its process still is root's.
    """
    try:
        task = Task(pid, proc)
        status = parse_status(task.read("status"))
        group = _cgroup(task)
        return Requester(
            pid=pid,
            comm=printable(status.comm),
            exe=_exe(task),
            exe_doubtful=uid != 0,
            unit=group.unit,
            container=group.container,
            privileged=_privileged(task, status, proc) if uid == status.uid == 0 else None,
            kernel_thread=False,  # those have no sockets of this kind
            cgroup=group.path,
            namespaces=_namespaces(task, status, proc),
        )
    except (OSError, ValueError):
        return UNKNOWN_REQUESTER


def _is_kernel_thread(task: Task, status: Status) -> bool:
    """Whether a task is a kernel thread; no file is read for one that has memory of its own."""
    return not status.memory and parse_stat(task.read("stat")).kernel_thread


def _privileged(task: Task, status: Status, proc: str) -> bool | None:
    """Whether it has CAP_SYS_MODULE or CAP_SYS_ADMIN in PID 1's user namespace."""
    if not status.capabilities & _CAPABLE:
        return False
    try:
        initial = _initial(proc).get("user")
        return initial is None or task.link("ns/user") == initial
    except OSError:
        return None


def _namespaces(task: Task, status: Status, proc: str) -> tuple[str, ...] | None:
    """Return which of its namespaces are not PID 1's."""
    try:
        found = [kind for kind, initial in _initial(proc).items() if task.link(f"ns/{kind}") != initial]
    except OSError:
        return None
    if status.pids > 1:
        found.append("pid")
    return tuple(sorted(found))


@functools.lru_cache(maxsize=1)
def _initial(proc: str) -> dict[str, str]:
    """Return PID 1's namespaces of each kind that this kernel has, as it was when first looked at.

    It never leaves that of users, by which rules judge; the others are only told.

    Raises:
        OSError: they cannot be seen.
    """
    found = {}
    there = os.listdir(f"{proc}/1/ns")
    for kind in _KINDS.intersection(there):
        found[kind] = os.readlink(f"{proc}/1/ns/{kind}")
    return found


def _cgroup(task: Task) -> Group:
    try:
        return belongs_to(task.read("cgroup"))
    except OSError:
        return Group()


def _exe(task: Task) -> str | None:
    try:
        return printable(os.fsencode(task.link("exe")))
    except OSError:
        return None


def _comm(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read(64).removesuffix(b"\n")
    except OSError:
        return None
