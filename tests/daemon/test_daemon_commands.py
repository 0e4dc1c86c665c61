"""The command line against a running daemon: exit statuses, JSON, messages; never a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.daemon_harness import NOBODY, PATIENCE, Daemon, environment, wait_until

RESULT = {
    "id", "time", "source", "name", "outcome", "status", "modules", "coalesced_with", "duration_us", "error",
    "requester", "decision", "reason", "denied_modules",
}  # fmt: skip
REQUESTER = {
    "pid",
    "comm",
    "uid",
    "gid",
    "exe",
    "unit",
    "container",
    "privileged",
    "call_site",
    "kernel_thread",
    "cgroup",
    "namespaces",
}
SETTINGS = {
    "modprobe_path", "modprobe_args", "unload_delay", "load_timeout", "fallback", "journal", "journal_keep", "tracing",
    "serial", "kernel.keep_tree", "policy.mode", "stop_timeout", "unload_delays", "keep",
}  # fmt: skip


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def one_sentence(text: str) -> bool:
    return text.startswith("kmodd: ") and text.endswith("\n") and text.count("\n") == 1


# request


def test_request_loads(daemon: Daemon) -> None:
    done = daemon.kmodd("request", "top")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("top: loaded: dep top (")
    assert daemon.live() == ["dep", "top"]


@pytest.mark.parametrize(
    ("name", "outcome", "modules"),
    [
        ("top", "loaded", ["dep", "top"]),
        ("alias-top", "loaded", ["dep", "top"]),
        ("built", "built-in", []),
        ("alias-built", "built-in", []),
        ("outer", "loaded", ["outer"]),
    ],
)
def test_request_json(daemon: Daemon, name: str, outcome: str, modules: list[str]) -> None:
    done = daemon.kmodd("request", "--json", name)
    assert (done.returncode, done.stderr) == (0, "")
    (result,) = lines(done)
    assert set(result) == RESULT
    assert set(result["requester"]) == REQUESTER
    assert result["decision"] == {"action": "allow", "rule": None, "mode": None}
    assert (result["name"], result["outcome"], result["status"]) == (name, outcome, 0)
    assert (result["modules"], result["error"], result["source"]) == (modules, None, "cli")
    assert result["coalesced_with"] is None
    assert (result["requester"]["uid"], result["requester"]["gid"]) == (0, 0)
    assert result["requester"]["exe"] == os.path.realpath("/proc/self/exe")
    (event,) = daemon.events(event="request", name=name)
    assert {key: value for key, value in event.items() if key != "event"} == result | {
        "duration_us": event["duration_us"]
    }


def test_request_already_live(daemon: Daemon) -> None:
    assert daemon.kmodd("request", "plain").returncode == 0
    done = daemon.kmodd("request", "--json", "plain")
    assert done.returncode == 0
    (result,) = lines(done)
    assert (result["outcome"], result["status"], result["modules"]) == ("already-live", 0, [])
    assert daemon.kmodd("request", "plain").stdout.startswith("plain: already-live (")


@pytest.mark.parametrize(
    ("name", "exit_status", "outcome", "words"),
    [
        ("absent", 3, "not-found", "absent"),
        ("bad", 1, "failed", "No such device (ENODEV)"),
        ("worse", 1, "failed", "Cannot allocate memory (ENOMEM)"),
    ],
)
def test_request_fails(daemon: Daemon, name: str, exit_status: int, outcome: str, words: str) -> None:
    plain = daemon.kmodd("request", name)
    assert (plain.returncode, plain.stdout) == (exit_status, "")
    assert one_sentence(plain.stderr)
    assert words in plain.stderr
    done = daemon.kmodd("request", "--json", name)
    assert done.returncode == exit_status
    assert one_sentence(done.stderr)
    (result,) = lines(done)
    assert set(result) == RESULT
    assert set(result["requester"]) == REQUESTER
    assert (result["outcome"], result["modules"]) == (outcome, [])
    assert result["status"] != 0
    assert words in result["error"]


def test_request_times_out_and_the_load_goes_on(daemon: Daemon) -> None:
    done = daemon.kmodd("request", "--json", "--timeout", "0.05", "long")
    assert done.returncode == 5
    assert one_sentence(done.stderr)
    (result,) = lines(done)
    assert (result["outcome"], result["status"]) == ("timed-out", -110)
    assert daemon.status()["loads"] == {"total": 1, "running": 1}
    assert daemon.kmodd("request", "--timeout", "0", "long").returncode == 5
    assert daemon.status()["loads"] == {"total": 1, "running": 1}


def test_request_deadlock(make: Callable[..., Daemon]) -> None:
    """A program that a load runs asks for what that load loads; here every client is such a program."""
    daemon = make().start(prelude="import kmodd.sources.peer as p; p.session = lambda who: (1 << 22) + 1")
    with daemon.helper(b"long") as helper:
        assert helper.packet() == b"a"
        done = daemon.kmodd("request", "--json", "long")
        assert done.returncode == 5
        assert one_sentence(done.stderr)
        assert "EDEADLK" in done.stderr
        (result,) = lines(done)
        assert (result["outcome"], result["status"]) == ("deadlock", -35)


def test_request_of_a_module_that_asks_for_itself(daemon: Daemon) -> None:
    done = daemon.kmodd("request", "--json", "itself")
    assert done.returncode == 0
    assert lines(done)[0]["outcome"] == "loaded"
    (nested,) = daemon.events(event="request", source="kernel", name="itself")
    assert nested["outcome"] == "deadlock"


def test_request_without_waiting(daemon: Daemon) -> None:
    plain = daemon.kmodd("request", "--no-wait", "long")
    assert (plain.returncode, plain.stderr) == (0, "")
    assert plain.stdout.startswith("long: asked, as request ")
    done = daemon.kmodd("request", "--json", "--no-wait", "plain")
    assert done.returncode == 0
    (result,) = lines(done)
    assert set(result) == {"id", "time", "name", "outcome"}
    assert (result["name"], result["outcome"]) == ("plain", None)
    with daemon.follow(name="plain") as log:
        assert log.event(event="request")["id"] == result["id"]


def test_request_of_several(daemon: Daemon) -> None:
    done = daemon.kmodd("request", "plain", "absent", "bad", "top")
    assert done.returncode == 3, "that of the first failure"
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["plain", "top"]
    assert len(done.stderr.splitlines()) == 2
    assert "absent" in done.stderr.splitlines()[0]
    assert "ENODEV" in done.stderr.splitlines()[1]
    done = daemon.kmodd("request", "--json", "bad", "absent", "plain")
    assert done.returncode == 1
    assert [result["outcome"] for result in lines(done)] == ["failed", "not-found", "already-live"]


@pytest.mark.parametrize(
    "name", ["", "a b", "/etc/passwd", ".", "../x", "caf\u00e9", "n" * 4097, "line\nend", "\x1b[31m"]
)
@pytest.mark.parametrize("command", ["request", "remove"])
def test_invalid_name(daemon: Daemon, command: str, name: str) -> None:
    done = daemon.kmodd(command, "--", "plain", name)
    assert (done.returncode, done.stdout) == (2, "")
    assert one_sentence(done.stderr)
    assert "\x1b" not in done.stderr
    assert daemon.status()["requests"]["total"] == 0, "nothing is asked for where a name is refused"


def test_name_of_bytes_that_are_no_text(daemon: Daemon) -> None:
    done = daemon.kmodd("request", os.fsdecode(b"\xff\xfe"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "\\xff\\xfe" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["request"],
        ["request", "--timeout", "-1", "plain"],
        ["request", "--timeout", "nan", "plain"],
        ["request", "--timeout", "soon", "plain"],
        ["request", "--time", "1", "plain"],
        ["request", "-x"],
        ["remove"],
        ["log", "-n", "-1"],
        ["log", "-n", "x"],
        ["log", "--uid", "root"],
        ["log", "-n", "²"],
        ["list", "plain"],
        ["serve", "--kernel", "other"],
        ["frobnicate"],
        [],
    ],
)
def test_usage(daemon: Daemon, arguments: list[str]) -> None:
    done = daemon.kmodd(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: kmodd")


# remove


def test_remove(daemon: Daemon) -> None:
    daemon.kmodd("request", "top", "plain")
    done = daemon.kmodd("remove", "dep")
    assert (done.returncode, done.stdout) == (1, "")
    assert one_sentence(done.stderr)
    assert "used by top" in done.stderr
    done = daemon.kmodd("remove", "--json", "dep", "plain")
    assert done.returncode == 1
    assert lines(done) == [
        {"name": "dep", "removed": [], "error": lines(done)[0]["error"]},
        {"name": "plain", "removed": ["plain"], "error": None},
    ]
    assert "used by top" in lines(done)[0]["error"]
    done = daemon.kmodd("remove", "--json", "--holders", "dep")
    assert (done.returncode, done.stderr) == (0, "")
    assert lines(done) == [{"name": "dep", "removed": ["top", "dep"], "error": None}]
    assert daemon.live() == []
    assert [event["module"] for event in daemon.events(event="unload")] == ["plain", "top", "dep"]


def test_remove_in_words(daemon: Daemon) -> None:
    daemon.kmodd("request", "top", "stuck")
    assert daemon.kmodd("remove", "--holders", "dep").stdout == "dep: unloaded with top\n"
    absent = daemon.kmodd("remove", "dep")
    assert absent.returncode == 3
    assert one_sentence(absent.stderr)
    permanent = daemon.kmodd("remove", "stuck")
    assert permanent.returncode == 1
    assert "permanent" in permanent.stderr
    assert daemon.kmodd("remove", "absent", "stuck").returncode == 3


def test_remove_of_one_that_is_coming(daemon: Daemon) -> None:
    daemon.kmodd("request", "--no-wait", "long")
    done = daemon.kmodd("remove", "long")
    assert done.returncode == 1
    assert one_sentence(done.stderr)


# list, status, tune


def test_list(daemon: Daemon) -> None:
    assert daemon.kmodd("list", "--json").stdout == ""
    result = lines(daemon.kmodd("request", "--json", "top", "stuck"))
    daemon.kmodd("request", "--no-wait", "long")
    done = daemon.kmodd("list", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = {module["name"]: module for module in lines(done)}
    assert list(found) == ["dep", "top", "stuck", "long"]
    assert found["dep"] == {
        "name": "dep", "size": 16384, "refcount": 1, "holders": ["top"], "state": "live", "permanent": False,
        "brought_in_by": result[0]["id"], "autoclean": False, "idle_since": None, "uses": None,
    }  # fmt: skip
    assert found["stuck"]["permanent"] is True
    assert (found["long"]["state"], found["long"]["brought_in_by"]) == ("coming", None)
    words = daemon.kmodd("list")
    assert words.returncode == 0
    assert "\x1b" not in words.stdout
    assert [line.split()[0] for line in words.stdout.splitlines()] == ["Module", *found]


def test_status(daemon: Daemon) -> None:
    daemon.kmodd("request", "plain", "absent", "plain")
    daemon.kmodd("request", "--no-wait", "long")
    done = daemon.kmodd("status", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    (state,) = lines(done)
    assert set(state) == {
        "version", "pid", "state", "uptime_s", "kernel", "hook", "tree", "tracing", "policy", "requests", "loads", "events", "autoclean", "journal", "threads", "settings",
    }  # fmt: skip
    # With the simulated kernel nothing is traced.
    assert (state["tracing"]["on"], state["tracing"]["missed"]) == (False, 0)
    assert "running kernel" in state["tracing"]["problem"]
    assert (state["tracing"]["loads_on"], state["tracing"]["loads_missed"]) == (False, 0)
    assert state["tracing"]["loads_problem"] == state["tracing"]["problem"]
    assert (state["pid"], state["state"]) == (daemon.pid, "running")
    assert state["kernel"]["type"] == "simulated"
    assert state["hook"]["on"] is False
    assert state["requests"] == {
        "total": 4,
        "waiting": 1,
        "outcomes": {"already-live": 1, "loaded": 1, "not-found": 1},
    }
    assert state["loads"] == {"total": 4, "running": 1}
    assert set(state["settings"]) == SETTINGS
    assert state["journal"]["path"].endswith("/var/lib/kmodd/journal.db")
    assert (state["journal"]["problem"], state["journal"]["lost"]) == (None, 0)
    assert state["threads"] <= 2  # the journal's
    words = daemon.kmodd("status")
    assert words.returncode == 0
    assert f"pid {daemon.pid}" in words.stdout
    assert "4 (1 already-live, 1 loaded, 1 not-found), 1 waiting" in words.stdout


def test_tune_reads(daemon: Daemon) -> None:
    (found,) = lines(daemon.kmodd("tune", "--json"))
    assert set(found) == SETTINGS
    (some,) = lines(daemon.kmodd("tune", "--json", "fallback", "load_timeout"))
    assert some == {"fallback": "modprobe", "load_timeout": 0}
    assert daemon.kmodd("tune", "fallback").stdout.split() == ["fallback", "=", '"modprobe"']


def test_tune_changes(daemon: Daemon) -> None:
    done = daemon.kmodd("tune", "--json", "load_timeout=2.5", "fallback=deny", 'modprobe_args=["-q", "--"]')
    assert (done.returncode, done.stderr) == (0, "")
    assert lines(done) == [{"load_timeout": 2.5, "fallback": "deny", "modprobe_args": ["-q", "--"]}]
    changes = daemon.events(event="setting")
    assert [(event["key"], event["old"], event["new"]) for event in changes] == [
        ("load_timeout", 0, 2.5),
        ("fallback", "modprobe", "deny"),
        ("modprobe_args", ["-s", "-q", "--"], ["-q", "--"]),
    ]
    assert {event["requester"]["uid"] for event in changes} == {0}


@pytest.mark.parametrize(
    "setting",
    [
        "colour=blue", "colour", "=1", "load_timeout=-1", "load_timeout=1e9", "load_timeout=NaN", "load_timeout=Infinity",
        "load_timeout=soon", "load_timeout=true", "load_timeout=null", "load_timeout=", "stop_timeout=3601",
        "fallback=never", "fallback=1", "modprobe_path=modprobe", "serial=1", "modprobe_path=/a\\u0000b",
        'modprobe_path="/a\\u0000b"', 'modprobe_path="/\\ud800"', "modprobe_args=-q", "modprobe_args=[1]",
        'modprobe_args=["a\\u0000"]', "journal_keep=30", "journal_keep=0d", "journal_keep=30y",
        "unload_delay={}", "modprobe_path=/" + "x" * 4095,
    ],
)  # fmt: skip
def test_tune_refuses(daemon: Daemon, setting: str) -> None:
    before = daemon.settings()
    done = daemon.kmodd("tune", setting)
    if setting == "modprobe_path=/a\\u0000b":  # no JSON: a string with a backslash, which a path may have
        assert done.returncode == 0
        return
    assert (done.returncode, done.stdout) == (2, "")
    assert one_sentence(done.stderr)
    assert daemon.settings() == before


def test_tune_takes_a_path_that_is_no_text(daemon: Daemon) -> None:
    """Any file name can be a path: bytes that are no UTF-8 come back as they went."""
    done = daemon.kmodd("tune", "--json", os.fsdecode(b"modprobe_path=/opt/\xff"))
    assert done.returncode == 0, done.stderr
    assert os.fsencode(lines(done)[0]["modprobe_path"]) == b"/opt/\xff"
    assert daemon.kmodd("tune").returncode == 0
    assert daemon.kmodd("status").returncode == 0
    assert daemon.kmodd("log").returncode == 0


# log


def test_log_filters(daemon: Daemon) -> None:
    daemon.kmodd("request", "plain", "top", "absent", "bad")
    daemon.kmodd("remove", "plain")
    daemon.kmodd("tune", "load_timeout=5")

    def log(*arguments: str) -> list[dict[str, Any]]:
        done = daemon.kmodd("log", "--json", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return lines(done)

    def short(*arguments: str) -> list[str]:
        return [f"{event['event']} {event.get('name', event.get('module'))}" for event in log(*arguments)]

    everything = log()
    assert [event["event"] for event in everything] == [
        "daemon", *["load", "request"] * 4, "unload", "setting",
    ]  # fmt: skip
    assert [event["event"] for event in everything if {"id", "time", "event"} - set(event)] == []
    assert len({event["id"] for event in everything}) == len(everything)
    assert short("--name", "top") == ["load top", "request top"]
    assert short("--name", "[pt]*") == ["load plain", "request plain", "load top", "request top"]
    assert short("--module", "dep") == ["load top", "request top"]
    assert short("--module", "pl*") == ["load plain", "request plain", "unload plain"]
    assert short("--outcome", "failed") == ["load bad", "request bad"]
    assert short("--outcome", "not-found") == ["load absent", "request absent"]
    assert short("--outcome", "nonsense") == []
    assert [event["event"] for event in log("--uid", "0")] == [*["request"] * 4, "setting"]
    assert log("--uid", "7") == []
    assert log("-n", "3") == everything[-3:]
    assert log("-n", "0") == []
    assert log("-n", "1000") == everything
    assert short("-n", "1", "--name", "top") == ["request top"]
    assert log("--since", everything[-1]["time"]) == everything[-1:]
    assert log("--since", "1000000s") == everything
    assert log("--since", "2999-01-01T00:00:00Z") == []
    assert short("--name", "*", "--outcome", "loaded", "--module", "top") == ["load top", "request top"]


@pytest.mark.parametrize("since", ["yesterday", "", "s", "nans", "infs", "1e400s", "2026-13-01", "-1e18s"])
def test_log_since_nonsense(daemon: Daemon, since: str) -> None:
    done = daemon.kmodd("log", f"--since={since}")
    assert (done.returncode, done.stdout) == (2, "")
    assert one_sentence(done.stderr)


@pytest.mark.parametrize(
    "since",
    ["0001-01-01", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "9999-12-31", "60000000000s"],
)
def test_log_since_the_ends_of_time(daemon: Daemon, since: str) -> None:
    done = daemon.kmodd("log", "--since", since)
    assert done.returncode == 0, done.stderr
    assert (done.stdout == "") == since.startswith("9")


def test_log_in_words(daemon: Daemon) -> None:
    daemon.kmodd("request", "plain", "absent")
    daemon.kmodd("remove", "plain")
    daemon.kmodd("tune", "fallback=deny")
    with daemon.helper(b"\x1b[2J\n\xff") as helper:
        assert helper.packets() == [b"s\x01"]
    done = daemon.kmodd("log")
    assert (done.returncode, done.stderr) == (0, "")
    shown = done.stdout.splitlines()
    assert len(shown) == 8
    for line in shown:
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}  \w", line)
        assert (" cli " not in line and " kernel " not in line) or re.search(r"  \(by .+\)$", line)
    assert "\x1b" not in done.stdout
    assert "\\x1b[2J\\x0a\\xff" in done.stdout


def follower(daemon: Daemon, *arguments: str) -> subprocess.Popen[str]:
    """Start `kmodd log -f` and wait until it follows: it shows the start of the daemon then."""
    process = daemon.begin("log", "-f", "--json", *arguments)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["action"] == "start"
    return process


def test_log_follows_until_interrupted(daemon: Daemon) -> None:
    with follower(daemon) as process:
        assert process.stdout is not None
        daemon.kmodd("request", "plain")
        shown = [json.loads(process.stdout.readline())["event"] for _ in range(2)]
        assert shown == ["load", "request"]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out, err) == (130, "", "")


def test_log_follows_with_a_filter(daemon: Daemon) -> None:
    with daemon.follow(outcome="not-found") as log:
        daemon.kmodd("request", "plain", "absent")
        assert log.event()["name"] == "absent"


def test_log_follows_until_the_daemon_stops(daemon: Daemon) -> None:
    with follower(daemon) as process:
        daemon.stop()
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode in {0, 69}
        assert json.loads(out.splitlines()[-1])["action"] == "stop", "what the daemon says last is seen"
        assert err == "" or one_sentence(err)


def test_log_follower_that_does_not_read_harms_nobody(daemon: Daemon) -> None:
    with daemon.follow():
        before = daemon.rss()
        with daemon.api() as api:
            for _ in range(3000):
                api.send("RequestModule", name="plain", wait=False)
                assert api.receive()
        assert daemon.kmodd("status").returncode == 0
        assert daemon.rss() - before < 32 << 20


# The ends of pipes


@pytest.mark.parametrize(
    "arguments", ["log", "log --json", "log -f", "status", "list", "tune", "--help", "request plain"]
)
def test_pipe_closed_early(daemon: Daemon, arguments: str) -> None:
    with daemon.api() as api:
        for number in range(2000 if arguments.startswith("log") else 1):
            api.call("RequestModule", name="plain", wait=False, source="api" if number else "cli")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        daemon.command(*arguments.split()),
        env=environment(KMODD_SOCKET=str(daemon.api_path)),
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    os.close(writing)
    assert done.stderr == ""


def test_log_into_head(daemon: Daemon) -> None:
    with daemon.api() as api:
        for _ in range(2000):
            api.call("RequestModule", name="plain", wait=False)
    done = subprocess.run(
        ["bash", "-c", '"$@" | head -1', "bash", *daemon.command("log")],
        env=environment(KMODD_SOCKET=str(daemon.api_path)),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", ["status", "list", "tune", "log", "request plain", "remove plain", "completion bash"]
)
@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-", ">/dev/full"])
def test_output_that_is_not_there(daemon: Daemon, arguments: str, closed: str) -> None:
    daemon.kmodd("request", "plain")
    done = subprocess.run(
        ["bash", "-c", f'exec "$@" {closed}', "bash", *daemon.command(*arguments.split())],
        env=environment(KMODD_SOCKET=str(daemon.api_path)),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    if closed == ">/dev/full":
        assert done.returncode == 1
        assert one_sentence(done.stderr)


# Who may what, and when nobody is there


COMMANDS = ["request plain", "remove plain", "list", "status", "tune", "tune fallback=deny", "log", "log -f"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("there", ["nothing", "deserted", "file", "too-long", "directory"])
def test_daemon_absent(make: Callable[..., Daemon], command: str, there: str) -> None:
    daemon = make()
    daemon.run_dir.mkdir(parents=True)
    match there:
        case "deserted":
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(daemon.api_path))
        case "file":
            daemon.api_path.write_text("")
        case "directory":
            daemon.api_path.mkdir()
        case "too-long":
            daemon.api_path = Path("/tmp", "x" * 200)
    done = daemon.kmodd(*command.split())
    assert (done.returncode, done.stdout) == (69, "")
    assert one_sentence(done.stderr)
    assert str(daemon.api_path) in done.stderr


@pytest.mark.parametrize(
    "answer", [b"", b"{", b"not json\0", b"[]\0", b'"x"\0', b"\xff\0", b"{}\0", b'{"parameters":[]}\0']
)
def test_something_else_answers(make: Callable[..., Daemon], answer: bytes) -> None:
    """A socket that is not kmodd's: one sentence, whatever it says."""
    daemon = make()
    daemon.run_dir.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(daemon.api_path))
        listener.listen()
        listener.settimeout(PATIENCE)

        def serve() -> None:
            conn, _ = listener.accept()
            with conn:
                conn.recv(65536)
                conn.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            done = daemon.kmodd("status")
        finally:
            thread.join(PATIENCE)
    assert done.returncode in {1, 69}
    assert one_sentence(done.stderr)


