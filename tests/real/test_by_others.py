"""What bypasses kmodd, on a real kernel: each load and unload by others is told once, with its task."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import pytest

from kmodd.lab import Guest, LabOptions
from support.guests import Call, caller

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest(LabOptions(kernel="qemu", smp=2, timeout=500)) as guest:
        assert guest.run("modprobe", "kmodd_ask").returncode == 0
        yield guest


@pytest.fixture
def call(guest: Guest) -> Call:
    return caller(guest)


INSTANCES = ["kmodd", "kmodd-loads", "kmodd-uses"]
Told = list[tuple[str, str, int]]


def short(events: list[dict[str, Any]]) -> Told:
    return [
        (event["event"], event.get("module") or event["name"], event["requester"]["pid"]) for event in events
    ]


def names(events: list[dict[str, Any]]) -> list[str | None]:
    return [event["requester"]["comm"] for event in events]


def test_insmod_modprobe_and_rmmod_by_hand(call: Call) -> None:
    before = call("last_event")
    insmod = call("insmod", name="kmodd_sleep")
    rmmod = call("result = by_hand('rmmod', 'kmodd_sleep')")
    modprobe = call("result = by_hand('modprobe', 'kmodd_dep_b')")
    remove = call("result = by_hand('modprobe', '-r', 'kmodd_dep_b')")
    told = call("others_are", count=6, since=before)
    assert short(told) == [
        ("load", "kmodd_sleep", insmod),
        ("unload", "kmodd_sleep", rmmod),
        ("load", "kmodd_dep_a", modprobe),
        ("load", "kmodd_dep_b", modprobe),
        ("unload", "kmodd_dep_b", remove),
        ("unload", "kmodd_dep_a", remove),
    ]
    # Where a task has gone before it could be looked at, no more than its pid is known.
    for name, right in zip(names(told), ["insmod", "rmmod", *["modprobe"] * 4], strict=True):
        assert name in {right, None}
    first = told[0]  # its init takes a second
    assert first["requester"].pop("exe").endswith("/kmod")
    assert first["requester"] == {
        "pid": insmod,
        "comm": "insmod",
        "uid": 0,
        "gid": 0,
        "unit": None,
        "container": None,
        "privileged": True,
        "call_site": None,
        "kernel_thread": False,
        "cgroup": "/",
        "namespaces": [],
    }
    assert (first["outcome"], first["status"], first["modules"]) == ("loaded", 0, ["kmodd_sleep"])
    assert (first["request"], first["duration_us"]) == (None, None)
    assert told[1]["reason"] == "by others"


def test_a_module_without_an_init_function(call: Call) -> None:
    before = call("last_event")
    pid = call("insmod", name="crc8")
    [told] = call("others_are", count=1, since=before)
    assert (told["modules"], told["requester"]["pid"]) == (["crc8"], pid)
    assert told["identities"]["crc8"] is not None
    call("result = by_hand('rmmod', 'crc8')")


def test_an_init_that_fails_is_told_with_its_errno(call: Call) -> None:
    before = call("last_event")
    pid = call("insmod", name="kmodd_fail")
    [told] = call("others_are", count=1, since=before)
    assert (told["outcome"], told["status"], told["modules"]) == ("failed", -errno.ENODEV, [])
    assert told["requester"]["pid"] == pid
    assert "ENODEV" in told["error"]


def test_where_it_comes_from_in_a_sentence_and_list_does_not_claim_it(call: Call) -> None:
    pid = call("insmod", name="kmodd_sleep")
    words = call("why_says", module="kmodd_sleep", words="insmod")
    assert words.startswith("kmodd_sleep was loaded on ")
    assert words.endswith(f" by insmod (pid {pid}, uid 0, root), not through kmodd.\n")
    shown = call("api", method="ListModules")["modules"]
    assert {module["brought_in_by"] for module in shown if module["name"] == "kmodd_sleep"} == {None}
    gone = call("result = by_hand('rmmod', 'kmodd_sleep')")
    words = call("why_says", module="kmodd_sleep", words="rmmod")
    assert words.endswith(f" by rmmod (pid {gone}, uid 0, root).\n")
    log = call("result = kmodd('log', '--module', 'kmodd_sleep', '-n', '2')")[1].splitlines()
    assert f"(by insmod (pid {pid}, uid 0))" in log[0]
    assert f"by others: rmmod (pid {gone}, uid 0)" in log[1]


INSTALL = "install minix /sbin/modprobe --ignore-install minix\n"
REMOVE = "remove minix /sbin/modprobe -r --ignore-remove minix\n"


@pytest.mark.parametrize("path", ["", "/sbin/modprobe"], ids=["in-process", "modprobe"])
@pytest.mark.parametrize("directives", ["", INSTALL + REMOVE], ids=["plain", "commands"])
def test_what_kmodd_does_is_not_told_of_others(call: Call, path: str, directives: str) -> None:
    call("Path('/etc/modprobe.d/others.conf').write_text(directives); result = None", directives=directives)
    call("tune", modprobe_path=path)
    before = call("last_event")
    try:
        assert call("ask", name="kmodd_dep_b") == 0
        assert call("api", method="RequestModule", name="minix")["result"]["outcome"] == "loaded"
        assert call("ask", name="kmodd_fail") == 256
        for name in ("kmodd_dep_b", "kmodd_dep_a", "minix"):
            assert "error" not in call("api", method="RemoveModule", name=name)
        assert call("others_are", count=0, since=before) == []
        loads = call("events", since=before, kind="load")
        assert [module for event in loads for module in event["modules"]] == [
            "kmodd_dep_a",
            "kmodd_dep_b",
            "minix",
            "nls_iso8859_15",
        ]
    finally:
        call("tune", modprobe_path="")
        call("os.unlink('/etc/modprobe.d/others.conf'); result = None")


@pytest.mark.parametrize("path", ["", "/sbin/modprobe"], ids=["in-process", "modprobe"])
def test_in_the_same_moment_as_kmodd_loads_another_module(call: Call, path: str) -> None:
    call("tune", modprobe_path=path)
    try:
        found = call("insmod_while_kmodd_loads", ours="kmodd_block", theirs="minix")
    finally:
        call("tune", modprobe_path="")
    assert found["running"] == 1
    assert short(found["others"]) == [("load", "minix", found["pid"])]
    assert [(event["modules"], event["request"] is None) for event in found["loads"]] == [
        (["minix"], True),
        (["kmodd_block"], False),
    ]
    call("unload", names=["kmodd_block", "minix"])


def test_fifty_in_turn_are_each_told_once(call: Call) -> None:
    before = call("last_event")
    found = call("alternating", rounds=25, timeout=300)
    told = call("others_are", count=50, since=before)
    assert short(told) == [
        ("unload" if n % 2 else "load", "minix", pid) for n, pid in enumerate(found["pids"])
    ]
    gone = [event for event in told if event["requester"]["comm"] is None]
    assert len(gone) <= 10, "tasks had gone before they could be looked at"
    for n, event in enumerate(told):
        if event not in gone:
            assert event["requester"]["comm"] == ("rmmod" if n % 2 else "insmod")
            assert event["requester"]["uid"] == 0
    own = [event for event in call("events", since=before, kind="load") if event["request"] is not None]
    assert [event["modules"] for event in own] == [[f"kmodd_many_{n:02}"] for n in range(25)]
    assert call("api", method="GetStatus")["status"]["tracing"] == {
        "on": True,
        "problem": None,
        "missed": 0,
        "loads_on": True,
        "loads_problem": None,
        "loads_missed": 0,
    }


def test_what_others_did_while_the_daemon_was_dead(call: Call) -> None:
    before = call("last_event")
    pid = call("result = while_the_daemon_is_dead(lambda: insmod('minix'))")
    told = call("others_are", count=1, since=before)
    # The task has gone, so no more is known of it.
    assert short(told) == [("load", "minix", pid)]
    assert names(told) == [None]
    call("unload", names=["minix"])


def test_the_setting_tracing_ends_it_and_begins_it_again(call: Call) -> None:
    call("uses_are", how="counted")
    assert call("instances") == INSTANCES
    call("tune", tracing=False)
    call("uses_are", how="sampled")
    assert call("instances") == []
    before = call("last_event")
    call("asker_as", kind="socket", what=7, count=1, uid=1000)
    [event] = call("events_are", count=1, since=before)
    assert event["requester"] == dict.fromkeys(event["requester"])
    call("insmod", name="minix")
    status = call("api", method="GetStatus")["status"]["tracing"]
    assert (status["on"], status["loads_on"]) == (False, False)
    assert status["problem"] == status["loads_problem"] == "the setting tracing is false"
    assert "loads by others are not seen" in call("result = kmodd('status')")[1]
    call("tune", tracing=True)
    call("uses_are", how="counted")
    assert call("instances") == INSTANCES
    rmmod = call("result = by_hand('rmmod', 'minix')")
    assert short(call("others_are", count=1, since=before)) == [("unload", "minix", rmmod)]
    before = call("last_event")
    asker = call("asker_as", kind="socket", what=7, count=1, uid=1000)
    [event] = call("events_are", count=1, since=before)
    assert (event["requester"]["pid"], event["requester"]["uid"]) == (asker["pid"], 1000)


def test_stop_removes_all_instances(call: Call) -> None:
    call("stop_daemon")
    assert call("instances") == []
    call("start_daemon")
    call("uses_are", how="counted")
    assert call("instances") == INSTANCES


def test_the_kernel_log_is_clean(guest: Guest) -> None:
    log = guest.dmesg()
    for word in ("BUG:", "WARNING:", "Oops", "Call Trace"):
        assert word not in log, log[-4000:]
