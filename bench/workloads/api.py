"""Row 7: a thousand requests over the API for modules that are live, by one client and by a hundred.

The limit is an echo: the same calls to a service of asyncvarlink's on a socket of the same sort.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from bench import echo
from bench.bed import Bed
from bench.daemon import SimulatedDaemon
from bench.host import ROOT
from bench.measured import Measured, ratio
from kmodd.errors import KmoddError

WHAT = "row 7: 1,000 API requests for live modules, beside 1,000 modprobe processes and an echo"

OF_MODPROBE, OF_ECHO = 0.05, 3.0
CLIENTS = {"one client": 1, "100 clients": 100}
LIVE = "fat"


def run(bed: Bed) -> Measured:
    """Make the calls in turns; each client waits for its answer before it calls again."""
    rounds, calls = (2, 100) if bed.quick else (9, 1_000)
    took: dict[tuple[str, str], list[list[int]]] = defaultdict(list)
    with SimulatedDaemon(f"[{LIVE}]\n") as daemon, _echo(bed.host.directory / "echo.sock") as echoing:
        daemon.ask(LIVE).answer()
        for turn in range(rounds):
            bed.say(f"api: round {turn + 1} of {rounds}")
            for case, clients in CLIENTS.items():
                modprobe = bed.host.modprobe("-n", "-q", "--", LIVE)
                took[case, "ours"].append([_calls(daemon.api, "io.kmodd.RequestModule", clients, calls)])
                took[case, "echo"].append([_calls(echoing, echo.METHOD, clients, calls)])
                took[case, "modprobe"].append([bed.host.spawn(calls, *modprobe, at_once=clients)[0]])
    ratios = []
    for case in CLIENTS:
        ours = took[case, "ours"]
        ratios.append(ratio(case, "kmodd / modprobe", ours, took[case, "modprobe"], limit=OF_MODPROBE))
        ratios.append(ratio(case, "kmodd / an echo", ours, took[case, "echo"], limit=OF_ECHO))
    return Measured(tuple(ratios))


def _calls(path: Path, method: str, clients: int, calls: int) -> int:
    """Return the nanoseconds of so many calls by so many clients together, who are connected already."""
    message = json.dumps({"method": method, "parameters": {"name": LIVE}}).encode() + b"\0"
    with contextlib.ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) for _ in range(clients)
        ]
        for each in sockets:
            each.connect(str(path))
            _call(each, message)
        begin = time.perf_counter_ns()
        for _ in range(calls // clients):
            for each in sockets:
                each.sendall(message)
            for each in sockets:
                _reply(each)
        return time.perf_counter_ns() - begin


def _call(sock: socket.socket, message: bytes) -> None:
    sock.sendall(message)
    if b'"error"' in _reply(sock).replace(b'"error":null', b"").replace(b'"error": null', b""):
        raise KmoddError("a call of the bench was answered with an error")


def _reply(sock: socket.socket) -> bytes:
    data = sock.recv(65536)
    while not data.endswith(b"\0"):
        more = sock.recv(65536)
        if not more:
            raise KmoddError("a service of the bench has hung up")
        data += more
    return data


@contextlib.contextmanager
def _echo(path: Path) -> Iterator[Path]:
    """Start the echo, and end it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.echo", str(path)], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise KmoddError("the echo of the bench does not start")
        yield path
    finally:
        process.terminate()
        process.communicate()
