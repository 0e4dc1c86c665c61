"""What workloads run on: guests that are booted when one is first asked for, and shared by all."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.host import Host
from kmodd.lab import Guest, LabOptions

ROOT = Path(__file__).resolve().parents[1]
POLICY = ROOT / "bench/policy.toml"
_PROCESSORS = 2


class Bed:
    """One run; a context manager. `quick`: see that it runs, rather than measure."""

    def __init__(self, *, quick: bool) -> None:
        self.quick = quick
        self._begin = time.monotonic()
        self._stack = contextlib.ExitStack()
        self._qemu: Guest | None = None
        self._host: Host | None = None
        self.notes: tuple[str, ...] = ()
        """Sentences on what this kmodd lacks."""

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the guests."""
        self._stack.close()

    def say(self, text: str) -> None:
        """Tell whoever waits how far it is."""
        print(f"bench: {time.monotonic() - self._begin:4.0f} s: {text}", file=sys.stderr, flush=True)

    @property
    def host(self) -> Host:
        """The machine itself, for what needs no guest."""
        if self._host is None:
            directory = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="kmodd-bench-"))
            self._host = Host(Path(directory))
        return self._host

    def qemu(self) -> Guest:
        """Return a guest with a distribution's kernel on two processors and kmodd in charge."""
        if self._qemu is None:
            self.say(f"booting QEMU with {_PROCESSORS} processors")
            self._qemu = self._stack.enter_context(
                Guest(LabOptions(kernel="qemu", smp=_PROCESSORS, timeout=3600))
            )
            missing = self.inside("control", "prepare", policy=str(POLICY))
            self.notes = tuple(
                f"this kmodd has no setting {key}: on and off do not differ in it" for key in missing
            )
        return self._qemu

    def inside(self, module: str, function: str, *, timeout: float = 600, **arguments: object) -> Any:
        """Call a function of `bench.inguest` in the guest; values travel as JSON."""
        source = (
            f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
            f"from bench.inguest import {module}\nresult = {module}.{function}(**arguments)"
        )
        return self.qemu().python(source, timeout=timeout, arguments=arguments)

    @property
    def release(self) -> str | None:
        """The release of the guest's kernel, None where none was needed."""
        return None if self._qemu is None else self._qemu.run("uname", "-r").stdout.strip()