def test_daemon_that_is_killed_meanwhile(daemon: Daemon) -> None:
    with daemon.begin("request", "long") as process, daemon.follow():
        wait_until(lambda: daemon.status()["requests"]["waiting"], "the request waits")
        daemon.send_signal(signal.SIGKILL)
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out) == (69, "")
        assert one_sentence(err)
    daemon.wait()
    daemon.process = None


@pytest.mark.parametrize("command", COMMANDS)
def test_socket_that_may_not_be_opened(daemon: Daemon, command: str) -> None:
    daemon.api_path.chmod(0o600)
    done = daemon.kmodd(*command.split(), uid=NOBODY)
    assert (done.returncode, done.stdout) == (77, "")
    assert one_sentence(done.stderr)


@pytest.mark.parametrize(
    "command", ["list", "list --json", "status", "status --json", "tune", "tune --json fallback"]
)
def test_anybody_may(daemon: Daemon, command: str) -> None:
    done = daemon.kmodd(*command.split(), uid=NOBODY)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "command",
    [
        "request plain", "request --json plain", "request --no-wait plain", "request absent", "remove plain", "remove absent",
        "tune fallback=deny", "tune colour=blue", "log", "log -f", "log --json -n 1",
    ],
)  # fmt: skip
def test_somebody_may_not(daemon: Daemon, command: str) -> None:
    daemon.kmodd("request", "dep")
    before = daemon.status()
    done = daemon.kmodd(*command.split(), uid=NOBODY)
    assert (done.returncode, done.stdout) == (77, "")
    assert one_sentence(done.stderr)
    assert f"uid {NOBODY}" in done.stderr
    after = daemon.status()
    assert {key: after[key] for key in ("requests", "loads", "events", "settings")} == {
        key: before[key] for key in ("requests", "loads", "events", "settings")
    }


