"""Processes that the agent starts: a command, or Python source in a fork of the agent."""

import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import sys
import termios
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from kmodd.lab.wire import Kind

_PIECE = 4096


@dataclass(slots=True)
class Task:
    """A process, leader of its own session, and this end of its descriptors."""

    ident: int
    pid: int
    stdin: int | None
    """Non-blocking; None when it has none or has been given its end of file."""
    outputs: dict[int, Kind]
    terminal: int | None = None
    """The master side of its terminal, if it has one: also in `outputs`, maybe `stdin`."""
    pending: bytearray = field(default_factory=bytearray)
    ending: bool = False

    def feed(self, data: bytes) -> None:
        """Bytes for standard input; none are its end."""
        if data:
            self.pending += data
        else:
            self.ending = True

    def flush(self) -> tuple[int, bool]:
        """Write what can be written: how many bytes are done with, whether standard input is."""
        assert self.stdin is not None
        taken = 0
        while self.pending:
            try:
                count = os.write(self.stdin, self.pending[:_PIECE])
            except BlockingIOError:
                return taken, False
            except OSError:
                # It has closed its end: what is left is of no use to anybody.
                taken += len(self.pending)
                self.pending.clear()
                return taken, self.terminal is None
            taken += count
            del self.pending[:count]
        return taken, self.ending


def start_command(ident: int, request: dict[str, Any]) -> Task:
    """Start `argv` with `cwd`, `env`, `stdin` ("null" or "stream") and `terminal` (rows, columns).

    :raises OSError: it cannot be executed
    """
    argv: list[str] = request["argv"]
    # Found out before the fork, as far as it can be: the lab reports it like a shell would.
    path = _executable(argv[0], request["env"].get("PATH", os.defpath), request["cwd"])

    def execute() -> NoReturn:
        os.chdir(request["cwd"])
        os.execve(path, argv, request["env"])  # noqa: S606  no shell is meant

    if size := request.get("terminal"):
        return _start_on_terminal(ident, execute, size)
    return _start_on_pipes(ident, execute, request["stdin"] == "stream")


def start_python(ident: int, request: dict[str, Any]) -> Task:
    """Run `source` with `args` as its variables in a fork; its `result` comes back as JSON."""
    reader, writer = os.pipe2(os.O_CLOEXEC)

    def execute() -> NoReturn:
        status = 0
        try:
            space: dict[str, Any] = {"__name__": "__lab__", **request["args"], "result": None}
            os.environ.update(request["env"])
            exec(compile(request["source"], "<lab>", "exec"), space)  # noqa: S102
            answer = {"result": space["result"], "error": None}
            text = json.dumps(answer)
        except BaseException:  # noqa: BLE001  the lab raises it again
            text = json.dumps({"result": None, "error": traceback.format_exc()})
            status = 1
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        with open(writer, "w") as file:
            file.write(text)
        os._exit(status)

    task = _start_on_pipes(ident, execute, streaming=False)
    os.close(writer)
    os.set_blocking(reader, False)
    task.outputs[reader] = Kind.RESULT
    return task


def _executable(name: str, path: str, cwd: str) -> str:
    os.stat(cwd)
    if "/" in name:
        candidates = [os.path.join(cwd, name)]
    else:
        candidates = [os.path.join(directory, name) for directory in path.split(os.pathsep)]
    refused = False
    for candidate in candidates:
        if os.path.isfile(candidate):
            if os.access(candidate, os.X_OK):
                return candidate
            refused = True
    if refused:
        raise PermissionError(13, os.strerror(13), name)
    raise FileNotFoundError(2, os.strerror(2), name)


def _start_on_pipes(ident: int, execute: Callable[[], NoReturn], streaming: bool) -> Task:
    out, out_child = os.pipe2(os.O_CLOEXEC)
    err, err_child = os.pipe2(os.O_CLOEXEC)
    if streaming:
        in_child, stdin = os.pipe2(os.O_CLOEXEC)
    else:
        in_child, stdin = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), None
    pid = _fork(execute, (in_child, out_child, err_child), terminal=False)
    for fd in (in_child, out_child, err_child):
        os.close(fd)
    for ours in (out, err, stdin):
        if ours is not None:
            os.set_blocking(ours, False)
    return Task(ident, pid, stdin, {out: Kind.STDOUT, err: Kind.STDERR})


def _start_on_terminal(ident: int, execute: Callable[[], NoReturn], size: list[int]) -> Task:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    pid = _fork(execute, (slave, slave, slave), terminal=True)
    os.close(slave)
    os.set_blocking(master, False)
    return Task(ident, pid, master, {master: Kind.STDOUT}, terminal=master)


def _fork(execute: Callable[[], NoReturn], fds: tuple[int, int, int], terminal: bool) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        # Python's own, which a program inherits (SIGPIPE ignored), and the agent's.
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        for target, fd in enumerate(fds):
            os.dup2(fd, target)
        if terminal:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        execute()
    except OSError as error:
        os.write(2, f"kmodd lab: cannot run the command: {error}\n".encode())
    except BaseException:  # noqa: BLE001  a fork must not go on as a second agent
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(126)
