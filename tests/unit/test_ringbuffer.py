"""The tracing ring buffer in binary: pages recorded on Linux 6.1, and garbage."""

from __future__ import annotations

import base64
import struct
import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.kernel import ringbuffer
from kmodd.kernel.ringbuffer import Field, MalformedBuffer

HEADER_PAGE = """\
\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;
\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;
\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;
\tfield: char data;\toffset:16;\tsize:4080;\tsigned:1;
"""
HEADER_EVENT = """\
# compressed entry header
\ttype_len    :    5 bits
\ttime_delta  :   27 bits
\tarray       :   32 bits

\tpadding     : type == 29
\ttime_extend : type == 30
\ttime_stamp : type == 31
\tdata max type_len  == 28
"""
FORMAT = """\
name: module_request
ID: 358
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:unsigned long ip;\toffset:8;\tsize:8;\tsigned:0;
\tfield:bool wait;\toffset:16;\tsize:1;\tsigned:0;
\tfield:__data_loc char[] name;\toffset:20;\tsize:4;\tsigned:1;

print fmt: "%s wait=%d call_site=%ps", __get_str(name), (int)REC->wait, (void *)REC->ip
"""
# mount one; socket(9); 0.3 s later mount "a\nb\xff c" and one of 40 times x, by pid 132 on processor 0.
FEW = (
    "eNrTPWZdx8TAwHCFAQI4gDiNkYGhBUjnC1g2/gcCIJdBgoGdIa1YNz8vlYFB7qpLIUiME0mt0o8qJLWcDHmpJboFabqWIDPnncw9"
    "yoSmHtVsLpDZiVxJ/xWSgfx9i08wgMQFcarXAamvIBIwjIJRMApGwSgYBaNgFIyCUTAKRsEoGAUjHQAAlp0/NQ=="
)
# The beginning of 400 requests for fs-over0, fs-over1 …
MANY = (
    "eNrdlktoE1EUhtOoNdPaJopIxJBCcWGoluYxMwnio1qUUVsrLqyIiyKNZhVowSpCUWrRAUFFxIIi4qZMowuxtbhTyGYUCl2oWO2i"
    "iRVHa0IbUKyIzn8W7uTfOzAkJB/33Hu+e+652+99H/F6PJ6Q3yNP+GF+tsr9VNw37X656H5mA6kLv90Hvwfdf9J9W7Kne3pbwJu9"
    "TxoIFwVnjV9vJFwMnPLp8mrCxSVueSBEuISM136VjafK/CqtawmngTN838KE08HZoQ21hEuCc1r76wiXAhc5O/+P+dX8zTOEOE3P"
    "/YyDkMzjvT7GQYg1XA4wDkKMpmvLGQch9uIVGhdCMjmrinEQYsRzKxgHIZnuuWrGQYjydYzOD0Ks/jtsfjH4UEY3UQ4+rKE+ysGH"
    "M7ygMA4+MmM5to4YfCgbf3oYBx+RgXnKwYf1sUg5+LC/zFIOPqxHt2oYBx/K+Ga23jh82Hcr9YyDD+VHjNVRXOojH6Sc+Kjspxx8"
    "WG0a5eDDznVTDj4y9Z2UEx/nbtL8wYdRKlEOPswz06sIl4APa6qdzS8h59VomcVNwIdx/giNCx+mHmZ1lIAP8xjdBwnxoS+sZBx8"
    "2BOfaVz4iGx9R9ch9bF4mM4PPoyon3EqfGRCM2wdKnyY6g46ntRHcwvlpD5ed1AOPoylXXR+8GEeamD7RYUPJzzJfKjwYRU/MB8q"
    "fNinXtQxTnyk4yyuBh/mzqMsL5rUR/Yky4sGH4peYHnR4MOafkk58XGiyPKiwYf1y6DrkP5xo0DzIv28p5H1fQ0+nPvvaVzp5xNe"
    "xulyv5qzWf/QpX/MqCx/uvgIradx4UPpyFIOPiIjXWwf6PDhTOp0PPgw37ZRTnwU9lEOPswHBygnPt4sY/sgKfVxO8p8JOW8Glyi"
    "XEzuOQfZPTYp/WNq9xrGST+/lGf35yR8GE+ddYwTH9XNXsZJPy+/qmWcnFddg8xHEj4iviG2n1Nyv9rTwfKcgg9HO07Hi8n+y7F7"
    "cUrOq2dByokPo8TunSn42Oa+Ac////wBN2gmGQ=="
)

