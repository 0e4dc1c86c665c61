"""What is measured: a module for each workload, and REGISTRY, which the runner goes through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.bed import Bed
from bench.measured import Measured
from bench.workloads import (
    aliases,
    api,
    closure,
    compressed,
    cost,
    flood,
    idle,
    index,
    load,
    names,
    pending,
    request,
    spawned,
    start,
    syscalls,
)


@dataclass(frozen=True, slots=True)
class Workload:
    """Something that is measured, and a line on what it is."""

    name: str
    what: str
    run: Callable[[Bed], Measured]


REGISTRY = {
    workload.name: workload
    for workload in (
        Workload("request", request.WHAT, request.run),
        Workload("load", load.WHAT, load.run),
        Workload("closure", closure.WHAT, closure.run),
        Workload("spawned", spawned.WHAT, spawned.run),
        Workload("aliases", aliases.WHAT, aliases.run),
        Workload("names", names.WHAT, names.run),
        Workload("compressed", compressed.WHAT, compressed.run),
        Workload("api", api.WHAT, api.run),
        Workload("pending", pending.WHAT, pending.run),
        Workload("index", index.WHAT, index.run),
        Workload("idle", idle.WHAT, idle.run),
        Workload("start", start.WHAT, start.run),
        Workload("syscalls", syscalls.WHAT, syscalls.run),
        Workload("cost", cost.WHAT, cost.run),
        Workload("flood", flood.WHAT, flood.run),
    )
}
"""To add one: a module with WHAT and run(), and a line here."""
