"""Where a module comes from: from events to the sentences of `kmodd why`."""

from __future__ import annotations

import time
import types
from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from kmodd.cli import client
from kmodd.record.origin import origin
from kmodd.sources import varlink
from kmodd.views import story as stories
from kmodd.views.show import event_line
from kmodd.views.story import story

NOBODY: dict[str, Any] = dict.fromkeys(
    ("pid", "comm", "uid", "gid", "exe", "unit", "container", "privileged", "call_site")
)


def load(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": number,
        "time": "2026-11-23T08:00:00.123456Z",
        "event": "load",
        "name": "net-pf-33",
        "modules": ["dccp", "dccp_ipv4"],
        "reasons": {"dccp": "dependency of dccp_ipv4", "dccp_ipv4": "alias net_pf_33"},
        "request": number - 1,
        **fields,
    }


def request(number: int, source: str = "kernel", **requester: Any) -> dict[str, Any]:
    return {
        "id": number,
        "time": "2026-11-23T08:00:00.123456Z",
        "event": "request",
        "source": source,
        "requester": {**NOBODY, **requester},
    }


def denial(number: int, why: str = "denied by 30-x.toml:2: CVE-2026-1", **requester: Any) -> dict[str, Any]:
    error = f"cannot load net-pf-33: {why}"
    return {**request(number, **requester), "name": "net-pf-33", "outcome": "denied", "error": error}


NONE = {"load": None, "request": None, "unload": None, "denied": None, "denials": 0}


def unload(module: str) -> dict[str, Any]:
    return {"id": 90, "time": "2026-11-23T09:30:00Z", "event": "unload", "module": module}


def test_the_last_load_counts_and_what_undid_it() -> None:
    first, second = load(2), load(12)
    events = [first, request(1), unload("dccp"), second, request(11), request(13)]
    assert origin(events, "dccp") == {**NONE, "load": second, "request": request(11)}
    assert origin([*events, unload("other")], "dccp")["unload"] is None
    assert origin([*events, unload("dccp")], "dccp")["unload"] == unload("dccp")
    assert origin([load(2, modules=None)], "dccp") == NONE
    assert origin([second], "dccp") == {**NONE, "load": second}


def test_a_load_whose_own_request_was_denied_meanwhile() -> None:
    own = {**denial(1), "name": "net-pf-33"}
    assert origin([load(2)], "dccp", [own]) == {**NONE, "load": load(2), "request": own}


def test_denials_since_the_load_count() -> None:
    denied = [denial(number) for number in (1, 5, 20, 21)]
    assert origin([], "dccp", denied) == {**NONE, "denied": denied[3], "denials": 4}
    assert origin([load(12)], "dccp", denied) == {
        **NONE, "load": load(12), "denied": denied[3], "denials": 2
    }  # fmt: skip
    assert origin([load(30)], "dccp", denied) == {**NONE, "load": load(30)}


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def told(
    *events: dict[str, Any],
    live: bool = True,
    ours: bool = True,
    module: str = "dccp",
    denied: Sequence[dict[str, Any]] = (),
    **more: Any,
) -> str:
    return story({"live": live, "ours": ours, **more, **origin(events, module, denied)}, module)


WHEN = "was loaded on Monday 2026-11-23 08:00:00 because"


def test_who_asked_how_and_what_needs_it() -> None:
    asker = request(1, pid=812, comm="python3", uid=1000, unit="user@1000.service", call_site="__sock_create")
    assert told(load(2), asker) == (
        f"dccp {WHEN} python3 (pid 812, uid 1000, unit user@1000.service) opened a socket (__sock_create), "
        "which asked for net-pf-33; dccp_ipv4 needs it."
    )
    assert told(load(2), asker, module="dccp_ipv4").endswith(
        "which asked for net-pf-33, an alias of dccp_ipv4."
    )


def test_a_user_has_the_name_that_it_has_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {1000: "alice", 1001: "a\nb\x1b[2J", 1002: "x" * 5000, 1003: ""}
    monkeypatch.setattr("pwd.getpwuid", lambda uid: types.SimpleNamespace(pw_name=known[uid]))
    asker: dict[str, Any] = {"pid": 812, "comm": "python3"}
    json = False

    def why(**who: Any) -> str:
        found = origin([load(2), request(1, **asker, **who)], "dccp", [denial(20, **asker, **who)])
        answer = {"origin": {"module": "dccp", "live": True, "ours": True, **found}}
        connection = types.SimpleNamespace(call=lambda *_method, **_parameters: answer)
        monkeypatch.setattr(client, "Connection", lambda: connection)
        assert client.why(Namespace(module=["dccp"], json=json)) == 0
        return capsys.readouterr().out

    assert why(uid=1000).count("python3 (pid 812, uid 1000, alice) asked for") == 2
    assert "(pid 812, uid 1000, alice, unit a.service)" in why(uid=1000, unit="a.service")
    assert "(pid 812, uid 1000, container c1)" in why(uid=1000, container="c1")
    assert "(pid 812, uid 1001, a; b\\x1b[2J)" in why(uid=1001)
    assert f"(pid 812, uid 1002, {'x' * 64})" in why(uid=1002)
    assert "(pid 812, uid 1003)" in why(uid=1003)
    assert "(pid 812, uid 4711)" in why(uid=4711)
    assert "(pid 812)" in why()
    json = True
    assert "alice" not in why(uid=1000), "what programs read is what the daemon has told"


