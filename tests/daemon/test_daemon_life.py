"""How the daemon starts, reads its settings again, speaks to its service manager, and ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.daemon_harness import PATIENCE, Daemon, Reply, wait_until
from kmodd.record.journal import DELAY

# End


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_in_order(daemon: Daemon, number: signal.Signals) -> None:
    assert daemon.api_path.exists()
    assert daemon.helper_path.exists()
    daemon.stop(number)
    assert not daemon.api_path.exists()
    assert not daemon.helper_path.exists()
    told = daemon.notifications()
    assert [line for message in told for line in message.splitlines() if line.endswith("=1")] == [
        "READY=1",
        "STOPPING=1",
    ]
    assert f"MAINPID={daemon.pid}" in told[0].splitlines()


def test_signal_after_signal(daemon: Daemon) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        with contextlib.suppress(ProcessLookupError):
            daemon.send_signal(number)
    assert daemon.wait() == 0


def test_waiting_requests_finish(make: Callable[..., Daemon]) -> None:
    daemon = make(settings="stop_timeout = 25\n").start()
    with daemon.helper(b"slow") as helper, daemon.api() as api, daemon.begin("request", "slow") as process:
        assert helper.packet() == b"a"
        api.send("RequestModule", name="slow")
        wait_until(lambda: daemon.status()["requests"]["waiting"] == 3, "all wait")
        daemon.send_signal(signal.SIGTERM)
        assert helper.packets() == [b"s\0"]
        assert api.receive()["result"]["outcome"] == "loaded"
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (0, "")
        assert out.startswith("slow: loaded: slow")
    assert daemon.wait() == 0


def test_long_ones_are_answered(daemon: Daemon) -> None:
    with daemon.helper(b"long") as helper, daemon.api() as api, daemon.begin("request", "long") as process:
        assert helper.packet() == b"a"
        api.send("RequestModule", name="long")
        wait_until(lambda: daemon.status()["requests"]["waiting"] == 3, "all wait")
        daemon.tune("stop_timeout", 0)
        daemon.send_signal(signal.SIGTERM)
        assert helper.packets() == [b"f"]
        with pytest.raises(Reply) as raised:
            api.receive()
        assert raised.value.error == "io.kmodd.LoadFailed"
        assert raised.value.parameters["status"] == -108
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert "kmodd has stopped" in err
    assert daemon.wait() == 0


def test_many_are_answered_at_the_end(daemon: Daemon) -> None:
    with contextlib.ExitStack() as stack:
        helpers = [stack.enter_context(daemon.helper(b"long")) for _ in range(200)]
        clients = [stack.enter_context(daemon.api()) for _ in range(200)]
        for client in clients:
            client.send("RequestModule", name="long")
        wait_until(lambda: daemon.status()["requests"]["waiting"] == 400, "all wait")
        daemon.send_signal(signal.SIGTERM)
        assert all(helper.packets() == [b"f"] for helper in helpers)
        answers = [client.message() for client in clients]
        assert [answer and answer.get("error") for answer in answers] == ["io.kmodd.LoadFailed"] * 200
    assert daemon.wait() == 0


def test_while_it_stops(make: Callable[..., Daemon]) -> None:
    """It takes no new connection; one that is open is told that it stops, and may still read."""
    daemon = make(settings="stop_timeout = 25\n").start()
    with daemon.helper(b"slow") as helper, daemon.helper() as late, daemon.api() as api:
        assert helper.packet() == b"a"
        assert api.call("GetStatus")["status"]["state"] == "running"
        daemon.send_signal(signal.SIGTERM)
        daemon.notified("STOPPING=1")
        wait_until(lambda: not daemon.api_path.exists(), "its sockets have gone")
        assert api.call("GetStatus")["status"]["state"] == "stopping"
        with pytest.raises(Reply) as raised:
            api.call("RequestModule", name="plain")
        assert raised.value.parameters["status"] == -108
        late.sock.send(b"plain\0")
        assert late.packets() == [b"f"]
        with pytest.raises(OSError, match="No such file"):
            daemon.helper()
        assert daemon.kmodd("status").returncode == 69
        assert helper.packets() == [b"s\0"]
    assert daemon.wait() == 0


def test_open_connections_do_not_hold_up_the_end(daemon: Daemon) -> None:
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(daemon.api()) for _ in range(50)]
        followers = [stack.enter_context(daemon.follow()) for _ in range(20)]
        silent = [stack.enter_context(daemon.helper()) for _ in range(20)]
        assert idle[-1].call("GetStatus")
        for follower in followers:
            follower.event(event="daemon", action="start")
        daemon.stop()
        assert all(api.message() is None for api in idle)
        assert all(helper.packets() in ([], [b"f"]) for helper in silent)
        for follower in followers:
            assert follower.event(event="daemon")["action"] == "stop"


# Start


def test_second_daemon_is_refused(daemon: Daemon) -> None:
    first = daemon.process
    second = daemon.begin("serve", "--kernel", "simulated", "--root", str(daemon.root))
    out, err = second.communicate(timeout=PATIENCE)
    assert (second.returncode, out) == (1, "")
    assert err.startswith("kmodd: cannot listen at ")
    assert err.count("\n") == 1
    assert daemon.process is first
    assert daemon.kmodd("request", "plain").returncode == 0
    with daemon.helper(b"top") as helper:
        assert helper.packets() == [b"s\0"]


def test_stale_sockets_are_replaced(make: Callable[..., Daemon]) -> None:
    daemon = make()
    daemon.run_dir.mkdir(parents=True, mode=0o755)
    for path, kind in ((daemon.api_path, socket.SOCK_STREAM), (daemon.helper_path, socket.SOCK_SEQPACKET)):
        with socket.socket(socket.AF_UNIX, kind) as sock:
            sock.bind(str(path))
            sock.listen()
    daemon.start()
    assert daemon.kmodd("request", "plain").returncode == 0


def test_killed_and_started_again(daemon: Daemon) -> None:
    with daemon.helper(b"long") as helper, daemon.api() as api:
        assert helper.packet() == b"a"
        api.call("GetStatus")
        daemon.send_signal(signal.SIGKILL)
        assert daemon.wait() == -signal.SIGKILL
        assert helper.packets() == []
        assert api.message() is None
    assert daemon.kmodd("status").returncode == 69
    daemon.start()
    assert daemon.kmodd("request", "plain").returncode == 0
    with daemon.helper(b"top") as helper:
        assert helper.packets() == [b"s\0"]


def refuses_to_start(daemon: Daemon, *words: str) -> None:
    process = daemon.spawn()
    assert process.wait(PATIENCE) == 1
    said = daemon.errors()
    assert said.startswith("kmodd: ")
    assert said.count("\n") == 1
    for word in words:
        assert word in said
    assert not daemon.notifications()
    assert not daemon.api_path.exists() or not daemon.api_path.is_socket()
    daemon.process = None


@pytest.mark.parametrize(
    "text",
    [
        "load_timeout = ",
        "colour = 1\n",
        "load_timeout = 'x'\n",
        "load_timeout = -1\n",
        "load_timeout = 2026-01-01\n",
        "load_timeout = nan\n",
        "[table]\n",
        "a = " + "[" * 5000,
        "stop_timeout = 99999999999999999999999999999999999999999\n",
        "modprobe_path = '/x\x00'\n",
    ],
)
def test_broken_settings(make: Callable[..., Daemon], text: str) -> None:
    daemon = make(settings=text)
    refuses_to_start(daemon, str(daemon.settings_path))


@pytest.mark.parametrize("folder", ["etc/kmodd", "run/kmodd", "usr/lib/kmodd"])
def test_broken_settings_in_a_directory(make: Callable[..., Daemon], folder: str) -> None:
    daemon = make()
    path = daemon.root / folder / "kmodd.toml.d/50-x.toml"
    path.parent.mkdir(parents=True, mode=0o755)
    path.write_bytes(b"\xff")
    refuses_to_start(daemon, str(path))


def test_settings_that_cannot_be_read(make: Callable[..., Daemon]) -> None:
    daemon = make()
    daemon.settings_path.unlink()
    daemon.settings_path.mkdir()
    refuses_to_start(daemon, str(daemon.settings_path))


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "a = 1",
        "[a]\nb = 1",
        "[a]\nerror = 'EWHAT'",
        "[a]\nlatency = true",
        "[a]\nrequests = 'b'",
        "[" * 9,
    ],
)
def test_broken_simulated_modules(make: Callable[..., Daemon], text: str) -> None:
    refuses_to_start(make(modules=text), "simulated.toml")


def test_no_simulated_modules_file(make: Callable[..., Daemon]) -> None:
    daemon = make()
    (daemon.root / "etc/kmodd/simulated.toml").unlink()
    daemon.start()
    assert daemon.kmodd("request", "net-pf-33").stdout.startswith("net-pf-33: loaded: dccp dccp_ipv4")


def test_directory_that_others_may_change(make: Callable[..., Daemon]) -> None:
    daemon = make()
    daemon.run_dir.mkdir(parents=True)
    daemon.run_dir.chmod(0o775)
    refuses_to_start(daemon, str(daemon.run_dir))
    daemon.run_dir.chmod(0o755)
    os.chown(daemon.run_dir, 1234, 0)
    daemon.errors_path.unlink()
    refuses_to_start(daemon, str(daemon.run_dir))


@pytest.mark.parametrize("which", ["helper_path", "api_path"])
def test_something_else_in_the_sockets_place(make: Callable[..., Daemon], which: str) -> None:
    daemon = make()
    daemon.run_dir.mkdir(parents=True, mode=0o755)
    path: Path = getattr(daemon, which)
    path.write_text("precious")
    refuses_to_start(daemon, str(path))
    assert path.read_text() == "precious"
    other = daemon.api_path if which == "helper_path" else daemon.helper_path
    assert not other.exists(), "what was begun is taken back"


def test_root_that_is_too_long(make: Callable[..., Daemon]) -> None:
    daemon = make()
    root = daemon.root / ("x" * 100)
    process = daemon.begin("serve", "--kernel", "simulated", "--root", str(root))
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("kmodd: cannot listen at ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", ["--hook --kernel simulated", "--hook --root /tmp"])
def test_hook_that_cannot_be(daemon: Daemon, arguments: str) -> None:
    done = daemon.kmodd("serve", *arguments.split())
    assert done.returncode in {1, 2}
    assert done.stderr.startswith("kmodd: cannot hook")


# What the starter left behind


def test_standard_files_closed_at_start(make: Callable[..., Daemon]) -> None:
    """Descriptors 0 to 2 must be /dev/null, and nothing of the daemon's own that a stray write would hit."""
    daemon = make().start(before=("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"))
    assert daemon.kmodd("request", "plain", "absent").returncode == 3
    with daemon.helper(b"bad") as helper:
        assert helper.packets() == [b"s\x01"]
    daemon.send_signal(signal.SIGHUP)
    daemon.notified("READY=1")
    found = [os.readlink(f"/proc/{daemon.pid}/fd/{fd}") for fd in range(3)]
    assert found == ["/dev/null"] * 3


