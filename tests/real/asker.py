"""Run in a guest as somebody: asks the kernel for modules, and says who it is before."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)


def mount(kind: str) -> None:
    libc.mount(b"none", b"/mnt", kind.encode(), 0, None)


def genl(family: str) -> None:
    """CTRL_CMD_GETFAMILY by name: the kernel asks for net-pf-16-proto-16-family-NAME."""
    name = family.encode() + b"\0"
    attribute = (4 + len(name)).to_bytes(2, sys.byteorder) + (2).to_bytes(2, sys.byteorder) + name
    attribute += b"\0" * (-len(attribute) % 4)
    body = b"\x03\x01\x00\x00" + attribute
    head = (16 + len(body)).to_bytes(4, sys.byteorder) + b"\x10\x00\x01\x00" + b"\0" * 8
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16) as sock:
        sock.send(head + body)


def ask(kind: str, what: Any) -> None:
    if kind == "mount":
        mount(what)
    elif kind == "thread":
        thread = threading.Thread(target=mount, args=(what,))
        thread.start()
        thread.join()
    elif kind == "genl":
        genl(what)
    elif kind == "kernel":
        with open("/proc/kmodd_ask", "wb", buffering=0) as file:
            file.write(what.encode())
    elif kind == "worker":
        with open("/proc/kmodd_ask_worker", "wb", buffering=0) as file:
            file.write(what.encode())
    elif kind in {"nowait", "worker_nowait"}:
        with open(f"/proc/kmodd_ask_{kind}", "wb", buffering=0) as file:
            file.write(what.encode())
            file.write(b"x" * 56)  # too long to be asked for: the task is alive until this returns
            sys.stdin.readline()
    elif kind == "alg":
        with socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET) as alg, contextlib.suppress(OSError):
            alg.bind(("skcipher", what))
    elif kind == "ldisc":
        discipline(what)
    else:
        with contextlib.suppress(OSError):
            socket.socket(what, socket.SOCK_RAW, 0).close()


def discipline(number: int) -> None:
    """Ask for a line discipline by an ioctl (TIOCSETD), on a terminal of one's own."""
    master, slave = os.openpty()
    try:
        with contextlib.suppress(OSError):
            fcntl.ioctl(slave, 0x5423, number.to_bytes(4, sys.byteorder))
    finally:
        os.close(master)
        os.close(slave)


def every_way(n: int, family: int, line: int, mounts: bool) -> None:
    """Ask in each way that is there, for names of one's own; where those are numbers, everybody's in turn."""
    pid = os.getpid()
    ask("socket", 7 if n % 2 else family)
    ask("genl", f"f{pid}x{n}")
    ask("alg", f"a{pid}x{n}")
    ask("ldisc", 28 if n % 2 else line)
    if mounts:
        ask("mount", f"m{pid}x{n}")


def become(order: dict[str, Any]) -> None:
    """Take the name, the control group, the user with his groups, and the namespaces that are ordered."""
    Path("/proc/self/comm").write_text(order.get("comm", "who-asks"))
    if order.get("cgroup"):
        directory = Path("/sys/fs/cgroup") / order["cgroup"]
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cgroup.procs").write_text(str(os.getpid()))
    uid = order.get("uid", 0)
    if uid:
        os.setgroups(order.get("groups", []))
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    if order.get("unshare") and libc.unshare(0x10020000):  # CLONE_NEWUSER, CLONE_NEWNS
        raise OSError(ctypes.get_errno(), "unshare")


def main() -> None:
    order = json.loads(sys.argv[1])
    become(order)
    pid, uid = os.getpid(), order.get("uid", 0)
    told = {"pid": pid, "uid": uid, "exe": order["exe"]}
    print(json.dumps(told), flush=True)
    sys.stdin.readline()
    for n in range(order["count"]):
        kind, what = order["kind"], order["what"]
        if kind == "mixed":
            kind, what = order["what"], f"of{pid}x{n}" if n % 2 else "everybodys"
        if kind == "every way":
            every_way(n, *what, mounts=uid == 0 or bool(order.get("unshare")))
        else:
            ask(kind, what)


if __name__ == "__main__":
    main()
