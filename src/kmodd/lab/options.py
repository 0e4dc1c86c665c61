"""What a lab is asked to be."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class LabOptions:
    """One lab: which kernel, how large, what to run in it."""

    kernel: Literal["uml", "qemu"] = "uml"
    smp: int = 1
    """Processors; User-mode Linux has one whatever is asked."""
    memory: int | None = None
    """MiB; None: 1024 for User-mode Linux, 3072 for QEMU."""
    timeout: float | None = None
    """Seconds from the start after which the guest is ended; None or 0: no limit."""
    serve: bool = True
    """Start kmodd in the guest as the kernel's modprobe, before the command."""
    release: str | None = None
    """Which kernel release where QEMU has several to choose from; None: the newest."""
    qemu: tuple[str, ...] = ()
    """Further arguments for QEMU, such as devices that the guest is to have."""
    argv: tuple[str, ...] = ()
    """The command; empty: an interactive shell."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables for the command, beyond those passed on from here."""
