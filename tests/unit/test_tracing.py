"""The tracing instance, on a made-up tracefs of plain files: what is set, what is left alone, why it is off."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from kmodd.kernel import tracing
from kmodd.kernel.tracing import Tracing
from unit.test_ringbuffer import FORMAT, HEADER_EVENT, HEADER_PAGE, header


class Tracefs:
    """Plain files cannot be polled, so a pipe is each processor's buffer; mkdir makes no files, so they exist."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.instance = root / "instances/kmodd"
        event = "events/module/module_request"
        for path, text in {
            "events/header_page": HEADER_PAGE,
            "events/header_event": HEADER_EVENT,
            f"{event}/format": FORMAT,
            f"instances/kmodd/{event}/enable": "0\n",
            "instances/kmodd/trace_clock": "[local] global mono\n",
            "instances/kmodd/buffer_size_kb": "1410 (expanded: 1408)\n",
            "instances/kmodd/buffer_percent": "50\n",
            "instances/kmodd/tracing_on": "0\n",
        }.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        self.writers = []
        for cpu in range(2):
            pipe = self.instance / f"per_cpu/cpu{cpu}/trace_pipe_raw"
            pipe.parent.mkdir(parents=True)
            os.mkfifo(pipe)
            self.writers.append(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))

    def set(self, name: str) -> str:
        return (self.instance / name).read_text().split("\n")[0]

    def record(self, cpu: int, time: int, tid: int, name: bytes, kind: int = 358) -> None:
        text = name + b"\0"
        text += b"\0" * (-len(text) % 4)
        record = struct.pack("=HBBiQBxxxI", kind, 0, 0, tid, 1, 1, 24 | (len(name) + 1) << 16) + text
        data = struct.pack("=I", header(len(record) // 4, 0)) + record
        os.write(self.writers[cpu], (struct.pack("=QQ", time, len(data)) + data).ljust(4096, b"\0"))


@pytest.fixture
def tracefs(tmp_path: Path) -> Tracefs:
    return Tracefs(tmp_path)


@pytest.fixture
def traced(tracefs: Tracefs) -> Tracing:
    traced = Tracing((str(tracefs.root / "nowhere"), str(tracefs.root)))
    # The first place has to be looked for too.
    traced.start()
    assert traced.problem is None
    return traced


def test_what_is_set(tracefs: Tracefs, traced: Tracing) -> None:
    assert traced.on
    assert tracefs.set("trace_clock").startswith("mono")
    assert tracefs.set("buffer_size_kb").startswith("16")
    assert tracefs.set("buffer_percent").startswith("0")
    assert tracefs.set("tracing_on") == "1"
    assert tracefs.set("events/module/module_request/enable") == "1"


def test_what_was_recorded_oldest_first(tracefs: Tracefs, traced: Tracing) -> None:
    assert traced.drain() == []
    tracefs.record(0, 2000, 11, b"second\nline")
    tracefs.record(1, 1000, 10, b"first")
    tracefs.record(1, 3000, 12, b"other", kind=359)
    found = traced.drain()
    assert [(asked.time, asked.tid, asked.name, asked.wait) for asked in found] == [
        (1000, 10, b"first", True),
        (2000, 11, b"second\nline", True),
    ]
    assert traced.drain() == traced.drain(everywhere=True) == []
    assert traced.missed == 0


def test_garbage_is_counted_as_missed(tracefs: Tracefs, traced: Tracing) -> None:
    os.write(tracefs.writers[0], b"\xff" * 4096)
    os.write(tracefs.writers[1], (struct.pack("=QI", 1, 1 << 31) + bytes(4)).ljust(4096, b"\0"))
    assert traced.drain(everywhere=True) == []
    assert traced.missed == 2


def test_stop_leaves_nothing_open(
    tracefs: Tracefs, traced: Tracing, caplog: pytest.LogCaptureFixture
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    traced.stop()
    assert len(os.listdir("/proc/self/fd")) == before - 3
    assert (traced.on, traced.problem) == (False, "stopped")
    assert "cannot remove" in caplog.text  # a made-up instance has files in it
    assert tracefs.set("events/module/module_request/enable").startswith("0")
    assert traced.drain() == []
    traced.stop()


def test_no_tracefs(tmp_path: Path) -> None:
    traced = Tracing((str(tmp_path),))
    traced.start()
    assert (traced.on, traced.problem) == (False, f"tracefs is not mounted at {tmp_path}")


def test_a_kernel_without_the_event(tracefs: Tracefs) -> None:
    (tracefs.root / "events/module").rename(tracefs.root / "events/other")
    traced = Tracing((str(tracefs.root),))
    traced.start()
    assert traced.problem == "this kernel does not have the trace event module:module_request"


@pytest.mark.parametrize(
    ("number", "words"),
    [(1, "locked down"), (13, "no right to"), (12, "Cannot allocate memory")],
)
def test_no_right(tracefs: Tracefs, monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    def refuse(path: str) -> str:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(tracing, "_read", refuse)
    traced = Tracing((str(tracefs.root),))
    traced.start()
    assert not traced.on
    assert traced.problem is not None
    assert words in traced.problem


def test_event_headers_that_are_not_known(tracefs: Tracefs) -> None:
    (tracefs.root / "events/header_event").write_text("type_len : 6 bits\n")
    traced = Tracing((str(tracefs.root),))
    traced.start()
    assert traced.problem is not None
    assert "does not know" in traced.problem