def test_a_program_that_asked() -> None:
    asker = request(1, "cli", pid=7, comm="kmodd", uid=0)
    mine = load(2, name="dccp", reasons={"dccp": "name"})
    assert told(mine, asker) == f"dccp {WHEN} kmodd (pid 7, uid 0) asked for dccp."


def test_a_kernel_thread() -> None:
    worker = request(1, pid=33, comm="kworker/0:1", uid=0, kernel_thread=True)
    assert told(load(2), worker) == (
        f"dccp {WHEN} a kernel thread (kworker/0:1) asked for net-pf-33; dccp_ipv4 needs it."
    )


def test_what_others_loaded_and_unloaded() -> None:
    insmod = {**NOBODY, "pid": 77, "comm": "insmod", "uid": 0}
    gone = {**NOBODY, "pid": 78}
    theirs = load(2, name="dccp", modules=["dccp"], reasons={}, request=None, requester=insmod)
    by = "dccp was loaded on Monday 2026-11-23 08:00:00 by insmod (pid 77, uid 0), not through kmodd."
    assert told(theirs) == by
    assert told(load(1), request(0), theirs) == by
    out = {**unload("dccp"), "requester": gone}
    assert told(theirs, out, live=False, ours=False) == (
        f"{by} It was unloaded on Monday 2026-11-23 09:30:00 by a task (pid 78)."
    )
    assert told(load(2), request(1), out, live=False, ours=False).endswith(" 09:30:00 by a task (pid 78).")


def test_an_events_line() -> None:
    insmod = {**NOBODY, "pid": 77, "comm": "insmod", "uid": 0}
    theirs = load(2, name="dccp", modules=["dccp"], outcome="loaded", duration_us=None, requester=insmod)
    assert " ".join(event_line(theirs).split()) == (
        "2026-11-23 08:00:00.123 load dccp loaded - dccp (by insmod (pid 77, uid 0))"
    )
    out = {
        **unload("dccp"),
        "time": "2026-11-23T09:30:00.123456Z",
        "reason": "by others",
        "requester": insmod,
    }
    words = " ".join(event_line(out).split())
    assert words == "2026-11-23 09:30:00.123 unload dccp by others: insmod (pid 77, uid 0)"
    mine = {**unload("dccp"), "time": "2026-11-23T09:30:00.123456Z", "reason": "requested"}
    assert event_line(mine).endswith("  requested")


def shown(event: dict[str, Any], **more: Any) -> str:
    facts = {"name": "net-pf-33", "outcome": "loaded", "modules": ["dccp"], "duration_us": 100}
    return event_line({**event, **facts, "coalesced_with": None, **more})


def test_the_line_of_a_request_ends_with_who_asked() -> None:
    python = request(1, pid=812, comm="python3", uid=1000)
    assert shown(python) == (
        "2026-11-23 08:00:00.123  kernel  net-pf-33                     loaded             0.1 ms  dccp"
        "  (by python3 (pid 812, uid 1000))"
    )
    assert shown(python, coalesced_with=7).endswith(
        "  dccp  (shares the load of request 7)  (by python3 (pid 812, uid 1000))"
    )
    deny = {"action": "deny", "rule": "30-x.toml:2", "mode": "enforce"}
    denied = {"outcome": "denied", "modules": []}
    assert shown(python, **denied, decision=deny).endswith(
        "  -  (denied by 30-x.toml:2)  (by python3 (pid 812, uid 1000))"
    )
    assert shown(python, decision={**deny, "mode": "audit"}).endswith(
        "  dccp  (would be denied by 30-x.toml:2)  (by python3 (pid 812, uid 1000))"
    )
    assert shown(request(1)).endswith("  dccp  (by a task that is not known)")
    assert shown(request(1, "cli")).endswith("  dccp  (by somebody)")


