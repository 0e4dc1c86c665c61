"""What was measured on, without the name or the paths of anybody's machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

from kmodd import __version__


def describe(guest: str | None) -> dict[str, str]:
    """Return machine and versions; `guest` is the release of the kernel in QEMU, None where none was used."""
    found = {
        "processor": f"{_processor()}, {os.cpu_count()} processors, {_memory()}",
        "kernel": f"{platform.system()} {platform.release().partition('-')[0]} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "kmodd": __version__,
        "modprobe": _first_line("modprobe", "-V"),
    }
    if guest is not None:
        found["guest"] = f"Linux {guest} on 2 processors, {_first_line('qemu-system-x86_64', '--version')}"
    return found


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory() -> str:
    found = re.search(r"(?m)^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return f"{int(found[1]) / (1 << 20):.0f} GiB" if found else "memory unknown"


def _first_line(*command: str) -> str:
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    return done.stdout.partition("\n")[0].strip() or "unknown"
