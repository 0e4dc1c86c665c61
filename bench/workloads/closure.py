"""Many modules for one request: kmodd beside `modprobe -a` and the same files handed over one by one."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from bench import programs
from bench.bed import Bed
from bench.measured import Measured, ratio

WHAT = "a closure of many modules, and many that need nothing, in QEMU"

OF_PEER, OF_LIMIT = 0.5, 1.0
CASES = {
    "closure": (120, ("net/netfilter/", "net/ipv4/netfilter/", "net/ipv6/netfilter/"), True),
    "independent": (
        300,
        (
            *(
                "fs/nls/",
                "drivers/media/dvb-frontends/",
                "drivers/media/tuners/",
                "drivers/hwmon/",
                "crypto/",
            ),
            *("lib/", "drivers/input/", "drivers/leds/", "drivers/watchdog/"),
        ),
        False,
    ),
}
"""How many modules, from which folders, and whether they need one another."""
_NAME = "minix"
"""A module that modprobe.d makes need all of them, softly: none has so many dependencies of its own."""
_CONFIG = "/etc/modprobe.d/kmodd-bench-closure.conf"


def run(bed: Bed) -> Measured:
    """Load in turns, all of them each time."""
    rounds = 1 if bed.quick else 4
    guest = bed.guest()
    program = bed.inside("inram", "take", program=programs.inserts(bed.built))
    depends = guest.run("sh", "-c", "cat /lib/modules/$(uname -r)/modules.dep").stdout
    ratios = []
    for case, (count, folders, needy) in CASES.items():
        many = count // 10 if bed.quick else count
        bed.say(f"closure: {case}, choosing {many} modules")
        candidates = _candidates(depends, folders, needy=needy)
        modules = bed.inside("loading", "that_can_be", candidates=candidates, program=program, count=many)
        if len(modules) < many:
            raise RuntimeError(f"{case}: only {len(modules)} modules can be loaded and unloaded")
        text = f"softdep {_NAME} pre: {' '.join(modules)}\n"
        bed.inside("inram", "write", path=_CONFIG, text=text)
        took: dict[str, list[list[int]]] = defaultdict(list)
        order = ["kmodd", "modprobe", "insert"]
        for turn in range(rounds):
            bed.say(f"closure: {case}, round {turn + 1} of {rounds}")
            for who in order[turn % 3 :] + order[: turn % 3]:
                found = bed.inside(
                    "loading", "at_once", variant=who, name=_NAME, modules=[*modules, _NAME], program=program
                )
                took[who].append([found])
        bed.inside("inram", "write", path=_CONFIG, text="")
        ratios += [
            ratio(f"{case}, {many} modules", f"kmodd / {other}", took["kmodd"], took[other], limit=limit)
            for other, limit in (("modprobe", OF_PEER), ("insert", OF_LIMIT))
        ]
    return Measured(tuple(ratios), notes=bed.notes)


def _candidates(depends: str, folders: tuple[str, ...], *, needy: bool) -> list[str]:
    """Return the modules in these folders, each behind those that it needs."""
    needs: dict[str, list[str]] = {}
    wanted = []
    for line in depends.splitlines():
        path, _colon, others = line.partition(":")
        module = _module(path)
        needs[module] = [_module(other) for other in reversed(others.split())]
        # The kernel tests itself in these as they load: test_bpf takes a hundred times as long as all else.
        tests = module.startswith("test_")
        if not tests and path.startswith(tuple(f"kernel/{folder}" for folder in folders)):
            wanted.append(module)
    order: dict[str, None] = {}
    for module in wanted:
        if not needy and needs[module]:
            continue
        order.update(dict.fromkeys([*needs[module], module]))
    return list(order)


def _module(path: str) -> str:
    return Path(path).name.partition(".")[0].replace("-", "_")
