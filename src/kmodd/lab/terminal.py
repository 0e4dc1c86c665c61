"""The user's terminal while a guest has it."""

import os
import termios
import time
import tty
from types import TracebackType
from typing import Self

_ESCAPE = 0x1D
"""Ctrl-]; three of them within a second end the guest, as with systemd-nspawn."""


class RawTerminal:
    """Every key goes to the guest; the settings of before are back at the end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._times: list[float] = []

    def __enter__(self) -> Self:
        self._saved = termios.tcgetattr(self._fd)
        tty.setraw(self._fd, termios.TCSADRAIN)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)

    def escapes(self, keys: bytes) -> bool:
        """Whether the user has just asked for the end."""
        for key in keys:
            if key != _ESCAPE:
                self._times.clear()
                continue
            self._times = [*self._times[-2:], time.monotonic()]
            if len(self._times) == 3 and self._times[-1] - self._times[0] < 1:
                return True
        return False


def size(fd: int) -> tuple[int, int]:
    """Rows and columns."""
    columns, rows = os.get_terminal_size(fd)
    return (rows, columns) if rows and columns else (24, 80)
