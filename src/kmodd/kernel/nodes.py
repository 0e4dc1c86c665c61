"""The device files by which a program asks for a module when it opens one, put back once the module has gone.

/dev/fuse or /dev/net/tun is there before its module (modules.devname): systemd-tmpfiles makes it at boot, and
to open it has the kernel ask for char-major-10-229. But where the module came first the file is the kernel's
own, which takes it away as the module goes (devtmpfs; measured on Linux 6.1): whoever opens it then is told
that there is no such file. With the file put back nobody notices that the module has gone.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass

_NEEDED = 1 << 0 | 1 << 27


@dataclass(frozen=True, slots=True)
class Node:
    """A device file as it is: its type and permissions, its owner, its device, its extended attributes."""

    path: str
    mode: int
    uid: int
    gid: int
    device: int
    attributes: tuple[tuple[str, bytes], ...] = ()


def seen(entries: Iterable[tuple[str, str]], dev: str = "/dev") -> tuple[Node, ...]:
    """Return those that are there of a module's lines in modules.devname: `("net/tun", "c10:200")`.

    One of another device than it says is somebody's own, and is left out.
    """
    found = []
    for name, device in entries:
        with contextlib.suppress(OSError, ValueError):
            major, minor = device[1:].split(":")
            path = f"{dev}/{name}"
            state = os.lstat(path)
            kind = stat.S_IFCHR if device[0] == "c" else stat.S_IFBLK
            if stat.S_IFMT(state.st_mode) == kind and state.st_rdev == os.makedev(int(major), int(minor)):
                attributes = tuple((each, os.getxattr(path, each)) for each in _attributes(path))
                found.append(Node(path, state.st_mode, state.st_uid, state.st_gid, state.st_rdev, attributes))
    return tuple(found)


def can_be_made(proc: str = "/proc") -> bool:
    """Whether we may make device files, and give them to others: a service's sandbox may take that away.

    CAP_CHOWN and CAP_MKNOD among the effective capabilities (capabilities(7)).
    """
    try:
        with open(f"{proc}/self/status", encoding="ascii", errors="replace") as file:
            found = re.search(r"^CapEff:\s*([0-9a-f]+)$", file.read(), re.MULTILINE)
    except OSError:
        return False
    return found is not None and int(found[1], 16) & _NEEDED == _NEEDED


def _attributes(path: str) -> list[str]:
    try:
        return os.listxattr(path)  # an access control list, a security label
    except OSError:
        return []


def put_back(nodes: Iterable[Node]) -> list[str]:
    """Make those that are not there any more, as they were; return their paths.

    Raises:
        OSError: one of them cannot be made.
    """
    made = []
    for node in nodes:
        if os.path.lexists(node.path):
            continue
        os.makedirs(os.path.dirname(node.path), 0o755, exist_ok=True)
        try:
            # Nobody else's until its owner is set.
            os.mknod(node.path, stat.S_IFMT(node.mode) | 0o600, node.device)
        except FileExistsError:
            continue  # the module has come again
        os.chown(node.path, node.uid, node.gid, follow_symlinks=False)
        os.chmod(node.path, stat.S_IMODE(node.mode))
        for name, value in node.attributes:
            with contextlib.suppress(OSError):  # what the file system or a policy does not take
                os.setxattr(node.path, name, value)
        made.append(node.path)
    return made
