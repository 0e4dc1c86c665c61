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
_ROUNDS = 7 * len(ORDERS)
"""A round's ratio is anything from 0.7 to 2 under emulation: of so many the median is steady to 0.1."""


def run(bed: Bed) -> Measured:
    """Ask in turns, a few requests at a time."""
    rounds, count, of_stock = (1, 8, 8) if bed.quick else (_ROUNDS, 24, 8)
    took: dict[tuple[str, str], list[list[int]]] = defaultdict(list)
    for turn in range(rounds):
        bed.say(f"cost: round {turn + 1} of {rounds}")
        for variant in ORDERS[turn % len(ORDERS)]:
            several = range(of_stock if variant == "stock" else count)
            names = {
                "nothing": [f"kmodd-nothing-{variant}-{turn}-{n}" for n in several],
                "live": [LIVE for _ in several],
            }
            if turn // len(ORDERS) % 2:
                names = dict(reversed(names.items()))
            found = bed.inside("costing", "once", variant=variant, names=names)
            for case, samples in found.items():
                took[case, variant].append(samples)
    ratios = []
    for case, words in (("nothing", "resolves to nothing"), ("live", "is live")):
        on, off, stock = (took[case, variant] for variant in VARIANTS)
        ratios.append(ratio(words, "on / off", on, off, limit=ON_TO_OFF))
        ratios.append(ratio(words, "on / modprobe", on, stock, limit=ON_TO_STOCK))
        ratios.append(ratio(words, "off / modprobe", off, stock))
    return Measured(tuple(ratios), notes=bed.notes)
