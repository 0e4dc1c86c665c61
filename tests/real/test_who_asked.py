"""Who asked, on a real kernel with four processors: each request is joined with the task that made it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from kmodd.lab import Guest, LabOptions
from kmodd.names import printable
from support.guests import Call, caller

pytestmark = pytest.mark.real

CONTAINER = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest(LabOptions(kernel="qemu", smp=4, timeout=400)) as guest:
        assert guest.run("modprobe", "kmodd_ask").returncode == 0
        yield guest


@pytest.fixture
def call(guest: Guest) -> Call:
    return caller(guest)


def test_tracing_is_on(call: Call) -> None:
    tracing = call("api", method="GetStatus")["status"]["tracing"]
    assert (tracing["on"], tracing["problem"], tracing["missed"]) == (True, None, 0)


def test_an_unprivileged_user_and_root(call: Call) -> None:
    before = call("last_event")
    user = call("asker_as", kind="socket", what=7, count=1, uid=1000)
    root = call("asker_as", kind="mount", what="nosuchfs", count=1)
    first, second = call("events_are", count=2, since=before)
    assert first["requester"] == {
        "pid": user["pid"],
        "comm": "who-asks",
        "uid": 1000,
        "gid": 1000,
        "exe": user["exe"],
        "unit": None,
        "container": None,
        "privileged": False,
        "call_site": "__sock_create",
        "kernel_thread": False,
        "cgroup": "/",
        "namespaces": [],
    }
    asked_by = second["requester"]
    assert (asked_by["pid"], asked_by["uid"], asked_by["privileged"]) == (root["pid"], 0, True)
    assert asked_by["call_site"] == "get_fs_type"


def test_root_of_a_user_namespace_is_not_privileged(call: Call) -> None:
    before = call("last_event")
    asker = call("asker_as", kind="mount", what="nosuchfs", count=1, uid=1000, unshare=True)
    [event] = call("events_are", count=1, since=before)
    who = event["requester"]
    assert (who["pid"], who["uid"], who["privileged"]) == (asker["pid"], 1000, False)
    assert who["call_site"] == "get_fs_type"
    assert who["namespaces"] == ["mnt", "user"]


@pytest.mark.parametrize(
    ("cgroup", "unit", "container"),
    [
        (f"system.slice/docker-{CONTAINER}.scope", f"docker-{CONTAINER}.scope", CONTAINER),
        ("user.slice/user-1000.slice/user@1000.service/app.slice/ssh.service", "user@1000.service", None),
        ("lxc.payload.a b", None, "a b"),
    ],
)
def test_control_groups(call: Call, cgroup: str, unit: str | None, container: str | None) -> None:
    before = call("last_event")
    call("asker_as", kind="socket", what=7, count=1, uid=1000, cgroup=cgroup)
    [event] = call("events_are", count=1, since=before)
    who = event["requester"]
    assert (who["unit"], who["container"], who["cgroup"]) == (
        unit,
        container,
        f"/{printable(cgroup.encode())}",
    )


def test_names_and_tasks_that_would_forge_a_line(call: Call) -> None:
    before = call("last_event")
    asker = call("asker_as", kind="genl", what="nope\n1 [0] x", count=1, uid=1000, comm="a\nb) R 1")
    [event] = call("events_are", count=1, since=before)
    assert event["name"] == "net-pf-16-proto-16-family-nope\\x0a1\\x20[0]\\x20x"
    who = event["requester"]
    assert (who["pid"], who["uid"], who["comm"]) == (asker["pid"], 1000, "a; b) R 1")
    assert who["call_site"] is not None


def test_a_thread_is_told_by_its_process(call: Call) -> None:
    before = call("last_event")
    asker = call("asker_as", kind="thread", what="nosuchfs", count=1)
    [event] = call("events_are", count=1, since=before)
    assert (event["requester"]["pid"], event["requester"]["comm"]) == (asker["pid"], "who-asks")


def test_request_module_nowait_tells_no_more_than_the_pid(call: Call) -> None:
    before = call("last_event")
    asker = call("asker_as", kind="nowait", what="nosuchmodule", count=1)
    [event] = call("events_are", count=1, since=before)
    assert {key: value for key, value in event["requester"].items() if value is not None} == {
        "pid": asker["pid"]
    }


@pytest.mark.parametrize("kind", ["worker", "worker_nowait"])
def test_a_kernel_thread_is_told_as_such_whether_it_waits_or_not(call: Call, kind: str) -> None:
    before = call("last_event")
    asker = call("asker_as", kind=kind, what="nosuchmodule", count=1, uid=1000)
    [event] = call("events_are", count=1, since=before)
    who = event["requester"]
    assert who["pid"] != asker["pid"]
    assert re.match(r"kworker/u\d+:\d+", who["comm"])
    assert {key: value for key, value in who.items() if key not in {"pid", "comm"}} == {
        "uid": 0,
        "gid": 0,
        "exe": None,
        "unit": None,
        "container": None,
        "privileged": True,
        "call_site": "ask_worker" if kind == "worker" else None,
        "kernel_thread": True,
        "cgroup": "/" if kind == "worker" else None,
        "namespaces": [] if kind == "worker" else None,
    }


def test_what_a_program_that_asks_through_the_socket_is(call: Call) -> None:
    who = call("api", method="RequestModule", name="kmodd_sleep")["result"]["requester"]
    assert (who["uid"], who["privileged"], who["kernel_thread"]) == (0, True, False)
    assert who["exe"].startswith("/usr/bin/python3")


def test_nested_requests_name_the_daemon_and_their_module(call: Call) -> None:
    before = call("last_event")
    assert call("ask", name="kmodd_nest_18") == 0
    told = {event["name"]: event["requester"] for event in call("events", since=before)}
    assert told["kmodd_nest_18"]["call_site"] == "ask_request"
    inner = told["kmodd_nest_19"]
    assert inner["pid"] == call("daemon_pid")
    assert inner["privileged"] is True


def test_pid_1s_mounts_are_known_as_they_come_and_go(call: Call) -> None:
    """Read once, and again when the kernel says that they have changed."""
    found = call(
        "from kmodd.kernel import mounts\nimport ctypes\nlibc = ctypes.CDLL(None)\n"
        "def now(): return sorted(mounts.of_init())\n"
        "def fresh(): return sorted(int(line.split()[0]) for line in open('/proc/1/mountinfo'))\n"
        "pairs = [(now(), fresh()), (now(), fresh())]\n"
        "assert libc.mount(b'none', b'/mnt', b'tmpfs', 0, None) == 0\n"
        "pairs += [(now(), fresh()), (now(), fresh())]\n"
        "assert libc.umount(b'/mnt') == 0\n"
        "pairs += [(now(), fresh())]\n"
        "result = pairs"
    )
    assert [known == fresh for known, fresh in found] == [True] * 5
    assert len(found[2][0]) == len(found[0][0]) + 1
    assert found[4] == found[0]


def test_two_hundred_of_two_hundred_at_once_and_of_one_name(call: Call) -> None:
    """Eight tasks of different users at once: some names are of one task alone, one is everybody's."""
    before = call("last_event")
    askers = call("askers_at_once", tasks=8, each=25, timeout=300)
    told = call("events_are", count=200, since=before)
    assert call("fallbacks", since=before) == []
    by_pid: dict[int, list[dict[str, Any]]] = {}
    for event in told:
        by_pid.setdefault(event["requester"]["pid"], []).append(event)
    assert by_pid.keys() == {asker["pid"] for asker in askers}
    for asker in askers:
        events = by_pid[asker["pid"]]
        # Whose helper is whose is not known of those who ask for one name at once; of all others it is.
        own = sorted(event["name"] for event in events if event["name"] != "everybodys")
        assert own == sorted(f"of{asker['pid']}x{n}" for n in range(25) if n % 2)
        for event in events:
            who = event["requester"]
            assert (who["uid"], who["exe"], who["privileged"], who["call_site"]) == (
                asker["uid"],
                asker["exe"],
                asker["uid"] == 0,
                "ask_request",
            )
    assert call("api", method="GetStatus")["status"]["tracing"]["missed"] == 0