LAYOUT = ringbuffer.layout(HEADER_PAGE, HEADER_EVENT)
EVENT = ringbuffer.event_format(FORMAT)
little = pytest.mark.skipif(sys.byteorder != "little", reason="the pages were recorded on x86")


def page(packed: str) -> bytes:
    return zlib.decompress(base64.b64decode(packed))


def names(records: tuple[tuple[int, bytes], ...]) -> list[bytes]:
    return [EVENT.field("name").text(record) for _time, record in records]


@little
def test_recorded_requests() -> None:
    found = ringbuffer.parse(page(FEW), LAYOUT)
    assert names(found.records) == [b"fs-one", b"net-pf-9", b"fs-a\nb\xff c", b"fs-" + b"x" * 40]
    assert (found.missed, found.damaged) == (0, None)
    for _time, record in found.records:
        assert EVENT.field("common_type").read(record) == EVENT.id
        assert EVENT.field("common_pid").read(record) == 132
        assert EVENT.field("wait").read(record) == 1
    times = [time for time, _record in found.records]
    # The instance's clock was CLOCK_MONOTONIC, which was 10.684 s a moment before.
    assert times == sorted(times)
    assert 10_684_350_159 < times[0] < 10_800_000_000
    assert times[2] - times[1] > 300_000_000  # more than 27 bits of ns: a time extend is between them


@little
def test_a_full_page() -> None:
    found = ringbuffer.parse(page(MANY), LAYOUT)
    assert names(found.records) == [b"fs-over%d" % n for n in range(len(found.records))]
    assert len(found.records) > 80


def made(*words: int, commit: int | None = None, time: int = 1000) -> bytes:
    data = b"".join(struct.pack("=I", word) for word in words)
    return struct.pack("=QQ", time, len(data) if commit is None else commit) + data


def header(kind: int, delta: int) -> int:
    return kind | delta << 5 if sys.byteorder == "little" else kind << 27 | delta


MISSED, STORED = 1 << 31, 1 << 30


@pytest.mark.parametrize(
    ("flags", "behind", "missed"),
    [
        (0, 7, 0),
        (MISSED, 7, 1),  # the kernel has found no room for the number: this is none
        (MISSED | STORED, 1, 1),
        (MISSED | STORED, 1000, 1000),
        (MISSED | STORED, (1 << 32) + 5, (1 << 32) + 5),
        (MISSED | STORED, 0, 1),
        (MISSED | STORED, -1, 1),
        (MISSED | STORED, None, 1),  # cut off
        (STORED, 7, 0),
    ],
)
def test_how_many_events_were_missed_is_stored_behind_the_data(
    flags: int, behind: int | None, missed: int
) -> None:
    words = (header(1, 1), 7, header(1, 1), 8)
    raw = made(*words, commit=16 | flags) + (b"" if behind is None else struct.pack("=q", behind))
    found = ringbuffer.parse(raw, LAYOUT)
    assert (found.missed, found.damaged) == (missed, None)
    assert [record for _time, record in found.records] == [struct.pack("=I", 7), struct.pack("=I", 8)]


def test_on_32_bits_the_number_has_32() -> None:
    short = HEADER_PAGE.replace("size:8;\tsigned:1;", "size:4;\tsigned:1;")
    raw = made(header(1, 1), 7, commit=8 | MISSED | STORED) + struct.pack("=iI", 300, 0xFFFFFFFF)
    assert ringbuffer.parse(raw, ringbuffer.layout(short, HEADER_EVENT)).missed == 300


