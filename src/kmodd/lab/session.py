"""`kmodd lab`: one command, or a shell, in a guest, with this process's own input and output.

With a terminal on both standard input and output the command gets a terminal of its own in the
guest and every key goes there, Ctrl-C too; Ctrl-] three times within a second ends the guest.
Otherwise it gets pipes: output is passed on byte for byte as it comes, standard output and error
apart, standard input with its end of file, and Ctrl-C ends the lab.
"""

import contextlib
import json
import os
import signal
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from types import FrameType

from kmodd.lab import terminal
from kmodd.lab.boot import come_up, environment, send_start
from kmodd.lab.errors import GuestDied, LabError, LabTimeout
from kmodd.lab.machine import Machine
from kmodd.lab.options import LabOptions
from kmodd.lab.wire import Frame, Kind

_COMMAND = 1
"""The number of the only process."""
_PIECE = 1 << 15
_WINDOW = 1 << 18
"""Bytes of standard input that may be on their way to the command."""
_SHELLS = ("/bin/bash", "/bin/sh")


class _Ended(BaseException):
    """A signal ends the lab."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(options: LabOptions) -> int:
    """Run the lab: the command's exit status (128 + the number of the signal that ended it).

    5: the time is up; 1: no guest, or it ended before the command did; 128 + a signal's number:
    that signal ended the lab. What went wrong is on standard error.
    """
    try:
        with _signals() as wake:
            return _Session(options, wake).run()
    except _Ended as ended:
        return 128 + ended.number
    except BrokenPipeError:
        # Whoever read our output has gone: as if the signal had ended us.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except LabError as error:
        _say(str(error))
        return error.exit_status


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """Signals that end a process raise _Ended; a descriptor becomes readable with SIGWINCH."""

    def end(number: int, _: FrameType | None) -> None:
        for other in ending:
            # One is enough: nothing interrupts the cleaning up.
            signal.signal(other, signal.SIG_IGN)
        raise _Ended(number)

    wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    ending = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
        # nohup, and a shell that starts something in the background, mean what they say.
        if signal.getsignal(number) is not signal.SIG_IGN
    ]
    before = {number: signal.signal(number, end) for number in ending}
    before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: None)
    before_wake = signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    try:
        yield wake
    finally:
        signal.set_wakeup_fd(before_wake)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(wake)
        os.close(woken)


class _Session:
    """One run."""

    def __init__(self, options: LabOptions, wake: int) -> None:
        self._options = options
        self._wake = wake
        self._deadline = time.monotonic() + options.timeout if options.timeout else None
        self._on_terminal = _is_terminal(0) and _is_terminal(1)
        self._machine = Machine(options, terminal=0 if self._on_terminal else None)
        self._in_flight = 0
        self._reading = not self._on_terminal and _has_input()

    def run(self) -> int:
        with self._machine:
            try:
                come_up(self._machine, self._options, self._deadline)
                self._start()
                if self._on_terminal:
                    with terminal.RawTerminal(0) as raw:
                        self._reading = True
                        return self._converse(raw)
                return self._converse(None)
            except GuestDied:
                self._show_console()
                raise
            except LabTimeout as error:
                if self._deadline is None or time.monotonic() < self._deadline:
                    self._show_console()
                    raise
                raise self._too_long() from error

    def _start(self) -> None:
        argv = list(self._options.argv) or [next(filter(os.path.exists, _SHELLS))]
        request: dict[str, object] = {
            "argv": argv,
            "cwd": os.getcwd(),
            "env": environment(self._options.env),
            "stdin": "stream" if self._reading else "null",
        }
        if self._on_terminal:
            request["terminal"] = terminal.size(0)
        send_start(self._machine, _COMMAND, request)

    def _converse(self, raw: terminal.RawTerminal | None) -> int:
        channel = self._machine.channel
        while True:
            while (frame := channel.pending()) is not None:
                status = self._take(frame)
                if status is not None:
                    return status
            if self._deadline is not None and time.monotonic() >= self._deadline:
                raise self._too_long()
            also = {self._wake}
            if self._reading and self._in_flight < _WINDOW:
                also.add(0)
            ready = channel.wait(self._deadline, also)
            if self._wake in ready:
                self._resize()
            if 0 in ready and self._pass_input(raw):
                return 128 + signal.SIGKILL

    def _take(self, frame: Frame) -> int | None:
        """Act on what the guest says; the exit status when the command has ended."""
        match frame.kind:
            case Kind.STDOUT:
                _write(1, frame.payload)
            case Kind.STDERR:
                _write(2, frame.payload)
            case Kind.TAKEN:
                self._in_flight -= int(frame.payload)
            case Kind.EXIT:
                answer: Mapping[str, object] = json.loads(frame.payload)
                if answer["error"]:
                    _say(str(answer["error"]))
                status = int(str(answer["status"]))
                return 128 - status if status < 0 else status
            case _:
                pass
        return None

    def _pass_input(self, raw: terminal.RawTerminal | None) -> bool:
        """Pass a piece of standard input on; True: the user asks for the end."""
        try:
            data = os.read(0, _PIECE)
        except OSError:
            # EIO: the terminal is gone, or not ours any more.
            data = b""
        if raw is not None and raw.escapes(data):
            return True
        self._reading = bool(data)
        self._in_flight += len(data)
        self._machine.channel.send(Kind.STDIN, _COMMAND, data)
        return False

    def _resize(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        if self._on_terminal:
            size = json.dumps(terminal.size(0)).encode()
            self._machine.channel.send(Kind.RESIZE, _COMMAND, size)

    def _too_long(self) -> LabTimeout:
        return LabTimeout(f"the lab was ended after {self._options.timeout:g} seconds (--timeout)")

    def _show_console(self) -> None:
        lines = self._machine.console.splitlines()[-30:]
        if lines:
            _say("the last lines of the kernel's console:\n" + "\n".join(f"    {x}" for x in lines))


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _has_input() -> bool:
    """Whether standard input is open and more than /dev/null."""
    try:
        ours = os.fstat(0)
    except OSError:
        return False
    return not (stat.S_ISCHR(ours.st_mode) and ours.st_rdev == os.stat(os.devnull).st_rdev)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"kmodd lab: {text}\n")
        sys.stderr.flush()
