"""In a guest: the memory of the daemon with the modules of a distribution."""

from __future__ import annotations

from bench.host import process_field
from bench.inguest import asking, control
from kmodd.connection import Connection


def of_the_daemon(requests: int = 0) -> int:
    """Return the KiB that it is in, once it has read its tree, resolved a name and served requests."""
    Connection().call("Resolve", name="fs-overlay")
    if requests:
        control.use("installed")
        asking.requests([f"kmodd-nothing-memory-{number}" for number in range(requests)])
    control.settle()
    found = process_field(control.status()["pid"], "VmRSS")
    if found is None:
        raise RuntimeError("the daemon has ended")
    return found
