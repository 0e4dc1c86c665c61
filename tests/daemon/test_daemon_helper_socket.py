"""The kernel's way in: packets by hand, and the helper that ships, in a root of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.daemon_harness import NOBODY, PATIENCE, Daemon, Helper, identity, refused, wait_until

SOURCE = Path(__file__).parents[2] / "helper"
KERNEL_ENVIRONMENT = {"HOME": "/", "TERM": "linux", "PATH": "/sbin:/usr/sbin:/bin:/usr/bin"}
PROJECT = """
project('helper', 'c')
py = import('python').find_installation(pure: false)
subdir('helper')
"""


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The helper as meson builds it."""
    directory = tmp_path_factory.mktemp("helper-of-the-daemon")
    (directory / "helper").symlink_to(SOURCE)
    (directory / "meson.build").write_text(PROJECT)
    for command in (["meson", "setup", "--prefix=/usr", "build"], ["ninja", "-C", "build"]):
        done = subprocess.run(command, cwd=directory, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return directory / "build/helper/kmodd-helper"


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        (b"plain", b"s\0"),
        (b"alias-top", b"s\0"),
        (b"built", b"s\0"),
        (b"outer", b"s\0"),
        (b"slow", b"s\0"),
        (b"itself", b"s\0"),
        (b"absent", b"s\x01"),
        (b"bad", b"s\x01"),
        (b"n" * 55, b"s\x01"),
        (b"n" * 56, b"s\x01"),
        (b"n" * 4096, b"s\x01"),
        (b"", b"s\x01"),
        (b"a b", b"s\x01"),
        (b"-r", b"s\x01"),
        (b"/bin/sh", b"s\x01"),
        (b"$(id);\n\xff", b"s\x01"),
        (b"plain\0top", b"s\x01"),
    ],
)
def test_accepted_then_status(daemon: Daemon, name: bytes, answer: bytes) -> None:
    """What is known at once is told without a packet before it; of `slow` it is known after 0.3 s."""
    refused_name = name != b"alias-top" and (not 0 < len(name) <= 55 or not name.isalnum())
    with daemon.helper(name) as helper:
        *before, status = iter(helper.packet, b"")
    assert status == answer
    if refused_name:
        assert before == []
    elif name == b"slow":
        assert before == [b"a"]
    else:
        assert before in ([], [b"a"]), "on a machine that is busy all takes long"
    event = daemon.events(event="request", source="kernel")[-1]
    assert event["requester"] == dict.fromkeys(event["requester"])
    if refused_name:
        assert (event["outcome"], event["status"]) == ("failed", -22)


def test_already_live(daemon: Daemon) -> None:
    for _ in range(2):
        with daemon.helper(b"plain") as helper:
            assert helper.packets() == [b"s\0"]
    outcomes = [event["outcome"] for event in daemon.events(event="request")]
    assert outcomes == ["loaded", "already-live"]


def test_many_share_one_load(daemon: Daemon) -> None:
    with contextlib.ExitStack() as stack:
        helpers = [stack.enter_context(daemon.helper(b"slow")) for _ in range(300)]
        assert all(helper.packets() == [b"s\0"] for helper in helpers)
    requests = daemon.events(event="request", name="slow")
    assert len(requests) == 300
    assert len(daemon.events(event="load", name="slow")) == 1
    assert {event["coalesced_with"] for event in requests[1:]} == {requests[0]["id"]}


def test_long_ones_do_not_hold_up_others(daemon: Daemon) -> None:
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(daemon.helper(b"long")) for _ in range(100)]
        assert all(helper.packet() == b"a" for helper in waiting)
        with daemon.helper(b"plain") as helper:
            assert helper.packets() == [b"s\0"]


@pytest.mark.parametrize("packet", [b"plain", b"p", b"plain\0top", b"\xff" * 8192])
def test_packet_without_nul(daemon: Daemon, packet: bytes) -> None:
    with daemon.helper() as helper:
        helper.sock.send(packet)
        assert helper.packets() == [b"f"]
    assert daemon.status()["requests"]["total"] == 0


def test_packet_that_is_too_long(daemon: Daemon) -> None:
    """Its end with the NUL is cut off, so it is no name."""
    with daemon.helper(b"n" * 20000) as helper:
        assert helper.packets() == [b"f"]
    assert daemon.status()["requests"]["total"] == 0


@pytest.mark.parametrize("packet", [None, b""])
def test_helper_that_goes_without_a_word(daemon: Daemon, packet: bytes | None) -> None:
    before = len(daemon.descriptors())
    with daemon.helper() as helper:
        if packet is not None:
            helper.sock.send(packet)
    wait_until(lambda: len(daemon.descriptors()) == before, "its connection is closed")
    assert daemon.status()["requests"]["total"] == 0


def test_helper_that_gave_up_before_it_was_heard(daemon: Daemon) -> None:
    os.kill(daemon.pid, signal.SIGSTOP)
    with daemon.helper(b"plain\n\xff"):
        pass  # it has fallen back to the real modprobe
    os.kill(daemon.pid, signal.SIGCONT)
    wait_until(lambda: bool(daemon.events(event="daemon", action="fallback")), "it is told")
    assert [event["name"] for event in daemon.events(event="daemon", action="fallback")] == [
        "plain\\x0a\\xff"
    ]
    assert daemon.status()["requests"]["total"] == 0


def test_helper_that_goes_away_while_it_waits(daemon: Daemon) -> None:
    before = len(daemon.descriptors())
    with daemon.helper(b"slow") as helper, daemon.helper(b"slow") as stays:
        assert helper.packet() == b"a"
        helper.sock.close()
        assert stays.packets() == [b"s\0"]
    assert len(daemon.events(event="load", name="slow", outcome="loaded")) == 1
    assert len(daemon.events(event="request", name="slow", outcome="loaded")) == 2
    wait_until(lambda: len(daemon.descriptors()) == before, "their connections are closed")