def test_a_thousand_of_a_thousand_in_every_way(call: Call) -> None:
    """Sockets, netlink, AF_ALG, an ioctl and mount; users, root, root of a user namespace, a container's; at once."""
    found = call("thousand", timeout=600)
    assert found["fallbacks"] == []
    askers = {asker["pid"]: asker for asker in found["askers"]}
    assert len(found["events"]) >= 1000
    of: dict[int, set[str]] = {pid: set() for pid in askers}
    numbered: Counter[tuple[str, int]] = Counter()
    everybodys: Counter[str] = Counter()
    for event in found["events"]:
        who = event["requester"]
        if event["name"] in {"af_alg", "algif-skcipher", "net-pf-38"} or who["comm"] == "kmod_loader":
            continue  # what the first one of all has loaded
        asker = askers[who["pid"]]
        unshared = asker.get("unshare", False)
        assert who["uid"] == asker["uid"], event
        assert who["exe"] == asker["exe"]
        assert who["privileged"] is (asker["uid"] == 0)
        assert who["container"] == (CONTAINER if asker.get("cgroup") else None)
        assert who["kernel_thread"] is False
        assert who["call_site"] is not None
        assert unshared or asker["uid"] == 0 or not event["name"].startswith("fs-")
        # A name of one's own says by itself whose it is.
        if own := re.search(r"\bf?[afm](\d+)x\d+", event["name"]):
            assert int(own[1]) == who["pid"], event
            of[who["pid"]].add(event["name"])
        elif event["name"] in {"net-pf-7", "tty-ldisc-28"}:
            # Whose helper is whose is not known of those who ask for one name at once.
            everybodys[event["name"]] += 1
        elif re.match(r"net-pf-\d+$|tty-ldisc-", event["name"]):
            numbered[event["name"], who["pid"]] += 1
    assert everybodys == {"net-pf-7": 130, "tty-ldisc-28": 130}
    assert numbered == {
        (name, pid): 13
        for pid, asker in askers.items()
        for name in ("net-pf-{}".format(asker["numbers"][0]), "tty-ldisc-{}".format(asker["numbers"][1]))
    }
    for pid, asker in askers.items():
        ways = 3 if asker["uid"] == 0 or asker.get("unshare") else 2
        assert len(of[pid]) >= 26 * ways, (asker, sorted(of[pid])[:5])
    assert call("api", method="GetStatus")["status"]["tracing"]["missed"] == 0


