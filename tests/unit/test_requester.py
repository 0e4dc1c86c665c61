"""Who a task is, from made-up /proc trees; and which unit and container a control group names."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.kernel import cgroup, requester, stacks
from kmodd.kernel.tracing import Asked, Tracing
from kmodd.model import UNKNOWN_REQUESTER, Requester
from kmodd.names import printable
from kmodd.sources.whoasked import AGE, NOBODY, RECORDS, WhoAsked

ASKING = """\
[<0>] call_usermodehelper_exec+0x14a/0x180
[<0>] __request_module+0x1b5/0x300
[<0>] __sock_create+0x10e/0x210
[<0>] __sys_socket+0x57/0xd0
[<0>] do_syscall_64+0x55/0xb0
"""
ELSEWHERE = "[<0>] pipe_read+0x2e/0x1000\n[<0>] do_syscall_64+0x55/0xb0\n"
ID = "0123456789abcdef" * 4
INIT_NS, OTHER_NS = "user:[4026531837]", "user:[4026532201]"
BOTH, PLAIN = "000001ffffffffff", "0000000000000400"


class Proc:
    """A /proc of our own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ran = 0
        (root / "1/ns").mkdir(parents=True)
        (root / "1/ns/user").symlink_to(INIT_NS)

    def task(
        self,
        tid: int,
        *,
        pid: int | None = None,
        state: str = "D",
        name: str = "python3",
        uid: int = 1000,
        caps: str = PLAIN,
        stack: str = ASKING,
        exe: str | None = "/usr/bin/python3.11",
        cgroup: str = "0::/\n",
        namespace: str = INIT_NS,
        started: int = 5,
        groups: str = "",
        flags: int = 0x00400000,
        memory: bool = True,
        pids: str | None = None,
    ) -> None:
        pid = pid or tid
        for directory in (self.root / str(tid), self.root / str(pid) / "task" / str(tid)):
            (directory / "ns").mkdir(parents=True, exist_ok=True)
            (directory / "status").write_text(
                f"Name:\t{name}\nUmask:\t0022\nState:\t{state} (whatever)\nTgid:\t{pid}\nPid:\t{tid}\n"
                f"Uid:\t7\t{uid}\t8\t9\nGid:\t7\t{uid}\t8\t9\nFDSize:\t64\nGroups:\t{groups} \n"
                + (f"NStgid:\t{pids}\n" if pids else "")
                + ("VmPeak:\t  2692 kB\nVmSize:\t  2692 kB\n" if memory else "")
                + f"CapInh:\t0\nCapEff:\t{caps}\n"
            )
            fields = " ".join(["0"] * 2 + ["77"] + ["0"] * 2 + [str(flags)] + ["0"] * 12 + [str(started)])
            (directory / "stat").write_text(f"{tid} ({name}) {state} {fields}\n")
            (directory / "comm").write_text(f"{name}\n")
            (directory / "stack").write_text(stack)
            (directory / "cgroup").write_text(cgroup)
            (directory / "wchan").write_text("call_usermodehelper_exec" if stack == ASKING else "0")
            self.ran += 1
            (directory / "schedstat").write_text(f"1 2 {self.ran}\n")
            for link, target in (("exe", exe), ("ns/user", namespace)):
                (directory / link).unlink(missing_ok=True)
                if target is not None:
                    (directory / link).symlink_to(target)

    def who(self, tid: int) -> Requester | None:
        return requester.waiting(tid, str(self.root))

    def opened(self) -> int:
        """How many of its files we have open."""
        found = 0
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the one of this list
                found += os.readlink(f"/proc/self/fd/{fd}").startswith(f"{self.root}/")
        return found


@pytest.fixture
def proc(tmp_path: Path) -> Iterator[Proc]:
    requester.forget()
    yield Proc(tmp_path)
    requester.forget()


def test_all_that_is_known(proc: Proc) -> None:
    proc.task(
        812,
        cgroup="0::/user.slice/user-1000.slice/user@1000.service/app.slice/x.scope\n",
        groups="4 24 1000",
    )
    assert proc.who(812) == Requester(
        pid=812,
        comm="python3",
        uid=1000,
        gid=1000,
        exe="/usr/bin/python3.11",
        unit="user@1000.service",
        container=None,
        privileged=False,
        call_site="__sock_create",
        kernel_thread=False,
        cgroup="/user.slice/user-1000.slice/user@1000.service/app.slice/x.scope",
        namespaces=(),
        groups=(4, 24, 1000),
    )


def test_groups_are_not_told() -> None:
    assert "groups" not in Requester(groups=(4,)).as_json()


def test_a_status_that_is_long_with_groups_is_read_whole(proc: Proc) -> None:
    groups = range(100_000, 165_536)
    proc.task(813, groups=" ".join(map(str, groups)))
    who = proc.who(813)
    assert who is not None
    assert (who.uid, who.privileged, who.groups) == (1000, False, tuple(groups))


