"""The agent in the guest: starts processes for the lab and carries their bytes.

Run by the guest's init as `python -m kmodd.lab.agent DEVICE`. One thread, one poll loop; the only
thing that it ever blocks on is the channel, which the lab always reads. A process is reported as
ended when it has been reaped and what it wrote has been read, even if a child of its own keeps its
pipes open.
"""

import contextlib
import fcntl
import functools
import json
import os
import select
import signal
import stat
import struct
import sys
import termios
import tty
from collections.abc import Callable
from typing import Any

from kmodd.lab import service, wire
from kmodd.lab.tasks import Task, start_command, start_python
from kmodd.lab.wire import Kind

_CHUNK = 1 << 16


class Agent:
    """The poll loop and what it watches."""

    def __init__(self, channel: int) -> None:
        self._channel = channel
        self._decoder = wire.Decoder()
        self._tasks: dict[int, Task] = {}
        self._parts = bytearray()
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._watched: dict[int, Callable[[], object]] = {channel: self._read_channel}
        wake, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._watch(wake, select.POLLIN, lambda: self._reap(wake))
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> None:
        """Serve until the lab ends the guest."""
        self._send(Kind.HELLO, 0, json.dumps({"release": os.uname().release}).encode())
        while True:
            for fd, _ in self._poll.poll():
                if fd in self._watched:
                    self._watched[fd]()

    def _send(self, kind: Kind, ident: int, payload: bytes = b"") -> None:
        data = memoryview(wire.encode(kind, ident, payload))
        while data:
            data = data[os.write(self._channel, data) :]

    def _watch(self, fd: int, events: int, action: Callable[[], object]) -> None:
        self._watched[fd] = action
        self._poll.register(fd, events)

    def _forget(self, fd: int) -> None:
        if self._watched.pop(fd, None):
            self._poll.unregister(fd)
        with contextlib.suppress(OSError):
            os.close(fd)

    def _read_channel(self) -> None:
        data = os.read(self._channel, _CHUNK)
        if not data:
            raise SystemExit("the lab has closed the channel")
        self._send(Kind.CREDIT, 0, b"%d" % len(data))
        for frame in self._decoder.feed(data):
            self._handle(frame)

    def _handle(self, frame: wire.Frame) -> None:
        task = self._tasks.get(frame.ident)
        match frame.kind:
            case Kind.MORE:
                self._parts += frame.payload
            case Kind.START:
                request = json.loads(bytes(self._parts) + frame.payload)
                self._parts.clear()
                self._start(frame.ident, request)
            case Kind.SERVE:
                answer = service.start(**json.loads(frame.payload))
                self._send(Kind.SERVED, 0, json.dumps(answer).encode())
            case Kind.STDIN if task is not None and task.stdin is not None:
                task.feed(frame.payload)
                self._write_stdin(task)
            case Kind.STDIN:
                # Nobody reads it any more; the lab is not to wait for that.
                self._send(Kind.TAKEN, frame.ident, b"%d" % len(frame.payload))
            case Kind.SIGNAL if task is not None:
                _signal(task.pid, json.loads(frame.payload))
            case Kind.RESIZE if task is not None and task.terminal is not None:
                rows, columns = json.loads(frame.payload)
                size = struct.pack("HHHH", rows, columns, 0, 0)
                fcntl.ioctl(task.terminal, termios.TIOCSWINSZ, size)
            case _:
                pass

    def _start(self, ident: int, request: dict[str, Any]) -> None:
        start = start_python if "source" in request else start_command
        try:
            task = start(ident, request)
        except OSError as error:
            answer = {"status": 127 if isinstance(error, FileNotFoundError) else 126}
            what = error.filename or (request.get("argv") or ["python"])[0]
            text = f"cannot run {what}: {error.strerror}"
            self._send(Kind.EXIT, ident, json.dumps({**answer, "error": text}).encode())
            return
        self._tasks[ident] = task
        for fd in list(task.outputs):
            self._watch(fd, select.POLLIN, functools.partial(self._read_output, task, fd))
        self._reap()

    def _write_stdin(self, task: Task) -> None:
        """Give a process what it takes now; the poll loop gives it the rest."""
        fd = task.stdin
        if fd is None:
            return
        taken, closed = task.flush()
        if taken:
            self._send(Kind.TAKEN, task.ident, b"%d" % taken)
        if closed:
            task.stdin = None
            if fd != task.terminal:
                self._forget(fd)
        elif task.pending and fd not in self._watched:
            self._watch(fd, select.POLLOUT, lambda: self._write_stdin(task))
        elif task.terminal == fd:
            self._poll.modify(fd, select.POLLIN | (select.POLLOUT if task.pending else 0))
        elif not task.pending and fd in self._watched:
            del self._watched[fd]
            self._poll.unregister(fd)

    def _read_output(self, task: Task, fd: int) -> bool:
        """Carry one piece; False when there is none now."""
        if fd == task.terminal and task.pending:
            self._write_stdin(task)
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            # EIO: the last process on the terminal has closed it.
            data = b""
        if data:
            self._send(task.outputs[fd], task.ident, data)
            return True
        del task.outputs[fd]
        if fd == task.terminal:
            task.terminal = task.stdin = None
        self._forget(fd)
        return False

    def _reap(self, wake: int | None = None) -> None:
        """Report every process that has ended, after all that it wrote."""
        if wake is not None:
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)
        for task in list(self._tasks.values()):
            pid, status = os.waitpid(task.pid, os.WNOHANG)
            if pid == 0:
                continue
            for fd in list(task.outputs):
                while self._read_output(task, fd):
                    pass
            rest = set(task.outputs)
            if task.stdin is not None:
                rest.add(task.stdin)
            for fd in rest:
                self._forget(fd)
            del self._tasks[task.ident]
            answer = {"status": os.waitstatus_to_exitcode(status), "error": None}
            self._send(Kind.EXIT, task.ident, json.dumps(answer).encode())


def _signal(pid: int, number: int) -> None:
    """To a process group whose leader may not have come as far as to lead one."""
    with contextlib.suppress(ProcessLookupError):
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            os.kill(pid, number)


def open_channel(device: str) -> int:
    """Open the channel, raw where it is a terminal."""
    fd = os.open(device, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    if stat.S_ISCHR(os.fstat(fd).st_mode) and os.isatty(fd):
        tty.setraw(fd)
    return fd


def main() -> None:
    """Become a session of its own, out of the reach of signals to others', and serve."""
    os.setsid()
    # A shell's background command ignores them, and what it starts would, too.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    Agent(open_channel(sys.argv[1])).run()


if __name__ == "__main__":
    main()
