"""The `.bin` files of depmod: a trie of keys, each with values and their priorities.

The format, found in files that depmod(8) of kmod 30 wrote; all numbers big-endian. A header of a magic
number, a version and the root's offset; an offset's upper four bits say what its node has. A node: where
it has a prefix, that with a NUL behind; where it has children, the first and the last character and the
offset of each; where it has values, their number, and each as a priority and a text with a NUL behind.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from kmodd.errors import KmoddError

_MAGIC = 0xB007F457
_MAJOR = 2
_PREFIX, _VALUES, _CHILDREN = 0x80000000, 0x40000000, 0x20000000
_OFFSET = 0x0FFFFFFF
_KEY_MAX = 8192
_KEYS_MAX = 64 << 20
"""Bytes. Those of a real one have a few millions; a small file could stand for gigabytes of them."""
_HEADER = struct.Struct(">III")
_NUMBER = struct.Struct(">I")


class CorruptIndex(KmoddError):
    """A `.bin` file that is not whole."""


def entries(data: bytes) -> Iterator[tuple[str, str, int]]:
    """Yield each key with a value and its priority, in the order of the keys.

    Raises:
        CorruptIndex: it is not such a file, is cut, leads in a circle, or stands for much more than it has.
    """
    try:
        magic, version, root = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise CorruptIndex("it is no index of depmod's")
        if version >> 16 != _MAJOR:
            raise CorruptIndex(f"it is of version {version >> 16}, not {_MAJOR}")
        yield from _walk(data, root)
    except (struct.error, ValueError, IndexError) as err:
        raise CorruptIndex("it is cut or damaged") from err


def _walk(data: bytes, root: int) -> Iterator[tuple[str, str, int]]:
    # The characters of keys are kept apart until their turn: a thousand children may share a long key.
    todo: list[tuple[int, bytes, bytes]] = [(root, b"", b"")]
    # Nodes that share no byte need no more than there are, and a circle needs them again and again.
    left = len(data)
    characters = 0
    while todo:
        offset, key, char = todo.pop()
        at = offset & _OFFSET
        if at == 0:
            continue
        began = at
        key += char
        if offset & _PREFIX:
            end = data.index(b"\0", at)
            key += data[at:end]
            at = end + 1
        if len(key) > _KEY_MAX:
            raise CorruptIndex(f"it has a key of more than {_KEY_MAX} bytes")
        characters += len(key)
        if characters > _KEYS_MAX:
            raise CorruptIndex(f"its keys have more than {_KEYS_MAX >> 20} MiB")
        children, at = _children(data, at) if offset & _CHILDREN else ([], at)
        left -= at - began
        if offset & _VALUES:
            text = _text(key)
            (count,) = _NUMBER.unpack_from(data, at)
            at += 4
            left -= 4
            for _ in range(count):
                (priority,) = _NUMBER.unpack_from(data, at)
                end = data.index(b"\0", at + 4)
                left -= end + 1 - at
                if left < 0:
                    break
                yield text, _text(data[at + 4 : end]), priority
                at = end + 1
        if left < 0:
            raise CorruptIndex("it leads in a circle, or twice to one place")
        todo += [(child, key, char) for child, char in reversed(children)]


def _children(data: bytes, at: int) -> tuple[list[tuple[int, bytes]], int]:
    """Return the offsets of a node's children with their characters, and where their table ends."""
    first, last = data[at], data[at + 1]
    if last < first:
        raise CorruptIndex("it is cut or damaged")
    table = struct.unpack_from(f">{last - first + 1}I", data, at + 2)
    found = [(child, bytes((number,))) for number, child in enumerate(table, first) if child & _OFFSET]
    return found, at + 2 + 4 * len(table)


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="surrogateescape")