GROUP = """
import grp, types
real = grp.getgrnam
grp.getgrnam = lambda name: types.SimpleNamespace(gr_gid=4711) if name == "kmodd" else real(name)
"""


@pytest.mark.parametrize(
    ("gid", "groups", "status"),
    [(4711, (), 0), (NOBODY, (4711,), 0), (NOBODY, (1, 2, 4711, 5), 0), (NOBODY, (4712,), 77)],
)
def test_group_may_read_the_log(
    make: Callable[..., Daemon], gid: int, groups: tuple[int, ...], status: int
) -> None:
    daemon = make().start(prelude=GROUP)
    assert daemon.kmodd("log", uid=NOBODY, gid=gid, groups=groups).returncode == status
    assert daemon.kmodd("request", "plain", uid=NOBODY, gid=gid, groups=groups).returncode == 77


def test_why(daemon: Daemon) -> None:
    daemon.kmodd("request", "alias-top")
    told = daemon.kmodd("why", "top", "dep")
    assert (told.returncode, told.stderr) == (0, "")
    first, second = told.stdout.splitlines()
    assert re.fullmatch(
        r"top was loaded on \w+ \S+ \S+ because \S+ \(pid \d+, uid 0, root\) asked for alias-top, an alias of top\.",
        first,
    )
    assert second.endswith("asked for alias-top; top needs it.")
    nothing = daemon.kmodd("why", "plain")
    assert nothing.returncode == 3
    assert "journal knows nothing of it" in nothing.stdout
    daemon.kmodd("remove", "top")
    daemon.kmodd("request", "top", "absent")
    (found,) = lines(daemon.kmodd("why", "--json", "top"))
    assert (found["module"], found["live"], found["ours"]) == ("top", True, True)
    assert (found["load"]["name"], found["request"]["source"], found["unload"]) == ("top", "cli", None)
    refused = daemon.kmodd("why", "a b")
    assert (refused.returncode, refused.stdout) == (2, "")


