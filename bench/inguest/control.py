"""In a guest: who answers the kernel, with what switched on, and that nothing of before is still going on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.inguest import asking, inram
from kmodd.connection import Connection

STOCK = "/sbin/modprobe"
FEATURES: dict[str, dict[str, Any]] = {
    "on": {"tracing": True, "journal": True, "policy.mode": "enforce"},
    "installed": {"tracing": True, "journal": True, "policy.mode": "off"},
    "off": {"tracing": False, "journal": False, "policy.mode": "off"},
}
"""The settings that a request costs something by. `installed`: as they are by default, and no rules."""

_HOOK = Path("/proc/sys/kernel/modprobe")
_LIMIT = 60.0


def status() -> dict[str, Any]:
    """Return what the daemon says of itself."""
    found: dict[str, Any] = Connection().call("GetStatus")["status"]
    return found


def prepare(policy: str) -> list[str]:
    """Give the guest the module that asks, and the daemon a policy, where it knows of any.

    Return the settings in FEATURES that the daemon does not have: an older one may be measured, too.
    """
    now = status()
    inram.of_the_helpers(now["hook"]["helper"])
    if asking.needs_module():
        subprocess.run(["modprobe", "kmodd_ask"], check=True)
    if "policy.mode" in now["settings"]:
        directory = Path("/etc/kmodd/policy.d")
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copy(policy, directory / "50-bench.toml")
        os.kill(now["pid"], signal.SIGHUP)
        _until(lambda: status()["policy"]["rules"] > 0, "the policy is not in force")
    return [key for key in FEATURES["on"] if key not in now["settings"]]


def use(variant: str) -> None:
    """Have the kernel's requests answered by kmodd with some of FEATURES, by `stock`, or by a program.

    Where kmodd does not answer it has everything off: what others load costs it nothing then.
    """
    now = status()
    api = Connection()
    for key, value in FEATURES.get(variant, FEATURES["off"]).items():
        if now["settings"].get(key, value) != value:
            api.call("SetSetting", key=key, value=value)
    other = STOCK if variant == "stock" else variant
    _HOOK.write_text((now["hook"]["helper"] if variant in FEATURES else other) + "\n")


def settle() -> None:
    """Return once no load runs and every event is written: what is measured next does not pay for it."""

    def at_rest() -> bool:
        now = status()
        return not now["loads"]["running"] and not now["journal"]["waiting"]

    _until(at_rest, "the daemon does not come to rest")


def _until(look: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + _LIMIT
    while not look():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.02)


def fallbacks() -> int:
    """Return how often a helper did not wait for the daemon, by the journal.

    Read as the file that it is: `Log` would have the daemon tell of each request of a flood.
    """
    with contextlib.closing(sqlite3.connect(f"file:{status()['journal']['path']}?mode=ro", uri=True)) as file:
        rows = file.execute("SELECT data FROM events WHERE event = 'daemon'")
        return sum(json.loads(data)["action"] == "fallback" for (data,) in rows)
