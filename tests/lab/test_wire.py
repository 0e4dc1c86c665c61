"""Frames, whole and in pieces, and among bytes that are none."""

import pytest

from kmodd.lab.wire import MARK, MAX_PAYLOAD, Decoder, Frame, Kind, encode

FRAMES = [Frame(Kind.STDOUT, 7, bytes(range(256))), Frame(Kind.HELLO, 0, b""), Frame(Kind.EXIT, 65535, MARK)]
STREAM = b"".join(encode(f.kind, f.ident, f.payload) for f in FRAMES)


@pytest.mark.parametrize("size", [1, 3, 12, 1000])
def test_any_split_gives_the_same_frames(size: int) -> None:
    decoder = Decoder()
    got = [f for i in range(0, len(STREAM), size) for f in decoder.feed(STREAM[i : i + size])]
    assert got == FRAMES
    assert decoder.dropped == 0


@pytest.mark.parametrize("noise", [b"[ 12.3] oops\n", MARK, MARK + b"\xff" * 8, MARK[:2]])
def test_noise_between_frames_is_dropped(noise: bytes) -> None:
    decoder = Decoder()
    assert decoder.feed(noise + encode(Kind.HELLO) + noise + STREAM) == [Frame(Kind.HELLO, 0, b""), *FRAMES]
    assert decoder.dropped == 2 * len(noise)


def test_a_payload_above_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="above"):
        encode(Kind.STDOUT, 1, bytes(MAX_PAYLOAD + 1))