def test_a_thread_is_told_by_its_process(proc: Proc) -> None:
    proc.task(20, name="the process", state="S", stack=ELSEWHERE)
    proc.task(21, pid=20, name="its thread")
    who = proc.who(21)
    assert who is not None
    assert (who.pid, who.comm) == (20, "the process")


@pytest.mark.parametrize(
    ("state", "stack"),
    [
        ("R", ASKING),  # the stack of a running task may be an old one
        ("S", ASKING),
        ("D", ELSEWHERE),
        ("D", ""),
        ("D", "[<0>] __request_module+0x1/0x2\n"),  # it still waits for one of the kernel's slots
    ],
)
def test_a_task_that_does_not_wait_is_nobody(proc: Proc, state: str, stack: str) -> None:
    proc.task(30, state=state, stack=stack)
    assert proc.who(30) is None
    assert proc.who(31) is None


@pytest.mark.parametrize(
    ("caps", "namespace", "privileged"),
    [
        (BOTH, INIT_NS, True),
        (f"{1 << 16:016x}", INIT_NS, True),
        (f"{1 << 21:016x}", INIT_NS, True),
        (f"{1 << 12:016x}", INIT_NS, False),
        (BOTH, OTHER_NS, False),
        (PLAIN, OTHER_NS, False),
    ],
)
def test_privileged(proc: Proc, caps: str, namespace: str, privileged: bool) -> None:
    proc.task(40, caps=caps, namespace=namespace)
    who = proc.who(40)
    assert who is not None
    assert who.privileged is privileged


def test_privileged_is_not_guessed(proc: Proc) -> None:
    proc.task(40, caps=BOTH)
    os.unlink(proc.root / "40/ns/user")
    who = proc.who(40)
    assert who is not None
    assert (who.privileged, who.namespaces) == (None, None)


def test_pid_1s_namespaces_are_not_guessed(proc: Proc) -> None:
    proc.task(41, caps=BOTH)
    shutil.rmtree(proc.root / "1")
    who = proc.who(41)
    assert who is not None
    assert (who.privileged, who.namespaces) == (None, None)


def test_a_kernel_without_user_namespaces_has_one(proc: Proc) -> None:
    os.unlink(proc.root / "1/ns/user")
    proc.task(40, caps=BOTH)
    os.unlink(proc.root / "40/ns/user")
    who = proc.who(40)
    assert who is not None
    assert (who.privileged, who.namespaces) == (True, ())


def test_namespaces_that_are_not_pid_1s(proc: Proc) -> None:
    (proc.root / "1/ns/net").symlink_to("net:[1]")
    proc.task(42, namespace=OTHER_NS, pids="42\t7")
    net = proc.root / "42/ns/net"
    for target, namespaces in (("net:[1]", ("pid", "user")), ("net:[2]", ("net", "pid", "user"))):
        net.unlink(missing_ok=True)
        net.symlink_to(target)
        who = proc.who(42)
        assert who is not None
        assert who.namespaces == namespaces
        assert who.as_json()["namespaces"] == list(namespaces)
    proc.task(43, pids="43")
    (proc.root / "43/ns/net").symlink_to("net:[1]")
    who = proc.who(43)
    assert who is not None
    assert who.namespaces == ()


def test_a_kernel_thread(proc: Proc) -> None:
    worker = {"name": "kworker/u4:1-events_unbound", "uid": 0, "caps": BOTH, "exe": None, "memory": False}
    proc.task(50, flags=0x04208060, **worker)  # type: ignore[arg-type]
    who = proc.who(50)
    assert who is not None
    assert (who.comm, who.exe, who.uid, who.privileged) == ("kworker/u4:1-events_unbound", None, 0, True)
    assert who.kernel_thread is True
    proc.task(51, flags=0x00400004, **worker)  # type: ignore[arg-type]  # a process that is about to end
    who = proc.who(51)
    assert who is not None
    assert who.kernel_thread is False


