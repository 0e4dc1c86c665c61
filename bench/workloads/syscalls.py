"""What a request costs in system calls: the daemon's, in QEMU, and those of the program that starts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

from bench.bed import Bed
from bench.daemon import SimulatedDaemon
from bench.host import tool
from bench.inguest.counting import table
from bench.measured import Figure, Measured

WHAT = "system calls of a request: the daemon's in QEMU, the helper's, and a modprobe's in the helper's place"

LIVE = "fs-overlay"


def run(bed: Bed) -> Measured:
    """Count them, and name them."""
    count = 10 if bed.quick else 200
    figures: list[Figure] = []
    notes: list[str] = []
    for case, names in (
        ("is live", [LIVE] * count),
        ("resolves to nothing", [f"kmodd-nothing-{n}" for n in range(count)]),
    ):
        bed.say(f"syscalls: {case}")
        found: dict[str, float] = bed.inside("counting", "calls", names=names)
        _add(figures, notes, case, "the daemon's system calls", found)
    with SimulatedDaemon("[fat]\n") as daemon:
        helper = bed.host.helper(daemon.run_directory)
        _add(
            figures, notes, "any name", "the helper's system calls", _counted(bed, helper, "-q", "--", "fat")
        )
    words = bed.host.modprobe("-n", "-q", "--", "fat")
    _add(figures, notes, "is live", "modprobe's system calls", _counted(bed, *words))
    return Measured((), notes=tuple(notes), figures=tuple(figures))


def _add(figures: list[Figure], notes: list[str], case: str, what: str, found: Mapping[str, float]) -> None:
    figures.append(Figure(case, what, sum(found.values())))
    most = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    notes.append(f"{case}: {what}: {', '.join(f'{name} {value:.3g}' for name, value in most)}")


def _counted(bed: Bed, *argv: str) -> dict[str, float]:
    path = bed.host.directory / "counts"
    subprocess.run(
        [tool("strace"), "-f", "-c", "-o", str(path), *argv],
        env=dict(os.environ),
        capture_output=True,
        check=False,
    )
    return {name: float(calls) for name, calls in table(path.read_text()).items()}
