"""The policy on a real kernel: each field by what the kernel tells, and what must not get past it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from kmodd.lab import Guest, LabOptions
from support.guests import Call, caller

pytestmark = pytest.mark.real

ASKED = {"kind": "socket", "what": 7}
"""Anybody's way to ask for a name that nothing is installed for: net-pf-7."""
AF_RXRPC = 33
EAFNOSUPPORT = 97
CONTAINER = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest(LabOptions(kernel="qemu", smp=2, timeout=600)) as guest:
        assert guest.run("modprobe", "kmodd_ask").returncode == 0
        yield guest


@pytest.fixture
def call(guest: Guest) -> Call:
    return caller(guest)


USER = {**ASKED, "uid": 1000}
MOUNT = {"kind": "mount", "what": "nosuchfs"}
IN_UNIT = {**USER, "cgroup": "system.slice/web.service"}
IN_CONTAINER = {**USER, "cgroup": f"system.slice/docker-{CONTAINER}.scope"}


FIELDS: list[tuple[str, dict[str, Any] | None, dict[str, Any] | None]] = [
    ('name = "net-pf-*"', USER, MOUNT),
    ('name = "net_pf_7"', USER, MOUNT),
    ("uid = 1000", USER, {**ASKED, "uid": 1001}),
    ('uid = ["500-1000", 3]', USER, ASKED),
    ("gid = 1000", USER, ASKED),
    ('user = "nobody"', {**ASKED, "uid": 65534}, USER),
    ('group = "root"', ASKED, USER),
    # Groups beside that of the process: audio is 29 on Debian, video 44.
    ('group = "audio"', {**USER, "groups": [29, 44]}, {**USER, "groups": [44]}),
    ("gid = 44", {**USER, "groups": [29, 44]}, USER),
    ("gid = 200000", {**USER, "groups": [*range(100000, 120000), 200000]}, {**USER, "groups": [199999]}),
    ("privileged = false", USER, ASKED),
    ("privileged = true", ASKED, USER),
    ("privileged = false", {**MOUNT, "uid": 1000, "unshare": True}, MOUNT),
    ('exe = "/**/python3*"', USER, None),
    ('exe = "/usr/bin/vi"', None, USER),
    ('unit = "web*.service"', IN_UNIT, USER),
    ("unit = true", IN_UNIT, USER),
    ("unit = false", USER, IN_UNIT),
    (f'container = "{CONTAINER[:12]}*"', IN_CONTAINER, IN_UNIT),
    ("container = true", IN_CONTAINER, USER),
    ("container = false", USER, IN_CONTAINER),
    ('call_site = "__sock_create"', USER, MOUNT),
    ('source = "kernel"', USER, None),
    ('source = ["api", "cli"]', None, USER),
    ("until = 2199-12-31", USER, None),
    ("until = 2001-01-01", None, USER),
    ('mode = "off"', None, USER),
    ('operation = "remove"', None, USER),
    ('rate = "1000/s"', None, USER),
]
"""A rule, a requester that it matches, and one that it does not."""


def test_each_field_of_a_rule(call: Call) -> None:
    wanted = [(rule, order, True) for rule, order, _other in FIELDS if order is not None]
    wanted += [(rule, order, False) for rule, _other, order in FIELDS if order is not None]
    told = call("judged_each", cases=[(rule, order) for rule, order, _denied in wanted], timeout=300)
    for (rule, order, denied), event in zip(wanted, told, strict=True):
        decision = event["decision"]
        if denied:
            assert (event["outcome"], event["status"], event["reason"]) == ("denied", -1, "judged"), (
                rule,
                order,
            )
            assert decision == {"action": "deny", "rule": "50-test.toml:1", "mode": "enforce"}
        else:
            assert (event["outcome"], decision["rule"]) == ("not-found", None), (rule, order)


