"""In a guest: processes that make the kernel ask for modules, and how long each request takes."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator

ASK = "/proc/kmodd_ask"
_GENERIC_NETLINK = 16


def requests(names: list[str]) -> list[int]:
    """request_module() for each name, one after the other; return the nanoseconds that each took."""
    fd = os.open(ASK, os.O_WRONLY)
    try:
        return [_timed(fd, name.encode()) for name in names]
    finally:
        os.close(fd)


def needs_module() -> bool:
    """Whether `requests` needs the module kmodd_ask, which is only built for kernels with tracing."""
    return os.path.isdir("/sys/kernel/tracing")


def mounts(names: list[str]) -> list[int]:
    """Mount file systems of these types, one after the other: the kernel asks for fs-TYPE, once each.

    None of them is one in the end; return the nanoseconds that each took.
    """
    mount = ctypes.CDLL(None).mount
    took = []
    for name in names:
        kind = name.encode()
        begin = time.perf_counter_ns()
        mount(b"none", b"/mnt", kind, 0, None)
        took.append(time.perf_counter_ns() - begin)
    return took


def _timed(fd: int, name: bytes) -> int:
    begin = time.perf_counter_ns()
    os.write(fd, name)
    return time.perf_counter_ns() - begin


def until_told(told: int, name: str, pause: float) -> list[int]:
    """request_module() for a name again and again until the pipe `told` is closed, as `requests`."""
    took = []
    os.set_blocking(told, False)
    fd = os.open(ASK, os.O_WRONLY)
    while not _is_closed(told):
        took.append(_timed(fd, name.encode()))
        time.sleep(pause)
    os.close(fd)
    return took


def _is_closed(pipe: int) -> bool:
    try:
        return not os.read(pipe, 1)
    except BlockingIOError:
        return False


def families(names: Iterator[str]) -> int:
    """Look up generic netlink families, which anybody may: the kernel asks for a module for each.

    Return how many there were.
    """
    count = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _GENERIC_NETLINK) as sock:
        for name in names:
            sock.send(_get_family(name))
            sock.recv(4096)
            count += 1
    return count


def _get_family(name: str) -> bytes:
    """CTRL_CMD_GETFAMILY by name (linux/genetlink.h)."""
    value = name.encode() + b"\0"
    attribute = (4 + len(value)).to_bytes(2, sys.byteorder) + (2).to_bytes(2, sys.byteorder) + value
    attribute += b"\0" * (-len(attribute) % 4)
    body = b"\x03\x01\x00\x00" + attribute
    head = (16 + len(body)).to_bytes(4, sys.byteorder) + b"\x10\x00\x01\x00" + b"\0" * 8
    return head + body


class Process:
    """A fork that does one piece of work as somebody; what it returns comes back as JSON."""

    def __init__(self, uid: int, work: Callable[[], object]) -> None:
        """Start it."""
        reader, writer = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            status = 1
            try:
                os.close(reader)
                _become(uid)
                with os.fdopen(writer, "w") as file:
                    json.dump(work(), file)
                status = 0
            finally:
                os._exit(status)
        os.close(writer)
        self._reader = reader

    def result(self) -> object:
        """Wait for its end; return what its work returned."""
        with os.fdopen(self._reader) as file:
            text = file.read()
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        if status:
            raise RuntimeError(f"a process of the bench ended with status {status}")
        value: object = json.loads(text)
        return value


def _become(uid: int) -> None:
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
