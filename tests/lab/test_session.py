"""`kmodd lab` as a user sees it, on User-mode Linux, and what it leaves behind: nothing."""

import fcntl
import hashlib
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import guest_processes

pytestmark = pytest.mark.real

Lab = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(autouse=True)
def nothing_is_left(home: Path) -> Iterator[None]:
    yield
    deadline = time.monotonic() + 20
    while (processes := guest_processes(home)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert processes == []
    while list((home / "tmp").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [path.name for path in home.rglob("*")] == ["tmp"]


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 1", 1), ("exit 42", 42), ("kill -KILL $$", 137), ("kill $$", 143)],
)
def test_exit_status(lab: Lab, script: str, status: int) -> None:
    done = lab("sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")


def test_every_byte_both_ways_and_apart(lab: Lab) -> None:
    data = bytes(range(256)) * 8
    done = lab("sh", "-c", "tee /dev/stderr", input=data)
    assert (done.returncode, done.stdout, done.stderr) == (0, data, data)


def test_large_output(lab: Lab, tmp_path: Path) -> None:
    data = os.urandom(5_000_000)
    (tmp_path / "large").write_bytes(data)
    done = lab("cat", str(tmp_path / "large"))
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


def test_large_input(lab: Lab) -> None:
    data = os.urandom(500_000)
    assert lab("sha256sum", input=data).stdout.decode().split()[0] == hashlib.sha256(data).hexdigest()


def test_output_comes_as_it_is_written(home: Path, lab_command: Callable[..., list[str]]) -> None:
    with subprocess.Popen(
        lab_command("sh", "-c", "echo one; read word; echo $word"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"one\n"
        process.stdin.write(b"two\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"two\n"
    assert process.returncode == 0


def test_a_reader_that_leaves(lab_command: Callable[..., list[str]]) -> None:
    with subprocess.Popen(lab_command("yes"), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
    assert process.returncode == 128 + signal.SIGPIPE


def test_the_time_is_up(lab: Lab) -> None:
    done = lab("sleep", "100", timeout=3)
    assert done.returncode == 5
    assert done.stderr == b"kmodd lab: the lab was ended after 3 seconds (--timeout)\n"


def test_a_panic(lab: Lab) -> None:
    done = lab("sh", "-c", "echo c > /proc/sysrq-trigger")
    assert done.returncode == 1
    assert b"Kernel panic - not syncing: sysrq triggered crash" in done.stderr.splitlines()[-1]


def test_powered_off(lab: Lab) -> None:
    done = lab("busybox", "poweroff", "-f")
    assert done.returncode == 1
    assert b"the guest ended before its work was done" in done.stderr


def test_no_command_of_that_name(lab: Lab) -> None:
    done = lab("kmodd-no-such-program")
    assert done.returncode == 127
    assert done.stderr == b"kmodd lab: cannot run kmodd-no-such-program: No such file or directory\n"


@pytest.mark.parametrize("running", [True, False], ids=["running", "booting"])
@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL],
    ids=lambda n: n.name,
)
def test_a_signal_ends_it(
    number: signal.Signals, running: bool, home: Path, lab_command: Callable[..., list[str]]
) -> None:
    command = lab_command("sh", "-c", "echo up; sleep 100")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        if running:
            assert process.stdout.readline() == b"up\n"
        else:
            # Not before the guest is there, and the lab has its signal handlers.
            deadline = time.monotonic() + 20
            while not any("linux.uml" in line for line in guest_processes(home)):
                assert time.monotonic() < deadline
        process.send_signal(number)
    assert process.returncode == (-9 if number is signal.SIGKILL else 128 + number)


class Terminal:
    """The lab with a terminal of its own, played from here."""

    def __init__(self, command: list[str]) -> None:
        self.master, slave = pty.openpty()
        self.resize(33, 111)
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.process = subprocess.Popen(["setsid", "-c", *command], stdin=slave, stdout=slave, stderr=slave)
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def expect(self, text: bytes, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert select.select([self.master], [], [], deadline - time.monotonic())[0], self.seen
            self.seen += os.read(self.master, 65536)
        self.seen = self.seen.partition(text)[2]

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self) -> int:
        try:
            status = self.process.wait(60)
        finally:
            self.process.kill()
        # Nothing of the guest's raw terminal is left.
        deadline = time.monotonic() + 10
        while termios.tcgetattr(self.slave) != self.before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert termios.tcgetattr(self.slave) == self.before
        os.close(self.master)
        os.close(self.slave)
        return status


SHELL = ("sh", "-c", "TERM=dumb PS1='ready> ' exec bash --norc -i")


def test_a_shell_with_job_control(lab_command: Callable[..., list[str]]) -> None:
    terminal = Terminal(lab_command(*SHELL))
    terminal.expect(b"ready> ")
    terminal.type(b"stty size\r")
    terminal.expect(b"33 111\r\n")
    terminal.resize(44, 122)
    # Without a child: one that is stopped between vfork(2) and exec leaves its parent running.
    terminal.type(b"mkfifo /tmp/f; bash -c 'exec 9<>/tmp/f; while echo tick; do read -t 0.2 -u 9; done'\r")
    terminal.expect(b"tick\r\n")
    terminal.type(b"\x1a")
    terminal.expect(b"Stopped")
    terminal.type(b"fg\r")
    terminal.expect(b"fg\r\n")
    terminal.expect(b"\ntick\r\n")
    terminal.type(b"\x03")
    terminal.expect(b"ready> ")
    terminal.type(b"stty size; echo status $?\r")
    terminal.expect(b"44 122\r\nstatus 0\r\n")
    terminal.type(b"exit 7\r")
    assert terminal.end() == 7


def test_three_escapes_end_a_guest_that_listens_to_nothing(lab_command: Callable[..., list[str]]) -> None:
    terminal = Terminal(lab_command("sh", "-c", "trap '' INT QUIT; stty raw; echo up; sleep 100"))
    terminal.expect(b"up")
    terminal.type(b"\x1d\x1d\x1d")
    assert terminal.end() == 137


def test_the_terminal_is_restored_after_a_kill(lab_command: Callable[..., list[str]]) -> None:
    # The lab must not lead the session: the end of that one's leader takes the terminal away.
    terminal = Terminal(["sh", "-c", '"$@"; exit $?', "sh", *lab_command(*SHELL)])
    terminal.expect(b"ready> ")
    (lab,) = map(
        int, Path(f"/proc/{terminal.process.pid}/task/{terminal.process.pid}/children").read_text().split()
    )
    os.kill(lab, signal.SIGKILL)
    assert terminal.end() == 137


def test_an_ordinary_user(home: Path, lab_command: Callable[..., list[str]]) -> None:
    home.joinpath("tmp").chmod(0o777)
    for path in (home, *home.parents):
        if path.stat().st_uid == os.getuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *lab_command("id", "-u")]
    done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL, cwd="/")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"0\n", b"")
