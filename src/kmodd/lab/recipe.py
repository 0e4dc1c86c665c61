"""What a kernel's module answers with: how to start its guest."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kmodd.lab.options import LabOptions


@dataclass(frozen=True, slots=True)
class Command:
    """How to start a guest."""

    argv: list[str]
    fds: tuple[int, ...]
    """Descriptors that it inherits and that are closed here once it runs."""
    boot_limit: float
    """Seconds after which a guest whose agent has not said hello hangs."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What it has in its environment beside ours."""


Recipe = Callable[[LabOptions, int, Path], Command]
"""From options, the guest's end of the channel and a scratch directory."""