def test_long_discarded_and_stamped_events() -> None:
    raw = made(
        header(0, 5), 8, 0xAA,  # a long event: its length counts itself
        header(29, 1), 8, 0xBB,  # discarded
        header(30, 3), 2,  # time extend
        header(1, 1), 0xCC,
        header(31, 7), 4,  # absolute
        header(1, 1), 0xDD,
        header(29, 0), 0xEE,  # the rest is empty
    )  # fmt: skip
    found = ringbuffer.parse(raw, LAYOUT)
    extended = 1000 + 5 + 1 + 3 + (2 << 27)
    assert found.records == (
        (1005, struct.pack("=I", 0xAA)),
        (extended + 1, struct.pack("=I", 0xCC)),
        ((4 << 27) + 8, struct.pack("=I", 0xDD)),
    )


def test_an_absolute_time_gets_its_top_bits_from_the_page() -> None:
    top = 3 << 59
    after = ringbuffer.parse(made(header(31, 9), 1, header(1, 0), 1, time=top + 5), LAYOUT)
    assert after.records[0][0] == top + (1 << 27) + 9
    wrapped = ringbuffer.parse(made(header(31, 9), 0, header(1, 0), 1, time=top + (1 << 58)), LAYOUT)
    assert wrapped.records[0][0] == top + (1 << 59) + 9


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "lacks a field"),
        (made(1, 2, commit=4096), "says that it ends"),
        (b"\0" * 15, "lacks a field"),
    ],
)
def test_a_page_that_cannot_be_one(raw: bytes, words: str) -> None:
    with pytest.raises(MalformedBuffer, match=words):
        ringbuffer.parse(raw, LAYOUT)


@pytest.mark.parametrize("tail", [(header(28, 0), 1), (header(0, 0),), (header(0, 0), 0), (header(30, 1),)])
def test_what_comes_before_a_damaged_event_counts(tail: tuple[int, ...]) -> None:
    found = ringbuffer.parse(made(header(1, 1), 7, *tail), LAYOUT)
    assert found.records == ((1001, struct.pack("=I", 7)),)
    assert found.damaged


def test_descriptions_that_are_not_known_are_refused() -> None:
    for wrong in ("", HEADER_PAGE.replace("commit", "other")):
        with pytest.raises(MalformedBuffer):
            ringbuffer.layout(wrong, HEADER_EVENT)
    with pytest.raises(MalformedBuffer):
        ringbuffer.layout(HEADER_PAGE, HEADER_EVENT.replace("29", "30"))
    with pytest.raises(MalformedBuffer):
        ringbuffer.event_format(FORMAT.replace("ID", "Id"))
    with pytest.raises(MalformedBuffer, match="no field comm"):
        EVENT.field("comm")


def test_the_size_of_a_sub_buffer() -> None:
    assert LAYOUT.size == 4096


@given(st.binary(max_size=300), st.integers(0, 1 << 64), st.integers(0, 1 << 32))
def test_garbage_raises_nothing_else(data: bytes, time: int, commit: int) -> None:
    whole = struct.pack("=QQ", time & (1 << 64) - 1, commit) + data
    for raw in (data, whole, made(commit=len(data)) + data):
        try:
            found = ringbuffer.parse(raw, LAYOUT)
        except MalformedBuffer:
            continue
        for _time, record in found.records:
            for name in ("common_pid", "wait"):
                try:
                    EVENT.field(name).read(record)
                    EVENT.field("name").text(record)
                except MalformedBuffer:
                    continue


@given(st.text())
def test_garbage_for_a_description(text: str) -> None:
    for what in (text, FORMAT + text, f"ID: 1\n\tfield:char {text};\toffset:1;\tsize:1;\tsigned:0;"):
        try:
            ringbuffer.event_format(what)
            ringbuffer.layout(what, HEADER_EVENT)
        except MalformedBuffer:
            continue


def test_a_field_that_is_no_number() -> None:
    with pytest.raises(MalformedBuffer):
        Field(0, 3, signed=False).read(b"abc")
