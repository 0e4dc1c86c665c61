"""Row 4: what a plain module name and an exported symbol stand for; beside libkmod in C, and a dictionary."""

from __future__ import annotations

import random

from bench.bed import Bed
from bench.libkmod import Libkmod
from bench.measured import Check, Measured, Ratio, ratio
from bench.workloads.aliases import COUNT, timed
from kmodd.tree import snapshot
from kmodd.tree.lookup import lookup

WHAT = "row 4: plain names and symbols to modules, in process, beside libkmod in C and a dict look-up"

OF_LIBKMOD = 0.2


def run(bed: Bed) -> Measured:
    """Resolve other names in each round, once by each."""
    rounds = 3 if bed.quick else 15
    modules = bed.host.tree.modules
    installed = snapshot.take(str(modules), only_trusted=False)
    index, config = installed.index, installed.config
    ratios: list[Ratio] = []
    differ = found = 0
    with Libkmod(bed.host, modules) as libkmod:
        for case, known in (("a plain name", list(index.modules())), ("a symbol", list(index.symbols()))):
            table = dict.fromkeys(known, 1)
            took: dict[str, list[list[float]]] = {"ours": [], "theirs": [], "dict": []}
            for turn in range(rounds):
                bed.say(f"names: {case}: round {turn + 1} of {rounds}")
                dice = random.Random(turn)  # noqa: S311 - the same in each run
                names = dice.sample(known, min(COUNT, len(known)))
                mine, mine_found = timed(lambda name: len(lookup(index, config, name)), names)
                theirs, theirs_found = libkmod.resolve("lookup", names)
                plain, _ = timed(table.__getitem__, names)
                found += mine_found
                differ += abs(mine_found - theirs_found)
                for who, value in (("ours", mine), ("theirs", theirs), ("dict", plain)):
                    took[who].append([value / len(names)])
            ratios += [
                ratio(case, "kmodd / libkmod", took["ours"], took["theirs"], limit=OF_LIBKMOD),
                ratio(case, "kmodd / a dict look-up", took["ours"], took["dict"]),
            ]
    check = Check("both found the same modules", not differ and found > 0, {"found": found, "differ": differ})
    return Measured(tuple(ratios), (check,))