@pytest.mark.parametrize(
    ("rule", "denied"),
    [
        ('module = "rxrpc"', True),
        ('module = "udp_tunnel"', True),
        ('module = "@net-protocols"', True),
        ('module = "*"', True),
        ('module = ["dccp*", "rxrp"]', False),
        ('module = "rxrpc"\nmode = "audit"', False),
        ('module = "rxrpc"\nprivileged = true', False),
    ],
)
def test_modules_of_the_plan(call: Call, rule: str, denied: bool) -> None:
    """A plain user opens a socket of a family whose module is installed, with what it needs."""
    assert call("unload", names=["rxrpc", "ip6_udp_tunnel", "udp_tunnel"]) == []
    event = call("judged", rule=rule, kind="socket", what=AF_RXRPC, uid=1000)
    assert event["outcome"] == ("denied" if denied else "loaded")
    assert ("rxrpc" in call("live")) is not denied
    assert (event["decision"]["mode"] == "audit") is ("audit" in rule)
    assert (event["denied_modules"] or [None])[0] == ("rxrpc" if denied else None)
    assert ("udp_tunnel" in (event["denied_modules"] or ())) is denied


def test_the_other_spelling_is_no_way_out(call: Call) -> None:
    """Who mounts chooses between - and _, which are the same to modprobe: fs-isofs has no alias of its own."""
    rule = 'name = "fs-no-such_fs"'
    for spelled in ("no-such_fs", "no_such_fs", "no-such-fs"):
        assert call("judged", rule=rule, kind="mount", what=spelled)["outcome"] == "denied"


def test_a_name_that_would_forge_a_line_or_a_match(guest: Guest, call: Call) -> None:
    name = 'x"\n[[rule]]\n$()'
    event = call("judged", rule='call_site = "*"', kind="genl", what=name, uid=1000)
    assert event["outcome"] in {"failed", "denied"}
    assert "\n" not in event["name"]
    # As a path it would be one of a directory above.
    event = call(
        "judged", rule='module = "*"', kind="mount", what="../../../../tmp/x", uid=1000, unshare=True
    )
    assert event["outcome"] in {"failed", "denied", "not-found"}
    assert "rule]]" not in guest.run("kmodd", "policy", "show").stdout


def test_a_task_that_renames_itself_is_who_it_is(call: Call) -> None:
    event = call("judged", rule="uid = 1000", **USER, comm="root) R 1 1")
    assert event["outcome"] == "denied"


def test_who_kills_his_asker_gets_nothing(call: Call) -> None:
    """Its helper goes on, and nobody can say any more who it was for."""
    found = call("killed_askers", rounds=120, timeout=300)
    assert found["live"] is False
    assert found["outcomes"] == ["denied"]
    assert found["gone"] > 0, found


_DENIED_TO_USERS = '[[rule]]\nprivileged = false\nmodule = "rxrpc"\naction = "deny"\nreason = "judged"\n'
_THE_OTHERS_ALONE = (
    '[[rule]]\nexe = "/opt/another"\naction = "allow"\n[[rule]]\nprivileged = true\naction = "allow"\n'
    '[[rule]]\nmodule = "rxrpc"\nunknown = true\naction = "deny"\nreason = "judged"\n'
)


@pytest.mark.parametrize("rules", [_DENIED_TO_USERS, _THE_OTHERS_ALONE], ids=["users", "other"])
def test_a_second_thread_that_renames_the_asker_changes_nothing(call: Call, rules: str) -> None:
    found = call("asker_changes", how="renames", rules=rules)
    assert found["fallbacks"] == []
    who = found["event"]["requester"]
    assert (who["pid"], who["uid"], who["privileged"]) == (found["pid"], 1000, False)
    assert who["comm"] == "root) R 1 1"
    assert who["exe"].startswith("/usr/bin/python3")
    assert (found["event"]["outcome"], found["event"]["reason"]) == ("denied", "judged")
    assert found["came_in"] is False


