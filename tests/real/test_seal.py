"""kmodd seal --hard on a real kernel: it is for good until the reboot, so it has a guest of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from kmodd.lab import Guest, LabOptions
from support.guests import Call, caller

pytestmark = pytest.mark.real

SYSCTL = "/proc/sys/kernel/modules_disabled"


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest(LabOptions(kernel="uml", timeout=180)) as booted:
        yield booted


@pytest.fixture
def call(guest: Guest) -> Call:
    return caller(guest)


@pytest.mark.parametrize("said", [None, "", "no\n", "y\n", "Yes\n", "yes please\n", "\nyes\n"])
def test_nothing_but_yes_does_it(guest: Guest, call: Call, said: str | None) -> None:
    done = guest.run("kmodd", "seal", "--hard", input=said)
    assert done.returncode == 1
    assert "until this machine is booted again" in done.stdout
    assert "not sealed: nothing but yes does it" in done.stderr
    assert guest.run("cat", SYSCTL).stdout == "0\n"
    status = call("api", method="GetStatus")["status"]
    assert (status["kernel"]["modules_disabled"], status["policy"]["sealed"]) == (False, False)


def test_yes_does_it_for_good(guest: Guest, call: Call) -> None:
    assert "result" in call("api", method="RequestModule", name="loop")
    before = call("last_event")
    done = guest.run("kmodd", "seal", "--hard", input="yes\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("sealed by the kernel: no module is loaded or unloaded until the next boot\n")
    assert guest.run("cat", SYSCTL).stdout == "1\n"
    assert guest.run("sh", "-c", f"echo 0 >{SYSCTL}").returncode != 0

    live = call("live")
    told = call("api", method="RequestModule", name="minix")
    assert told["error"] == (
        "cannot load minix: module loading is disabled until reboot (kernel.modules_disabled): "
        "Operation not permitted (EPERM)"
    )
    assert call("mount", kind="minix") == 19  # ENODEV: the kernel asks in vain
    assert "error" in call("api", method="RemoveModule", name="loop")
    assert call("live") == live
    assert call("api", method="RequestModule", name="loop")["result"]["outcome"] == "already-live"

    status = guest.run("kmodd", "status").stdout
    assert ", loads and unloads nothing until the next boot (kernel.modules_disabled)\n" in status
    assert json.loads(guest.run("kmodd", "status", "--json").stdout)["kernel"]["modules_disabled"] is True
    [event] = call("events", since=before, kind="policy")
    assert (event["action"], event["requester"]["uid"], event["sealed"]) == ("seal --hard", 0, False)
    # Again, without being asked; and the daemon's own seal does not open this one.
    assert guest.run("kmodd", "seal", "--hard", "--yes").returncode == 0
    guest.run("kmodd", "unseal")
    assert guest.run("cat", SYSCTL).stdout == "1\n"


def test_without_the_daemon_it_is_said_that_nobody_writes_it_down(guest: Guest, call: Call) -> None:
    call("stop_daemon")
    done = guest.run("kmodd", "seal", "--hard", "--yes")
    assert done.returncode == 0
    assert "sealed by the kernel" in done.stdout
    assert done.stderr.startswith("kmodd: that is not in the journal: ")
    call("start_daemon")
    assert call("api", method="GetStatus")["status"]["kernel"]["modules_disabled"] is True
