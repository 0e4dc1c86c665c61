"""Row 11: how long until a daemon serves, and what a client command costs."""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from collections.abc import Mapping

from bench.bed import Bed
from bench.daemon import SimulatedDaemon, kmodd
from bench.host import tool
from bench.measured import Measured, ratio
from kmodd.errors import KmoddError

WHAT = "row 11: the start of `serve` until READY beside modprobe -V; `kmodd status` beside a bare Python"

OF_PYTHON = 2.0


def run(bed: Bed) -> Measured:
    """Start each in turns; of the client the processor time and the time on the clock."""
    rounds, count = (3, 5) if bed.quick else (15, 10)
    took: dict[str, list[list[int]]] = defaultdict(list)
    with SimulatedDaemon("[fat]\n") as daemon:
        programs = {
            "python": [sys.executable, "-c", "pass"],
            "status": [*kmodd(), "status"],
            "modprobe": [tool("modprobe"), "-V"],
        }
        environment = daemon.environment()
        for turn in range(rounds):
            bed.say(f"start: round {turn + 1} of {rounds}")
            with SimulatedDaemon("[fat]\n") as another:
                took["serve"].append([another.start_ns])
            for who in sorted(programs, reverse=bool(turn % 2)):
                runs = [_run(programs[who], environment) for _ in range(count)]
                took[f"{who} cpu"].append([cpu for cpu, _clock in runs])
                took[f"{who} clock"].append([clock for _cpu, clock in runs])
    client = "kmodd status / python -c pass"
    return Measured(
        (
            ratio(
                "a client, processor time", client, took["status cpu"], took["python cpu"], limit=OF_PYTHON
            ),
            ratio(
                "a client, on the clock", client, took["status clock"], took["python clock"], limit=OF_PYTHON
            ),
            ratio("a daemon until READY", "kmodd serve / modprobe -V", took["serve"], took["modprobe clock"]),
            ratio(
                "a daemon until READY", "kmodd serve / python -c pass", took["serve"], took["python clock"]
            ),
        )
    )


def _run(argv: list[str], environment: Mapping[str, str]) -> tuple[int, int]:
    """Run a program to its end; return the nanoseconds of processor time and on the clock."""
    begin = _now()
    actions = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    pid = os.posix_spawn(argv[0], argv, environment, file_actions=actions)
    _pid, status, usage = os.wait4(pid, 0)
    if status:
        raise KmoddError(f"{argv[0]} ended with {status}")
    return round((usage.ru_utime + usage.ru_stime) * 1e9), _now() - begin


def _now() -> int:
    return time.perf_counter_ns()
