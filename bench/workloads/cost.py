"""What a request of the kernel costs, from its call to its answer: kmodd all on, all off, and modprobe."""

from __future__ import annotations

import itertools
from collections import defaultdict

from bench.bed import Bed
from bench.measured import Measured, ratio

WHAT = "request_module() to its answer, in QEMU: on = provenance, policy and journal; off = none of them"

ON_TO_OFF, ON_TO_STOCK = 1.4, 0.2
VARIANTS = ("on", "off", "stock")
ORDERS = tuple(itertools.permutations(VARIANTS))
"""Each variant comes behind each other one: what one leaves to be done falls on all alike."""
LIVE = "fs-overlay"
"""An alias of a module that is live: the guest's root file system is one."""
_WARM_UP = 5


def run(bed: Bed) -> Measured:
    """Ask in turns, a few requests at a time."""
    rounds, count = (1, 8) if bed.quick else (24, 24)
    took: dict[tuple[str, str], list[list[int]]] = defaultdict(list)
    for turn in range(rounds):
        bed.say(f"cost: round {turn + 1} of {rounds}")
        for variant in ORDERS[turn % len(ORDERS)]:
            names = {
                "nothing": [f"kmodd-nothing-{variant}-{turn}-{n}" for n in range(count)],
                "live": [LIVE] * count,
            }
            found = bed.inside("costing", "once", variant=variant, names=names, warm_up=_WARM_UP)
            for case, samples in found.items():
                took[case, variant].append(samples)
    ratios = []
    for case, words in (("nothing", "resolves to nothing"), ("live", "is live")):
        on, off, stock = (took[case, variant] for variant in VARIANTS)
        ratios.append(ratio(words, "on / off", on, off, limit=ON_TO_OFF))
        ratios.append(ratio(words, "on / modprobe", on, stock, limit=ON_TO_STOCK))
        ratios.append(ratio(words, "off / modprobe", off, stock))
    return Measured(tuple(ratios), notes=bed.notes)
