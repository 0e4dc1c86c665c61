"""What the daemon costs: over many requests (S16), while it is idle, and at the start of a client."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kmodd
from daemon import daemon_harness
from daemon.daemon_harness import PATIENCE, Api, Daemon, Helper, Reply, wait_until

REQUESTS = 20_000
KEPT = 10_000  # events in memory, by design
_SOURCES = os.path.dirname(os.path.dirname(kmodd.__file__))
GROWTH_MAX = 10 << 20
AT_ONCE = 50

SOAK_MODULES = """
[bad]
error = "ENODEV"
[brief]
latency = 0.002
[brief_bad]
latency = 0.002
error = "EIO"
[built]
builtin = true
[nest]
requests = ["nest_inner", "missing-from-nest"]
[nest_inner]
requests = ["crypto-soak"]
[nest_deep]
aliases = ["crypto-soak"]
[itself]
requests = ["itself"]
""" + "\n".join(f'[dep_{n}]\n[top_{n}]\ndepends = ["dep_{n}"]\naliases = ["alias-{n}"]' for n in range(40))


def test_s16_soak_20000_mixed_requests(make: Callable[..., Daemon]) -> None:
    """Memory, descriptors, threads and children are what they were, and everybody has been answered.

    The newest 10,000 events are in memory by design, two of a request, so the first 6,000 requests fill
    that before memory is looked at; then 20,000 more may add 10 MiB at the most.
    """
    daemon = make(modules=SOAK_MODULES).start()
    dice = random.Random(16)
    answered: Counter[str] = Counter()
    with daemon.api() as api:
        soak(daemon, api, dice, 1000, answered)
        settle(daemon)
        descriptors, threads, children = counts(daemon)
        soak(daemon, api, dice, KEPT // 2, answered)
        settle(daemon)
        assert daemon.status()["events"] > KEPT
        before = daemon.rss()
        soak(daemon, api, dice, REQUESTS, answered)
        settle(daemon)
        after = daemon.rss()
        assert counts(daemon) == (descriptors, threads, children)
        assert children == 0
        assert after - before <= GROWTH_MAX, f"{before >> 10} KiB, then {after >> 10} KiB"
        state = daemon.status()
    assert state["requests"]["waiting"] == 0
    assert state["loads"]["running"] == 0
    assert sum(state["requests"]["outcomes"].values()) == state["requests"]["total"]
    # Those that vanished are counted as well, and so are nested ones, which no client of ours made.
    assert state["requests"]["total"] >= 1000 + KEPT // 2 + REQUESTS
    assert not set(answered) - {
        "s0",
        "s1",
        "ok",
        "NotFound",
        "LoadFailed",
        "InvalidName",
        "Deadlock",
        "asked",
        "left",
    }
    assert min(answered.values()) > 100


def counts(daemon: Daemon) -> tuple[int, int, int]:
    return len(daemon.descriptors()), int(daemon.proc("Threads")), len(daemon.children())


def settle(daemon: Daemon) -> None:
    """Wait until nothing is under way any more."""

    def quiet() -> bool:
        state = daemon.status()
        busy = state["requests"]["waiting"], state["loads"]["running"], state["journal"]["waiting"]
        return not any(busy) and state["threads"] == 1

    wait_until(quiet, "all loads end")
    seen: list[int] = []

    def steady() -> bool:
        seen.append(len(daemon.descriptors()))
        return len(seen) > 3 and len(set(seen[-4:])) == 1

    wait_until(steady, "all connections are closed")


def names(dice: random.Random) -> Iterator[str]:
    while True:
        number = dice.randrange(40)
        yield dice.choice(
            [
                f"top_{number}", f"alias-{number}", f"dep_{number}", "bad", "brief", "brief", "brief_bad", "built", "nest",
                "itself", f"missing-{dice.randrange(1 << 30)}", "net-pf-9", "a b", "/etc/shadow", "x" * 56,
            ]
        )  # fmt: skip


def soak(daemon: Daemon, api: Api, dice: random.Random, count: int, answered: Counter[str]) -> None:
    """Make `count` requests, some of them at once, in all the ways there are; each must be answered."""
    name = names(dice)
    made = 0
    while made < count:
        helpers: list[Helper] = []
        clients: list[Api] = []
        for _ in range(AT_ONCE):
            wanted = next(name)
            way = dice.random()
            if way < 0.6:
                helpers.append(daemon.helper(wanted.encode()))
            elif way < 0.85:
                api.send("RequestModule", name=wanted)
                take(api, answered)
            elif way < 0.9:
                clients.append(daemon.api())
                clients[-1].send("RequestModule", name=wanted)
            elif way < 0.95:
                assert api.call("RequestModule", name="brief", wait=False)["result"]["outcome"] in {
                    None,
                    "already-live",
                }
                answered["asked"] += 1
            elif way < 0.98:
                with daemon.helper(wanted.encode()) as helper:
                    assert helper.packet() in {b"a", b"s\0", b"s\x01"}
                answered["left"] += 1
            else:
                with daemon.api() as client:
                    client.send("RequestModule", name=wanted)
                answered["left"] += 1
        made += AT_ONCE
        for helper in helpers:
            packets = helper.packets()
            assert packets in ([b"s\0"], [b"s\x01"])
            answered[f"s{packets[0][1]}"] += 1
            helper.sock.close()
        for client in clients:
            take(client, answered)
            client.sock.close()
        if dice.random() < 0.5:
            unload(api, dice)


def take(api: Api, answered: Counter[str]) -> None:
    try:
        api.receive()
        answered["ok"] += 1
    except Reply as reply:
        answered[reply.error.rpartition(".")[2]] += 1


def unload(api: Api, dice: random.Random) -> None:
    for module in (f"top_{dice.randrange(40)}", f"dep_{dice.randrange(40)}", "brief", "nest", "itself"):
        try:
            api.call("RemoveModule", name=module, holders=dice.random() < 0.5)
        except Reply as reply:
            assert reply.error in {"io.kmodd.NotFound", "io.kmodd.RemoveFailed"}


def test_s16_soak_of_connections(daemon: Daemon) -> None:
    """Connections that come, ask anything and go leave nothing behind."""
    with daemon.api() as api:
        for _ in range(200):
            daemon.api().sock.close()
        settle(daemon)
        before, memory = counts(daemon), daemon.rss()
        for number in range(3000):
            with daemon.api() as client:
                if number % 3:
                    client.call("GetStatus")
                if number % 5 == 0:
                    client.send("Log", more=True, follow=True)
                    client.receive()
        settle(daemon)
        assert counts(daemon) == before
        assert daemon.rss() - memory < 4 << 20
        assert api.call("GetStatus")


def steady(daemon: Daemon) -> int:
    """Return the number of its sleeps once it sleeps and all events are in the journal."""
    wait_until(lambda: daemon.status()["journal"]["waiting"] == 0, "its events are written")
    seen = [-1]

    def same() -> bool:
        time.sleep(0.1)
        seen.append(daemon.switches())
        return seen[-1] == seen[-2]

    wait_until(same, "it goes to sleep")
    return seen[-1]


def test_idle_daemon_is_not_woken(daemon: Daemon) -> None:
    """2 s of real time: after a start, and after requests of all kinds with connections left open."""
    with daemon.follow() as log, daemon.api() as api, daemon.helper(b"plain") as helper:
        assert helper.packets() == [b"s\0"]
        assert daemon.kmodd("request", "top", "absent", "itself", "--timeout", "5").returncode == 3
        assert api.call("ListModules")["modules"]
        log.event(event="request", name="itself")
        before = steady(daemon)
        time.sleep(2)
        assert daemon.switches() == before


def test_idle_daemon_makes_no_system_call(daemon: Daemon, tmp_path: Path) -> None:
    daemon.kmodd("request", "top", "absent")
    steady(daemon)
    trace = tmp_path / "trace"
    strace = subprocess.Popen(
        ["strace", "-f", "-p", str(daemon.pid), "-o", str(trace)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        assert strace.stderr is not None
        assert b"attached" in strace.stderr.readline()
        time.sleep(2)
    finally:
        strace.terminate()
        strace.communicate(timeout=PATIENCE)
    calls = [
        line for line in trace.read_text().splitlines() if "epoll" not in line and "detached" not in line
    ]
    assert calls == []
    assert len(trace.read_text().splitlines()) <= 2, "the wait that it was in, and no other"


def cpu_seconds(argv: list[str], environment: dict[str, str]) -> float:
    """Run a program to its end; return the processor time that it took, itself and the kernel for it."""
    actions = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    pid = os.posix_spawn(argv[0], argv, environment, file_actions=actions)
    _pid, status, usage = os.wait4(pid, 0)
    assert status == 0
    return usage.ru_utime + usage.ru_stime


def test_a_client_command_costs_less_than_two_bare_pythons(daemon: Daemon) -> None:
    """Side by side in one run. Processor time, of each the fastest: what else the machine does only adds to it."""
    environment = daemon_harness.environment(KMODD_SOCKET=str(daemon.api_path))
    script = os.path.join(os.path.dirname(sys.executable), "kmodd")
    programs = {
        "python": [sys.executable, "-c", "pass"],
        "kmodd": [sys.executable, script, "status"],
    }
    took: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(25):
        for name, argv in programs.items():
            took[name].append(cpu_seconds(argv, environment))
    ratio = min(took["kmodd"]) / min(took["python"])
    assert ratio < 2.0, f"{ratio:.2f}"


_IMPORTED = "import sys; from kmodd.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"


@pytest.mark.parametrize(
    "words", [["status"], ["status", "--json"], ["request", "top"], ["tune", "load_timeout=0"]]
)
def test_a_client_command_imports_nothing_of_weight(daemon: Daemon, words: list[str]) -> None:
    # -S: what a virtual environment and this machine have every Python import is not ours.
    done = subprocess.run(
        [sys.executable, "-S", "-c", _IMPORTED, *words],
        env=daemon_harness.environment(KMODD_SOCKET=str(daemon.api_path), PYTHONPATH=_SOURCES),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    heavy = {
        "argparse",
        "json",
        "re",
        "enum",
        "collections",
        "typing",
        "socket",
        "importlib",
        "dataclasses",
        "asyncio",
    }
    assert not heavy & set(done.stderr.split())
