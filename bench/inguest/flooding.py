"""In a guest: others ask while one user floods the kernel with names."""

from __future__ import annotations

import itertools
import os
import time
from typing import Any, cast

from bench.inguest import control
from bench.inguest.asking import Process, families, requests, until_told

FLOODER, USER, ROOT = 1000, 1001, 0
OTHERS = {"user": USER, "root": ROOT}
PAUSE = 0.02
"""Seconds between two requests of one of the others: they are few beside the flood."""


def others(live: str, count: int) -> dict[str, list[int]]:
    """Return what each of the others waits while nobody floods."""
    started = {who: Process(uid, lambda: _paced(live, count)) for who, uid in OTHERS.items()}
    return {who: cast(list[int], process.result()) for who, process in started.items()}


def _paced(name: str, count: int) -> list[int]:
    took = []
    for _ in range(count):
        took += requests([name])
        time.sleep(PAUSE)
    return took


def flood(live: str, prefix: str, names: int, processes: int) -> dict[str, Any]:
    """Return what each of the others waits while one user asks for `names` distinct names, and the counts."""
    before = control.status()["requests"]["total"]
    stop, told = os.pipe()

    def other() -> list[int]:
        os.close(told)
        return until_told(stop, live, PAUSE)

    asking = {who: Process(uid, other) for who, uid in OTHERS.items()}
    begin = time.perf_counter()
    flooders = [
        Process(FLOODER, lambda each=each: _flood(prefix, each, names, processes))  # type: ignore[misc]
        for each in range(processes)
    ]
    asked = sum(cast(int, flooder.result()) for flooder in flooders)
    seconds = time.perf_counter() - begin
    os.close(told)
    waited = {who: cast(list[int], process.result()) for who, process in asking.items()}
    os.close(stop)
    control.settle()
    return {
        "waited": waited,
        "asked": asked + sum(map(len, waited.values())),
        "answered": control.status()["requests"]["total"] - before,
        "fell_back": control.fallbacks(),
        "seconds": seconds,
    }


def _flood(prefix: str, each: int, names: int, processes: int) -> int:
    return families(f"{prefix}{n}" for n in itertools.islice(range(names), each, None, processes))
