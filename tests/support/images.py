"""Module images: small ones made byte by byte, real ones of the kernel trees that are there."""

from __future__ import annotations

import functools
import struct
from pathlib import Path

import pytest

from support.trees import CLOUD, DEBIAN, UML

TREES = (DEBIAN, UML, CLOUD)
MARK = b"~Module signature appended~\n"


def image(sections: list[tuple[str, bytes]], *, bits: int = 64, little: bool = True, flags: int = 2) -> bytes:
    """Return an ELF file with these sections, and behind them the table of their names."""
    order = "<" if little else ">"
    wide = bits == 64
    names = b"\0"
    places = []
    for name, _ in [*sections, (".shstrtab", b"")]:
        places.append(len(names))
        names += name.encode() + b"\0"
    size, line = (64, 64) if wide else (52, 40)
    body, table = b"", [bytes(line)]
    for place, data in zip(places, [*(data for _, data in sections), names], strict=True):
        layout = "IIQQQQIIQQ" if wide else "10I"
        table.append(struct.pack(order + layout, place, 1, flags, 0, size + len(body), len(data), 0, 0, 1, 0))
        body += data
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if little else 2, 1]) + bytes(9)
    layout = "HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"
    last = len(table)
    head = struct.pack(order + layout, 1, 62, 1, 0, 0, size + len(body), 0, size, 0, 0, line, last, last - 1)
    return ident + head + body + b"".join(table)


def signed(
    plain: bytes, blob: bytes, *, kind: int = 2, hash_number: int = 0, signer: int = 0, key: int = 0,
    size: int | None = None, algorithm: int = 0,
) -> bytes:  # fmt: skip
    """Return an image with a signature behind it, as the kernel's sign-file appends one."""
    size = len(blob) if size is None else size
    return plain + blob + struct.pack(">5B3xI", algorithm, hash_number, kind, signer, key, size) + MARK


@functools.cache
def trees() -> list[Path]:
    """Return the directories of kernel releases with modules."""
    return [release for tree in TREES if tree.is_dir() for release in sorted(tree.iterdir())]


@functools.cache
def real_modules() -> list[str]:
    """Return the paths of all real modules that are not compressed; skips the test where there are none."""
    return _modules(".ko")


@functools.cache
def compressed_modules() -> list[str]:
    """Return the paths of all real modules that are compressed by xz; skips the test where there are none."""
    return _modules(".ko.xz")


def _modules(suffix: str) -> list[str]:
    found = sorted(str(path) for tree in trees() for path in tree.rglob(f"*{suffix}"))
    if not found:
        pytest.skip(f"no modules *{suffix} in {' or '.join(map(str, TREES))}: tools/setup test installs them")
    return found


@functools.cache
def small_modules(count: int) -> list[str]:
    """Return the smallest real modules."""
    return sorted(real_modules(), key=lambda path: (Path(path).stat().st_size, path))[:count]
