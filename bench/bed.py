"""What workloads run on: guests that are booted when one is first asked for, and shared by all."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from bench.host import Host
from kmodd.lab import Guest, LabOptions

ROOT = Path(__file__).resolve().parents[1]
POLICY = ROOT / "bench/policy.toml"
_PROCESSORS = 2
_QUICK = 150.0
"""Seconds for a call in a guest, at the most, of a run that is to be over in five minutes."""
Kernel = Literal["qemu", "uml"]
_WORDS = {"qemu": f"QEMU with {_PROCESSORS} processors", "uml": "User-mode Linux"}


class Bed:
    """One run; a context manager. `quick`: see that it runs, rather than measure."""

    def __init__(self, *, quick: bool) -> None:
        self.quick = quick
        self._begin = time.monotonic()
        self._stack = contextlib.ExitStack()
        self._host: Host | None = None
        self._guests: dict[str, Guest] = {}
        self._ends: dict[str, contextlib.ExitStack] = {}
        self._prepared: set[str] = set()
        self.built = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="kmodd-bench-")))
        """Where programs are built; guests see it."""
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
            self._host = Host(self.built)
        return self._host

    def guest(self, kernel: Kernel = "qemu") -> Guest:
        """Return a guest with kmodd in charge: a distribution's kernel, or User-mode Linux."""
        if kernel not in self._guests:
            self._boot(kernel)
        if kernel not in self._prepared:
            self._prepared.add(kernel)
            missing = self.inside("control", "prepare", kernel=kernel, policy=str(POLICY))
            self.notes = tuple(
                f"this kmodd has no setting {key}: on and off do not differ in it" for key in missing
            )
        return self._guests[kernel]

    def _boot(self, kernel: Kernel) -> Guest:
        self.say(f"booting {_WORDS[kernel]}")
        guest = Guest(LabOptions(kernel=kernel, smp=_PROCESSORS, timeout=3600))
        self._ends[kernel] = self._stack.enter_context(contextlib.ExitStack())
        self._guests[kernel] = self._ends[kernel].enter_context(guest)
        return guest

    def anew(self, module: str, function: str, *, kernel: Kernel = "qemu") -> Any:
        """Call a function in a guest of its own, with the daemon as it is installed: it has served nothing.

        It is the guest for all that comes then.
        """
        if self._guests.pop(kernel, None) is not None:
            self._ends.pop(kernel).close()
        self._prepared.discard(kernel)
        return _call(self._boot(kernel), module, function, {}, self._limit(600))

    def inside(
        self,
        module: str,
        function: str,
        *,
        kernel: Kernel = "qemu",
        timeout: float = 600,
        **arguments: object,
    ) -> Any:
        """Call a function of `bench.inguest` in a guest; values travel as JSON."""
        return _call(self.guest(kernel), module, function, arguments, self._limit(timeout))

    def _limit(self, timeout: float) -> float:
        """Whoever waits for a quick run is to be told what hangs before he has given up himself."""
        return min(timeout, _QUICK) if self.quick else timeout

    @property
    def release(self) -> str | None:
        """The release of the kernel in QEMU, None where that was not needed."""
        return self._guests["qemu"].run("uname", "-r").stdout.strip() if "qemu" in self._guests else None


def _call(guest: Guest, module: str, function: str, arguments: dict[str, object], timeout: float) -> Any:
    source = (
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        f"from bench.inguest import {module}\nresult = {module}.{function}(**arguments)"
    )
    return guest.python(source, timeout=timeout, arguments=arguments)
