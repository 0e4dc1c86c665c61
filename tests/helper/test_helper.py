"""The helper against a played daemon and a played modprobe, started as the kernel starts it."""

import os
import re
import select
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

KERNEL_ENVIRONMENT = {"HOME": "/", "TERM": "linux", "PATH": "/sbin:/usr/sbin:/bin:/usr/bin"}
# The kernel leaves no file open.
NO_FILES = ["sh", "-c", 'unset PWD; exec "$0" "$@" <&- >&- 2>&-']
DEV_NULL = os.makedev(1, 3)
# Never reached: what is waited for happens, or the test fails.
PATIENCE = 30
OWN_STATUS = 7  # of the played modprobe
OTHER_USER = 1000


class Started(NamedTuple):
    """How the played modprobe was started."""

    argv: list[bytes]
    environment: dict[str, str]
    files: dict[int, tuple[int, int]]
    """Descriptor to device type and inode."""


class Jail:
    """A root directory in which kmodd is set up, with a helper to start in it."""

    def __init__(self, root: Path, command: list[str]) -> None:
        self.root = root
        self.command = command
        self.directory = root / "run/kmodd"
        self.link = self.directory / "fallback"
        self.processes: list[subprocess.Popen[bytes]] = []

    def listen(self, backlog: int = 8) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.settimeout(PATIENCE)
        # Relative, because the path may be longer than an address can be.
        listener.bind(os.path.relpath(self.directory / "helper.sock"))
        listener.listen(backlog)
        return listener

    def run(self, *arguments: str | bytes, before: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [*before, *NO_FILES, *self.command, *arguments], cwd=self.root, env=KERNEL_ENVIRONMENT
        )
        self.processes.append(process)
        return process

    def start(self, name: str | bytes = "net-pf-9") -> subprocess.Popen[bytes]:
        return self.run("-q", "--", name)

    def fallen_back(self) -> Started | None:
        """How modprobe was started, by the helper that has ended; None if it was not."""
        record = self.root / "record"
        if not record.exists():
            return None
        argv, environment, files = [], {}, {}
        for item in record.read_bytes().split(b"\0")[:-1]:
            kind, rest = item[:1], item[1:]
            if kind == b"a":
                argv.append(rest)
            elif kind == b"e":
                key, _, value = rest.decode().partition("=")
                environment[key] = value
            else:
                fd, device, inode = map(int, rest.split())
                files[fd] = device, inode
        return Started(argv, environment, files)


@pytest.fixture(params=["lean", "libc", "arm64"])
def jail(request: pytest.FixtureRequest, tmp_path: Path, fake_modprobe: Path) -> Iterator[Jail]:
    assert os.geteuid() == 0, "chroot and files of several owners need root"
    for name in ("run/kmodd", "sbin", "dev"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "run/kmodd").chmod(0o755)
    os.mknod(tmp_path / "dev/null", 0o666 | stat.S_IFCHR, DEV_NULL)
    (tmp_path / "run/kmodd/fallback").symlink_to("../../sbin/kmod")
    shutil.copy(fake_modprobe, tmp_path / "sbin/kmod")
    shutil.copy(request.getfixturevalue(request.param), tmp_path / "kmodd-helper")
    if request.param == "arm64":
        made = Jail(tmp_path, ["qemu-aarch64", "./kmodd-helper"])
    else:
        made = Jail(tmp_path, ["chroot", str(tmp_path), "/kmodd-helper"])
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.kill()
            process.wait(PATIENCE)


only_lean = pytest.mark.parametrize("jail", ["lean"], indirect=True)


def set_default(jail: Jail) -> None:
    """Leave the compiled-in /sbin/modprobe as the only program there is."""
    (jail.root / "sbin/kmod").rename(jail.root / "sbin/modprobe")


def converse(jail: Jail, name: str | bytes, *packets: bytes) -> int:
    """Answer one request, hang up and return the exit status."""
    with jail.listen() as listener:
        helper = jail.start(name)
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(8192) == os.fsencode(name) + b"\0"
            with suppress(BrokenPipeError):  # after a wrong packet it may be gone already
                for packet in packets:
                    connection.send(packet)
        return helper.wait(PATIENCE)


