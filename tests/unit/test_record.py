"""Events, and how they go to a log that nobody can forge a line in (S14)."""

from __future__ import annotations

import logging
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.record import systemlog
from kmodd.record.recorder import Recorder
from kmodd.record.select import Selection, newest
from support.kept import KeptRecorder


def fields(**more: Any) -> dict[str, Any]:
    base = {
        "source": "kernel",
        "name": "x",
        "outcome": "failed",
        "status": 1,
        "error": "cannot load x",
        "modules": [],
        "requester": {"pid": None, "uid": None},
    }
    return base | more


def test_each_event_is_told_once_with_an_id_of_its_own() -> None:
    recorder = Recorder()
    told: list[int] = []
    recorder.subscribe(lambda event: told.append(event.id))
    for _ in range(10):
        recorder.add("load", {})
    assert told == list(range(1, 11))
    assert recorder.recorded == 10


def test_a_listener_that_breaks_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    seen: list[int] = []

    def broken(_event: object) -> None:
        raise ValueError

    recorder.subscribe(broken)
    stop = recorder.subscribe(lambda event: seen.append(event.id))
    recorder.add("load", {})
    stop()
    recorder.add("load", {})
    assert seen == [1]
    assert "listener failed" in caplog.text


def test_selection() -> None:
    start = datetime(2026, 11, 23, tzinfo=UTC)
    moments = iter(start + timedelta(seconds=n) for n in range(10))
    recorder = KeptRecorder(now=lambda: next(moments))
    recorder.add("request", fields(name="net-pf-33", outcome="loaded", modules=["dccp", "dccp_ipv4"]))
    recorder.add("request", fields(name="fs-x", outcome="not-found", requester={"pid": 1, "uid": 1000}))
    recorder.add("unload", {"module": "dccp", "reason": "requested"})
    recorder.add("load", fields(modules=None))
    recorder.add("request", fields(name="x", outcome="denied", modules=["y"], denied_modules=["y", "dccp"]))
    # Denied while it went on: what it had brought in has come all the same.
    recorder.add("load", fields(outcome="denied", modules=["dccp"]))

    def ids(count: int | None = None, **selection: Any) -> list[int]:
        return [event.id for event in newest(recorder.events(), Selection(**selection), count)]

    assert ids() == [1, 2, 3, 4, 5, 6]
    assert ids(2) == [5, 6]
    assert ids(0) == []
    assert ids(name="net-*") == [1]
    assert ids(module="dccp") == [1, 3, 5, 6]
    assert ids(module="dccp", denied=False) == [1, 3, 6]
    assert ids(denied=False) == [1, 2, 3, 4, 6]
    assert ids(event="request", module="dccp", outcome="denied") == [5]
    assert ids(outcome="not-found") == [2]
    assert ids(uid=1000) == [2]
    assert ids(since=start + timedelta(seconds=2)) == [3, 4, 5, 6]


@given(st.dictionaries(st.sampled_from(["MESSAGE", "KMODD_NAME"]), st.text(max_size=50), min_size=1))
def test_s14_a_journal_datagram_holds_each_field_whole(given_fields: dict[str, str]) -> None:
    raw, found = systemlog.encode(given_fields), {}
    while raw:
        line, _, raw = raw.partition(b"\n")
        key, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(raw[:8], "little")
            value, raw = raw[8 : 8 + size], raw[8 + size + 1 :]
        found[key.decode()] = value
    assert found == {
        key: value.encode("utf-8", errors="backslashreplace") for key, value in given_fields.items()
    }


def test_s14_failed_requests_reach_the_journal_with_fields(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        journal.settimeout(5)
        handler = systemlog.handler(path)
        log = logging.getLogger("kmodd")
        log.addHandler(handler)
        try:
            recorder = Recorder()
            recorder.subscribe(systemlog.EventLog(lambda: 0.0))
            recorder.add("request", fields(outcome="loaded"))
            recorder.add("request", fields(name="evil\\x0aJan 1 root", outcome="not-found"))
            message = journal.recv(65536).decode()
        finally:
            log.removeHandler(handler)
            handler.close()
    assert "PRIORITY=4\n" in message
    assert "KMODD_OUTCOME=not-found\n" in message
    assert "KMODD_NAME=evil\\x0aJan 1 root\n" in message


def test_s14_a_looping_requester_cannot_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    recorder = Recorder()
    recorder.subscribe(systemlog.EventLog(lambda: now))
    with caplog.at_level(logging.WARNING, "kmodd"):
        for _ in range(10_000):
            recorder.add("request", fields())
        assert len(caplog.records) == 50
        now = 11.0
        recorder.add("request", fields())
    assert "9950 messages about failed requests were left out, most of them of tasks that are" in caplog.text


def test_s14_one_who_loops_hides_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    recorder = Recorder()
    recorder.subscribe(systemlog.EventLog(lambda: now))

    def fail(uid: int | None, times: int = 1) -> int:
        before = len(caplog.records)
        for _ in range(times):
            recorder.add("request", fields(requester={"pid": 7, "uid": uid}))
        return len(caplog.records) - before

    with caplog.at_level(logging.WARNING, "kmodd"):
        assert fail(1000, 10_000) == 50
        assert fail(None, 100) == 50
        assert fail(0, 60) == 50
        # All together: 200; and the first of whoever comes then.
        assert fail(1001, 60) == 50
        assert [fail(uid, 10) for uid in range(2000, 2010)] == [1] * 10
        now = 10.5
        assert fail(1001) == 2
    assert "10110 messages about failed requests were left out, most of them of uid 1000" in caplog.text


def test_s14_many_users_together_cannot_flood_the_log_or_the_memory() -> None:
    now = 0.0
    limits = systemlog.Limits(lambda: now)
    gone = sum(limits.take(uid)[0] for uid in range(100_000))
    assert gone == 256 + 1
    now = 10.0
    may, left_out = limits.take(5)
    assert may
    assert left_out == systemlog.LeftOut(100_000 - 257, "rest")


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 20)), max_size=300))
def test_s14_what_goes_and_what_is_told_as_left_out_is_all(messages: list[tuple[int, float]]) -> None:
    now = 0.0
    limits = systemlog.Limits(lambda: now, burst=3, total=7, keys=4)
    gone = told = 0
    for key, later in messages:
        now += later
        may, left_out = limits.take(key)
        gone += may
        told += 0 if left_out is None else left_out.count
    now += 10.0
    may, left_out = limits.take("last")
    assert may
    assert gone + told + (0 if left_out is None else left_out.count) == len(messages)


def test_s14_a_log_that_does_not_read_is_not_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "syslog")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(path)
        handler = systemlog.handler(str(tmp_path / "none"), path)
        assert isinstance(handler, systemlog.SyslogHandler)
        record = logging.LogRecord("kmodd", logging.WARNING, "", 0, "x" * 1000, None, None)
        for _ in range(1000):
            handler.emit(record)
        assert handler.lost > 0
        handler.close()
