"""What is measured: a module for each workload, and REGISTRY, which the runner goes through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.bed import Bed
from bench.measured import Measured
from bench.workloads import closure, cost, flood, load, request


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
        Workload("cost", cost.WHAT, cost.run),
        Workload("flood", flood.WHAT, flood.run),
    )
}
"""To add one: a module with WHAT and run(), and a line here."""
