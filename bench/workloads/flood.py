"""What others wait while one user asks for thousands of names, from several processes at once."""

from __future__ import annotations

from collections import defaultdict

from bench.bed import Bed
from bench.measured import Check, Measured, Ratio, p99, ratio

WHAT = "others' request_module() while an unprivileged user asks for distinct names, in QEMU"

LIVE = "fs-overlay"
_PROCESSES = 4


def run(bed: Bed) -> Measured:
    """Take turns of quiet and flood; with the stock modprobe a shorter flood, for it is slow."""
    rounds, names, quiet = (1, 300, 20) if bed.quick else (2, 6_000, 150)
    took: dict[tuple[str, str, str], list[list[int]]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    for turn in range(rounds):
        for variant, many in (("on", names), ("stock", names // 20)):
            bed.say(f"flood: round {turn + 1} of {rounds}, {many} names, {variant}")
            bed.inside("control", "use", variant=variant)
            bed.inside("control", "settle")
            quiet_ones = bed.inside(
                "flooding", "others", live=LIVE, count=quiet if variant == "on" else quiet // 4
            )
            found = bed.inside(
                "flooding",
                "flood",
                live=LIVE,
                prefix=f"{variant}{turn}x",
                names=many,
                processes=_PROCESSES,
                timeout=1800,
            )
            for who, during in found["waited"].items():
                took[variant, who, "before"].append(quiet_ones[who])
                took[variant, who, "during"].append(during)
            if variant == "on":
                for key in ("asked", "answered"):
                    counts[key] += found[key]
                counts["fell_back"] = found["fell_back"]
    ratios: list[Ratio] = []
    for who, words in (("user", "another user"), ("root", "root")):
        during, before = took["on", who, "during"], took["on", who, "before"]
        stock, stock_before = took["stock", who, "during"], took["stock", who, "before"]
        ratios += [
            ratio(f"{words}, median", "during / before", during, before),
            ratio(f"{words}, p99", "during / before", during, before, statistic=p99),
            ratio(f"{words}, median", "modprobe's during / before", stock, stock_before),
            ratio(f"{words}, median", "during / modprobe's during", during, stock),
        ]
    holds = counts["asked"] == counts["answered"] and not counts["fell_back"]
    return Measured(
        tuple(ratios), (Check("every request was answered by kmodd", holds, dict(counts)),), bed.notes
    )
