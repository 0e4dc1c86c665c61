"""Starts kmodd in the guest and waits until it is the kernel's modprobe."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

_HOOK = Path("/proc/sys/kernel/modprobe")
_LOG = Path("/run/kmodd-lab/serve.log")
_SOCKET = Path("/run/kmodd/io.kmodd")
_NOTIFY = "/run/kmodd-lab/notify"


def start(argv: list[str], env: dict[str, str], limit: float) -> dict[str, str | None]:
    """Start `argv`; the answer's `error` is None when it is ready, else says why it is not.

    Ready is what the daemon tells by sd_notify, or what can be seen: another path in the hook and
    the API socket.
    """
    before = _HOOK.read_text()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_NOTIFY)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, _LOG.open("ab") as log:
        notify.bind(_NOTIFY)
        daemon = subprocess.Popen(
            argv,
            env={**env, "NOTIFY_SOCKET": _NOTIFY},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
        notify.settimeout(0.05)
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                if b"READY=1" in notify.recv(4096).split(b"\n"):
                    return {"error": None}
            if _HOOK.read_text() != before and _SOCKET.exists():
                return {"error": None}
            if (status := daemon.poll()) is not None:
                return {"error": f"it ended with status {status}{_tail()}"}
        with contextlib.suppress(ProcessLookupError):
            os.killpg(daemon.pid, signal.SIGKILL)
        daemon.wait()
        return {"error": f"it is not ready after {limit:g} seconds{_tail()}"}


def _tail() -> str:
    lines = _LOG.read_text(errors="replace").splitlines()[-20:]
    return "".join(f"\n    {line}" for line in lines)