HOSTILE = """
import signal, os
for number in signal.valid_signals():
    if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
        signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
"""

# The real loader with a program of ours, on a machine whose own kernel and PID 1 are left alone.
REAL_LOADER = """
import kmodd.daemon, kmodd.kernel.init
from kmodd.kernel.simulated import SimulatedKernel
kmodd.daemon.LinuxKernel = lambda: SimulatedKernel(())
kmodd.kernel.init.enter = lambda: None
"""


def signals(text: str, key: str) -> set[int]:
    (mask,) = re.findall(rf"^{key}:\s*([0-9a-f]+)$", text, re.MULTILINE)
    return {number + 1 for number in range(64) if int(mask, 16) >> number & 1}


def test_signals_blocked_and_ignored_at_start(make: Callable[..., Daemon]) -> None:
    daemon = make().start(prelude=HOSTILE)
    text = Path(f"/proc/{daemon.pid}/status").read_text()
    assert signals(text, "SigBlk") == set()
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGHUP} <= signals(text, "SigCgt")
    daemon.send_signal(signal.SIGHUP)
    daemon.notified("READY=1")


def test_children_get_clean_signals_and_files(make: Callable[..., Daemon]) -> None:
    daemon = make()
    program, record = daemon.root / "modprobe", daemon.root / "record"
    program.write_text(
        f"#!/bin/sh\nexec 9>{record}.new\ncat /proc/self/status >&9\nls -l /proc/self/fd >&9\nenv >&9\n"
        f'printf "args %s\\n" "$*" >&9\nmv {record}.new {record}\n'
    )
    program.chmod(0o755)
    daemon.settings_path.write_text(f'modprobe_path = "{program}"\nstop_timeout = 0\n')
    with open("/dev/zero", "rb") as inherited:
        daemon.start(
            prelude=HOSTILE + REAL_LOADER,
            kernel="linux",
            pass_fds=(inherited.fileno(),),
            SECRET="of the starter",
        )
        with daemon.helper(b"anything") as helper:
            assert helper.packets() == [b"s\0"]
    text = record.read_text()
    assert signals(text, "SigBlk") == set()
    # glibc's posix_spawn(3) ignores its own two, and every program's libc takes them back. SIGPIPE: what an
    # `install` command prints after the daemon's end must not kill it.
    assert signals(text, "SigIgn") <= {signal.SIGPIPE, 32, 33}
    assert "SECRET" not in text
    assert "KMODD" not in text
    assert "NOTIFY_SOCKET" not in text
    assert "args -s -q -- anything" in text
    assert "/dev/zero" not in text, "a file that the daemon inherited is not passed on"
    assert "socket:" not in text
    wait_until(lambda: daemon.children() == [], "no child is left")


