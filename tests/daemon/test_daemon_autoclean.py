"""Autoclean as people and programs see it: `kmodd autoclean`, `kmodd list`, the API, the log."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from daemon.daemon_harness import Daemon, wait_until

NOBODY = 65534


def by_kernel(daemon: Daemon, name: bytes) -> None:
    """Have a name asked for as the kernel does."""
    with daemon.helper(name) as helper:
        helper.packets()


def shown(daemon: Daemon, *options: str) -> dict[str, Any]:
    done = daemon.kmodd("autoclean", "--json", *options)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_s9_what_the_kernel_asked_for_goes_and_what_was_asked_for_by_hand_stays(daemon: Daemon) -> None:
    daemon.kmodd("request", "plain")
    by_kernel(daemon, b"alias-top")
    told = shown(daemon)
    again = shown(daemon, "--dry-run")
    assert [module["module"] for module in again["modules"]] == [
        module["module"] for module in told["modules"]
    ]
    assert (told["delay"], told["uses"], told["unloaded"]) == (60, "sampled", [])
    assert {module["module"]: module["goes"] for module in told["modules"]} == {"dep": False, "top": False}
    with daemon.follow() as log:
        daemon.tune("unload_delay", 0.5)
        assert log.event(event="unload")["module"] == "top"
        assert log.event(event="unload")["module"] == "dep"
        assert log.event(event="autoclean")["modules"] == ["top", "dep"]
    assert daemon.live() == ["plain"]
    assert daemon.status()["autoclean"]["unloaded"] == 2
    words = daemon.kmodd("status").stdout
    assert "every 0.5 s, uses are sampled: 0 modules came by themselves or are marked, 2 unloaded" in words


def test_a_pass_now(daemon: Daemon) -> None:
    daemon.tune("unload_delay", 3600)
    by_kernel(daemon, b"top")
    assert shown(daemon, "--now")["unloaded"] == [], "the delays hold"
    daemon.tune("unload_delays", ["top=0.001", "dep=0.001"])
    wait_until(
        lambda: len(daemon.events(event="unload")) == 2 or shown(daemon, "--now"), "it is unused for 1 ms"
    )
    assert daemon.live() == []
    assert daemon.kmodd("autoclean").stdout.startswith("no module in the kernel came by itself")


def test_in_words(daemon: Daemon) -> None:
    by_kernel(daemon, b"top")
    daemon.tune("keep", ["t*"])
    out = daemon.kmodd("autoclean").stdout.splitlines()
    assert out[0].split() == ["Module", "Size", "Goes", "In", "Why"]
    rows = {line.split()[0]: line for line in out[1:]}
    assert "it is used by top" in rows["dep"]
    assert rows["top"].endswith("it is kept: the setting keep names it")
    daemon.tune("unload_delay", 0)
    assert daemon.kmodd("autoclean").stdout.endswith("autoclean is off: the setting unload_delay is 0\n")
    assert daemon.kmodd("autoclean", "--now").stdout.endswith("unloaded: 0 modules, 0 bytes\n")
    assert daemon.kmodd("autoclean", "--now", "--dry-run").returncode == 2


def test_list_says_since_when(daemon: Daemon) -> None:
    by_kernel(daemon, b"top")
    with daemon.api() as api:
        found = {module["name"]: module for module in api.call("ListModules")["modules"]}
    assert (found["dep"]["autoclean"], found["dep"]["idle_since"]) == (True, None), "it is held"
    assert found["dep"]["uses"] == found["top"]["uses"] == "sampled"
    assert found["top"]["idle_since"] >= daemon.events(event="load")[-1]["time"]
    assert "idle since" in daemon.kmodd("list").stdout


def test_what_uses_what_is_not_for_everybody_and_only_root_may_unload(daemon: Daemon) -> None:
    by_kernel(daemon, b"top")
    for option, words in (("--dry-run", "may not see who asked"), ("--now", "may not run autoclean")):
        done = daemon.kmodd("autoclean", option, uid=NOBODY)
        assert (done.returncode, done.stdout) == (77, "")
        assert words in done.stderr


def test_a_bad_delay_is_refused(make: Callable[..., Daemon]) -> None:
    daemon = make().start()
    for bad in ("loop", "loop=", "=3", "a b=3", "loop=-1", "loop=1e3"):
        done = daemon.kmodd("tune", f"unload_delays={json.dumps([bad])}")
        assert done.returncode == 2, bad
        assert "entries of a glob" in done.stderr
    assert daemon.settings()["unload_delays"] == []
