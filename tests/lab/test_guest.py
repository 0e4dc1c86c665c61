"""A guest for tests, on both kernels."""

import os
import re
import signal
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from kmodd.lab import initramfs, stuck
from kmodd.lab.errors import GuestDied, LabError, LabTimeout
from kmodd.lab.guest import Guest
from kmodd.lab.options import LabOptions
from kmodd.lab.qemu import kernel_command_line

pytestmark = pytest.mark.real


@pytest.fixture(params=["uml", "qemu"], scope="module")
def guest(request: pytest.FixtureRequest) -> Guest:
    booted: Guest = request.getfixturevalue(request.param)
    return booted


def test_output_and_status(guest: Guest) -> None:
    done = guest.run("sh", "-c", "echo out; echo err >&2; exit 42")
    assert (done.returncode, done.stdout, done.stderr) == (42, "out\n", "err\n")
    assert guest.run("sh", "-c", "kill -KILL $$").returncode == -signal.SIGKILL
    assert guest.run("kmodd-no-such-program").returncode == 127
    assert guest.run("/etc/passwd").returncode == 126


def test_vector_registers_are_each_threads_own(guest: Guest, tmp_path: Path) -> None:
    source = Path(__file__).with_name("registers.c")
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-static", "-pthread"]
    subprocess.run(["gcc", *flags, "-o", tmp_path / "registers", source], check=True)
    done = guest.run(str(tmp_path / "registers"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout in {"64 bytes\n", "32 bytes\n", "16 bytes\n"}


def test_same_files_same_directory(guest: Guest) -> None:
    assert guest.run("pwd").stdout.strip() == os.getcwd()
    assert guest.run("cat", __file__).stdout == Path(__file__).read_text()


def test_nothing_is_written_back(guest: Guest, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("host\n")
    script = f"echo guest > {file}; touch {tmp_path}/new; rm -rf {tmp_path}/gone; cat {file}"
    (tmp_path / "gone").mkdir()
    assert guest.run("sh", "-c", script).stdout == "guest\n"
    assert file.read_text() == "host\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "gone"]


def test_input_arrives_with_its_end(guest: Guest) -> None:
    text = "".join(f"{number} {uuid.uuid4()}\n" for number in range(2000))
    assert guest.run("cat", input=text).stdout == text
    assert guest.run("cat", input="").stdout == ""
    assert guest.run("cat").stdout == ""
    # Nobody reads it.
    assert guest.run("true", input=text).returncode == 0


def test_environment(guest: Guest) -> None:
    assert guest.run("sh", "-c", "echo $KMODD_X", env={"KMODD_X": "a 'b' $c"}).stdout == "a 'b' $c\n"
    assert "NOTIFY_SOCKET" not in guest.run("env").stdout


def test_what_is_mounted(guest: Guest) -> None:
    assert guest.run("hostname").stdout == "kmodd-lab\n"
    for path in ("/proc", "/sys", "/dev/pts", "/dev/shm", "/run", "/sys/fs/cgroup"):
        assert guest.run("mountpoint", "-q", path).returncode == 0, path
    assert guest.run("sh", "-c", "echo x > /dev/null; cat /dev/fd/0 < /proc/self/comm").stdout == "sh\n"
    assert "LOOPBACK,UP" in guest.run("ip", "link", "show", "lo").stdout


def test_modules_load_and_can_be_indexed(guest: Guest) -> None:
    assert guest.run("modprobe", "dummy").returncode == 0
    assert "dummy" in guest.run("lsmod").stdout
    assert guest.run("rmmod", "dummy").returncode == 0
    done = guest.run("sh", "-c", "echo > /lib/modules/$(uname -r)/modules.new && ls /lib/modules/$(uname -r)")
    assert "modules.new" in done.stdout


def test_python_in_a_fork(guest: Guest) -> None:
    assert guest.python("import os; result = [os.uname().nodename, x + 1]", x=41) == ["kmodd-lab", 42]
    assert (
        guest.python("import sys; result = 'kmodd_lab_mark' in sys.__dict__; sys.kmodd_lab_mark = 1") is False
    )
    assert guest.python("result = 'kmodd_lab_mark' in __import__('sys').__dict__") is False
    with pytest.raises(LabError, match=r"ZeroDivisionError"):
        guest.python("1 / 0")
    with pytest.raises(LabError, match="no result"):
        guest.python("import os; os._exit(3)")
    assert guest.python("result = len(text)", text="x" * 2_000_000) == 2_000_000


def test_a_child_that_keeps_the_pipes_open_is_not_waited_for(guest: Guest) -> None:
    started = time.monotonic()
    assert guest.run("sh", "-c", "sleep 50 & echo here").stdout == "here\n"
    assert time.monotonic() - started < 20


def test_a_time_limit_names_the_command_and_what_it_waited_for(guest: Guest) -> None:
    with pytest.raises(LabTimeout, match=r"sleep 55 takes more than 2 seconds") as caught:
        guest.run("sleep", "55", timeout=2)
    console, waited = caught.value.__notes__
    assert console.startswith("console:\n")
    [line] = [line for line in waited.splitlines() if "'sleep 55'" in line]
    assert re.search(r"^\d+/\d+ 'sleep' S 'sleep 55': .*nanosleep", line)
    assert "kmodd.lab.agent" in waited
    assert "sleep 55" not in guest.run("ps", "ax").stdout


def test_what_is_told_of_processes_is_bounded_and_a_line_each(guest: Guest) -> None:
    source = """
import subprocess
from kmodd.lab import stuck
named = subprocess.Popen(["python3", "-c", "import sys, time; time.sleep(50)", "a\\n1/1 'forged' D ''"])
many = [subprocess.Popen(["sleep", "50"]) for _ in range(200)]
text = stuck.report()
for each in (named, *many):
    each.kill()
    each.wait()
result = text
"""
    text = guest.python(source)
    assert isinstance(text, str)
    assert len(text) <= stuck.LONGEST + 100
    assert text.splitlines()[-1].endswith("more characters")
    assert not [line for line in text.splitlines() if line.startswith("1/1 'forged'")]


def test_in_the_background(guest: Guest) -> None:
    first = guest.start("sh", "-c", "echo first; touch /run/lab-test; exec sleep 60")
    assert (
        guest.run("sh", "-c", "until [ -e /run/lab-test ]; do sleep 0.1; done; echo second").stdout
        == "second\n"
    )
    guest.signal(first, signal.SIGTERM)
    done = guest.wait(first)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "first\n")


def test_orphans_are_reaped(guest: Guest) -> None:
    guest.run("sh", "-c", "for i in 1 2 3 4 5; do (sh -c true & ) ; done")
    source = """
import pathlib, time
def zombies():
    states = [p.read_text().rpartition(")")[2].split()[0] for p in pathlib.Path("/proc").glob("[0-9]*/stat")]
    return states.count("Z")
deadline = time.monotonic() + 20
while zombies() and time.monotonic() < deadline:
    time.sleep(0.05)
result = zombies()
"""
    assert guest.python(source) == 0


def test_large_output_is_exact(guest: Guest) -> None:
    done = guest.run("seq", "300000")
    assert done.stdout == "".join(f"{number}\n" for number in range(1, 300001))


def test_kernel_log_and_processors(uml: Guest, qemu: Guest) -> None:
    assert "Linux version" in uml.dmesg()
    assert qemu.run("nproc").stdout == "2\n"
    assert qemu.run("test", "-e", "/sys/kernel/tracing/events/module/module_request").returncode == 0


def test_an_old_qemu_is_told_to_leave_the_scheduler_as_it_is(qemu: Guest) -> None:
    said = subprocess.run(["qemu-system-x86_64", "--version"], check=True, capture_output=True, text=True)
    new = re.search(r"version (8\.[1-9]|9\.|[1-9]\d)", said.stdout) is not None
    qemu.run("mkdir", "/sys/kernel/tracing/instances/kmodd-tried")
    options = qemu.run("cat", "/sys/kernel/tracing/instances/kmodd-tried/trace_options").stdout.split()
    assert ("record-cmd" if new else "norecord-cmd") in options
    qemu.run("rmdir", "/sys/kernel/tracing/instances/kmodd-tried")


@pytest.mark.parametrize(
    ("version", "told"), [((7, 2), True), ((8, 0), True), (None, True), ((8, 1), False), ((10, 0), False)]
)
def test_which_qemu_is_old(version: tuple[int, int] | None, told: bool) -> None:
    line = kernel_command_line(version)
    assert line.startswith("console=ttyS0 ")
    assert line.endswith(" trace_options=norecord-cmd") is told


def test_a_panic_says_why() -> None:
    with Guest(LabOptions(serve=False)) as guest, pytest.raises(GuestDied, match="sysrq triggered crash"):
        guest.run("sh", "-c", "echo c > /proc/sysrq-trigger")


def test_a_daemon_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    # The agent needs its Python, the daemon gets none.
    monkeypatch.setattr(initramfs, "sys", type("sys", (), {"executable": os.readlink("/proc/self/exe")}))
    with pytest.raises(LabError, match="kmodd does not start in the guest: it ended with status 1"), Guest():
        pass