def test_why_once_the_journal_has_the_load_no_more(daemon: Daemon) -> None:
    daemon.kmodd("request", "top")
    (listed,) = [each for each in lines(daemon.kmodd("list", "--json")) if each["name"] == "top"]
    wait_until(lambda: daemon.status()["journal"]["waiting"] == 0, "it is written")
    with contextlib.closing(sqlite3.connect(daemon.root / "var/lib/kmodd/journal.db")) as file, file:
        file.execute("DELETE FROM events")
    told = daemon.kmodd("why", "top")
    assert (told.returncode, told.stdout) == (
        0,
        f"top was brought in by kmodd (request {listed['brought_in_by']}); that is no longer in the journal.\n",
    )
    (found,) = lines(daemon.kmodd("why", "--json", "top"))
    assert (found["brought_in_by"], found["load"], found["problem"]) == (listed["brought_in_by"], None, None)


def test_what_cannot_be_read_is_not_told(daemon: Daemon) -> None:
    daemon.kmodd("request", "top")
    wait_until(lambda: daemon.status()["journal"]["waiting"] == 0, "it is written")
    file = daemon.root / "var/lib/kmodd/journal.db"
    Path(f"{file}-wal").unlink()
    file.write_text("no database at all, for sure" * 100)
    why = f"cannot read {file}: file is not a database"
    told = daemon.kmodd("why", "top", "plain")
    assert told.returncode == 1
    first, second = told.stdout.splitlines()
    assert re.fullmatch(rf"top was brought in by kmodd \(request \d+\)\. .*: {re.escape(why)}\.", first)
    assert second == f"plain is not in the kernel. What the journal knows of it is not told: {why}."
    shown = daemon.kmodd("log")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr == f"kmodd: {why}; what is in it is not told\n"
    follows = daemon.kmodd("log", "-f")
    assert (follows.returncode, one_sentence(follows.stderr)) == (1, True)
    assert "`kmodd log -f -n 0`" in follows.stderr
    with daemon.follow(count=0) as log:
        daemon.kmodd("request", "plain")
        assert log.event(event="request")["name"] == "plain"


def test_why_is_not_for_everybody(daemon: Daemon) -> None:
    daemon.kmodd("request", "top")
    done = daemon.kmodd("why", "top", uid=NOBODY)
    assert done.returncode == 77
    assert one_sentence(done.stderr)


def test_after_a_restart_of_the_kernel_what_it_had_is_another_ones(daemon: Daemon) -> None:
    daemon.kmodd("request", "top")
    daemon.stop()
    daemon.start()
    gone = daemon.kmodd("why", "top").stdout
    assert "no longer in the kernel" in gone
    daemon.kmodd("request", "top")
    (found,) = lines(daemon.kmodd("why", "--json", "top"))
    assert found["ours"]