# Settings read again


def test_reload(daemon: Daemon) -> None:
    daemon.tune("fallback", "deny")
    daemon.settings_path.write_text("load_timeout = 7\nstop_timeout = 0\n")
    daemon.send_signal(signal.SIGHUP)
    told = daemon.notified("RELOADING=1")
    assert re.search(r"^MONOTONIC_USEC=\d+$", told, re.MULTILINE)
    daemon.notified("READY=1")
    settings = daemon.settings()
    assert (settings["load_timeout"], settings["fallback"], settings["stop_timeout"]) == (7, "modprobe", 0)
    (event,) = daemon.events(event="daemon", action="reload")
    assert event["error"] is None
    assert sorted(event["changed"]) == ["fallback", "load_timeout"]


@pytest.mark.parametrize(
    "text", ["load_timeout = 9\nfallback = 'never'\n", "not toml", "load_timeout = 9\ncolour = 1\n"]
)
def test_reload_of_a_bad_file(daemon: Daemon, text: str) -> None:
    daemon.tune("load_timeout", 3)
    before = daemon.settings()
    daemon.settings_path.write_text(text)
    daemon.send_signal(signal.SIGHUP)
    daemon.notified("RELOADING=1")
    daemon.notified("READY=1")
    assert daemon.settings() == before
    (event,) = daemon.events(event="daemon", action="reload")
    assert str(daemon.settings_path) in event["error"]
    assert event["changed"] == []
    if not os.path.exists("/dev/log") and not os.path.exists("/run/systemd/journal/socket"):
        assert "settings are left as they are" in daemon.errors()
    daemon.settings_path.write_text("stop_timeout = 0\n")
    daemon.send_signal(signal.SIGHUP)
    daemon.notified("READY=1")
    assert daemon.settings()["load_timeout"] == 0


