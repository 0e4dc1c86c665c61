"""In a guest: the memory of the daemon with the modules of a distribution."""

from __future__ import annotations

from bench.host import process_field
from bench.inguest import control
from kmodd.connection import Connection


def of_the_daemon() -> int:
    """Return the KiB that it is in, once it has read its tree and resolved a name."""
    Connection().call("Resolve", name="fs-overlay")
    control.settle()
    found = process_field(control.status()["pid"], "VmRSS")
    if found is None:
        raise RuntimeError("the daemon has ended")
    return found