@pytest.mark.parametrize(
    ("name", "comm"),
    [
        (r"a\nState:\tR", r"a; State:\tR"),
        (r"x\\ny", r"x\ny"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("Uid: 0 0 0 0", "Uid: 0 0 0 0"),
    ],
)
def test_names_that_would_forge_something(proc: Proc, name: str, comm: str) -> None:
    proc.task(60, name=name)
    who = proc.who(60)
    assert who is not None
    assert (who.comm, who.uid) == (comm, 1000)


def test_an_exe_with_any_bytes(proc: Proc) -> None:
    proc.task(61, exe="/tmp/a\nb\x1b (deleted)")
    who = proc.who(61)
    assert who is not None
    assert who.exe == r"/tmp/a; b\x1b (deleted)"


def test_the_frame_behind_request_module() -> None:
    assert requester.call_site(ASKING) == "__sock_create"
    assert requester.call_site(ASKING.replace("__sock_create", "ask.isra.0")) == "ask"
    assert requester.call_site("\n".join(ASKING.splitlines()[:2])) is None
    assert requester.call_site(ELSEWHERE) is None


def test_the_status_of_a_real_task() -> None:
    found = requester.parse_status(Path("/proc/self/status").read_bytes())
    assert (found.pid, found.uid, found.gid) == (os.getpid(), os.geteuid(), os.getegid())
    assert found.comm == Path("/proc/self/comm").read_bytes().removesuffix(b"\n")
    assert sorted(found.groups) == sorted(os.getgroups())
    assert (found.state, found.memory) == ("R", True)
    (effective,) = re.findall(r"^CapEff:\s*(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found.capabilities == int(effective, 16)


@given(st.binary(max_size=200))
def test_garbage_is_no_status(raw: bytes) -> None:
    with contextlib.suppress(ValueError):
        requester.parse_status(raw)
    with contextlib.suppress(ValueError):
        requester.parse_stat(raw)
    cgroup.belongs_to(raw)
    requester.call_site(raw.decode("latin-1"))


@pytest.mark.parametrize(
    ("path", "unit", "container"),
    [
        ("/", None, None),
        ("/init.scope", "init.scope", None),
        ("/system.slice/ssh.service", "ssh.service", None),
        ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service", None),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope", None),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/ssh.service", "user@1000.service", None),
        (f"/system.slice/docker-{ID}.scope", f"docker-{ID}.scope", ID),
        (f"/system.slice/docker-{ID}.scope/system.slice/ssh.service", f"docker-{ID}.scope", ID),
        (f"/docker/{ID}", None, ID),
        (f"/machine.slice/libpod-{ID}.scope/container", f"libpod-{ID}.scope", ID),
        (f"/machine.slice/libpod-conmon-{ID}.scope", f"libpod-conmon-{ID}.scope", None),
        (
            f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope",
            "user@1000.service",
            ID,
        ),
        (
            f"/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope",
            f"cri-containerd-{ID}.scope",
            ID,
        ),
        (f"/kubepods/burstable/pod1/{ID}", None, ID),
        (f"/kubepods.slice/crio-{ID}.scope", f"crio-{ID}.scope", ID),
        ("/lxc.payload.web", None, "web"),
        ("/lxc.monitor.web", None, None),
        ("/lxc/web/system.slice/cron.service", "cron.service", "web"),
        ("/machine.slice/machine-deb\\x2dian.scope/payload", "machine-deb\\x2dian.scope", "deb-ian"),
        ("/machine.slice/systemd-nspawn@web.service/payload", "systemd-nspawn@web.service", "web"),
        ("/machine.slice/machine-qemu\\x2d1\\x2dvm.scope", "machine-qemu\\x2d1\\x2dvm.scope", None),
        (f"/system.slice/docker-{ID[1:]}.scope", f"docker-{ID[1:]}.scope", None),
        (f"/{ID}", None, None),
        ("/a b\x1b/x", None, None),
        ("/machine.slice/machine-a\\x0ab.scope", "machine-a\\x0ab.scope", "a; b"),
    ],
)
def test_control_groups(path: str, unit: str | None, container: str | None) -> None:
    found = cgroup.belongs_to(f"0::{path}\n".encode())
    assert (found.unit, found.container) == (unit, container)
    assert found.path == printable(path.encode())


def test_control_groups_of_version_1() -> None:
    hybrid = b"12:pids:/x\n1:name=systemd:/system.slice/ssh.service\n0::/\n"
    assert cgroup.belongs_to(hybrid) == ("/system.slice/ssh.service", "ssh.service", None)
    assert (
        cgroup.belongs_to(hybrid.replace(b"0::/\n", b"0::/system.slice/a:b.service\n")).unit == "a:b.service"
    )
    assert cgroup.belongs_to(b"") == (None, None, None)


def test_all_who_ask(proc: Proc) -> None:
    proc.task(70)
    proc.task(71, pid=70)
    proc.task(72, state="S")
    proc.task(73, stack=ELSEWHERE)
    assert sorted(stacks.requesting(str(proc.root)) or []) == [70, 71]
    assert stacks.requesting(str(proc.root), deadline=0.0) is None


# Joining


class Recorded(Tracing):
    """Tracing that has recorded what a test says; `late` is announced by no interrupt yet."""

    def __init__(self) -> None:
        super().__init__(())
        self.new: list[Asked] = []
        self.late: list[Asked] = []

    @property
    def on(self) -> bool:
        return True

    def drain(self, *, everywhere: bool = False) -> list[Asked]:
        found, self.new = self.new, []
        if everywhere:
            found, self.late = found + self.late, []
        return found


class Join:
    def __init__(self, proc: Proc) -> None:
        self.now = 1_000_000_000_000
        self.tracing = Recorded()
        self.who = WhoAsked(self.tracing, str(proc.root), lambda: self.now)

    def asked(self, tid: int, name: str, *, wait: bool = True) -> Asked:
        self.now += 1000
        return Asked(self.now, tid, name.encode(), wait)

    def pid(self, name: str) -> int | None:
        return self.who.claim(name.encode()).requester.pid


@pytest.fixture
def join(proc: Proc) -> Join:
    return Join(proc)


def test_each_record_is_claimed_once(proc: Proc, join: Join) -> None:
    for tid in (80, 81, 82):
        proc.task(tid)
    join.tracing.new = [join.asked(81, "x"), join.asked(80, "x"), join.asked(82, "y")]
    assert [join.pid(name) for name in ("x", "y", "x", "x", "z")] == [81, 82, 80, None, None]


# Before the helper comes


class Looks:
    """Counts the whole looks at tasks when a helper has come."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tids: list[int] = []
        look = requester.waiting

        def counted(tid: int, *arguments: Any, **options: Any) -> Requester | None:
            self.tids.append(tid)
            return look(tid, *arguments, **options)

        monkeypatch.setattr(requester, "waiting", counted)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch)


def test_whoever_was_looked_at_ahead_is_not_looked_at_again(proc: Proc, join: Join, looks: Looks) -> None:
    proc.task(90)
    proc.task(91, uid=1001)
    join.tracing.new = [join.asked(90, "x"), join.asked(91, "y")]
    join.who.look_ahead()
    assert [join.pid("y"), join.pid("x")] == [91, 90]
    assert looks.tids == []


def test_who_does_not_wait_any_more_is_not_who_asks(proc: Proc, join: Join) -> None:
    proc.task(92)
    proc.task(93)
    join.tracing.new = [join.asked(92, "x")]
    join.who.look_ahead()
    proc.task(92, stack=ELSEWHERE)
    join.tracing.late = [join.asked(93, "x")]
    assert join.pid("x") == 93


def test_one_that_has_run_in_between_is_looked_at_anew(proc: Proc, join: Join, looks: Looks) -> None:
    """It sleeps in request_module() again, as somebody else."""
    proc.task(92, uid=0)
    join.tracing.new = [join.asked(92, "x")]
    join.who.look_ahead()
    proc.task(92, uid=1000)
    assert join.who.claim(b"x").requester.uid == 1000
    assert looks.tids == [92]


@pytest.mark.parametrize("text", ["0 0 0\n", "", None])
def test_where_the_kernel_does_not_count_it_is_looked_at_anew(
    proc: Proc, join: Join, looks: Looks, text: str | None
) -> None:
    proc.task(97)
    path = proc.root / "97/schedstat"
    path.unlink()
    if text is not None:
        path.write_text(text)
    join.tracing.new = [join.asked(97, "x")]
    join.who.look_ahead()
    requester.forget()
    assert proc.opened() == 0
    assert join.pid("x") == 97
    assert looks.tids == [97]


@pytest.mark.parametrize("text", ["0", "do_wait", "pipe_read", None])
def test_the_stack_of_one_that_does_not_wait_for_a_helper_is_not_read(
    proc: Proc, join: Join, looks: Looks, text: str | None
) -> None:
    """It may be executing a program, and then to read its stack would wait for whatever that waits for."""
    proc.task(97)
    wchan, stack = proc.root / "97/wchan", proc.root / "97/stack"
    wchan.unlink()
    if text is not None:
        wchan.write_text(text)
    stack.unlink()
    os.mkfifo(stack)  # to open it would wait for ever
    join.tracing.new = [join.asked(97, "x")]
    join.who.look_ahead()
    assert join.who.claim(b"x").early
    stack.unlink()
    stack.write_text(ASKING)
    wchan.write_text("call_usermodehelper_exec")
    assert join.pid("x") == 97


def test_on_user_mode_linux_wchan_says_nothing(proc: Proc, join: Join) -> None:
    (proc.root / "cpuinfo").write_text("processor\t: 0\nvendor_id\t: User Mode Linux\n")
    proc.task(97)
    (proc.root / "97/wchan").write_text("um_idle_sleep")
    join.tracing.new = [join.asked(97, "x")]
    assert join.pid("x") == 97


def test_a_number_that_has_become_anothers_is_not_who_asked(proc: Proc, join: Join) -> None:
    proc.task(94, uid=0)
    join.tracing.new = [join.asked(94, "x")]
    join.who.look_ahead()
    for name in ("schedstat", "status"):
        (proc.root / "94" / name).write_text("")  # the kernel lets nobody read them any more
    shutil.rmtree(proc.root / "94")
    proc.task(94, uid=1000)
    (proc.root / "94/schedstat").write_text("1 2 1\n")
    assert join.who.claim(b"x").requester.uid == 1000


def test_a_file_of_a_task_that_has_ended_is_not_read_as_anothers() -> None:
    """Once it is open, that is: it is what a look at a task rests on, tried with this machine's kernel."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        file = os.open(f"/proc/{process.pid}/schedstat", os.O_RDONLY)
        try:
            assert len(os.pread(file, 256, 0).split()) == 3
            process.communicate()
            with pytest.raises(ProcessLookupError):
                os.pread(file, 256, 0)
        finally:
            os.close(file)


def test_one_that_has_not_come_to_wait_yet_is_looked_at_later(proc: Proc, join: Join, looks: Looks) -> None:
    proc.task(95, state="R", stack=ELSEWHERE)
    join.tracing.new = [join.asked(95, "x")]
    join.who.look_ahead()
    proc.task(95)
    assert join.pid("x") == 95
    assert looks.tids == [95]


def test_a_look_without_the_program_is_not_enough_for_rules_on_programs(proc: Proc) -> None:
    checks = [False]
    join = Join(proc)
    join.who = WhoAsked(join.tracing, str(proc.root), lambda: join.now, check_exe=lambda: checks[0])
    proc.task(96)
    join.tracing.new = [join.asked(96, "x")]
    join.who.look_ahead()
    # A policy that looks at programs has come into force, and this one is on a mount of PID 1's.
    checks[0] = True
    fd = os.open(Path(sys.executable), os.O_PATH)
    (mount,) = re.findall(r"mnt_id:\t(\d+)", Path(f"/proc/self/fdinfo/{fd}").read_text())
    os.close(fd)
    (proc.root / "1/mountinfo").write_text(f"{mount} 1 0:1 / / rw - x x rw\n")
    (proc.root / "96/exe").unlink()
    (proc.root / "96/exe").symlink_to(sys.executable)
    assert join.who.claim(b"x").requester.exe_doubtful is False


def test_nobody_is_looked_at_where_nobody_wants_to_know(proc: Proc) -> None:
    join = Join(proc)
    join.who = WhoAsked(join.tracing, str(proc.root), lambda: join.now, wanted=lambda: False)
    proc.task(98)
    join.tracing.new = [join.asked(98, "x")]
    join.who.look_ahead()
    assert (proc.opened(), join.tracing.new) == (0, []), "read, so that it does not wake"


def test_looks_leave_no_open_files(proc: Proc, join: Join) -> None:
    for tid in range(200, 300):
        proc.task(tid)
    join.tracing.new = [join.asked(tid, f"n{tid}") for tid in range(200, 300)]
    join.who.look_ahead()
    files = len({"/", "status", "wchan", "stack", "cgroup"})
    assert proc.opened() == 64 + requester.RECENT * files, "as many as there can be"
    requester.forget()
    assert proc.opened() == 64
    assert [join.pid(f"n{tid}") for tid in range(200, 260)] == list(range(200, 260))
    assert proc.opened() == 4
    join.who.forget()
    assert proc.opened() == 0


def test_a_task_that_is_looked_at_again_is_read_anew(proc: Proc, join: Join) -> None:
    """From files that are open already, which show it as it is now."""
    for uid, group in ((1000, "a.service"), (1001, "b.service"), (0, "c.service")):
        proc.task(110, uid=uid, cgroup=f"0::/{group}\n")
        join.tracing.new = [join.asked(110, "x")]
        join.who.look_ahead()
        who = join.who.claim(b"x").requester
        assert (who.uid, who.unit) == (uid, group)


def test_one_of_many_that_were_looked_at_still_tells_whether_it_has_run(
    proc: Proc, join: Join, looks: Looks
) -> None:
    tids = range(300, 310)
    for tid in tids:
        proc.task(tid, uid=0)
    join.tracing.new = [join.asked(tid, f"n{tid}") for tid in tids]
    join.who.look_ahead()
    proc.task(300, uid=1000)
    assert [join.who.claim(f"n{tid}".encode()).requester.uid for tid in tids] == [1000, *[0] * 9]
    assert looks.tids == [300]


def test_a_record_that_comes_late_is_found(proc: Proc, join: Join) -> None:
    proc.task(83)
    join.tracing.late = [join.asked(83, "x")]
    assert join.pid("x") == 83


def test_one_that_was_killed_is_nobody_and_its_record_goes_to_nobody(proc: Proc, join: Join) -> None:
    proc.task(85)
    join.tracing.new = [join.asked(84, "x"), join.asked(85, "x")]
    assert [join.pid("x"), join.pid("x")] == [85, None]


def test_one_that_asks_anew_is_not_taken_for_what_it_asked_before(proc: Proc, join: Join) -> None:
    proc.task(86)
    join.tracing.new = [join.asked(86, "x"), join.asked(86, "y")]
    assert [join.pid("x"), join.pid("y")] == [None, 86]


def test_one_whose_record_went_to_another_of_the_same_name_is_found(proc: Proc, join: Join) -> None:
    proc.task(86)
    proc.task(87)
    join.tracing.new = [join.asked(86, "x"), join.asked(87, "x")]
    others = join.who.claim(b"x")  # that of 87, as it turns out
    assert others.requester.pid == 86
    join.who.release(others)
    join.tracing.new = [join.asked(87, "y")]
    assert [join.pid("y"), join.pid("x"), join.pid("x")] == [87, 86, None]


def test_of_several_the_least_privileged_counts_then_the_oldest(proc: Proc, join: Join) -> None:
    for tid, caps in ((100, BOTH), (101, BOTH), (102, PLAIN), (103, PLAIN), (104, BOTH)):
        proc.task(tid, caps=caps)
    join.tracing.new = [join.asked(tid, "x") for tid in (100, 101, 102, 103)]
    assert [join.pid("x"), join.pid("x")] == [102, 103]
    join.tracing.new = [join.asked(104, "x")]
    assert [join.pid("x") for _ in range(4)] == [100, 101, 104, None]


def test_privileged_of_whom_it_is_not_known_counts_as_not(proc: Proc, join: Join) -> None:
    proc.task(105, caps=BOTH)
    proc.task(106, caps=BOTH)
    os.unlink(proc.root / "106/ns/user")
    join.tracing.new = [join.asked(105, "x"), join.asked(106, "x")]
    assert [join.pid("x"), join.pid("x")] == [106, 105]


def test_a_privileged_one_that_has_gone_is_not_given(proc: Proc, join: Join) -> None:
    for tid in (107, 108, 109):
        proc.task(tid, caps=BOTH)
    join.tracing.new = [join.asked(tid, "x") for tid in (107, 108, 109)]
    assert join.pid("x") == 107
    proc.task(108, caps=BOTH, state="S")  # it has been seen waiting
    assert [join.pid("x"), join.pid("x")] == [109, None]


def test_of_those_whose_records_went_to_others_the_least_privileged_counts(proc: Proc, join: Join) -> None:
    proc.task(110, caps=BOTH)
    proc.task(111)
    join.tracing.new = [join.asked(110, "x"), join.asked(111, "x")]
    claims = [join.who.claim(b"x") for _ in range(2)]
    assert [claim.tid for claim in claims] == [111, 110]
    for claim in claims:
        join.who.release(claim)
    assert [join.pid("x") for _ in range(3)] == [111, 110, None]


def test_each_task_is_looked_at_about_once_however_many_ask_for_one_name(
    proc: Proc, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    waiting = requester.waiting

    def counted(tid: int, root: str, **more: bool) -> Requester | None:
        looks.append(tid)
        return waiting(tid, root, **more)

    monkeypatch.setattr(requester, "waiting", counted)
    for tid in range(200, 250):
        proc.task(tid, caps=BOTH)
    join.tracing.new = [join.asked(200, "alone")]
    assert join.pid("alone") == 200
    assert looks == [200]
    looks.clear()
    join.tracing.new = [join.asked(tid, "x") for tid in range(200, 250)]
    assert [join.pid("x") for _ in range(50)] == list(range(200, 250))
    assert len(looks) < 100


def test_records_are_bounded_in_number_and_age(proc: Proc, join: Join) -> None:
    proc.task(87)
    proc.task(88)
    join.tracing.new = [join.asked(87, "old")]
    assert join.pid("y") is None
    join.now += int(AGE * 1e9) + 1
    assert join.pid("old") is None
    join.tracing.new = [join.asked(88, "first"), *(join.asked(1000 + n, "z") for n in range(RECORDS))]
    assert join.pid("first") is None


def test_nowait_tells_a_pid_where_it_is_still_the_same_task(proc: Proc, join: Join) -> None:
    proc.task(89, state="S")
    proc.task(90, state="S", started=1 << 50)
    join.tracing.new = [join.asked(89, "x", wait=False), join.asked(90, "y", wait=False)]
    assert join.who.claim(b"x").requester == Requester(pid=89)
    assert join.who.claim(b"y").requester == UNKNOWN_REQUESTER


def test_nowait_tells_all_of_a_kernel_thread_which_stays_one(proc: Proc, join: Join) -> None:
    for tid, started in ((97, 5), (98, 1 << 50)):
        proc.task(
            tid,
            name="kworker/0:1+events",
            state="I",
            uid=0,
            caps=BOTH,
            exe=None,
            memory=False,
            flags=0x04208060,
            started=started,
        )
    join.tracing.new = [join.asked(97, "x", wait=False), join.asked(98, "y", wait=False)]
    assert join.who.claim(b"x").requester == Requester(
        pid=97, comm="kworker/0:1", uid=0, gid=0, groups=(), privileged=True, kernel_thread=True
    )
    assert join.who.claim(b"y").requester == UNKNOWN_REQUESTER


def test_a_peer(proc: Proc) -> None:
    root = str(proc.root)
    proc.task(120, uid=0, caps=BOTH, state="S", cgroup=f"0::/system.slice/docker-{ID}.scope\n")
    assert requester.peer(120, 0, root) == Requester(
        pid=120,
        comm="python3",
        exe="/usr/bin/python3.11",
        unit=f"docker-{ID}.scope",
        container=ID,
        privileged=True,
        kernel_thread=False,
        cgroup=f"/system.slice/docker-{ID}.scope",
        namespaces=(),
    )
    proc.task(121, uid=0, caps=PLAIN, state="S")
    assert requester.peer(121, 0, root).privileged is False
    proc.task(122, uid=0, caps=BOTH, namespace=OTHER_NS)
    assert requester.peer(122, 0, root).privileged is False
    # Of others than root it is not told, nor where the process is not root's any more.
    proc.task(123, uid=1000, caps=BOTH)
    assert requester.peer(123, 1000, root).privileged is None
    assert requester.peer(123, 0, root).privileged is None
    assert requester.peer(124, 0, root) == UNKNOWN_REQUESTER


def test_one_that_waits_comes_before_one_that_does_not(proc: Proc, join: Join) -> None:
    proc.task(91, state="S")
    proc.task(92)
    join.tracing.new = [join.asked(91, "x", wait=False), join.asked(92, "x")]
    assert [join.pid("x"), join.pid("x")] == [92, 91]


def test_without_tracing_only_the_only_one_is_told(proc: Proc) -> None:
    who = WhoAsked(Tracing(()), str(proc.root))
    nobody = who.claim(b"x")
    assert nobody == NOBODY
    proc.task(93)
    again = who.claim(b"x")
    assert again == NOBODY  # one that nothing is known of is in progress
    who.release(nobody)
    who.release(again)
    first = who.claim(b"x")
    assert first.requester.pid == 93
    proc.task(94)
    second = who.claim(b"y")
    assert second.requester.pid == 94
    proc.task(95)
    proc.task(96)
    third = who.claim(b"z")
    assert third == NOBODY
    who.release(third)
    who.release(second)
    assert who.claim(b"z") == NOBODY


def test_where_nobody_wants_to_know_nobody_is_told(proc: Proc) -> None:
    proc.task(98)
    wanted = False
    who = WhoAsked(Tracing(()), str(proc.root), wanted=lambda: wanted)
    claim = who.claim(b"x")
    assert claim == NOBODY
    who.release(claim)
    wanted = True
    assert who.claim(b"x").requester.pid == 98


def test_a_defect_costs_nobody_their_answer(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_any: bool) -> list[Asked]:
        raise RuntimeError("broken")

    monkeypatch.setattr(join.tracing, "drain", broken)
    assert join.who.claim(b"x") == NOBODY


def test_one_that_was_killed_is_gone_and_not_unknown(proc: Proc, join: Join) -> None:
    proc.task(120, state="Z", stack=ELSEWHERE)
    join.tracing.new = [join.asked(120, "x"), join.asked(121, "x")]
    for _tid in (120, 121):
        claim = join.who.claim(b"x")
        assert (claim.gone, claim.early, claim.tid) == (True, False, None)
    again = join.who.claim(b"x")
    assert (again.gone, again.early) == (False, False), "nothing was recorded of this one"


def test_one_that_asks_anew_is_gone_from_what_it_asked_before(proc: Proc, join: Join) -> None:
    """Its number is that of another program, which a thread of the killed one has executed."""
    proc.task(124, caps=BOTH)
    join.tracing.new = [join.asked(124, "x"), join.asked(124, "y")]
    assert [(claim.gone, claim.tid) for claim in (join.who.claim(b"x"), join.who.claim(b"y"))] == [
        (True, None),
        (False, 124),
    ]
    assert join.who.claim(b"x") == NOBODY, "it has asked for it once"


@pytest.mark.parametrize("ahead", [False, True])
def test_one_whose_next_request_is_in_the_next_sub_buffer_is_gone(
    proc: Proc, join: Join, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    proc.task(124, caps=BOTH)  # as it waits for y
    parts = [[join.asked(124, "x")], [join.asked(125, "x")], [join.asked(124, "y")]]

    def drain(*, everywhere: bool = False) -> list[Asked]:
        return parts.pop(0) if parts else []

    monkeypatch.setattr(join.tracing, "drain", drain)
    if ahead:
        join.who.look_ahead()
    assert [join.who.claim(b"x").gone for _ in range(2)] == [True, True]
    assert join.pid("y") == 124


def test_one_whose_record_went_to_another_and_who_asks_anew_is_gone(
    proc: Proc, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc.task(86, caps=BOTH)
    join.tracing.new = [join.asked(86, "x")]
    others = join.who.claim(b"x")
    join.who.release(others)
    look = requester.waiting

    late = [join.asked(86, "y")]  # what it waits for by now

    def looked(tid: int, *arguments: Any, **options: Any) -> Requester | None:
        join.tracing.late = [late.pop()] if late else []
        return look(tid, *arguments, **options)

    monkeypatch.setattr(requester, "waiting", looked)
    claim = join.who.claim(b"x")
    assert (claim.gone, claim.tid) == (True, None)
    assert join.pid("y") == 86


def test_one_that_is_seen_to_wait_for_what_is_announced_late_is_gone(proc: Proc, join: Join) -> None:
    proc.task(86, state="R", stack=ELSEWHERE)
    join.tracing.new = [join.asked(86, "x")]
    assert join.who.claim(b"x").early
    proc.task(86, caps=BOTH)
    join.tracing.late = [join.asked(86, "y")]
    claim = join.who.claim(b"x")
    assert (claim.gone, claim.tid) == (True, None)
    assert join.pid("y") == 86


def test_whoever_asks_again_and_again_keeps_nobody_waiting(
    proc: Proc, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc.task(86)
    monkeypatch.setattr(join.tracing, "drain", lambda *, everywhere=False: [join.asked(86, "x")])
    assert join.who.claim(b"x").early


@pytest.mark.parametrize("given", [False, True])
def test_an_older_record_that_is_read_later_does_not_take_the_place_of_the_newer(
    proc: Proc, join: Join, given: bool
) -> None:
    proc.task(124)
    older, newer = join.asked(124, "x"), join.asked(124, "y")
    join.tracing.new = [newer]
    assert not given or join.pid("y") == 124
    join.tracing.late = [older]
    assert join.who.claim(b"x").gone
    assert given or join.pid("y") == 124


def test_one_whose_helper_comes_late_is_gone_and_not_unknown(proc: Proc, join: Join) -> None:
    proc.task(125, state="S", stack=ELSEWHERE)
    join.tracing.new = [join.asked(125, "x"), join.asked(126, "x")]
    join.now += 2_000_000_000
    assert [join.who.claim(b"x").gone for _ in range(3)] == [True, True, False]


def test_one_that_is_early_comes_before_one_that_has_gone_on(proc: Proc, join: Join) -> None:
    proc.task(127)
    proc.task(128, state="R", stack=ELSEWHERE)
    join.tracing.new = [join.asked(127, "x"), join.asked(127, "y"), join.asked(128, "x")]
    assert join.who.claim(b"x").early
    proc.task(128)
    assert [join.pid("x"), join.pid("x")] == [128, None]


def test_those_that_have_gone_on_are_bounded_in_number_and_age(proc: Proc, join: Join) -> None:
    proc.task(129)
    join.tracing.new = [join.asked(129, "x"), join.asked(129, "y")]
    assert join.pid("y") == 129
    join.now += int(AGE * 1e9) + 1
    assert join.who.claim(b"x") == NOBODY
    join.tracing.new = [join.asked(129, "x"), *(join.asked(129, "z") for _ in range(RECORDS + 1))]
    join.pid("y")
    assert join.who.claim(b"x") == NOBODY


def test_one_that_does_not_sleep_yet_is_early_and_found_later(proc: Proc, join: Join) -> None:
    proc.task(122, state="R", stack=ELSEWHERE)
    join.tracing.new = [join.asked(122, "x")]
    claim = join.who.claim(b"x")
    assert (claim.gone, claim.early) == (False, True)
    join.who.release(claim)
    proc.task(122)
    assert join.pid("x") == 122


def test_a_program_on_a_mount_that_is_not_pid_1s_is_doubtful(proc: Proc, tmp_path: Path) -> None:
    proc.task(123)
    program = tmp_path / "program"
    program.write_text("")
    exe = proc.root / "123/exe"
    exe.unlink(missing_ok=True)
    exe.symlink_to(program)
    fd = os.open(program, os.O_PATH)
    (mount,) = re.findall(r"mnt_id:\t(\d+)", Path(f"/proc/self/fdinfo/{fd}").read_text())
    os.close(fd)
    for mounts, doubtful in (
        (f"{mount} 1 0:1 / / rw - x x rw\n", False),
        ("999999 1 0:1 / / rw - x x rw\n", True),
    ):
        (proc.root / "1/mountinfo").write_text(mounts)
        who = requester.waiting(123, str(proc.root), check_exe=True)
        assert who is not None
        assert who.exe_doubtful is doubtful
    (proc.root / "1/mountinfo").unlink()
    for check in (True, False):
        who = requester.waiting(123, str(proc.root), check_exe=check)
        assert who is not None
        assert who.exe_doubtful is True
    assert "exe_doubtful" not in who.as_json()
