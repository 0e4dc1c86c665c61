"""The kernel's tracing ring buffer as tracefs gives it in binary: sub-buffers, events, and their fields.

`per_cpu/cpuN/trace_pipe_raw` gives one sub-buffer for each read. `events/header_page` and
`events/header_event` describe it, each event's `format` its fields; tried with kernels 6.1 to 6.12. The
text of trace_pipe would be simpler and can be forged: a name may hold line ends.
"""

from __future__ import annotations

import re
import struct
import sys
from dataclasses import dataclass

from kmodd.errors import KmoddError

_COMMIT_MASK = (1 << 27) - 1
_MISSED = 1 << 31  # RB_MISSED_EVENTS: events were overwritten before this sub-buffer was read
_MISSED_STORED = 1 << 30  # RB_MISSED_STORED: how many is behind the data, where there was room: a long
_DATA_MAX, _PADDING, _TIME_EXTEND, _TIME_STAMP = 28, 29, 30, 31  # enum ring_buffer_type
_STAMP_TOP = 0x1F << 59  # an absolute timestamp has 59 bits; the page's gives the rest (since 5.17)
_DELTA_BITS = 27
_WORD = struct.Struct("=I")
_NUMBERS = {
    (size, signed): struct.Struct(f"={letter if signed else letter.upper()}")
    for size, letter in ((1, "b"), (2, "h"), (4, "i"), (8, "q"))
    for signed in (False, True)
}
_FIELD = re.compile(r"^\s*field:([^;]+);\s*offset:(\d+);\s*size:(\d+);\s*signed:([01]);", re.MULTILINE)
_EVENT_HEADER = {
    r"type_len\s*:\s*5 bits",
    r"time_delta\s*:\s*27 bits",
    r"array\s*:\s*32 bits",
    r"padding\s*:\s*type == 29",
    r"time_extend\s*:\s*type == 30",
    r"data max type_len\s*== 28",
}


class MalformedBuffer(KmoddError):
    """What tracefs gave is not laid out as its description says, or as this version knows it."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a record: where it is, in bytes."""

    offset: int
    size: int
    signed: bool

    def read(self, record: bytes) -> int:
        """Return its value as a number.

        Raises:
            MalformedBuffer: the record is too short for it, or it is no number.
        """
        try:
            value: int = _NUMBERS[self.size, self.signed].unpack_from(record, self.offset)[0]
        except (KeyError, struct.error):
            raise MalformedBuffer(
                f"a trace record of {len(record)} bytes lacks a field at {self.offset}"
            ) from None
        return value

    def text(self, record: bytes) -> bytes:
        """Return the bytes that a `__data_loc char[]` stands for, up to the NUL.

        Its low 16 bits are where they begin in the record, its high ones their number.

        Raises:
            MalformedBuffer: they are not in the record.
        """
        place = self.read(record) & 0xFFFFFFFF
        start, length = place & 0xFFFF, place >> 16
        if start + length > len(record):
            raise MalformedBuffer(f"a trace record of {len(record)} bytes lacks its text at {start}")
        return record[start : start + length].partition(b"\0")[0]


@dataclass(frozen=True, slots=True)
class EventFormat:
    """An event's `format` file."""

    id: int
    fields: dict[str, Field]

    def field(self, name: str) -> Field:
        """Return a field by its name.

        Raises:
            MalformedBuffer: this kernel's event has no such field.
        """
        try:
            return self.fields[name]
        except KeyError:
            raise MalformedBuffer(f"this kernel's trace event has no field {name}") from None


def event_format(text: str) -> EventFormat:
    """Return what a `format` file says.

    Raises:
        MalformedBuffer: it has no ID.
    """
    number = re.search(r"^ID: (\d{1,9})$", text, re.MULTILINE)
    if number is None:
        raise MalformedBuffer("the format of a trace event has no ID")
    return EventFormat(int(number[1]), _fields(text))


def _fields(text: str) -> dict[str, Field]:
    found = {}
    for declared, offset, size, signed in _FIELD.findall(text):
        name = re.search(r"(\w+)(?:\[\w*\])?$", declared.strip())
        if name is not None and len(offset) < 6 and len(size) < 6:
            found[name[1]] = Field(int(offset), int(size), signed == "1")
    return found


@dataclass(frozen=True, slots=True)
class Layout:
    """What `header_page` says: where a sub-buffer's time, its length and its events are."""

    timestamp: Field
    commit: Field
    data: Field

    @property
    def size(self) -> int:
        """The size of a sub-buffer in bytes: what to read at once."""
        return self.data.offset + self.data.size


