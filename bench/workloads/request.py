"""The kernel's request to its answer: kmodd beside the stock modprobe and a program that only exits."""

from __future__ import annotations

from collections import defaultdict

from bench import programs
from bench.bed import Bed, Kernel
from bench.measured import Measured, Ratio, ratio

WHAT = "request_module() to its answer, as installed and with who asked and journal off, in QEMU and UML"

LIMITS: dict[Kernel, tuple[float, float]] = {"qemu": (0.08, 1.6), "uml": (0.06, 3.5)}
"""At most this much of modprobe's time, and of that of the program that only exits."""
LIVE = {"qemu": "fs-overlay", "uml": "kmodd-bench-live"}
"""What is live: an alias of the module itself, or what an alias of modprobe.d makes a type of file system."""
_ALIAS = "alias fs-kmodd-bench-live overlay\n"


def run(bed: Bed) -> Measured:
    """Ask in turns, a few requests at a time."""
    ratios = [each for kernel in LIMITS for each in _on(bed, kernel)]
    return Measured(tuple(ratios), notes=bed.notes)


def _on(bed: Bed, kernel: Kernel) -> list[Ratio]:
    rounds, count = (1, 6) if bed.quick else (10, 24)
    bed.guest(kernel)
    program = bed.inside("inram", "take", kernel=kernel, program=programs.exits(bed.built))
    bed.inside("inram", "write", kernel=kernel, path="/etc/modprobe.d/kmodd-bench.conf", text=_ALIAS)
    variants = {"installed": "installed", "off": "off", "modprobe": "stock", "exit": program}
    took: dict[tuple[str, str], list[list[int]]] = defaultdict(list)
    for turn in range(rounds):
        bed.say(f"request: {kernel}, round {turn + 1} of {rounds}")
        order = list(variants)
        for who in order[turn % len(order) :] + order[: turn % len(order)]:
            found = bed.inside(
                "costing",
                "once",
                kernel=kernel,
                variant=variants[who],
                names={
                    "nothing": [f"kmodd-none-{who}-{turn}-{n}" for n in range(count)],
                    "live": [LIVE[kernel]] * count,
                },
                by="module" if kernel == "qemu" else "mount",
            )
            for case, samples in found.items():
                took[case, who].append(samples)
    of_peer, of_limit = LIMITS[kernel]
    ratios = []
    for case, words in (("nothing", "resolves to nothing"), ("live", "is live")):
        for ours in ("installed", "off"):
            what = f"{kernel}, {words}"
            ratios += [
                ratio(what, f"{ours} / {other}", took[case, ours], took[case, other], limit=limit)
                for other, limit in (("modprobe", of_peer), ("exit", of_limit))
            ]
    return ratios
