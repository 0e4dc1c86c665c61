"""A guest as seen from the host: its process, its console, its channel, its end."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from kmodd.lab import qemu, uml
from kmodd.lab.channel import Channel
from kmodd.lab.errors import GuestDied
from kmodd.lab.janitor import Janitor
from kmodd.lab.options import LabOptions
from kmodd.lab.recipe import Recipe

_CONSOLE_LINES = 200
_RECIPES: dict[str, Recipe] = {"qemu": qemu.command, "uml": uml.command}


class Machine:
    """A running guest; a context manager whose end is the guest's."""

    def __init__(self, options: LabOptions, terminal: int | None = None) -> None:
        """Prepare; `terminal` is restored whatever happens."""
        self._options = options
        self._terminal = terminal
        self._console: deque[str] = deque(maxlen=_CONSOLE_LINES)
        self._undo = contextlib.ExitStack()
        self.boot_limit = 0.0

    def __enter__(self) -> Self:
        """Start the guest.

        :raises LabError: a package is missing, no kernel is found
        """
        try:
            self._start()
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it, whatever it does, and leave nothing behind."""
        self._undo.close()

    def _start(self) -> None:
        parent = os.environ.get("XDG_RUNTIME_DIR")
        if parent is None or not os.access(parent, os.W_OK | os.X_OK):
            parent = None
        directory = Path(parent or tempfile.gettempdir(), f"kmodd-lab-{secrets.token_hex(8)}")
        self._undo.callback(shutil.rmtree, directory, ignore_errors=True)
        # First who removes it, then the directory: a SIGKILL between the two must leave nothing.
        janitor = Janitor(directory, self._terminal)
        self._undo.callback(janitor.close)
        directory.mkdir(mode=0o700)
        ours, theirs = socket.socketpair()
        self._undo.enter_context(ours)
        with theirs:
            command = _RECIPES[self._options.kernel](self._options, theirs.fileno(), directory)
            try:
                guest = janitor.start(command.argv, command.fds, {**os.environ, **command.environment})
            finally:
                for fd in command.fds:
                    if fd != theirs.fileno():
                        os.close(fd)
        self._undo.callback(_end, guest, janitor)
        assert guest.stdout is not None
        self._reader = threading.Thread(target=self._read_console, args=(guest.stdout,), daemon=True)
        self._reader.start()
        self.boot_limit = command.boot_limit
        ours.setblocking(False)
        self.channel = Channel(ours, self._died)

    def _read_console(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self._console.append(line.decode(errors="replace").rstrip())

    @property
    def console(self) -> str:
        """The last lines of the kernel's console."""
        return "\n".join(self._console)

    def _died(self) -> GuestDied:
        """The guest's end of the channel is closed: say why as well as the console tells."""
        self._reader.join(timeout=2)
        return GuestDied(f"the guest ended before its work was done: {_reason(self._console)}")


def _reason(console: deque[str]) -> str:
    for line in reversed(console):
        for mark in ("kmodd-lab: ", "Kernel panic - not syncing: "):
            if mark in line:
                return line.partition(mark)[2] if mark[0] == "k" else line[line.index(mark) :]
    return "it says nothing about the reason on its console"


def _end(guest: subprocess.Popen[bytes], janitor: Janitor) -> None:
    """Kill the guest: there is nothing in it to be saved."""
    # Before the guest is waited for: until then its number is nobody else's.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(guest.pid, signal.SIGKILL)
    janitor.release()
    guest.wait()