def layout(header_page: str, header_event: str) -> Layout:
    """Return how sub-buffers are laid out.

    Raises:
        MalformedBuffer: not in a way that this version knows.
    """
    fields = _fields(header_page)
    if not {"timestamp", "commit", "data"} <= fields.keys():
        raise MalformedBuffer("events/header_page does not say where time, length and data are")
    if not all(re.search(pattern, header_event) for pattern in _EVENT_HEADER):
        raise MalformedBuffer("events/header_event has event headers that this version does not know")
    return Layout(fields["timestamp"], fields["commit"], fields["data"])


@dataclass(frozen=True, slots=True)
class SubBuffer:
    """A sub-buffer taken apart: its records with their times (ns, of the instance's clock), oldest first.

    `missed`: how many older ones were overwritten unread; one where the kernel does not say how many.
    `damaged`: why the rest of it could not be read.
    """

    records: tuple[tuple[int, bytes], ...]
    missed: int
    damaged: str | None = None


def parse(page: bytes, where: Layout) -> SubBuffer:
    """Return the records of a sub-buffer; what comes before the first damaged event is returned too.

    Raises:
        MalformedBuffer: it has no header, or says that it is longer than it is.
    """
    time = where.timestamp.read(page)
    commit = where.commit.read(page)
    begin = where.data.offset
    end = begin + (commit & _COMMIT_MASK)
    if end > len(page):
        raise MalformedBuffer(f"a sub-buffer of {len(page)} bytes says that it ends at {end}")
    records: list[tuple[int, bytes]] = []
    damaged = None
    try:
        _walk(page, begin, end, time, records)
    except MalformedBuffer as err:
        damaged = str(err)
    return SubBuffer(tuple(records), _missed(page, commit, end, where), damaged)


def _missed(page: bytes, commit: int, end: int, where: Layout) -> int:
    """Return how many events were lost before this sub-buffer; see ring_buffer_read_page()."""
    if not commit & _MISSED:
        return 0
    if not commit & _MISSED_STORED:
        return 1
    # It is as long as the local_t that commit is. What is no number of events says that there were some.
    try:
        return max(1, Field(end, where.commit.size, signed=True).read(page))
    except MalformedBuffer:
        return 1


def _walk(page: bytes, at: int, end: int, time: int, records: list[tuple[int, bytes]]) -> None:
    """Go through the events; see rb_event_length() and rb_update_read_stamp() in ring_buffer.c."""
    while at < end:
        kind, delta = _header(_word(page, at, end))
        at += 4
        if kind == _PADDING and delta == 0:
            return  # nothing but the end of the sub-buffer follows
        if kind == _TIME_EXTEND:
            time += delta + (_word(page, at, end) << _DELTA_BITS)
            at += 4
            continue
        if kind == _TIME_STAMP:
            time = _whole_stamp(delta + (_word(page, at, end) << _DELTA_BITS), time)
            at += 4
            continue
        time += delta
        start = at
        if 0 < kind <= _DATA_MAX:
            at += kind * 4
        else:
            # A long event, or one that was discarded: the length has a word of its own, and counts it.
            length = _word(page, at, end)
            if length < 4:
                raise MalformedBuffer(f"a trace event at {start} is {length} bytes long")
            start, at = at + 4, at + (length + 3) // 4 * 4
        if at > end:
            raise MalformedBuffer(f"a trace event at {start} goes on to {at}, behind the end at {end}")
        if kind != _PADDING:
            records.append((time, page[start:at]))


def _header(word: int) -> tuple[int, int]:
    """Return type_len and time_delta: bit fields, so their place follows the byte order."""
    if sys.byteorder == "little":
        return word & 0x1F, word >> 5
    return word >> _DELTA_BITS, word & ((1 << _DELTA_BITS) - 1)


def _word(page: bytes, at: int, end: int) -> int:
    if at + 4 > end:
        raise MalformedBuffer(f"a trace event at {at} is cut off")
    value: int = _WORD.unpack_from(page, at)[0]
    return value


def _whole_stamp(stamp: int, before: int) -> int:
    """Return an absolute timestamp with its top five bits, as rb_fix_abs_ts() does."""
    top = before & _STAMP_TOP
    if not top:
        return stamp
    whole = stamp | top
    return whole if whole >= before else whole + (1 << 59)