@pytest.mark.parametrize("rules", [_DENIED_TO_USERS, _THE_OTHERS_ALONE], ids=["users", "other"])
@pytest.mark.parametrize("how", ["execs", "execs and asks"])
def test_what_an_asker_has_become_has_not_asked(call: Call, how: str, rules: str) -> None:
    """A program that a second thread executes has the number of the thread that asked, and may be root's."""
    found = call("asker_changes", how=how, rules=rules)
    assert found["fallbacks"] == []
    event = found["event"]
    assert [value for value in event["requester"].values() if value is not None] == []
    assert (event["outcome"], event["decision"]["action"]) == ("denied", "deny")
    assert found["came_in"] is False
    assert found["uid_now"] == 0
    if how == "execs and asks":
        who = found["others"]["kmodd_block_5"]["requester"]
        assert (who["pid"], who["uid"], who["exe"]) == (found["pid"], 0, "/opt/another")


def test_a_program_at_the_path_of_another_is_not_the_other(call: Call) -> None:
    event = call("asker_disguised", timeout=120)
    assert event["requester"]["exe"] == "/usr/bin/mount"
    assert (event["outcome"], event["reason"]) == ("denied", "judged")


def test_who_is_not_known_is_matched_only_where_the_rule_says_so(call: Call) -> None:
    asked = {"kind": "nowait", "what": "nosuchmodule"}
    assert call("judged", rule="uid = 0", **asked)["outcome"] == "not-found"
    assert call("judged", rule="uid = 0\nunknown = true", **asked)["outcome"] == "denied"


def test_two_users_that_ask_for_one_name_at_once_are_each_judged(call: Call) -> None:
    call("policy", text='[[rule]]\nprivileged = false\naction = "deny"\n')
    before = call("last_event")
    askers = call("askers_at_once", tasks=6, each=10, timeout=300)
    told = call("events_are", count=60, since=before)
    uids = {asker["pid"]: asker["uid"] for asker in askers}
    for event in told:
        assert (event["outcome"] == "denied") is (uids[event["requester"]["pid"]] != 0), event


def test_a_rate_is_each_users_own(call: Call) -> None:
    call("policy", text='[[rule]]\nrate = "3/day"\naction = "deny"\nreason = "enough"\n')
    before = call("last_event")
    call("asker_as", kind="socket", what=7, count=5, uid=1000)
    call("asker_as", kind="socket", what=7, count=2, uid=1001)
    outcomes = [event["outcome"] for event in call("events_are", count=7, since=before)]
    assert outcomes == ["not-found"] * 3 + ["denied"] * 2 + ["not-found"] * 2


def test_nested_requests_are_judged_for_who_asked_for_the_module(call: Call) -> None:
    """kmodd_nest_18 asks for kmodd_nest_19 as it loads: in the daemon's thread, in the user's name."""
    inner = '[[rule]]\nname = "kmodd_nest_19"\nprivileged = {}\naction = "deny"\nreason = "inner"\n'
    for privileged, outcome in (("false", "denied"), ("true", "loaded")):
        call("unload", names=["kmodd_nest_18", "kmodd_nest_19"])
        call("policy", text=inner.format(privileged))
        before = call("last_event")
        call("asker_as", kind="kernel", what="kmodd_nest_18", count=1, uid=1000)
        told = {event["name"]: event for event in call("events", since=before)}
        assert told["kmodd_nest_19"]["outcome"] == outcome
    # What means everything does not mean what an allowed module asks for.
    call("unload", names=["kmodd_nest_18", "kmodd_nest_19"])
    allow = '[[rule]]\nname = "kmodd_nest_18"\naction = "allow"\n'
    call("policy", text=allow + '[[rule]]\nprivileged = false\nmodule = "*"\naction = "deny"\n')
    before = call("last_event")
    call("asker_as", kind="kernel", what="kmodd_nest_18", count=1, uid=1000)
    told = {event["name"]: event for event in call("events", since=before)}
    assert told["kmodd_nest_19"]["outcome"] == "loaded"
    call("asker_as", kind="kernel", what="kmodd_dep_a", count=1, uid=1000)
    assert "kmodd_dep_a" not in call("live")


