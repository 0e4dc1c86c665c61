"""In a guest: the system calls that the daemon makes for requests of the kernel, counted by strace(1)."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from pathlib import Path

from bench.inguest import control
from bench.inguest.asking import requests

_JOURNAL = 1.0
"""Seconds within which the journal is written on an emulated machine."""


def calls(names: list[str]) -> dict[str, float]:
    """Ask for each name; return how often the daemon made each system call, for each request."""
    control.use("on")
    requests(names[:5])
    control.settle()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "counts")
        argv = ["strace", "-f", "-c", "-o", str(path), "-p", str(control.status()["pid"])]
        with subprocess.Popen(argv, stderr=subprocess.PIPE) as strace:
            assert strace.stderr is not None
            if b"attached" not in strace.stderr.readline():
                raise RuntimeError("strace cannot trace the daemon")
            requests(names)
            time.sleep(_JOURNAL)
            strace.send_signal(signal.SIGINT)
            strace.communicate(timeout=30)
        return {name: count / len(names) for name, count in table(path.read_text()).items()}


def table(text: str) -> dict[str, int]:
    """Return what `strace -c` counted, without its total."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) in {5, 6} and words[3].isdecimal() and words[-1] != "total":
            found[words[-1]] = int(words[3])
    return found
