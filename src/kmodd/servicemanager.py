"""What a service manager offers: sd_notify(3), sockets passed by sd_listen_fds(3), the watchdog."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from kmodd.errors import KmoddError

_FIRST_FD = 3  # SD_LISTEN_FDS_START


def notify(state: str, environ: MutableMapping[str, str] = os.environ) -> bool:
    """Send `state` (such as `READY=1`) to the service manager; return whether there is one.

    A service manager that does not take it is no reason to fail: the message is then lost.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in {"/", "@"}:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)
        try:
            sock.sendto(state.encode(), address)
        except OSError:
            return False
    return True


def passed_sockets(environ: MutableMapping[str, str] = os.environ) -> dict[str, socket.socket]:
    """Take the sockets of socket activation, by the name that the socket unit gives them.

    The variables are removed, so that no child takes the sockets for its own.

    Raises:
        KmoddError: what was passed is no socket.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return {}
    taken: dict[str, socket.socket] = {}
    for index in range(min(int(count), 16)):
        fd = _FIRST_FD + index
        try:
            os.set_inheritable(fd, False)
            sock = socket.socket(fileno=fd)
            sock.setblocking(False)
        except OSError as err:
            raise KmoddError(f"the service manager's descriptor {fd} is no socket: {err.strerror}") from err
        taken[names[index] if index < len(names) else ""] = sock
    return taken


def watchdog_interval(environ: MutableMapping[str, str] = os.environ) -> float | None:
    """Return the seconds between two `WATCHDOG=1`, half of what the service manager allows; or None."""
    usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or pid not in {"", str(os.getpid())}:
        return None
    return int(usec) / 2_000_000
