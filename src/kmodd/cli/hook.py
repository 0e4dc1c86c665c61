"""`kmodd hook`: kernel.modprobe, without the daemon's help."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace

from kmodd import settings
from kmodd.connection import Connection
from kmodd.errors import KmoddError, NotPermitted
from kmodd.kernel.hook import Hook

_RUN_DIR = "/run/kmodd"


def hook(arguments: Namespace) -> int:
    """Turn the hook on or off, or tell how it stands; status ends with 0 where it is on, 1 where not."""
    kernel_hook = Hook(_RUN_DIR)
    if arguments.action != "status":
        if os.geteuid() != 0:
            raise NotPermitted(f"may not turn the hook {arguments.action}: be root")
        if arguments.action == "on":
            _on(kernel_hook)
        elif not kernel_hook.off():
            print(
                f"kmodd: kernel.modprobe is {kernel_hook.current()!r}, not kmodd's; left as it is",
                file=sys.stderr,
            )
    state = {"on": kernel_hook.is_on(), "modprobe": kernel_hook.current(), "helper": kernel_hook.helper}
    if arguments.json:
        print(json.dumps(state))
    else:
        print(f"hook {'on' if state['on'] else 'off'}: kernel.modprobe is {state['modprobe']!r}")
    return 0 if arguments.action != "status" or state["on"] else 1


def _on(kernel_hook: Hook) -> None:
    os.makedirs(_RUN_DIR, mode=0o755, exist_ok=True)
    fallback = str(settings.load("/")["fallback"])
    try:
        status = Connection().call("GetStatus")["status"]
        # While the seal is closed there is no way around it.
        fallback = "deny" if status["policy"]["sealed"] else status["settings"]["fallback"]
    except KmoddError:
        print(
            f"kmodd: the daemon is not running; until it is, the helper falls back ({fallback})",
            file=sys.stderr,
        )
    kernel_hook.on(fallback)