def test_how_many_records_were_lost_is_told(call: Call) -> None:
    """A daemon that is stopped reads none; the buffer of a processor has four pages and the reader's."""
    before = call("api", method="GetStatus")["status"]["tracing"]["missed"]
    found = call("more_than_the_buffer_takes", count=400, timeout=300)
    assert 0 < found["overrun"] < 400
    assert found["tracing"]["missed"] - before == found["overrun"]
    told = found["tracing"]["missed"] + found["tracing"]["loads_missed"]
    assert f"; records lost, at least: {told}\n" in found["text"]


def test_a_killed_daemon_leaves_its_instance_to_the_next_one(call: Call) -> None:
    call("stop_daemon", number=9)
    assert call("tracing_instance") is True
    call("start_daemon")
    before = call("last_event")
    asker = call("asker_as", kind="socket", what=7, count=1, uid=1000)
    [event] = call("events_are", count=1, since=before)
    assert event["requester"]["pid"] == asker["pid"]


def test_stop_removes_the_instance(call: Call) -> None:
    call("stop_daemon")
    assert call("tracing_instance") is False
    call("start_daemon")
    assert call("tracing_instance") is True


def test_the_kernel_log_is_clean(guest: Guest) -> None:
    log = guest.dmesg()
    for word in ("BUG:", "WARNING:", "Oops", "Call Trace"):
        assert word not in log, log[-4000:]


# Without tracing


@pytest.fixture(scope="module")
def untraced() -> Iterator[Guest]:
    with Guest(LabOptions(kernel="uml", timeout=180)) as guest:
        yield guest


def test_without_tracing_the_only_one_that_waits_is_told(untraced: Guest) -> None:
    call = caller(untraced)
    assert call("api", method="GetStatus")["status"]["tracing"] == {
        "on": False,
        "problem": "tracefs is not mounted at /sys/kernel/tracing",
        "missed": 0,
        "loads_on": False,
        "loads_problem": "tracefs is not mounted at /sys/kernel/tracing",
        "loads_missed": 0,
    }
    words = untraced.run("kmodd", "status").stdout
    assert "off: tracefs is not mounted" in words
    assert "loads by others are not seen" in words
    before = call("last_event")
    user = call("asker_as", kind="socket", what=7, count=3, uid=1000)
    root = call("asker_as", kind="mount", what="nosuchfs", count=3)
    told = [event["requester"] for event in call("events_are", count=6, since=before)]
    assert [(who["pid"], who["uid"], who["privileged"], who["call_site"]) for who in told] == [
        *([(user["pid"], 1000, False, "__sock_create")] * 3),
        *([(root["pid"], 0, True, "get_fs_type")] * 3),
    ]


def test_without_tracing_nothing_is_guessed_of_several(untraced: Guest) -> None:
    call = caller(untraced)
    before = call("last_event")
    askers = call("askers_at_once", tasks=4, each=10, kind="mount", timeout=300)
    pids = {asker["pid"] for asker in askers}
    for event in call("events_are", count=40, since=before):
        pid = event["requester"]["pid"]
        assert pid is None or pid in pids
        if pid is not None and event["name"] != "fs-everybodys":
            assert event["name"].startswith(f"fs-of{pid}x")
