"""Row 3: which modules a device's modalias stands for, and what would be loaded; beside libkmod in C."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bench.bed import Bed
from bench.libkmod import Libkmod
from bench.measured import Check, Measured, ratio
from bench.modaliases import modaliases
from kmodd.tree import snapshot
from kmodd.tree.lookup import lookup
from kmodd.tree.plan import resolve

WHAT = "row 3: 2,000 distinct modaliases of all buses to modules, in process, beside libkmod in C"

OF_LIBKMOD = 0.5
COUNT = 2_000


def run(bed: Bed) -> Measured:
    """Resolve other names in each round, once by each: what either keeps of the last ones helps nobody."""
    rounds = 3 if bed.quick else 15
    modules = bed.host.tree.modules
    installed = snapshot.take(str(modules), only_trusted=False)
    index, config = installed.index, installed.config
    works: dict[str, Callable[[str], int]] = {
        "lookup": lambda name: len(lookup(index, config, name)),
        "plan": lambda name: len(resolve(index, config, (), name).targets),
    }
    took: dict[tuple[str, str], list[list[int]]] = {}
    differ = found = 0
    with Libkmod(bed.host, modules) as libkmod:
        for turn in range(rounds):
            bed.say(f"aliases: round {turn + 1} of {rounds}")
            names = modaliases(index, COUNT, seed=turn)
            for work, ours in works.items():
                mine, mine_found = timed(ours, names)
                theirs, theirs_found = libkmod.resolve(work, names)
                took.setdefault((work, "ours"), []).append([mine // COUNT])
                took.setdefault((work, "theirs"), []).append([theirs // COUNT])
                if work == "lookup":
                    found += mine_found
                    differ += abs(mine_found - theirs_found)
    return Measured(
        (
            ratio(
                "a modalias to its modules",
                "kmodd / libkmod",
                took["lookup", "ours"],
                took["lookup", "theirs"],
                limit=OF_LIBKMOD,
            ),
            ratio("a modalias to a plan", "kmodd / libkmod", took["plan", "ours"], took["plan", "theirs"]),
        ),
        (Check("both found the same modules", not differ and found > 0, {"found": found, "differ": differ}),),
    )


def timed(work: Callable[[str], int], names: Sequence[str]) -> tuple[int, int]:
    """Return the nanoseconds that all names took, and the sum of what was found."""
    begin = time.perf_counter_ns()
    found = 0
    for name in names:
        found += work(name)
    return time.perf_counter_ns() - begin, found
