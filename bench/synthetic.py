"""Module trees that nobody has: the files of depmod's for any number of modules, as text and as `.bin`.

What a module has of each is what Debian's have on average: 7 aliases, 4 symbols, 2 modules that it needs.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

_ALIASES, _SYMBOLS, _NEEDS = 7, 4, 2
_MAGIC, _VERSION = 0xB007F457, 2 << 16 | 1
_PREFIX, _VALUES, _CHILDREN = 0x80000000, 0x40000000, 0x20000000


def write(directory: Path, count: int) -> int:
    """Write the index of a tree of so many modules; return the bytes of its text files."""
    directory.mkdir(parents=True)
    dice = random.Random(count)  # noqa: S311 - the same in each run
    names = [f"synthetic_{number:05}" for number in range(count)]
    paths = [f"kernel/drivers/group{number % 97}/{name}.ko" for number, name in enumerate(names)]
    dep = []
    for number, path in enumerate(paths):
        needs = sorted({dice.randrange(number) for _ in range(_NEEDS)}) if number else []
        dep.append((names[number], f"{path}: {' '.join(paths[each] for each in reversed(needs))}".rstrip()))
    aliases = [(_alias(dice, n), name) for name in names for n in range(_ALIASES)]
    symbols = [(f"symbol:{name}_symbol_{n}", name) for name in names for n in range(_SYMBOLS)]
    text = {
        "modules.dep": "".join(f"{line}\n" for _name, line in dep),
        "modules.alias": "".join(f"alias {pattern} {name}\n" for pattern, name in aliases),
        "modules.symbols": "".join(f"alias {symbol} {name}\n" for symbol, name in symbols),
        "modules.softdep": "",
        "modules.builtin": "",
    }
    for file, content in text.items():
        (directory / file).write_text(content)
    for file, entries in (("dep", dep), ("alias", aliases), ("symbols", symbols), ("builtin", [])):
        (directory / f"modules.{file}.bin").write_bytes(_trie(entries))
    (directory / "modules.builtin.alias.bin").write_bytes(_trie([]))
    return sum(map(len, text.values()))


def _alias(dice: random.Random, number: int) -> str:
    one, other = dice.randrange(1 << 16), dice.randrange(1 << 16)
    if number < 3:
        return f"pci:v{one:08X}d{other:08X}sv*sd*bc*sc*i*"
    if number < 5:
        return f"usb:v{one:04X}p{other:04X}d*dc*dsc*dp*ic*isc*ip*in*"
    return f"of:N*T*Cvendor{one % 499},device{other}" if number < 6 else f"platform:device{one}_{other}"


def _trie(entries: Iterable[tuple[str, str]]) -> bytes:
    """Return an index file, as kmodd.tree.binary describes it, with its nodes behind what they lead to."""
    out = bytearray(struct.pack(">III", _MAGIC, _VERSION, 0))
    numbered = sorted((key.encode(), number, value) for number, (key, value) in enumerate(entries))
    struct.pack_into(">I", out, 8, _node(out, numbered, 0) if numbered else 0)
    return bytes(out)


def _node(out: bytearray, entries: list[tuple[bytes, int, str]], depth: int) -> int:
    """Write what these entries have behind their first `depth` bytes; return its place and its kind."""
    first, last = entries[0][0], entries[-1][0]
    end = depth
    while end < min(len(first), len(last)) and first[end] == last[end]:
        end += 1
    here = [entry for entry in entries if len(entry[0]) == end]
    children = {
        char: _node(out, list(group), end + 1)
        for char, group in groupby(entries[len(here) :], key=lambda entry: entry[0][end])
    }
    place = len(out)
    if end > depth:
        out += first[depth:end] + b"\0"
        place |= _PREFIX
    if children:
        low, high = min(children), max(children)
        table = [children.get(char, 0) for char in range(low, high + 1)]
        out += struct.pack(f">BB{len(table)}I", low, high, *table)
        place |= _CHILDREN
    if here:
        out += struct.pack(">I", len(here))
        for _key, number, value in here:
            out += struct.pack(">I", number) + value.encode() + b"\0"
        place |= _VALUES
    return place
