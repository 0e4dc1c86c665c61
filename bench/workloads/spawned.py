"""Row 1b: the kernel's helper as a process of this machine, to its end, with a daemon that answers."""

from __future__ import annotations

from collections import defaultdict

from bench.bed import Bed
from bench.daemon import SimulatedDaemon
from bench.measured import Measured, ratio

WHAT = "row 1b: the helper spawned on the machine itself, beside modprobe -n and a program that only exits"

OF_MODPROBE, OF_NOTHING = 0.45, 1.5
LIVE = "fat"
NOTHING = "kmodd-nothing"


def run(bed: Bed) -> Measured:
    """Start each program some times in turns; the first of each turn warms the caches and does not count."""
    rounds, count = (2, 10) if bed.quick else (40, 50)
    took: dict[tuple[str, str], list[list[int]]] = defaultdict(list)
    host = bed.host
    with SimulatedDaemon(f"[{LIVE}]\n") as daemon:
        helper = host.helper(daemon.run_directory)
        daemon.ask(LIVE).answer()
        for turn in range(rounds):
            bed.say(f"spawned: round {turn + 1} of {rounds}")
            for case, name in (("nothing", NOTHING), ("live", LIVE)):
                programs = {
                    "helper": [helper, "-q", "--", name],
                    "modprobe": host.modprobe("-n", "-q", "--", name),
                    "limit": [host.program("nothing")],
                }
                order = list(programs)
                for who in order[turn % 3 :] + order[: turn % 3]:
                    took[case, who].append(host.spawn(count + 1, *programs[who])[1][1:])
    ratios = []
    for case, words in (("nothing", "resolves to nothing"), ("live", "is live")):
        ours, modprobe, limit = (took[case, who] for who in ("helper", "modprobe", "limit"))
        ratios.append(ratio(words, "helper / modprobe -n", ours, modprobe, limit=OF_MODPROBE))
        ratios.append(ratio(words, "helper / only exits", ours, limit, limit=OF_NOTHING))
    return Measured(tuple(ratios))
