"""Run workloads and print what they gave: `python -m bench [--quick] [--json] [--write] [WORKLOAD…]`."""

from __future__ import annotations

import argparse
import json
import sys

from bench import machine, table, written
from bench.bed import Bed
from bench.workloads import REGISTRY
from kmodd.errors import KmoddError
from kmodd.lab import LabError


def main() -> int:
    """Exit with 1 where what the figures stand on does not hold; a limit that is not met is only shown."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure kmodd beside what it replaces. What counts are the ratios of medians.",
        epilog="Workloads: " + "; ".join(f"{each.name}: {each.what}" for each in REGISTRY.values()),
    )
    parser.add_argument("--quick", action="store_true", help="a short run, to see that it runs")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="one JSON object, with the ratios of each round")
    shape.add_argument("--markdown", action="store_true", help="a page's part, for RESULTS.md")
    parser.add_argument(
        "--write", action="store_true", help="put the table into bench/RESULTS.md and draw bench/results.svg"
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="those to run; none: all")
    options = parser.parse_args()
    if unknown := [name for name in options.workloads if name not in REGISTRY]:
        parser.error(f"no workload {unknown[0]!r}: there are {', '.join(REGISTRY)}")
    try:
        with Bed(quick=options.quick) as bed:
            results = {name: REGISTRY[name].run(bed) for name in options.workloads or REGISTRY}
            release = bed.release
    except (LabError, KmoddError) as err:
        print(f"bench: {err}", file=sys.stderr)
        return 2
    where = machine.describe(release)
    if options.write:
        written.write(where, results)
    if options.json:
        workloads = {name: measured.as_json() for name, measured in results.items()}
        print(json.dumps({"quick": options.quick, "machine": where, "workloads": workloads}))
    else:
        print((table.markdown if options.markdown else table.text)(where, results))
    return 0 if all(check.holds for measured in results.values() for check in measured.checks) else 1


if __name__ == "__main__":
    sys.exit(main())
