"""Files made to do harm, or by mistake of a kind that does: no hang, no flood, and always a reason."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

import pytest

from kmodd.tree import binary


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    """What takes a power of the input's size would take minutes."""
    began = time.process_time()
    yield
    assert time.process_time() - began < 10


# The .bin files

HEADER = struct.pack(">II", 0xB007F457, 0x20001)


def test_a_trie_whose_nodes_share_their_values() -> None:
    values = b"".join(struct.pack(">I", number) + b"a\0" for number in range(2000))
    leaf = 0x40000000 | 12
    nodes = struct.pack(">I", 2000) + values
    root = 12 + len(nodes)
    data = HEADER + struct.pack(">I", 0x20000000 | root) + nodes + b"\0\xff" + struct.pack(">I", leaf) * 256
    with pytest.raises(binary.CorruptIndex, match="twice to one place"):
        list(binary.entries(data))


def test_a_trie_of_long_keys() -> None:
    data = bytearray(HEADER + bytes(4))
    prefix = len(data)
    data += b"x" * 8000 + b"\0"
    # Behind the prefix: a node of children, whose last has children again.
    data += b"\0\xff"
    first = len(data)
    leaves = first + 4 * 256
    data += b"".join(struct.pack(">I", 0x40000000 | leaves + 10 * number) for number in range(256))
    data += (struct.pack(">II", 1, 0) + b"a\0") * 256
    struct.pack_into(">I", data, 8, 0xA0000000 | prefix)
    assert len(list(binary.entries(bytes(data)))) == 256
    data = bytearray(HEADER + struct.pack(">I", 0xA0000000 | 12) + b"x" * 8000 + b"\0\0\xff")
    table = len(data)
    data += bytes(4 * 256)
    for number in range(256):
        struct.pack_into(">I", data, table + 4 * number, 0x20000000 | len(data))
        data += b"\0\xff"
        leaves = len(data) + 4 * 256
        data += b"".join(struct.pack(">I", 0x40000000 | leaves + 10 * leaf) for leaf in range(256))
        data += (struct.pack(">II", 1, 0) + b"a\0") * 256
    with pytest.raises(binary.CorruptIndex, match="keys have more than"):
        list(binary.entries(bytes(data)))


def test_a_trie_that_is_a_circle() -> None:
    data = HEADER + struct.pack(">I", 0x20000000 | 12) + b"aa" + struct.pack(">I", 0x20000000 | 12)
    with pytest.raises(binary.CorruptIndex, match="circle"):
        list(binary.entries(data))
