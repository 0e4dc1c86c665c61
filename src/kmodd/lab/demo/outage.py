"""The steps in which kmodd dies and comes back: nobody who asks meanwhile is let down."""

import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from kmodd.lab import service
from kmodd.lab.demo.follower import status
from kmodd.lab.demo.scene import PATIENCE, WORK, Demo, live_modules, require, require_live, require_outcomes

_AF_PHONET = 35  # include/linux/socket.h; Python has no name for it

_INSTALL = "install appletalk echo $PPID >{fifo}; sleep 1; modprobe --ignore-install appletalk\n"


def kill_daemon(demo: Demo) -> str:
    """The daemon dies in the middle of a load."""
    fifo = _slow_module()
    error: list[OSError] = []

    def open_one() -> None:
        try:
            socket.socket(socket.AF_APPLETALK, socket.SOCK_DGRAM).close()
        except OSError as err:
            error.append(err)

    began = time.monotonic()
    thread = threading.Thread(target=open_one)
    thread.start()
    first = _next_modprobe(fifo)
    require("appletalk" not in live_modules(), "appletalk is live before its time")
    demo.page.note(f"kmodd runs `{_command(first)}`, which sleeps; appletalk is not there yet.")
    _kill(demo)
    second = _next_modprobe(fifo)
    command = _command(second)
    parent = _parent(second)
    require(parent.startswith("kworker"), f"`{command}` was started by {parent}, not by the kernel")
    demo.page.note(f"The helper has become `{command}`, still a child of a kernel thread.")
    thread.join(PATIENCE)
    took = (time.monotonic() - began) * 1000
    require(not thread.is_alive(), "socket(AF_APPLETALK) still waits")
    require(not error, f"socket(AF_APPLETALK) failed: {error and error[0].strerror}")
    require_live(["appletalk"])
    demo.fallbacks += 1
    return f"socket(AF_APPLETALK) succeeded after {took:.0f} ms, and appletalk is live, without kmodd."


def _slow_module() -> int:
    """Make appletalk slow to load, with an `install` command that tells its pid: where to read that."""
    path = WORK / "begun"
    os.mkfifo(path)
    directory = Path("/etc/modprobe.d")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "kmodd-demo.conf").write_text(_INSTALL.format(fifo=path))
    # Open for writing too: it never ends, and a writer never waits.
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def _next_modprobe(fifo: int) -> int:
    """The pid of the next modprobe that comes as far as the `install` command."""
    require(bool(select.select([fifo], [], [], PATIENCE)[0]), "no modprobe came as far as appletalk")
    return int(os.read(fifo, 64))


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode()


def _parent(pid: int) -> str:
    """The name of a process's parent."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return Path(f"/proc/{fields[1]}/comm").read_text().strip()


def _kill(demo: Demo) -> None:
    pid = int(status()["pid"])
    watched = os.pidfd_open(pid)
    signal.pidfd_send_signal(watched, signal.SIGKILL)
    gone = bool(select.select([watched], [], [], PATIENCE)[0])
    os.close(watched)
    require(gone and demo.follower.wait_end(), f"kmodd, pid {pid}, does not die")
    demo.page.note(f"kmodd, pid {pid}, is killed (SIGKILL).")


def start_again(demo: Demo) -> str:
    """A new daemon takes over."""
    argv = [sys.executable, "-m", "kmodd", "serve", "--hook"]
    refused = service.start(argv, dict(os.environ), PATIENCE)["error"]
    require(refused is None, f"kmodd does not start again: {_last_line(refused)}")
    before = len(demo.follower.requests)
    demo.follower.attach()
    socket.socket(_AF_PHONET, socket.SOCK_DGRAM).close()
    require_outcomes(demo.told(before), {"net-pf-35": "loaded"})
    require_live(["phonet"])
    return f"kmodd, now pid {status()['pid']}, serves the kernel again."


def _last_line(text: str | None) -> str:
    return text.splitlines()[-1].strip() if text else ""
