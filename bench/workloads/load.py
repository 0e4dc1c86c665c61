"""The kernel's request for a module that has to be loaded: kmodd, modprobe, a bare finit_module(2)."""

from __future__ import annotations

from collections import defaultdict

from bench import programs
from bench.bed import Bed
from bench.measured import Measured, ratio

WHAT = "the same where a module is loaded for it, and unloaded in between, in QEMU"

OF_PEER, OF_LIMIT = 0.35, 1.5
CASES = {"one module": ["minix"], "with a dependency": ["crc_itu_t", "udf"]}


def run(bed: Bed) -> Measured:
    """Load in turns, a few times at a time."""
    rounds, count = (1, 2) if bed.quick else (8, 5)
    bed.guest()
    ratios = []
    for case, modules in CASES.items():
        files = bed.inside("loading", "files", modules=modules)
        program = programs.inserts(bed.built, files)
        variants = {
            "installed": "installed",
            "off": "off",
            "modprobe": "stock",
            "finit_module": bed.inside("inram", "take", program=program),
        }
        bed.inside("inram", "copy_up", files=files)
        took: dict[str, list[list[int]]] = defaultdict(list)
        for turn in range(rounds):
            bed.say(f"load: {case}, round {turn + 1} of {rounds}")
            order = list(variants)
            for who in order[turn % len(order) :] + order[: turn % len(order)]:
                found = bed.inside(
                    "loading", "asked_for", variant=variants[who], modules=modules, rounds=count + 1
                )
                took[who].append(found[1:])
        for ours in ("installed", "off"):
            ratios += [
                ratio(case, f"{ours} / {other}", took[ours], took[other], limit=limit)
                for other, limit in (("modprobe", OF_PEER), ("finit_module", OF_LIMIT))
            ]
    return Measured(tuple(ratios), notes=bed.notes)
