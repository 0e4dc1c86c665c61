"""In a guest: modules loaded and unloaded again, and how long the loading takes."""

from __future__ import annotations

import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.inguest import control, inram
from bench.inguest.asking import requests
from kmodd.connection import Connection
from kmodd.kernel import libc

_UNLOADERS, _TRIES, _DEPTH = 16, 100, 8
_PAUSE = 0.05
"""Seconds between an unload and the next load: what the kernel and kmodd do behind it is no part of that."""


def asked_for(variant: str, modules: list[str], rounds: int) -> list[int]:
    """Switch to a variant and have the kernel ask for the last of some modules, again and again.

    All of them are unloaded in between; return the nanoseconds from the request to its answer.
    """
    control.use(variant)
    control.settle()
    took = []
    for _ in range(rounds):
        took += requests([modules[-1]])
        _all_live(modules)
        unload(modules)
        time.sleep(_PAUSE)
    return took


def at_once(variant: str, name: str, modules: list[str], program: str) -> int:
    """Load modules by one of three ways and unload them again; return the nanoseconds that it took.

    `kmodd`: a request of the API for `name`, which needs all of them; `modprobe`: `modprobe -a`; `insert`:
    the program that only hands their files over, in order.
    """
    commands = {"modprobe": [control.STOCK, "-a", "--", *modules], "insert": [program, _list(modules)]}
    control.use("installed" if variant == "kmodd" else "off")
    control.settle()
    connection = Connection()
    connection.call("Resolve", name=name)  # modprobe.d may just have been changed, which is read once
    begin = time.perf_counter_ns()
    if variant == "kmodd":
        connection.call("RequestModule", name=name)
    else:
        subprocess.run(commands[variant], check=True)
    took = time.perf_counter_ns() - begin
    _all_live(modules)
    unload(modules)
    time.sleep(_PAUSE)
    return took


def that_can_be(candidates: list[str], program: str, count: int) -> list[str]:
    """Return the first `count` modules that can be loaded, in this order, and unloaded; now in memory."""
    found: list[str] = []
    rest = list(candidates)
    while rest and len(found) < count:
        # A few more than are missing: some are for a machine that this one is not.
        size = count - len(found) + 10
        some, rest = rest[:size], rest[size:]
        inram.copy_up(files(some))
        before = _live()
        subprocess.run([program, _list(some)], check=False)
        new = _live() - before
        came = [module for module in some if module in new]
        unload(came, patient=False)
        stayed = _live()
        found += [module for module in came if module not in stayed]
    return found[:count]


def _list(modules: list[str]) -> str:
    """Write the list of files for the program that hands them over; return where it is."""
    listed = inram.PLACE / "list"
    listed.write_text("".join(f"{path}\n" for path in files(modules)))
    return str(listed)


def files(modules: list[str]) -> list[str]:
    """Return the files of modules, as depmod lists them."""
    release = Path("/lib/modules", os.uname().release)
    lines = (release / "modules.dep").read_text().splitlines()
    found = {}
    for line in lines:
        path = line.partition(":")[0]
        found[path.rpartition("/")[2].partition(".")[0].replace("-", "_")] = str(release / path)
    return [found[module] for module in modules]


def unload(modules: list[str], *, patient: bool = True) -> None:
    """Unload modules, the last ones first.

    Many at once, as each unload waits for all processors; what is still needed is tried again.
    """
    left = list(reversed(modules))
    with ThreadPoolExecutor(_UNLOADERS) as unloaders:
        for _try in range(_TRIES if patient else _DEPTH):
            left = [
                module for module, gone in zip(left, unloaders.map(_unload, left), strict=True) if not gone
            ]
            if not left:
                return
            time.sleep(0.01)
    if patient:
        raise RuntimeError(f"cannot unload {sorted(left)}")


def _unload(module: str) -> bool:
    try:
        libc.delete_module(module)
    except OSError:
        return False
    return True


def _live() -> set[str]:
    return {line.split()[0] for line in Path("/proc/modules").read_text().splitlines()}


def _all_live(modules: list[str]) -> None:
    if missing := set(modules) - _live():
        raise RuntimeError(f"not loaded: {sorted(missing)}")
