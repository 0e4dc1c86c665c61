"""Which systemd unit and which container a control group's path names.

The unit is the first component from the top that is a unit and no slice, as sd_pid_get_unit(3) has it: that
level is the system manager's, what is below belongs to whom it was delegated and may be named at will. So a
service of a user's own manager is `user@1000.service`, and one in a container is the container's unit.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from kmodd.names import printable

_UNIT = re.compile(r"^[\w:.\\@-]+\.(?:service|scope|mount|swap|socket)$", re.ASCII)
_ID = "[0-9a-f]{64}"
_SCOPE = re.compile(rf"^(?:docker|libpod|podman|cri-containerd|crio|nerdctl)-({_ID})(?:\.scope)?$")
_BARE = re.compile(f"^{_ID}$")
_MACHINE = re.compile(r"^machine-(.+)\.scope$|^systemd-nspawn@(.+)\.service$")
_LXC = re.compile(r"^lxc\.payload\.(.+)$")
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")
_SHOWN_MAX = 512
"""Bytes of a path that are told: whoever may name groups may choose 4,096 for each of his requests."""
_BELOW_THESE = frozenset({"docker", "kubepods", "kubepods.slice", "libpod_parent"})
_NAMED_BELOW = frozenset({"lxc", "lxc.payload"})


class Group(NamedTuple):
    """A task's control group: its path, and the unit and the container that this is in; None for none."""

    path: str | None = None
    unit: str | None = None
    container: str | None = None


def belongs_to(raw: bytes) -> Group:
    """Return the control group that a task's cgroup file names (proc(5)).

    Version 2's hierarchy counts; where that is not in use, systemd's own of version 1.
    """
    if raw.startswith(b"0::/") and raw.find(b"\n") == len(raw) - 1:
        return of_path(raw[3:-1])
    paths: dict[bytes, bytes] = {}
    for line in raw.split(b"\n"):
        _number, _colon, rest = line.partition(b":")
        controllers, colon, path = rest.partition(b":")
        if colon:
            paths.setdefault(controllers, path)
    path = paths.get(b"", b"/")
    if path in {b"/", b""}:
        path = paths.get(b"name=systemd", path)
    return of_path(path) if paths else Group()


@functools.lru_cache(maxsize=256)
def of_path(path: bytes) -> Group:
    """Return the unit and the container of a control group's path.

    Containers of Docker, Podman, containerd and CRI-O are told by their id, 64 hexadecimal digits; those of
    LXC and systemd-machined by their name. Of containers in one another the outermost is told. Whoever may
    name control groups (root, and a user below `user@UID.service`) may name one like a container's.
    """
    parts = [printable(part) for part in path.split(b"/") if part]
    unit = next((part for part in parts if _UNIT.match(part)), None)
    container = None
    for index, part in enumerate(parts):
        container = _container(part, parts[:index])
        if container is not None:
            break
    return Group(printable(path, _SHOWN_MAX), unit, container)


def _container(part: str, above: list[str]) -> str | None:
    if found := _SCOPE.match(part):
        return found[1]
    if found := _LXC.match(part):
        return found[1]
    if found := _MACHINE.match(part):
        name = _ESCAPED.sub(lambda code: chr(int(code[1], 16)), found[1] or found[2])
        # A virtual machine of libvirt's: its processes are the host's own.
        return None if name.startswith("qemu-") else printable(name.encode())
    if _BARE.match(part) and _BELOW_THESE.intersection(above):
        return part
    return part if above and above[-1] in _NAMED_BELOW else None
