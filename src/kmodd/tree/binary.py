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
_HEADER = struct.Struct(">III")
_NUMBER = struct.Struct(">I")


class CorruptIndex(KmoddError):
    """A `.bin` file that is not whole."""


def entries(data: bytes) -> Iterator[tuple[str, str, int]]:
    """Yield each key with a value and its priority, in the order of the keys.

    Raises:
        CorruptIndex: it is not such a file, is cut, or leads in a circle.
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
    todo: list[tuple[int, bytes]] = [(root, b"")]
    nodes = 0
    while todo:
        offset, key = todo.pop()
        nodes += 1
        at = offset & _OFFSET
        if nodes > len(data) or len(key) > _KEY_MAX:
            raise CorruptIndex("it leads in a circle")
        if at == 0:
            continue
        if offset & _PREFIX:
            end = data.index(b"\0", at)
            key += data[at:end]
            at = end + 1
        children: list[tuple[int, bytes]] = []
        if offset & _CHILDREN:
            first, last = data[at], data[at + 1]
            at += 2
            if last < first:
                raise CorruptIndex("it is cut or damaged")
            for number, child in enumerate(struct.unpack_from(f">{last - first + 1}I", data, at), first):
                if child & _OFFSET:
                    children.append((child, key + bytes((number,))))
            at += 4 * (last - first + 1)
        if offset & _VALUES:
            (count,) = _NUMBER.unpack_from(data, at)
            at += 4
            for _ in range(count):
                (priority,) = _NUMBER.unpack_from(data, at)
                end = data.index(b"\0", at + 4)
                yield _text(key), _text(data[at + 4 : end]), priority
                at = end + 1
        todo += reversed(children)


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="surrogateescape")
