"""Runs the demo: exit status 0 only if everything was as the page says."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from kmodd.errors import KmoddError
from kmodd.lab.demo.page import Page
from kmodd.lab.demo.scene import Demo, StepFailed, live_modules
from kmodd.lab.demo.steps import STEPS

_HOOK = Path("/proc/sys/kernel/modprobe")
_IN_LAB = Path("/run/kmodd-lab/lab.conf")


def main() -> int:
    """Run every step; 1 where one has failed."""
    if not _IN_LAB.exists():
        sys.stderr.write(
            "kmodd.lab.demo: this is no lab; run it with: kmodd lab -- python -m kmodd.lab.demo\n"
        )
        return 2
    demo = Demo()
    before = set(live_modules())
    _introduce(demo.page)
    try:
        demo.follower.attach()
    except KmoddError as error:
        demo.page.failed(str(error))
        return 1
    failed = [number for number, step in enumerate(STEPS, 1) if not _run(demo, number)]
    came = [module for module in live_modules() if module not in before]
    demo.page.summary([*_summary(demo, came), _verdict(failed), ("Go on", _GO_ON)])
    return 1 if failed else 0


_GO_ON = "`kmodd lab` boots such a kernel with a shell in it; README.md has the commands to try there."


def _introduce(page: Page) -> None:
    machine = Path("/proc/cpuinfo").read_text()
    where = "User-mode Linux, a process" if "User Mode Linux" in machine else "a virtual machine"
    page.title(
        "kmodd, the on-demand kernel-module loader, at work",
        f"This is a real kernel, Linux {os.uname().release}, in {where} on this machine; what happens here "
        "leaves no trace on it. Its modprobe is kmodd.",
        "A line is a request for a module: when it came in, from whom, for what, how it ended, what was "
        "loaded (+N: and N more), how long it took. It appears when the record is complete; whoever asked "
        "has been answered by then.",
    )


def _run(demo: Demo, number: int) -> bool:
    step = STEPS[number - 1]
    demo.begin(number, step)
    try:
        demo.page.passed(step.run(demo))
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        demo.page.failed(f"{error.strerror}{where}")
        return False
    except (StepFailed, KmoddError, subprocess.TimeoutExpired) as error:
        demo.page.failed(str(error))
        return False
    return True


def _summary(demo: Demo, came: list[str]) -> list[tuple[str, str]]:
    requests = demo.follower.requests
    outcomes = Counter(request.outcome for request in requests)
    by_outcome = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    shared = sum(request.shared for request in requests)
    rows = [
        ("Requests", f"{len(requests)} to kmodd: {by_outcome}"),
        ("", f"{shared} shared a load, {len(demo.nested)} were nested in another load"),
        ("Fallback", f"{demo.fallbacks} served by the real modprobe while kmodd was dead"),
        ("Modules", f"{len(came)} came in: {' '.join(came) or '-'}"),
    ]
    if requests:
        slowest = max(requests, key=lambda request: request.took)
        rows.append(("Slowest", f"{slowest.name}, {slowest.took.total_seconds() * 1000:.0f} ms"))
    return rows


def _verdict(failed: list[int]) -> tuple[str, str]:
    if failed:
        return "Result", f"FAILED: {len(failed)} of {len(STEPS)} steps ({', '.join(map(str, failed))})"
    return "Result", f"all {len(STEPS)} steps went as they should"


if __name__ == "__main__":
    sys.exit(main())