def test_only_helper_goes_away_while_it_waits(daemon: Daemon) -> None:
    with daemon.follow() as log:
        with daemon.helper(b"slow") as helper:
            assert helper.packet() == b"a"
        assert log.event(event="load", name="slow")["outcome"] == "loaded"
    assert "slow" in daemon.live()


def test_helper_that_says_more_than_its_name(daemon: Daemon) -> None:
    """It is not one of ours; it is dropped, and the load goes on."""
    with daemon.helper(b"slow") as helper:
        assert helper.packet() == b"a"
        helper.sock.send(b"top\0")
        assert helper.packets() in ([], [b"s\0"])
    assert daemon.status()["requests"]["total"] == 1


def test_connection_that_sends_nothing_is_closed(daemon: Daemon) -> None:
    """After 5 s of real time, once in all these tests."""
    with daemon.helper() as helper:
        begin = time.monotonic()
        assert helper.packets() == []
        assert 4.5 <= time.monotonic() - begin < PATIENCE / 2
    assert daemon.status()["requests"]["total"] == 0


def test_only_root_may_connect(daemon: Daemon) -> None:
    assert stat.S_IMODE(os.stat(daemon.helper_path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(daemon.api_path).st_mode) == 0o666
    with identity(NOBODY), pytest.raises(PermissionError):
        daemon.helper()


def test_other_users_are_refused_by_their_credentials(daemon: Daemon) -> None:
    daemon.helper_path.chmod(0o666)
    with identity(NOBODY):
        helper = daemon.helper()
    with helper:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            helper.sock.send(b"plain\0")
        assert refused(helper.sock)
    assert daemon.status()["requests"]["total"] == 0
    with daemon.helper(b"plain") as allowed:
        assert allowed.packets() == [b"s\0"]


def test_wrong_kind_of_socket(daemon: Daemon) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock,
        pytest.raises(OSError, match="Protocol wrong type"),
    ):
        sock.connect(str(daemon.helper_path))


# The helper that ships


def jail(daemon: Daemon, binary: Path) -> list[str]:
    """Make the daemon's root a root directory with the helper in it; return how to run it."""
    (daemon.root / "dev").mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mknod(daemon.root / "dev/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    shutil.copy(binary, daemon.root / "kmodd-helper")
    return ["chroot", str(daemon.root), "/kmodd-helper", "-q", "--"]


def run(command: list[str], name: str | bytes) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*command, name], env=KERNEL_ENVIRONMENT, cwd="/")


@pytest.mark.parametrize(
    ("name", "status"),
    [
        (b"plain", 0),
        (b"alias-top", 0),
        (b"built", 0),
        (b"slow", 0),
        (b"outer", 0),
        (b"absent", 1),
        (b"bad", 1),
        (b"", 1),
        (b"a b", 1),
        (b"n" * 4096, 1),
        (b"\xff\n", 1),
    ],
)
def test_the_helper(daemon: Daemon, binary: Path, name: bytes, status: int) -> None:
    assert run(jail(daemon, binary), name).wait(PATIENCE) == status
    assert len(daemon.events(event="request", source="kernel")) >= 1


def test_a_hundred_helpers_at_once(daemon: Daemon, binary: Path) -> None:
    command = jail(daemon, binary)
    names = ["slow", "plain", "absent", "top"] * 25
    processes = [run(command, name) for name in names]
    assert [process.wait(PATIENCE) for process in processes] == [int(name == "absent") for name in names]
    assert daemon.status()["requests"]["total"] == 100


def test_the_helper_is_killed_while_it_waits(daemon: Daemon, binary: Path) -> None:
    with daemon.follow() as log:
        process = run(jail(daemon, binary), "slow")
        wait_until(lambda: daemon.status()["requests"]["waiting"], "the request waits")
        process.kill()
        process.wait(PATIENCE)
        assert log.event(event="load", name="slow")["outcome"] == "loaded"


def test_the_helper_falls_back_when_the_daemon_stops(daemon: Daemon, binary: Path) -> None:
    """There is no modprobe in its root: falling back fails."""
    process = run(jail(daemon, binary), "long")
    wait_until(lambda: daemon.status()["requests"]["waiting"], "the request waits")
    daemon.stop()
    assert process.wait(PATIENCE) == 1


def test_the_helper_falls_back_without_a_daemon(make: Callable[..., Daemon], binary: Path) -> None:
    """The played modprobe is the helper's own fallback, /sbin/modprobe, and a copy of a static program."""
    daemon = make()
    daemon.run_dir.mkdir(parents=True)
    command = jail(daemon, binary)
    (daemon.root / "sbin").mkdir()
    source = daemon.root / "seven.c"
    source.write_text("int main(void) { return 7; }\n")
    subprocess.run(["cc", "-static", str(source), "-o", str(daemon.root / "sbin/modprobe")], check=True)
    assert run(command, "plain").wait(PATIENCE) == 7
    daemon.start()
    assert run(command, "plain").wait(PATIENCE) == 0
    daemon.stop()
    assert run(command, "plain").wait(PATIENCE) == 7


def test_backlog_holds_a_storm(daemon: Daemon) -> None:
    """The daemon stands still and 500 helpers come: all are served when it goes on."""
    daemon.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, daemon.pid, os.WSTOPPED)
    helpers: list[Helper] = []
    try:
        helpers.extend(daemon.helper(b"plain") for _ in range(500))
    finally:
        daemon.send_signal(signal.SIGCONT)
    assert all(helper.packets() == [b"s\0"] for helper in helpers)
    for helper in helpers:
        helper.sock.close()
