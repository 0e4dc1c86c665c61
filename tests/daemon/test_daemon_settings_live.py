"""S12: every setting can be read and changed while the daemon runs, and has its effect at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from daemon.daemon_harness import PATIENCE, Daemon, Reply, wait_until

CHANGES: dict[str, tuple[Any, Any]] = {
    "modprobe_path": ("/usr/local/sbin/modprobe", ""),
    "serial": (True, False),
    "tracing": (False, True),
    "kernel.keep_tree": (True, False),
    "modprobe_args": (["-q", "--"], []),
    "unload_delay": (0, 31536000),
    "unload_delays": (["nf_*=300", "loop=0"], []),
    "keep": (["snd*", "usb-*"], []),
    "load_timeout": (0.5, 31536000),
    "fallback": ("deny", "modprobe"),
    "journal": (False, True),
    "journal_keep": ("1s", "52w"),
    "policy.mode": ("audit", "enforce"),
    "stop_timeout": (3600, 0),
}


def test_s12_no_setting_is_forgotten_here(daemon: Daemon) -> None:
    assert set(daemon.settings()) == set(CHANGES)


@pytest.mark.parametrize("key", CHANGES)
def test_s12_readable_and_changeable(daemon: Daemon, key: str) -> None:
    before = daemon.settings()
    for value in CHANGES[key]:
        done = daemon.kmodd("tune", "--json", f"{key}={json.dumps(value)}")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) == {key: value}
        assert daemon.settings() == before | {key: value}
        assert daemon.status()["settings"][key] == value
        assert daemon.events(event="setting")[-1]["new"] == value
    daemon.tune(key, CHANGES[key][1])
    assert len(daemon.events(event="setting")) <= 2, "the same value again is no change"
    daemon.tune("stop_timeout", 0)


@pytest.mark.parametrize("key", CHANGES)
def test_s12_settable_in_a_file(make: Callable[..., Daemon], key: str) -> None:
    value = CHANGES[key][0]
    daemon = make(settings=f"{key} = {json.dumps(value)}\n").start()
    assert daemon.settings()[key] == value


def test_s12_load_timeout_holds_for_those_who_wait(daemon: Daemon) -> None:
    with daemon.api() as api, daemon.helper(b"long") as helper:
        assert helper.packet() == b"a"
        api.send("RequestModule", name="long")
        wait_until(lambda: daemon.status()["requests"]["waiting"] == 2, "both wait")
        daemon.tune("load_timeout", 0.01)
        with pytest.raises(Reply) as raised:
            api.receive()
        assert raised.value.error == "io.kmodd.TimedOut"
        assert helper.packets() == [b"s\x01"]
        with daemon.helper(b"long") as another:
            assert another.packets() == [b"s\x01"]
        assert daemon.status()["loads"] == {"total": 1, "running": 1}


def test_s12_load_timeout_taken_back(daemon: Daemon) -> None:
    daemon.tune("load_timeout", PATIENCE)
    with daemon.helper(b"slow") as helper:
        assert helper.packet() == b"a"
        daemon.tune("load_timeout", 0)
        assert helper.packets() == [b"s\0"]
    daemon.tune("load_timeout", 0.001)
    assert daemon.kmodd("request", "plain").returncode == 0, "one that ends in time"


def test_s12_stop_timeout_holds_for_this_stop(make: Callable[..., Daemon]) -> None:
    daemon = make(settings="stop_timeout = 3600\n").start()
    with daemon.helper(b"long") as helper:
        assert helper.packet() == b"a"
        daemon.tune("stop_timeout", 0.01)
        daemon.stop()
        assert helper.packets() == [b"f"]


REAL_LOADER = """
import kmodd.daemon, kmodd.kernel.init
from kmodd.kernel.simulated import SimulatedKernel
kmodd.daemon.LinuxKernel = lambda: SimulatedKernel(())
kmodd.kernel.init.enter = lambda: None
"""


def test_s12_modprobe_path_and_args_hold_for_the_next_load(make: Callable[..., Daemon]) -> None:
    daemon = make()
    record = daemon.root / "record"
    for name in ("one", "two"):
        program = daemon.root / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >>{record}\n')
        program.chmod(0o755)
    daemon.start(prelude=REAL_LOADER, kernel="linux")
    for name, arguments in (("one", ["--"]), ("two", ["-a", "b c"]), ("one", [])):
        daemon.tune("modprobe_path", str(daemon.root / name))
        daemon.tune("modprobe_args", arguments)
        with daemon.helper(f"asked-{name}-{len(arguments)}".encode()) as helper:
            assert helper.packets() == [b"s\0"]
    assert record.read_text().splitlines() == [
        "one -- asked-one-1",
        "two -a b c asked-two-2",
        "one asked-one-0",
    ]
    daemon.tune("modprobe_path", "/nonexistent/modprobe")
    with daemon.helper(b"nothing") as helper:
        assert helper.packets() == [b"s\x01"]
    assert "ENOENT" in daemon.events(event="request", name="nothing")[0]["error"]