@pytest.mark.parametrize(
    ("packets", "status"),
    [
        ([b"s\0"], 0),
        ([b"s\1"], 1),
        ([b"s\xff"], 1),
        ([b"a", b"s\0"], 0),
        ([b"a", b"s\1"], 1),
    ],
)
def test_answer(jail: Jail, packets: list[bytes], status: int) -> None:
    assert converse(jail, "net-pf-9", *packets) == status
    assert jail.fallen_back() is None


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b"-",
        b"--",
        b"n" * 55,
        b"fs-a b\nc;d$(e)'\"\\\xff\x01",
        b"n" * 4096,
    ],
    ids=["empty", "dash", "dashes", "55", "strange", "longest"],
)
def test_name_arrives_as_it_is(jail: Jail, name: bytes) -> None:
    assert converse(jail, name, b"s\0") == 0
    (jail.directory / "helper.sock").unlink()
    assert jail.start(name).wait(PATIENCE) == OWN_STATUS
    started = jail.fallen_back()
    assert started is not None
    assert started.argv == [b"/sbin/modprobe", b"-q", b"--", name]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-q"],
        ["-q", "--"],
        ["--", "name"],
        ["-q", "name", "name"],
        ["-q", "--", "name", "name"],
        ["-q", "--", "n" * 4097],
    ],
    ids=["none", "q", "no-name", "no-q", "no-dashes", "two-names", "too-long"],
)
def test_nothing_is_asked_for_what_the_kernel_never_says(jail: Jail, arguments: list[str]) -> None:
    with jail.listen() as listener:
        assert jail.run(*arguments).wait(PATIENCE) == 1
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert jail.fallen_back() is None


@pytest.mark.parametrize(
    "packets",
    [
        [],
        [b"a"],
        [b"f"],
        [b"a", b"f"],
        [b""],
        [b"\0"],
        [b"s"],
        [b"s\0\0"],
        [b"s\0" * 2000],
        [b"a\0", b"s\0"],
        [b"a", b"a", b"s\0"],
        [b"x", b"s\0"],
    ],
)
def test_falls_back_when_not_answered(jail: Jail, packets: list[bytes]) -> None:
    assert converse(jail, "net-pf-9", *packets) == OWN_STATUS
    started = jail.fallen_back()
    assert started is not None
    assert started.argv == [b"/sbin/modprobe", b"-q", b"--", b"net-pf-9"]
    assert started.environment == KERNEL_ENVIRONMENT


def test_answer_and_hang_up_at_once(jail: Jail) -> None:
    with jail.listen() as listener:
        helper = jail.start()
        connection, _ = listener.accept()
        connection.recv(8192)
        helper.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, helper.pid, os.WSTOPPED)
        connection.send(b"a")
        connection.send(b"s\0")
        connection.close()
        helper.send_signal(signal.SIGCONT)
        assert helper.wait(PATIENCE) == 0


def test_no_answer_within_a_second(jail: Jail) -> None:
    with jail.listen() as listener:
        begin = time.monotonic()
        assert jail.start().wait(PATIENCE) == OWN_STATUS
        assert 1 <= time.monotonic() - begin < PATIENCE / 2
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(8192) == b"net-pf-9\0"
    assert jail.fallen_back() is not None


def test_interruptions_do_not_prolong_the_second(jail: Jail) -> None:
    with jail.listen() as listener:
        helper = jail.start()
        connection, _ = listener.accept()
        end = time.monotonic() + PATIENCE / 2
        ended = os.pidfd_open(helper.pid)
        with connection:
            # Time spent stopped is not counted, so it gets to run between two interruptions.
            while not select.select([ended], [], [], 0.02)[0] and time.monotonic() < end:
                helper.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, helper.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
                helper.send_signal(signal.SIGCONT)
            assert time.monotonic() < end
        os.close(ended)
        assert helper.wait(PATIENCE) == OWN_STATUS


def test_full_backlog(jail: Jail) -> None:
    with jail.listen(backlog=0) as listener, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(listener.getsockname())  # a backlog of 0 has room for one
        assert jail.start().wait(PATIENCE) == OWN_STATUS
    assert jail.fallen_back() is not None


@pytest.mark.parametrize("socket_is", ["absent", "deserted"])
def test_no_daemon(jail: Jail, socket_is: str) -> None:
    if socket_is == "deserted":
        jail.listen().close()
    assert jail.start().wait(PATIENCE) == OWN_STATUS
    assert jail.fallen_back() is not None


@pytest.mark.parametrize("absent", ["run/kmodd/fallback", "run/kmodd", "run"])
def test_never_set_up_executes_the_default(jail: Jail, absent: str) -> None:
    set_default(jail)
    path = jail.root / absent
    path.unlink() if path.is_symlink() else shutil.rmtree(path)
    assert jail.start().wait(PATIENCE) == OWN_STATUS
    assert jail.fallen_back() is not None


@pytest.mark.parametrize("target", ["/nonexistent/denied", "../../sbin", "../../sbin/plain", "fallback"])
def test_target_that_cannot_be_executed_denies(jail: Jail, target: str) -> None:
    set_default(jail)
    (jail.root / "sbin/plain").write_text("")
    jail.link.unlink()
    jail.link.symlink_to(target)
    assert jail.start().wait(PATIENCE) == 1
    assert jail.fallen_back() is None


