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
_PEER = "systemd-udevd"
_PAUSE = 0.5


def run(bed: Bed) -> Measured:
    """Let it come to rest, then count how often its threads go to sleep: no more often than they wake."""
    seconds = 10 if bed.quick else 60
    # Permanent: what may go again is looked at as often as `unload_delay` says, which is work to do.
    with SimulatedDaemon("[fat]\npermanent = true\n[slow]\npermanent = true\nlatency = 0.05\n") as daemon:
        for name in ("fat", "slow", "kmodd-nothing"):
            daemon.ask(name).answer()
        # A client that stays connected must cost nothing, either.
        client = Connection(str(daemon.api))
        while client.call("GetStatus")["status"]["journal"]["waiting"]:
            time.sleep(0.05)
        before = _settled(daemon.pid)
        peer = running(_PEER)
        peers = switches(peer) if peer is not None else 0
        bed.say(f"idle: {seconds} s")
        time.sleep(seconds)
        woken = switches(daemon.pid) - before
        del client
    figures = [Figure(f"{seconds} s", "wake-ups of kmodd", woken, "", WAKE_UPS)]
    if peer is not None:
        figures.append(Figure(f"{seconds} s", f"wake-ups of {_PEER}", switches(peer) - peers))
        return Measured((), figures=tuple(figures))
    return Measured((), notes=(f"idle: {_PEER} does not run on this machine",), figures=tuple(figures))


def _settled(pid: int) -> int:
    """Return the count once it is the same twice: a journal is written a quarter of a second behind."""
    seen = -1
    while (now := switches(pid)) != seen:
        seen = now
        time.sleep(_PAUSE)
    return seen