def test_columns_stand_below_each_other() -> None:
    lines = [
        shown(request(1)),
        shown(load(2), requester=None),
        event_line({**unload("dccp"), "reason": "requested"}),
        event_line({**unload("dccp"), "event": "setting", "key": "serial", "old": False, "new": True}),
    ]
    assert {line[:24].count(" ") for line in lines} == {2}
    assert [line.index(word) for line, word in zip(lines, ("net", "net", "dccp", "serial"), strict=True)] == [
        33
    ] * 4


def test_a_log_shows_the_time_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XYZ-5:30")
    time.tzset()
    late = {**unload("dccp"), "time": "2026-11-23T20:00:00.999999Z", "reason": "requested"}
    assert event_line(late).startswith("2026-11-24 01:30:00.999  unload")


def test_what_is_not_known_is_said() -> None:
    assert (
        told(load(2, reasons={}), request(1)) == f"dccp {WHEN} a task that is not known asked for net-pf-33."
    )
    assert "somebody whose request is no longer in the journal asked" in told(load(2))
    assert told(live=True) == (
        "dccp is in the kernel, and how it came there is not known: the journal knows nothing of it."
    )
    assert told(live=False) == "dccp is not in the kernel, and the journal knows nothing of it."


def test_what_kmodd_brought_in_and_the_journal_has_no_more() -> None:
    mine = "was brought in by kmodd (request 2)"
    assert told(ours=False, brought_in_by=2) == f"dccp {mine}; that is no longer in the journal."
    assert told(denied=[denial(20)], brought_in_by=2).startswith(
        f"dccp {mine}; that is no longer in the journal. On Monday"
    )
    assert told(load(1), request(0), ours=False, brought_in_by=2).endswith(
        f" The one that is in the kernel now {mine}; that is no longer in the journal."
    )
    assert told(load(1), request(0), ours=True, brought_in_by=0) == told(load(1), request(0))


def test_a_journal_that_cannot_be_read_tells_no_story() -> None:
    problem = "cannot read /x/journal.db: file is not a database"
    end = f" What the journal knows of it is not told: {problem}."
    assert told(live=False, problem=problem) == f"dccp is not in the kernel.{end}"
    assert told(ours=False, problem=problem) == f"dccp is in the kernel.{end}"
    assert told(brought_in_by=2, problem=problem) == f"dccp was brought in by kmodd (request 2).{end}"
    assert told(load(2), request(1), problem=problem) == f"{told(load(2), request(1))}{end}"


def test_what_became_of_it() -> None:
    events = load(2), request(1)
    assert told(*events, unload("dccp"), live=False, ours=False).endswith(
        "It was unloaded on Monday 2026-11-23 09:30:00."
    )
    assert "no longer in the kernel: somebody else has unloaded it" in told(*events, live=False, ours=False)
    assert told(*events, live=True, ours=False).endswith(
        "The one that is in the kernel now was loaded by somebody else."
    )
    soft = load(2, reasons={"dccp": "pre softdep of x (a.conf:3)"})
    assert told(soft, request(1)).endswith("asked for net-pf-33; it is a pre softdep of x (a.conf:3).")


def test_who_was_denied_it_and_by_what() -> None:
    asker: dict[str, Any] = {"pid": 812, "comm": "python3", "uid": 1000, "call_site": "__sock_create"}
    last = denial(20, **asker)
    sentence = (
        "On Monday 2026-11-23 08:00:00 python3 (pid 812, uid 1000) opened a socket (__sock_create), which asked "
        "for net-pf-33 and was denied it by 30-x.toml:2: CVE-2026-1."
    )
    assert told(live=False, denied=[last]) == f"dccp is not in the kernel. {sentence}"
    assert told(live=False, denied=[denial(19), last]).endswith(
        f"{sentence} 1 earlier request for it had been denied, too."
    )
    many = [denial(number) for number in range(varlink.DENIALS_MAX)]
    assert told(live=False, denied=[*many[1:], last]).endswith(
        " 99 or more earlier requests for it had been denied, too."
    )
    assert told(live=False, denied=[*many[2:], last]).endswith(
        " 98 earlier requests for it had been denied, too."
    )
    assert varlink.DENIALS_MAX == stories.DENIALS_MAX
    assert told(load(2), request(1), denied=[last]).endswith(f"; dccp_ipv4 needs it. {sentence}")
    assert told(load(30), request(29), denied=[last]) == told(load(30), request(29))
    assert told(denied=[last]) == (
        f"dccp is in the kernel, and how it came there is not known: the journal knows of no load of it. {sentence}"
    )
    blacklisted = denial(20, "dccp is blacklisted by /etc/modprobe.d/b.conf:1", **asker)
    assert told(live=False, denied=[blacklisted]).endswith(
        "asked for net-pf-33 and was denied it: dccp is blacklisted by /etc/modprobe.d/b.conf:1."
    )
