"""From a started machine to one that takes commands."""

import json
import os
import sys
import time
from collections.abc import Mapping

from kmodd.lab.errors import LabError, LabTimeout
from kmodd.lab.initramfs import python_path
from kmodd.lab.machine import Machine
from kmodd.lab.options import LabOptions
from kmodd.lab.wire import MAX_PAYLOAD, Kind

_PASSED_ON = ("COLUMNS", "LANG", "LANGUAGE", "LINES", "NO_COLOR", "PATH", "TERM", "TZ", "VIRTUAL_ENV")
_SERVE_LIMIT = {"uml": 60.0, "qemu": 120.0}


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """What a process in the guest has in its environment: a part of this one, and `extra`."""
    env = {"HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/sh"}
    env |= {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED_ON or name.startswith(("KMODD_", "LC_"))
    }
    env.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    env["PYTHONPATH"] = python_path()
    # The container or the user's session that this runs in is not there in the guest.
    return env | dict(extra)


def come_up(machine: Machine, options: LabOptions, deadline: float | None = None) -> None:
    """Wait for the agent and, if so asked, for kmodd.

    :raises LabError: the guest ends or hangs, or kmodd does not become ready
    """
    limit = time.monotonic() + machine.boot_limit
    while True:
        frame = machine.channel.receive(min(limit, deadline or limit))
        if frame is None:
            raise LabTimeout("the guest does not come up: its agent says nothing")
        if frame.kind is Kind.HELLO:
            break
    if options.serve:
        _serve(machine, options, deadline)


def _serve(machine: Machine, options: LabOptions, deadline: float | None) -> None:
    limit = _SERVE_LIMIT[options.kernel]
    request = {
        "argv": [sys.executable, "-m", "kmodd", "serve", "--hook"],
        "env": environment(options.env),
        "limit": limit,
    }
    machine.channel.send(Kind.SERVE, 0, json.dumps(request).encode())
    patience = time.monotonic() + limit + 10
    while (frame := machine.channel.receive(min(patience, deadline or patience))) is not None:
        if frame.kind is Kind.SERVED:
            if error := json.loads(frame.payload)["error"]:
                raise LabError(f"kmodd does not start in the guest: {error}")
            return
    raise LabTimeout("kmodd does not start in the guest: no word of it in time")


def send_start(machine: Machine, ident: int, request: Mapping[str, object]) -> None:
    """Have the agent start a process."""
    data = json.dumps(request).encode()
    while len(data) > MAX_PAYLOAD:
        machine.channel.send(Kind.MORE, 0, data[:MAX_PAYLOAD])
        data = data[MAX_PAYLOAD:]
    machine.channel.send(Kind.START, ident, data)