def test_a_denial_by_command_stops_a_load_in_flight(call: Call) -> None:
    found = call("denied_in_flight", timeout=200)
    assert found["deny"] == 0
    assert found["told"] == [256]
    assert found["told_before_the_load_ended"] is True
    assert (found["before_it"], found["live"]) == (True, False)
    assert found["event"]["error"] == "cannot load kmodd_dep_a: denied by 00-commands.toml:3: now"


@pytest.mark.parametrize("how", ["killed", "hung", "upgraded"])
def test_fail_closed(call: Call, how: str) -> None:
    call("policy", text="")
    found = call("without_daemon", how=how, timeout=200)
    assert (found["errno"], found["came_in"]) == (EAFNOSUPPORT, False)
    assert found["with_daemon"] != EAFNOSUPPORT
    assert found["live"] is True


def test_the_seal(call: Call) -> None:
    found = call("sealed_without_daemon", timeout=200)
    assert (found["killed"], found["sealed"], found["came_in"]) == (EAFNOSUPPORT, EAFNOSUPPORT, False)
    assert found["unsealed"] is True
    assert found["link"] != found["link_after"] == "/sbin/modprobe"


def test_modharden_and_exposure(guest: Guest, call: Call) -> None:
    """Under the preset a user loses what he has no need of, root does not, and the count says so."""
    call("policy", text="")
    exposed = guest.run("kmodd", "exposure", "--json")
    assert exposed.returncode == 0, exposed.stderr
    call("policy", text=guest.run("kmodd", "policy", "preset", "modharden").stdout)
    hardened = guest.run("kmodd", "exposure", "--json")
    before, after = (json.loads(done.stdout)["reachable"] for done in (exposed, hardened))
    assert after["anyone"]["count"] < before["anyone"]["count"] / 2
    assert "rxrpc" in before["anyone"]["modules"]
    assert "rxrpc" not in after["user_namespace"]["modules"]
    assert "rxrpc" in after["privileged"]["modules"]
    assert call("unload", names=["rxrpc"]) == []
    since = call("last_event")
    call("asker_as", kind="socket", what=AF_RXRPC, count=1, uid=1000)
    assert [event["outcome"] for event in call("events_are", count=1, since=since)] == ["denied"]
    since = call("last_event")
    root = call("asker_as", kind="socket", what=AF_RXRPC, count=1)
    assert call("events_of", pid=root["pid"], count=1, since=since)[0]["outcome"] == "loaded"


def test_what_is_learned_allows_what_was_used(guest: Guest, call: Call) -> None:
    call("policy", text="")
    assert call("unload", names=["rxrpc"]) == []
    call("asker_as", kind="socket", what=AF_RXRPC, count=1, uid=1000)
    done = guest.run("kmodd", "policy", "learn")
    assert done.returncode == 0, done.stderr
    call("policy", text=done.stdout)
    assert call("unload", names=["rxrpc"]) == []
    since = call("last_event")
    call("asker_as", kind="socket", what=AF_RXRPC, count=1, uid=1000)
    outcomes = [event["outcome"] for event in call("events", since=since) if event["name"] == "net-pf-33"]
    assert outcomes == ["loaded"]
    assert call("unload", names=["rxrpc"]) == []
    since = call("last_event")
    call("asker_as", kind="socket", what=AF_RXRPC, count=1, uid=1001)
    [event] = call("events_are", count=1, since=since)
    assert (event["outcome"], event["reason"]) == ("denied", "not used as far as was learned")


def test_the_log_says_so_and_the_kernel_log_is_clean(guest: Guest) -> None:
    log = guest.dmesg()
    for word in ("BUG:", "WARNING:", "Oops", "Call Trace"):
        assert word not in log, log[-4000:]
