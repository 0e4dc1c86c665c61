"""A daemon with the simulated kernel, for workloads that need no guest, and hands to reach it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.host import process_field
from kmodd.errors import KmoddError

_PATIENCE = 60.0
_OURS = {"NOTIFY_SOCKET", "KMODD_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}


class SimulatedDaemon:
    """`kmodd serve --kernel simulated` below a directory of its own; a context manager."""

    def __init__(self, modules: str, settings: str = "") -> None:
        """`modules`: its simulated.toml. `settings`: its kmodd.toml."""
        # Short, as a socket's address holds 107 bytes.
        self.root = Path(tempfile.mkdtemp(prefix="kmodd-", dir="/tmp"))
        self.run_directory = self.root / "run/kmodd"
        self.api = self.run_directory / "io.kmodd"
        self.helper = self.run_directory / "helper.sock"
        files = self.root / "etc/kmodd"
        files.mkdir(parents=True)
        (files / "simulated.toml").write_text(modules)
        (files / "kmodd.toml").write_text(f"stop_timeout = 0\n{settings}")
        self._process: subprocess.Popen[bytes] | None = None
        self.start_ns = 0
        """Nanoseconds from its start until it was ready."""

    def environment(self) -> dict[str, str]:
        """Return what its clients need to find it."""
        kept = {
            key: value
            for key, value in os.environ.items()
            if key not in _OURS and not key.startswith("LISTEN_")
        }
        return {**kept, "KMODD_SOCKET": str(self.api)}

    def __enter__(self) -> Self:
        """Start it and wait until it serves."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            path = str(self.root / "notify")
            notify.bind(path)
            notify.settimeout(_PATIENCE)
            begin = time.perf_counter_ns()
            with (self.root / "stderr").open("wb") as errors:
                self._process = subprocess.Popen(
                    [*kmodd(), "serve", "--kernel", "simulated", "--root", str(self.root)],
                    env={**self.environment(), "NOTIFY_SOCKET": path},
                    stdin=subprocess.DEVNULL,
                    stdout=errors,
                    stderr=errors,
                )
            try:
                while b"READY=1" not in notify.recv(4096).split(b"\n"):
                    pass
            except TimeoutError:
                said = (self.root / "stderr").read_text(errors="replace")
                self.__exit__(None, None, None)
                raise KmoddError(f"the daemon does not start: {said}") from None
            self.start_ns = time.perf_counter_ns() - begin
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it and remove its directory."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self.root, ignore_errors=True)

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def resident(self) -> int:
        """Return the KiB of memory that it is in."""
        return process_field(self.pid, "VmRSS") or 0

    def ask(self, name: str) -> Waiting:
        """Ask as the kernel's helper does; the answer is waited for elsewhere."""
        return Waiting(self.helper, name)


class Waiting:
    """A request of the kernel that was accepted, or answered already."""

    def __init__(self, path: Path, name: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(_PATIENCE)
        self._sock.connect(str(path))
        self._sock.send(name.encode() + b"\0")

    def accepted(self) -> None:
        """Return once the daemon has it."""
        if self._sock.recv(16) != b"a":
            raise KmoddError("the daemon did not take a request")

    def answer(self) -> bytes:
        """Return the daemon's answer, and end it."""
        packet = b"a"
        while packet == b"a":
            packet = self._sock.recv(16)
        self._sock.close()
        return packet

    def close(self) -> None:
        """Leave without an answer."""
        with contextlib.suppress(OSError):
            self._sock.close()


def kmodd() -> list[str]:
    """Return the command that is the installed kmodd, by this Python."""
    script = Path(sys.executable).with_name("kmodd")
    return [sys.executable, str(script)] if script.exists() else [sys.executable, "-m", "kmodd"]
