"""Which network interfaces there are, and of which kind, in every network namespace that can be found.

An interface holds nothing of the module that made it: to unload dummy, bridge, bonding or wireguard deletes
theirs, wherever they are (measured on Linux 6.1, where only tun and nlmon have a reference for each).

A namespace is found by a task in it, by a mount, or by an open file; one that lives on by no more than a
socket that was left in it is not. The files of others' mount namespaces are not touched: a file system
there might make us wait for ever.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from kmodd.kernel import libc

FILES_MAX = 200_000
"""Of a machine's open files so many are looked at; where there are more, not all namespaces may be known."""

_NETWORK = "net:["

# include/uapi/linux/netlink.h, rtnetlink.h, if_link.h
_HEADER = struct.Struct("=IHHII")
_IFINFOMSG = struct.Struct("=BxHiII")
_ATTRIBUTE = struct.Struct("=HH")
_GETLINK, _NEWLINK, _DONE, _ERROR = 18, 16, 3, 2
_REQUEST, _DUMP, _DUMP_INTERRUPTED = 0x1, 0x300, 0x10
_IFNAME, _LINKINFO, _INFO_KIND = 3, 18, 1
_TYPE = 0x3FFF
"""Without NLA_F_NESTED and NLA_F_NET_BYTEORDER."""
_IFF_UP = 0x1
_PATIENCE = 5.0
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface.

    `kind`: as in `ip -d link`, empty where it has none; `elsewhere`: in another namespace than PID 1.
    """

    name: str
    kind: str
    up: bool
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Links:
    """All of them, and how many namespaces there are that could not be looked into."""

    found: tuple[Link, ...] = ()
    unseen: int = 0


class Unreadable(Exception):
    """What the kernel answers is not laid out as it should be, or changes all the time."""


def everywhere(proc: str = "/proc") -> Links:
    """Return the interfaces of all namespaces. It blocks, and nothing is raised."""
    seen: dict[str, list[Link]] = {}
    unseen = 1  # until it is known better

    def look() -> None:
        nonlocal unseen
        for _ in range(_TRIES):
            namespaces, all_known = _namespaces(proc)
            ours = _target(f"{proc}/1/ns/net")
            for name, path in namespaces.items():
                if name in seen or path is None:
                    continue
                # By another path the next time: the task that was in it may have ended.
                with contextlib.suppress(OSError, Unreadable):
                    seen[name] = _inside(path, name, elsewhere=name != ours)
            left = [name for name in namespaces if name not in seen]
            unseen = len(left) + (ours not in namespaces) + (not all_known)
            if all(namespaces[name] is None for name in left):
                return

    # A thread that has entered another namespace is of no use for anything else.
    thread = threading.Thread(target=look, name="kmod_links")
    thread.start()
    thread.join()
    return Links(tuple(link for links in seen.values() for link in links), unseen)


# The namespaces


def _namespaces(proc: str) -> tuple[dict[str, str | None], bool]:
    """Return what to open for each namespace, by its name (None: nothing can be), and if those are all."""
    found: dict[str, str | None] = {}
    mounts = {}
    if (first := _target(f"{proc}/1/ns/mnt")) is not None:
        mounts[first] = f"{proc}/1"  # not of one that is confined to a part of the tree
    left = FILES_MAX
    for task, is_process in _tasks(proc):
        if (name := _target(f"{task}/ns/net")) is None:
            continue  # it has ended
        found.setdefault(name, f"{task}/ns/net")
        if (name := _target(f"{task}/ns/mnt")) is not None:
            mounts.setdefault(name, task)
        for file in _names(f"{task}/fd") if is_process and left >= 0 else ():
            left -= 1
            if (name := _target(file)) is not None and name.startswith(_NETWORK):
                found.setdefault(name, file)
    for namespace, task in mounts.items():
        for name, point in _mounted(task):
            found[name] = found.get(name) or (f"{proc}/1/root{point}" if namespace == first else None)
    return found, left >= 0


def _tasks(proc: str) -> Iterator[tuple[str, bool]]:
    """Yield the directory of each process, and of each of its further threads where it has some."""
    for process in _names(proc):
        if not os.path.basename(process).isdecimal():
            continue
        yield process, True
        try:
            alone = os.stat(f"{process}/task").st_nlink == 3  # two, and one for each thread
        except OSError:
            continue
        if not alone:
            yield from ((task, False) for task in _names(f"{process}/task"))


def _names(directory: str) -> list[str]:
    try:
        return [f"{directory}/{name}" for name in os.listdir(directory)]
    except OSError:
        return []


def _target(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _mounted(task: str) -> Iterator[tuple[str, str]]:
    """Yield the network namespaces that are mounted somewhere, and where (proc_pid_mountinfo(5))."""
    try:
        with open(f"{task}/mountinfo", "rb") as file:
            lines = file.read().split(b"\n")
    except OSError:
        return
    for line in lines:
        fields = line.split(b" ")
        if b" - nsfs " in line and fields[3].startswith(b"net:["):
            point = re.sub(rb"\\([0-3][0-7]{2})", lambda octal: bytes((int(octal[1], 8),)), fields[4])
            yield os.fsdecode(fields[3]), os.fsdecode(point)


# What is in them


def _inside(path: str, name: str, *, elsewhere: bool) -> list[Link]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if f"{_NETWORK}{os.fstat(fd).st_ino}]" != name:
            raise FileNotFoundError(path)  # the task has gone elsewhere, or another has its number
        libc.setns(fd, libc.CLONE_NEWNET)
    finally:
        os.close(fd)
    for _ in range(_TRIES):
        if (found := _dump()) is not None:
            return [Link(name, kind, up, elsewhere) for name, kind, up in found]
    raise Unreadable


def _dump() -> list[tuple[str, str, bool]] | None:
    """Return the interfaces of this thread's namespace; None where they have changed meanwhile."""
    found: list[tuple[str, str, bool]] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asking:
        asking.settimeout(_PATIENCE)
        body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        asking.send(_HEADER.pack(_HEADER.size + len(body), _GETLINK, _REQUEST | _DUMP, 1, 0) + body)
        whole = True
        while True:
            data, sender = asking.recvfrom(1 << 17)
            if sender[0] != 0:
                continue  # not the kernel
            for kind, flags, part in messages(data):
                whole = whole and not flags & _DUMP_INTERRUPTED
                if kind == _DONE:
                    if part[:4] not in {b"", bytes(4)}:
                        raise Unreadable  # an errno: it is not all of them
                    return found if whole else None
                if kind == _ERROR:
                    raise Unreadable
                if kind == _NEWLINK:
                    found.append(interface(part))


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield type, flags and body of each message of netlink(7).

    Raises:
        Unreadable: it is cut off.
    """
    at = 0
    while at < len(data):
        if len(data) - at < _HEADER.size:
            raise Unreadable
        length, kind, flags, _sequence, _port = _HEADER.unpack_from(data, at)
        if not _HEADER.size <= length <= len(data) - at:
            raise Unreadable
        yield kind, flags, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def interface(body: bytes) -> tuple[str, str, bool]:
    """Return name, kind and whether it is up, of RTM_NEWLINK (rtnetlink(7)).

    Raises:
        Unreadable: it is not laid out so.
    """
    if len(body) < _IFINFOMSG.size:
        raise Unreadable
    flags = _IFINFOMSG.unpack_from(body)[3]
    attributes = _attributes(body[_IFINFOMSG.size :])
    info = _attributes(attributes.get(_LINKINFO, b""))
    return _text(attributes.get(_IFNAME, b"")), _text(info.get(_INFO_KIND, b"")), bool(flags & _IFF_UP)


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    at = 0
    while len(data) - at >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if not _ATTRIBUTE.size <= length <= len(data) - at:
            raise Unreadable
        found[kind & _TYPE] = data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


def _text(raw: bytes) -> str:
    return os.fsdecode(raw.partition(b"\0")[0])
