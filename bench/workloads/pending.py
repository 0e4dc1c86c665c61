"""Row 8: what it costs that thousands of the kernel's requests wait at once, for one module and for many."""

from __future__ import annotations

import contextlib
import resource
import time
from collections import defaultdict
from collections.abc import Iterator

from bench.bed import Bed
from bench.daemon import SimulatedDaemon, Waiting
from bench.measured import Figure, Measured, Ratio, p99, ratio

WHAT = "row 8: up to 10,000 requests waiting at once, for 1 and for 500 slow modules (simulated)"

KIB_EACH, P99_GROWTH = 4.0, 2.0
MODULES = (1, 500)
FEW = 10
OTHER = "fat"
_LATENCY = 86_400


def run(bed: Bed) -> Measured:
    """Ask for something else in turns: of a daemon with few waiting, and of one with many."""
    many = (100, 1_000) if bed.quick else (100, 1_000, 10_000)
    rounds, asked = (2, 100) if bed.quick else (10, 300)
    _allow_files(many[-1] + 200)
    ratios: list[Ratio] = []
    figures: list[Figure] = []
    for modules in MODULES:
        words = "1 module" if modules == 1 else f"{modules} modules"
        with _daemon(modules) as quiet, _waiting(quiet, FEW, modules):
            for count in many:
                bed.say(f"pending: {count} for {words}")
                with _daemon(modules) as daemon:
                    before = daemon.resident()
                    with _waiting(daemon, count, modules):
                        if count >= 1_000:
                            each = (daemon.resident() - before) / count
                            figures.append(
                                Figure(f"{count:,} for {words}", "memory for each", each, "KiB", KIB_EACH)
                            )
                        took = _turns({"few": quiet, "many": daemon}, rounds, asked)
                limit = P99_GROWTH if count == many[-1] else None
                ratios.append(
                    ratio(
                        f"{count:,} for {words}",
                        f"another's p99 / at {FEW}",
                        took["many"],
                        took["few"],
                        statistic=p99,
                        limit=limit,
                    )
                )
    return Measured(tuple(ratios), figures=tuple(figures))


def _turns(daemons: dict[str, SimulatedDaemon], rounds: int, asked: int) -> dict[str, list[list[int]]]:
    took: dict[str, list[list[int]]] = defaultdict(list)
    for turn in range(rounds):
        for who in sorted(daemons, reverse=bool(turn % 2)):
            samples = []
            for _ in range(asked):
                begin = time.perf_counter_ns()
                daemons[who].ask(OTHER).answer()
                samples.append(time.perf_counter_ns() - begin)
            took[who].append(samples)
    return took


@contextlib.contextmanager
def _daemon(modules: int) -> Iterator[SimulatedDaemon]:
    """Start a daemon that has answered some requests, so that what they bring in is there already."""
    slow = "".join(f"[slow{n}]\nlatency = {_LATENCY}\n" for n in range(modules))
    with SimulatedDaemon(f"[{OTHER}]\n{slow}") as daemon:
        for _ in range(200):
            daemon.ask(OTHER).answer()
        yield daemon


@contextlib.contextmanager
def _waiting(daemon: SimulatedDaemon, count: int, modules: int) -> Iterator[None]:
    """Have so many requests wait, each accepted; they leave at the end."""
    requests: list[Waiting] = []
    try:
        for n in range(count):
            requests.append(daemon.ask(f"slow{n % modules}"))
            requests[-1].accepted()
        # What is asked now is served behind all of them.
        daemon.ask(OTHER).answer()
        yield
    finally:
        for each in requests:
            each.close()


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))
