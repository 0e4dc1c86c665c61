"""Frames between the lab and its agent in the guest, over a byte channel of their own.

The channel is not the kernel's console, so nothing else is written to it as a rule; a frame starts
with a mark all the same, and the decoder finds the next one after anything that is no frame.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

MARK = b"\xf5kmL"
HEADER = struct.Struct(">4sBxHI")
MAX_PAYLOAD = 1 << 20
"""Bytes; a length above is no frame."""
WINDOW = 2048
"""Bytes that the lab has on their way to the agent at most.

User-mode Linux's serial line loses input, and then waits for ever, where the terminal layer's
buffer of 4096 bytes is full (6.1; a virtio port would take any amount).
"""


class Kind(IntEnum):
    """What a frame is; JSON unless said otherwise."""

    HELLO = 1
    """Guest: the agent is there."""
    SERVE = 2
    """Lab: start kmodd and say when it is ready."""
    SERVED = 3
    """Guest: kmodd is ready, or why it is not."""
    START = 4
    """Lab: start a process; a payload above the limit comes in several, the last with END."""
    STDIN = 5
    """Lab: raw bytes for its standard input; none at all: end of file."""
    TAKEN = 6
    """Guest: how many bytes of standard input the process has been given, as a decimal."""
    STDOUT = 7
    """Guest: raw bytes."""
    STDERR = 8
    """Guest: raw bytes."""
    RESULT = 9
    """Guest: raw bytes of a Python call's JSON answer."""
    EXIT = 10
    """Guest: the process ended; always the last frame about it."""
    SIGNAL = 11
    """Lab: send the process's group a signal."""
    RESIZE = 12
    """Lab: its terminal has new rows and columns."""
    MORE = 13
    """Lab: raw bytes, a part of the START that follows."""
    CREDIT = 14
    """Guest: how many more bytes of the channel have been read, as a decimal."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message; `ident` numbers the process that it is about, 0 is none."""

    kind: Kind
    ident: int
    payload: bytes


def encode(kind: Kind, ident: int = 0, payload: bytes = b"") -> bytes:
    """The bytes of one frame."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a frame's payload of {len(payload)} bytes is above {MAX_PAYLOAD}")
    return HEADER.pack(MARK, kind, ident, len(payload)) + payload


class Decoder:
    """Bytes in, frames out; `dropped` counts the bytes that belonged to none."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.dropped = 0

    def feed(self, data: bytes) -> list[Frame]:
        """All frames that are complete with `data`."""
        self._buffer += data
        frames: list[Frame] = []
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def _next(self) -> Frame | None:
        buffer = self._buffer
        while True:
            start = buffer.find(MARK)
            if start < 0:
                # The end may be the beginning of a mark.
                self._drop(max(0, len(buffer) - len(MARK) + 1))
                return None
            self._drop(start)
            if len(buffer) < HEADER.size:
                return None
            _, kind, ident, length = HEADER.unpack_from(buffer)
            if length > MAX_PAYLOAD or kind not in Kind.__members__.values():
                self._drop(1)
                continue
            if len(buffer) < HEADER.size + length:
                return None
            payload = bytes(buffer[HEADER.size : HEADER.size + length])
            del buffer[: HEADER.size + length]
            return Frame(Kind(kind), ident, payload)

    def _drop(self, count: int) -> None:
        if count:
            self.dropped += count
            del self._buffer[:count]
