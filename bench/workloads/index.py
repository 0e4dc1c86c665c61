"""Row 9: the index of 4,000 and of 40,000 modules: how long it takes to load, and in how much memory it is.

The limit is the files themselves: ten times as much to read may cost ten times as much, not more.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from bench.bed import Bed
from bench.host import ROOT, process_field, running
from bench.libkmod import Libkmod
from bench.measured import Figure, Measured, ratio
from bench.synthetic import write

WHAT = "row 9: loading the index of 4,000 and 40,000 modules, beside libkmod; the daemon's memory"

GROWTH, DAEMON_MIB = 1.0, 40.0
SIZES = (4_000, 40_000)
_REQUESTS = 2_000
_PEER = "systemd-udevd"
_LOAD = """
import json, sys, time
from kmodd.tree.index import Index
from bench.host import process_field
import kmodd.tree.snapshot
before = process_field("self", "VmRSS")
begin = time.perf_counter_ns()
index = Index(sys.argv[1])
index.load_all()
took = time.perf_counter_ns() - begin
print(json.dumps([took, process_field("self", "VmRSS") - before, len(list(index.modules()))]))
"""


def run(bed: Bed) -> Measured:
    """Load each in turns, in a process of its own."""
    rounds, sizes = (2, (400, 4_000)) if bed.quick else (9, SIZES)
    files = {}
    for size in sizes:
        bed.say(f"index: writing {size} modules")
        files[size] = write(bed.host.directory / f"lib/modules/{size}", size)
    took: dict[tuple[str, int], list[list[float]]] = defaultdict(list)
    memory: dict[tuple[str, int], float] = {}
    for turn in range(rounds):
        bed.say(f"index: round {turn + 1} of {rounds}")
        for size in sizes:
            directory = bed.host.directory / f"lib/modules/{size}"
            nanoseconds, kibibytes = _ours(directory)
            took["ours", size].append([nanoseconds])
            memory["ours", size] = kibibytes
            with Libkmod(bed.host, directory) as libkmod:
                took["libkmod", size].append([libkmod.load_ns])
                memory["libkmod", size] = libkmod.kilobytes
    small, large = sizes
    each = {size: [[ns / files[size] for ns in samples] for samples in took["ours", size]] for size in sizes}
    growth = memory["ours", large] / memory["ours", small] / (files[large] / files[small])
    names = {size: f"{size:,} modules" for size in sizes}
    figures = [
        Figure(names[large], f"memory for each byte, beside {small:,}", growth, "", GROWTH),
        *(
            Figure(names[size], f"memory of {who}", memory[key, size] / 1024, "MiB")
            for size in sizes
            for who, key in (("the index", "ours"), ("libkmod", "libkmod"))
        ),
        *_daemon(bed),
    ]
    notes: tuple[str, ...] = ()
    if (udevd := running(_PEER)) is not None:
        figures.append(
            Figure("this machine", f"memory of {_PEER}", (process_field(udevd, "VmRSS") or 0) / 1024, "MiB")
        )
    else:
        notes = (f"index: {_PEER} does not run on this machine",)
    return Measured(
        (
            ratio(
                names[large],
                f"time for each byte / at {small:,}",
                each[large],
                each[small],
                limit=GROWTH,
            ),
            *(
                ratio(names[size], "kmodd / libkmod", took["ours", size], took["libkmod", size])
                for size in sizes
            ),
        ),
        notes=notes,
        figures=tuple(figures),
    )


def _ours(directory: Path) -> tuple[int, int]:
    """Return nanoseconds and KiB."""
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(directory)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    nanoseconds, kibibytes, _modules = json.loads(done.stdout)
    return nanoseconds, kibibytes


def _daemon(bed: Bed) -> list[Figure]:
    """Return the memory of a daemon with a distribution's modules, and what it is once it has served."""
    begin = bed.anew("memory", "of_the_daemon")
    requests = 100 if bed.quick else _REQUESTS
    served = bed.inside("memory", "of_the_daemon", requests=requests)
    case = "4,023 modules, in QEMU"
    return [
        Figure(case, "memory of the daemon", begin / 1024, "MiB", DAEMON_MIB),
        Figure(case, f"memory of it with a policy, after {requests:,} requests", served / 1024, "MiB"),
    ]
