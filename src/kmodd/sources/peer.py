"""Who is at the other end of a Unix socket: what the kernel says, and what /proc adds to it."""

from __future__ import annotations

import dataclasses
import grp
import os
import socket
import struct
from dataclasses import dataclass

from kmodd.kernel import requester as kernel_requester
from kmodd.model import Requester

_UCRED = struct.Struct("iII")
_SO_PEERGROUPS = 59  # include/uapi/asm-generic/socket.h, since Linux 4.13
_GROUPS_SIZE = 1024  # the most that socket.getsockopt takes: 256 groups
GROUP = "kmodd"


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer's credentials as they were when it connected (SO_PEERCRED, unix(7)).

    The uid is the one in the daemon's user namespace: root of another one is not 0 here. `groups`: the
    supplementary ones, None where they are not known.
    """

    pid: int
    uid: int
    gid: int
    groups: tuple[int, ...] | None = None

    @property
    def is_root(self) -> bool:
        """Whether it may ask for modules and change things."""
        return self.uid == 0

    def is_in(self, group: int | None) -> bool:
        """Whether it is of a group; of None, which stands for one that does not exist, nobody is."""
        return group is not None and (group == self.gid or group in (self.groups or ()))


def group_id() -> int | None:
    """Return the id of the group `kmodd`, None where there is none.

    It may ask a directory service and take long: never call it on the event loop.
    """
    try:
        return grp.getgrnam(GROUP).gr_gid
    except (KeyError, OSError):
        return None


def is_root(sock: socket.socket) -> bool:
    """Return whether the peer of a connected Unix socket is root; it is asked for each helper."""
    _pid, uid, _gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return bool(uid == 0)


def credentials(sock: socket.socket, *, groups: bool = True) -> Peer:
    """Return the peer of a connected Unix socket, with its supplementary groups where they matter."""
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if not groups:
        return Peer(pid, uid, gid)
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_SIZE)
    except OSError:
        return Peer(pid, uid, gid)  # more than 256 groups, or a kernel before 4.13: they give no right
    return Peer(pid, uid, gid, struct.unpack(f"{len(raw) // 4}I", raw[: len(raw) // 4 * 4]))


def requester(peer: Peer) -> Requester:
    """Return what is known of a peer: what its process tells is as it is now, as ps(1) would show it."""
    now = kernel_requester.peer(peer.pid, peer.uid)
    return dataclasses.replace(now, pid=peer.pid, uid=peer.uid, gid=peer.gid, groups=peer.groups)


def session(peer: Peer) -> int | None:
    """Return the peer's session id, by which it is known whether it belongs to a load."""
    try:
        # 0, a peer of another PID namespace, would be ourselves.
        return os.getsid(peer.pid) if peer.pid > 0 else None
    except OSError:
        return None