def test_reload_while_requests_wait(daemon: Daemon) -> None:
    with daemon.api() as api:
        api.send("RequestModule", name="long")
        wait_until(lambda: daemon.status()["requests"]["waiting"], "the request waits")
        daemon.settings_path.write_text("load_timeout = 0.01\nstop_timeout = 0\n")
        daemon.send_signal(signal.SIGHUP)
        with pytest.raises(Reply) as raised:
            api.receive()
        assert raised.value.error == "io.kmodd.TimedOut"


# The service manager


def test_watchdog(make: Callable[..., Daemon]) -> None:
    daemon = make().start(WATCHDOG_USEC="200000")
    for _ in range(3):
        daemon.notified("WATCHDOG=1")


@pytest.mark.parametrize(
    "variables",
    [{"WATCHDOG_USEC": "200000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}],
)
def test_watchdog_of_somebody_else(make: Callable[..., Daemon], variables: dict[str, str]) -> None:
    daemon = make().start(**variables)
    daemon.stop()
    assert not [message for message in daemon.notifications() if "WATCHDOG" in message]


def test_service_manager_that_has_gone(make: Callable[..., Daemon]) -> None:
    daemon = make()
    daemon.spawn(prelude="import os; os.environ['NOTIFY_SOCKET'] = '/nonexistent/notify'")
    wait_until(daemon.api_path.exists, "it serves all the same")
    wait_until(lambda: daemon.kmodd("status").returncode == 0, "it serves all the same")
    daemon.stop()


ACTIVATED = """
import fcntl, os
high = [(fcntl.fcntl(fd, fcntl.F_DUPFD, 200), fd) for fd in {fds}]
for _, fd in high:
    os.close(fd)
for number, (fd, _) in enumerate(high):
    os.dup2(fd, 3 + number)
    os.close(fd)
os.environ["LISTEN_PID"] = str(os.getpid())
"""


@contextlib.contextmanager
def listening(daemon: Daemon):  # type: ignore[no-untyped-def]
    """The sockets of socket activation, at their places: the API's, then the helper's."""
    daemon.run_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as api,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as helper,
    ):
        for sock, path in ((api, daemon.api_path), (helper, daemon.helper_path)):
            sock.bind(str(path))
            sock.listen(128)
        yield api, helper


def activated(daemon: Daemon, *socks: socket.socket, names: str | None, **more: str) -> Daemon:
    fds = tuple(sock.fileno() for sock in socks)
    variables = {"LISTEN_FDS": str(len(fds))} | ({} if names is None else {"LISTEN_FDNAMES": names}) | more
    return daemon.start(prelude=ACTIVATED.format(fds=fds), pass_fds=fds, **variables)


def test_socket_activation(make: Callable[..., Daemon]) -> None:
    daemon = make()
    with listening(daemon) as (api, helper):
        inodes = [os.stat(path).st_ino for path in (daemon.api_path, daemon.helper_path)]
        with daemon.helper(b"plain") as early:
            activated(daemon, api, helper, names="io.kmodd:helper.sock")
            assert early.packets() == [b"s\0"], "who came before the daemon is served"
        assert daemon.kmodd("request", "top").returncode == 0
        daemon.stop()
        assert [os.stat(path).st_ino for path in (daemon.api_path, daemon.helper_path)] == inodes
        with daemon.helper(b"plain") as waits:
            daemon.start(
                prelude=ACTIVATED.format(fds=(api.fileno(), helper.fileno())),
                pass_fds=(api.fileno(), helper.fileno()),
                LISTEN_FDS="2",
                LISTEN_FDNAMES="io.kmodd:helper.sock",
            )
            assert waits.packets() == [b"s\0"], "the sockets outlive a restart"


def test_socket_activation_of_one_socket(make: Callable[..., Daemon]) -> None:
    daemon = make()
    with listening(daemon) as (api, _helper):
        daemon.helper_path.unlink()
        activated(daemon, api, names="io.kmodd")
        assert daemon.kmodd("request", "plain").returncode == 0
        with daemon.helper(b"top") as helper:
            assert helper.packets() == [b"s\0"]
        daemon.stop()
        assert daemon.api_path.exists()
        assert not daemon.helper_path.exists()


def test_socket_of_another_name_is_closed(make: Callable[..., Daemon]) -> None:
    daemon = make()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind("")
        other.listen()
        activated(daemon, other, names="other")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(other.getsockname())
    assert daemon.kmodd("status").returncode == 0


@pytest.mark.parametrize(
    "variables",
    [{"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_FDS": "1"}, {"LISTEN_FDS": "x", "LISTEN_PID": "x"}],
)
def test_sockets_for_somebody_else(make: Callable[..., Daemon], variables: dict[str, str]) -> None:
    daemon = make().start(**variables)
    assert daemon.kmodd("status").returncode == 0
    assert daemon.kmodd("request", "plain").returncode == 0


@pytest.mark.parametrize("count", ["1", "3"])
def test_sockets_that_are_not_there(make: Callable[..., Daemon], count: str) -> None:
    """It serves without them or refuses in one sentence; no traceback."""
    daemon = make()
    prelude = f"import os; os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='{count}', LISTEN_FDNAMES='io.kmodd')"
    process = daemon.spawn(prelude=prelude)
    wait_until(lambda: process.poll() is not None or daemon.notifications(), "it serves or ends")
    assert process.poll() in {None, 1}
    said = daemon.errors()
    daemon.process = None if process.poll() is not None else process
    assert "Traceback" not in said, said


def test_sockets_of_the_wrong_kind(make: Callable[..., Daemon]) -> None:
    """Names swapped in a unit: one sentence at the start, rather than a daemon that serves nobody."""
    daemon = make()
    with listening(daemon) as (api, helper):
        fds = (api.fileno(), helper.fileno())
        process = daemon.spawn(
            prelude=ACTIVATED.format(fds=fds),
            pass_fds=fds,
            LISTEN_FDS="2",
            LISTEN_FDNAMES="helper.sock:io.kmodd",
        )
        wait_until(lambda: process.poll() is not None or daemon.notifications(), "it serves or ends")
        assert process.poll() == 1, "it serves with a stream socket as the helper's"
    assert "Traceback" not in daemon.errors()
    daemon.process = None


def test_listen_variables_do_not_reach_children(make: Callable[..., Daemon]) -> None:
    daemon = make()
    with listening(daemon) as (api, helper):
        activated(daemon, api, helper, names="io.kmodd:helper.sock")
        assert daemon.kmodd("status").returncode == 0
        flags = []
        for fd in (3, 4):
            text = Path(f"/proc/{daemon.pid}/fdinfo/{fd}").read_text()
            flags.append(int(re.findall(r"^flags:\s*(\d+)$", text, re.MULTILINE)[0], 8))
        assert all(flag & os.O_CLOEXEC for flag in flags)


def test_runs_under_setpriv_as_somebody_else(make: Callable[..., Daemon]) -> None:
    """Without root there is a simulated kernel to try: its own user is not root, so nobody may request."""
    daemon = make()
    os.chown(daemon.root, 65534, 65534)
    daemon.errors_path.touch()
    os.chown(daemon.errors_path, 65534, 65534)
    os.chmod(daemon.root / "notify", 0o666)
    prelude = "import kmodd.daemon, kmodd.cli.serve, os; os.setgroups([]); os.setgid(65534); os.setuid(65534)"
    daemon.start(prelude=prelude)
    assert daemon.kmodd("status", uid=65534).returncode == 0
    assert daemon.kmodd("request", "plain").returncode == 0
    other = subprocess.run(
        ["stat", "-c", "%u", str(daemon.api_path)], capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == "65534"


# The journal


def test_what_happened_is_known_after_a_restart(daemon: Daemon) -> None:
    daemon.kmodd("request", "top", "absent")
    before = daemon.events()
    daemon.stop()
    daemon.start()
    after = daemon.events()
    assert after[: len(before)] == before
    assert [event["event"] for event in after[len(before) :]] == ["daemon", "daemon"]
    assert [event["action"] for event in after[len(before) :]] == ["stop", "start"]
    daemon.kmodd("request", "plain")
    numbers = [event["id"] for event in daemon.events()]
    assert len(numbers) == len(set(numbers)), "a number is an event's for good"
    newest = daemon.kmodd("log", "--json", "-n", "1").stdout
    assert json.loads(newest)["name"] == "plain"


def test_a_daemon_that_is_killed_loses_only_what_was_not_written(daemon: Daemon) -> None:
    daemon.kmodd("request", "top", "absent")
    wait_until(lambda: daemon.status()["journal"]["waiting"] == 0, "it is written")
    before = daemon.events()
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    daemon.start()
    assert daemon.events()[: len(before)] == before


WRITING = 1.0
"""Seconds for the write itself, on a machine that has others to do."""


def test_what_happened_is_on_disk_soon_whatever_comes_next(daemon: Daemon) -> None:
    file = daemon.root / "var/lib/kmodd/journal.db"

    def in_file() -> list[str]:
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            return [json.loads(row[0])["event"] for row in connection.execute("SELECT data FROM events")]

    # What the start has to say is written before: a write in progress would be waited for.
    wait_until(lambda: "daemon" in in_file(), "the start is on disk")
    with daemon.api() as api:
        api.call("RequestModule", name="top")
    answered = time.monotonic()
    wait_until(lambda: "request" in in_file(), "the request is on disk")
    assert time.monotonic() - answered < DELAY + WRITING
    assert in_file() == ["daemon", "load", "request"]
    daemon.kill_and_start()
    assert [event["event"] for event in daemon.events()] == ["daemon", "load", "request", "daemon"]


def test_s12_the_journal_can_be_switched_off_and_on(daemon: Daemon) -> None:
    state = daemon.root / "var/lib/kmodd"
    daemon.tune("journal", False)
    wait_until(lambda: daemon.status()["journal"]["waiting"] == 0, "what was before is written")
    times = {file.name: file.stat().st_mtime_ns for file in state.iterdir()}
    assert daemon.kmodd("request", "top").returncode == 0
    assert daemon.status()["journal"]["on"] is False
    assert "off: events are in memory only" in daemon.kmodd("status").stdout
    assert daemon.status()["journal"]["waiting"] == 0
    assert [event["name"] for event in daemon.events(event="request")] == ["top"]
    assert {file.name: file.stat().st_mtime_ns for file in state.iterdir()} == times
    daemon.tune("journal", True)
    wait_until(lambda: daemon.status()["journal"]["waiting"] == 0, "what was in memory is written")
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    daemon.start()
    assert [event["name"] for event in daemon.events(event="request")] == ["top"]
    assert [event["new"] for event in daemon.events(event="setting")] == [False, True]


def test_with_the_journal_off_from_the_start_nothing_is_on_disk(make: Callable[..., Daemon]) -> None:
    daemon = make(settings="journal = false\nstop_timeout = 0\n").start()
    daemon.kmodd("request", "top")
    assert [event["name"] for event in daemon.events(event="request")] == ["top"]
    daemon.stop()
    assert not (daemon.root / "var/lib/kmodd").exists()


def test_a_journal_that_cannot_be_written_keeps_nobody_waiting(make: Callable[..., Daemon]) -> None:
    daemon = make()
    place = daemon.root / "var/lib/kmodd"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch()
    daemon.start()
    assert daemon.kmodd("request", "top").returncode == 0
    status = daemon.status()["journal"]
    assert status["problem"] == f"cannot write {place}/journal.db: File exists"
    with daemon.api() as api:
        api.send("Log", more=True)
        assert api.event(event="request")["name"] == "top"
        # What was there before is not known, and that is said.
        with pytest.raises(Reply) as raised:
            api.receive()
    assert raised.value.error == "io.kmodd.JournalUnreadable"
    assert raised.value.parameters["error"].startswith(f"cannot read {place}/journal.db: File exists")
    # An administrator mends it, and what waited is written.
    place.unlink()
    wait_until(lambda: daemon.status()["journal"]["waiting"] == 0, "it is written")
    assert daemon.status()["journal"]["problem"] is None
    assert [event["name"] for event in daemon.events(event="request")] == ["top"]


FAILING_STEP = """
from kmodd.record import database
database._MIGRATIONS += ("ALTER TABLE events ADD COLUMN gid INTEGER; INSERT INTO nowhere VALUES (1);",)
"""


def test_a_journal_that_cannot_be_brought_up_keeps_nobody_waiting(daemon: Daemon) -> None:
    daemon.kmodd("request", "plain")
    before = daemon.events()
    daemon.stop()
    daemon.start(prelude=FAILING_STEP)
    assert daemon.kmodd("request", "top").returncode == 0
    file = daemon.root / "var/lib/kmodd/journal.db"
    assert daemon.status()["journal"]["problem"] == f"cannot write {file}: no such table: nowhere"
    assert f"journal: cannot write {file}: no such table: nowhere" in daemon.errors()
    daemon.stop()
    daemon.start()
    assert daemon.events()[: len(before)] == before


SLOW_TRACING = """
import asyncio, os
from kmodd.sources.tracer import Tracer

async def switch(self):
    open({begun!r}, "w").close()
    while not os.path.exists({go!r}):
        await asyncio.sleep(0.005)

Tracer.switch = switch
"""


def test_nobody_is_served_before_it_is_known_who_asks(make: Callable[..., Daemon]) -> None:
    daemon = make()
    begun, go = daemon.root / "begun", daemon.root / "go"
    process = daemon.spawn(prelude=SLOW_TRACING.format(begun=str(begun), go=str(go)))
    wait_until(begun.exists, "tracing is being switched on")
    with daemon.helper(b"plain") as helper, daemon.api() as api:
        api.send("RequestModule", name="plain")
        go.touch()
        assert helper.packets() == [b"s\x00"]
        assert api.receive()["result"]["outcome"] in {"loaded", "already-live"}
    first, second = (daemon.events(event=kind)[0]["id"] for kind in ("daemon", "request"))
    assert first < second
    assert process.poll() is None


def test_a_stop_while_it_starts_is_an_orderly_one(make: Callable[..., Daemon]) -> None:
    daemon = make()
    begun, go = daemon.root / "begun", daemon.root / "go"
    process = daemon.spawn(prelude=SLOW_TRACING.format(begun=str(begun), go=str(go)))
    wait_until(begun.exists, "tracing is being switched on")
    process.send_signal(signal.SIGTERM)
    go.touch()
    assert process.wait(PATIENCE) == 0
    assert not daemon.helper_path.exists()
