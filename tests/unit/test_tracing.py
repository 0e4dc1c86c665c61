"""The tracing instance, on a made-up tracefs of plain files: what is set, what is left alone, why it is off."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from kmodd.kernel import instance
from kmodd.kernel.comings import Comings, Kind, Record
from kmodd.kernel.tracing import Tracing
from unit.test_ringbuffer import FORMAT, HEADER_EVENT, HEADER_PAGE, header

COMMON = FORMAT[FORMAT.index("format:") : FORMAT.index("\tfield:unsigned long ip")]


def event_format(name: str, number: int, *fields: str) -> str:
    return f"name: {name}\nID: {number}\n{COMMON}" + "".join(f"\tfield:{field};\n" for field in fields)


REQUESTS = {"module/module_request": FORMAT}
LOADS = {
    "module/module_load": event_format(
        "module_load",
        360,
        "unsigned int taints;\toffset:8;\tsize:4;\tsigned:0",
        "__data_loc char[] name;\toffset:12;\tsize:4;\tsigned:1",
    ),
    "module/module_free": event_format(
        "module_free", 361, "__data_loc char[] name;\toffset:8;\tsize:4;\tsigned:1"
    ),
    "initcall/initcall_finish": event_format(
        "initcall_finish",
        20,
        "initcall_t func;\toffset:8;\tsize:8;\tsigned:0",
        "int ret;\toffset:16;\tsize:4;\tsigned:1",
    ),
}


class Tracefs:
    """Plain files cannot be polled, so a pipe is each processor's buffer; mkdir makes no files, so they exist."""

    def __init__(self, root: Path, name: str = "kmodd", events: dict[str, str] = REQUESTS) -> None:
        self.root = root
        self.instance = root / "instances" / name
        for path, text in {
            "events/header_page": HEADER_PAGE,
            "events/header_event": HEADER_EVENT,
            **{f"events/{event}/format": text for event, text in events.items()},
            **{f"instances/{name}/events/{event}/enable": "0\n" for event in events},
            f"instances/{name}/trace_clock": "[local] global mono\n",
            f"instances/{name}/buffer_size_kb": "1410 (expanded: 1408)\n",
            f"instances/{name}/buffer_percent": "50\n",
            f"instances/{name}/tracing_on": "0\n",
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
        place = 24 | (len(name) + 1) << 16
        self.raw(cpu, time, struct.pack("=HBBiQBxxxI", kind, 0, 0, tid, 1, 1, place) + name + b"\0")

    def raw(self, cpu: int, time: int, record: bytes) -> None:
        record += b"\0" * (-len(record) % 4)
        data = struct.pack("=I", header(len(record) // 4, 0)) + record
        os.write(self.writers[cpu], (struct.pack("=QQ", time, len(data)) + data).ljust(4096, b"\0"))


@pytest.fixture
def tracefs(tmp_path: Path) -> Tracefs:
    return Tracefs(tmp_path)


@pytest.fixture
def traced(tracefs: Tracefs) -> Tracing:
    traced = Tracing((str(tracefs.root / "nowhere"), str(tracefs.root)))
    # The first place has to be looked for too.
    traced.take(traced.open())
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
    traced.let_go()()
    assert len(os.listdir("/proc/self/fd")) == before - 3
    assert (traced.on, traced.problem) == (False, "stopped")
    assert "cannot remove" in caplog.text  # a made-up instance has files in it
    assert tracefs.set("events/module/module_request/enable").startswith("0")
    assert traced.drain() == []
    traced.let_go()()


def test_no_tracefs(tmp_path: Path) -> None:
    traced = Tracing((str(tmp_path),))
    traced.take(traced.open())
    assert (traced.on, traced.problem) == (False, f"tracefs is not mounted at {tmp_path}")


def test_a_kernel_without_the_event(tracefs: Tracefs) -> None:
    (tracefs.root / "events/module").rename(tracefs.root / "events/other")
    traced = Tracing((str(tracefs.root),))
    traced.take(traced.open())
    assert traced.problem == "this kernel does not have the trace event module:module_request"


@pytest.mark.parametrize(
    ("number", "words"),
    [(1, "locked down"), (13, "no right to"), (12, "Cannot allocate memory")],
)
def test_no_right(tracefs: Tracefs, monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    def refuse(path: str) -> str:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(instance, "read", refuse)
    traced = Tracing((str(tracefs.root),))
    traced.take(traced.open())
    assert not traced.on
    assert traced.problem is not None
    assert words in traced.problem


def test_event_headers_that_are_not_known(tracefs: Tracefs) -> None:
    (tracefs.root / "events/header_event").write_text("type_len : 6 bits\n")
    traced = Tracing((str(tracefs.root),))
    traced.take(traced.open())
    assert traced.problem is not None
    assert "does not know" in traced.problem


# Loads and unloads


@pytest.fixture
def loads(tmp_path: Path) -> Tracefs:
    return Tracefs(tmp_path, "kmodd-loads", LOADS)


def test_loads_unloads_and_what_inits_return(loads: Tracefs) -> None:
    comings = Comings((str(loads.root),))
    comings.take(comings.open())
    assert comings.problem is None
    for event in LOADS:
        assert loads.set(f"events/{event}/enable") == "1"
    name = b"mi\nnix\0"
    loads.raw(0, 1000, struct.pack("=HBBiII", 360, 0, 0, 77, 1, 16 | len(name) << 16) + name)
    loads.raw(1, 3000, struct.pack("=HBBiI", 361, 0, 0, 78, 12 | len(name) << 16) + name)
    loads.raw(1, 2000, struct.pack("=HBBiQi", 20, 0, 0, 77, 0xFFFFFFFF81000000, -19))
    loads.raw(1, 4000, struct.pack("=HBBi", 99, 0, 0, 77))  # somebody has switched on another event
    assert comings.drain(everywhere=True) == [
        Record(1000, 77, Kind.LOAD, "mi; nix"),
        Record(2000, 77, Kind.INIT, result=-19),
        Record(3000, 78, Kind.FREE, "mi; nix"),
    ]
    loads.raw(0, 5000, struct.pack("=HBBi", 360, 0, 0, 77))  # cut off
    assert comings.drain() == []
    assert comings.missed == 1
    comings.let_go()()
    for event in LOADS:
        assert loads.set(f"events/{event}/enable").startswith("0")


def test_a_kernel_without_one_of_the_events(loads: Tracefs) -> None:
    (loads.root / "events/initcall").rename(loads.root / "events/other")
    comings = Comings((str(loads.root),))
    comings.take(comings.open())
    assert comings.problem == "this kernel does not have the trace event initcall:initcall_finish"
    assert loads.set("tracing_on") == "0"
