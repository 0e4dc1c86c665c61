"""A file read whole: a regular one, and no larger than it may be.

A FIFO or a device in its place would make the reader wait, or read without an end.
"""

from __future__ import annotations

import errno as _errno
import os
import stat

_PIECE = 1 << 20
_NULL = os.makedev(1, 3)
"""/dev/null: a link to it in modprobe.d masks a file."""


def read(path: str, limit: int, *, pipe: bool = False) -> bytes:
    """Return what is in a file, if that is no more than `limit` bytes.

    `pipe`: a FIFO is read too, and waited for.

    Raises:
        OSError: it cannot be opened or read. EISDIR: it is a directory. EINVAL: it is neither a regular file
            nor /dev/null. EFBIG: it is larger than that.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if pipe else os.O_NONBLOCK))
    try:
        return contents(fd, path, limit, pipe=pipe)
    finally:
        os.close(fd)


def contents(fd: int, path: str, limit: int, *, pipe: bool = False) -> bytes:
    """Return what `read` does, of a file that is open; `path` is for what is said of it.

    Raises:
        OSError: as `read`.
    """
    info = os.fstat(fd)
    if stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(_errno.EISDIR, os.strerror(_errno.EISDIR), path)
    null = stat.S_ISCHR(info.st_mode) and info.st_rdev == _NULL
    if not (stat.S_ISREG(info.st_mode) or null or (pipe and stat.S_ISFIFO(info.st_mode))):
        raise OSError(_errno.EINVAL, "it is not a regular file", path)
    pieces: list[bytes] = []
    total = 0
    while max(total, info.st_size) <= limit:
        # As much as it says it has, and one byte to see that this is all: memory that is not used costs, too.
        left = info.st_size - total
        piece = os.read(fd, left + 1 if left >= 0 and info.st_size else _PIECE)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        total += len(piece)
    raise OSError(_errno.EFBIG, f"it is larger than {limit >> 20} MiB", path)