@pytest.mark.parametrize(
    "fault",
    [
        "group-writable", "world-writable", "directory-of-another", "directory-is-a-link", "directory-is-a-file",
        "link-of-another", "link-is-a-file", "writable-and-no-link",
    ],
)  # fmt: skip
def test_untrusted_link_denies(jail: Jail, fault: str) -> None:
    set_default(jail)
    (jail.root / "sbin/kmod").symlink_to("modprobe")
    match fault:
        case "group-writable":
            jail.directory.chmod(0o775)
        case "world-writable":
            jail.directory.chmod(0o1757)
        case "directory-of-another":
            os.chown(jail.directory, OTHER_USER, 0)
        case "directory-is-a-link":
            jail.directory.rename(jail.root / "run/other")
            jail.directory.symlink_to("other")
        case "directory-is-a-file":
            shutil.rmtree(jail.directory)
            jail.directory.write_text("")
        case "link-of-another":
            os.lchown(jail.link, OTHER_USER, 0)
        case "link-is-a-file":
            jail.link.unlink()
            shutil.copy(jail.root / "sbin/modprobe", jail.link)
        case "writable-and-no-link":
            jail.link.unlink()
            jail.directory.chmod(0o777)
    assert jail.start().wait(PATIENCE) == 1
    assert jail.fallen_back() is None


def test_link_to_the_helper_itself_denies(jail: Jail) -> None:
    jail.link.unlink()
    jail.link.symlink_to("../../kmodd-helper")
    assert jail.start().wait(PATIENCE) == 1


@pytest.mark.parametrize("jail", ["lean", "libc"], indirect=True)
def test_helper_in_the_place_of_modprobe_denies(jail: Jail) -> None:
    jail.link.unlink()
    (jail.root / "kmodd-helper").rename(jail.root / "sbin/modprobe")
    jail.command[-1] = "/sbin/modprobe"
    assert jail.start().wait(PATIENCE) == 1


def test_modprobe_gets_three_files(jail: Jail) -> None:
    assert converse(jail, "net-pf-9", b"f") == OWN_STATUS
    started = jail.fallen_back()
    assert started is not None
    assert {fd: device for fd, (device, _) in started.files.items()} == dict.fromkeys(range(3), DEV_NULL)


@pytest.mark.parametrize("jail", ["lean", "libc"], indirect=True)
def test_modprobe_is_executed_without_dev_null(jail: Jail) -> None:
    (jail.root / "dev/null").unlink()
    assert jail.start().wait(PATIENCE) == OWN_STATUS
    started = jail.fallen_back()
    assert started is not None
    assert started.files == {}


def test_open_files_stay(jail: Jail) -> None:
    with (jail.root / "terminal").open("w+b") as terminal:
        helper = subprocess.Popen(
            [*jail.command, "-q", "--", "net-pf-9"],
            cwd=jail.root, env=KERNEL_ENVIRONMENT, stdin=terminal, stdout=terminal, stderr=terminal,
        )  # fmt: skip
        inode = os.fstat(terminal.fileno()).st_ino
        assert helper.wait(PATIENCE) == OWN_STATUS
    started = jail.fallen_back()
    assert started is not None
    assert started.files == dict.fromkeys(range(3), (0, inode))


@only_lean
@pytest.mark.parametrize(
    ("packets", "calls"),
    [
        ([b"s\0"], "execve socket connect sendto ppoll recvfrom exit_group"),
        ([b"a", b"s\0"], "execve socket connect sendto ppoll recvfrom ppoll recvfrom exit_group"),
    ],
    ids=["answer", "accept-and-answer"],
)
def test_no_system_call_too_many(jail: Jail, tmp_path: Path, packets: list[bytes], calls: str) -> None:
    trace = tmp_path / "trace"
    with jail.listen() as listener:
        helper = jail.run("-q", "--", "net-pf-9", before=("strace", "-o", str(trace)))
        connection, _ = listener.accept()
        with connection:
            connection.recv(8192)
            for packet in packets:
                connection.send(packet)
            assert helper.wait(PATIENCE) == 0
    lines = trace.read_text().splitlines()
    last = max(number for number, line in enumerate(lines) if line.startswith("execve("))
    made = [line for line in lines[last:] if re.match(r"\w+\(", line)]
    assert [line.partition("(")[0] for line in made] == calls.split()
    limits = [line.split("], 1, ")[1].split(", NULL, 0)")[0] for line in made if line.startswith("ppoll(")]
    assert limits == ["{tv_sec=1, tv_nsec=0}", "NULL"][: len(limits)]  # accepted: as long as it takes
