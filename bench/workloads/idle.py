"""Row 10: how often an idle daemon is woken, when nothing has asked for anything."""

from __future__ import annotations

import time

from bench.bed import Bed
from bench.daemon import SimulatedDaemon
from bench.host import running, switches
from bench.measured import Figure, Measured
from kmodd.connection import Connection

WHAT = "row 10: wake-ups of an idle daemon that has served requests, in a minute"

WAKE_UPS = 0
MODULES = "[built]\nbuiltin = true\n[fat]\n[slow]\nlatency = 0.05\n"
_PEER = "systemd-udevd"
_PAUSE = 0.5


def run(bed: Bed) -> Measured:
    """Let them come to rest, then count how often their threads go to sleep: no more often than they wake."""
    seconds = 3 if bed.quick else 60
    with SimulatedDaemon(MODULES) as daemon, SimulatedDaemon(MODULES) as autoclean:
        for each, names in ((daemon, ("built", "kmodd-nothing")), (autoclean, ("built", "fat", "slow"))):
            for name in names:
                each.ask(name).answer()
        # Modules that somebody asked for by hand stay; those that the kernel asked for are looked at as often
        # as `unload_delay` says. A client that stays connected must cost nothing, either.
        client = Connection(str(daemon.api))
        for name in ("fat", "slow"):
            client.call("RequestModule", name=name)
        while client.call("GetStatus")["status"]["journal"]["waiting"]:
            time.sleep(0.05)
        before = {each.pid: _settled(each.pid) for each in (daemon, autoclean)}
        peer = running(_PEER)
        peers = switches(peer) if peer is not None else 0
        bed.say(f"idle: {seconds} s")
        time.sleep(seconds)
        woken, passes = (switches(each.pid) - before[each.pid] for each in (daemon, autoclean))
        del client
    case = f"{seconds} s"
    figures = [
        Figure(case, "wake-ups of kmodd", woken, "", WAKE_UPS),
        Figure(case, "wake-ups where modules may go", passes),
    ]
    if peer is not None:
        figures.append(Figure(case, f"wake-ups of {_PEER}", switches(peer) - peers))
        return Measured((), figures=tuple(figures))
    return Measured((), notes=(f"idle: {_PEER} does not run on this machine",), figures=tuple(figures))


def _settled(pid: int) -> int:
    """Return the count once it is the same twice: a journal is written a quarter of a second behind."""
    seen = -1
    while (now := switches(pid)) != seen:
        seen = now
        time.sleep(_PAUSE)
    return seen
