"""Modules' files, which may be compressed with xz, zstd or gzip, as plain images of bounded size."""

from __future__ import annotations

import errno as _errno
import io
import os
import sys

from kmodd.errors import KmoddError
from kmodd.image import whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    import zlib
    from collections.abc import Callable, Iterator
    from types import ModuleType
    from typing import Protocol

    class _Decompressor(Protocol):
        """What the decompressors of lzma and of zstd have."""

        @property
        def eof(self) -> bool: ...
        @property
        def needs_input(self) -> bool: ...
        @property
        def unused_data(self) -> bytes: ...
        def decompress(self, data: bytes, max_length: int) -> bytes: ...


LIMIT = 512 << 20
"""Bytes. The largest modules, with debugging information, have about a tenth of it."""

_MAGICS = ((b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\x1f\x8b", "gzip"))
_HEADER = 6
_MEMORY = 1 << 30
"""Bytes that xz may want for itself: `xz -9` has a dictionary of 64 MiB, the format would allow 4 GiB."""
_INPUT = 64 << 10
_OUTPUT = 1 << 20
_STREAMS = 1024
"""Streams one after the other in a file: each has a cost of its own, however short it is."""


class CannotDecompress(KmoddError):
    """A compressed file that is damaged, cut or too large, or whose format needs another package."""

    def __init__(self, message: str, errno: int = _errno.EINVAL) -> None:
        super().__init__(message)
        self.errno = errno


def compression(header: bytes) -> str | None:
    """Return the compression that a file's first 6 bytes tell: "xz", "zstd", "gzip", or None."""
    for magic, name in _MAGICS:
        if header.startswith(magic):
            return name
    return None


def decompress(data: bytes, limit: int = LIMIT) -> bytes:
    """Return what is in `data`, which may be several streams one after the other.

    No more than `limit` bytes of it are kept, beside the decompressor's own memory (`zstd`: 128 MiB, `xz`:
    1 GiB at most, where a file asks for so much) and a piece of 1 MiB.

    Raises:
        CannotDecompress: it is not compressed so, is damaged or cut, or has more than `limit` bytes in it.
    """
    kind = compression(data[:_HEADER])
    if kind is None:
        raise CannotDecompress("it is not compressed with xz, zstd or gzip")
    first = b""
    out: io.BytesIO | None = None
    for piece in _pieces(data, kind):
        if (len(first) if out is None else out.tell()) + len(piece) > limit:
            raise CannotDecompress(f"it has more than {limit} bytes in it", _errno.EFBIG)
        if out is not None:
            out.write(piece)
        elif first:
            out = io.BytesIO()  # which gives what it holds without another copy
            out.write(first)
            out.write(piece)
        else:
            first = piece  # most modules are no more than this
    return first if out is None else out.getvalue()


def _pieces(data: bytes, kind: str) -> Iterator[bytes]:
    """Yield the contents in pieces of at most 1 MiB."""
    start, errors = _starter(kind)
    view = memoryview(data)
    at = streams = 0
    while at < len(data):
        if streams and kind != "zstd" and data[at] == 0 and not data[at:].strip(b"\0"):
            return  # xz allows zeros as padding, and gzip(1) passes over them too
        streams += 1
        if streams > _STREAMS:
            raise CannotDecompress(f"it has more than {_STREAMS} {kind} streams in it")
        decompressor = start()
        while not decompressor.eof:
            chunk = b""
            if decompressor.needs_input:
                if at >= len(data):
                    raise CannotDecompress(f"its {kind} stream is cut")
                chunk = bytes(view[at : at + _INPUT])
                at += len(chunk)
            try:
                piece = decompressor.decompress(chunk, _OUTPUT)
            except errors as err:
                raise CannotDecompress(f"its {kind} stream is damaged: {err}") from err
            except MemoryError as err:
                raise CannotDecompress("there is not enough memory to decompress it", _errno.ENOMEM) from err
            if piece:
                yield piece
        at -= len(decompressor.unused_data)


def _starter(kind: str) -> tuple[Callable[[], _Decompressor], tuple[type[Exception], ...]]:
    """Return what makes a decompressor, and its errors. Imported here: most modules need none of them."""
    if kind == "xz":
        import lzma  # noqa: PLC0415

        return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _MEMORY), (lzma.LZMAError, EOFError)
    if kind == "gzip":
        import zlib  # noqa: PLC0415

        return lambda: _Gzip(zlib.decompressobj(16 + zlib.MAX_WBITS)), (zlib.error,)
    zstd = _zstd()
    return zstd.ZstdDecompressor, (zstd.ZstdError,)


def _zstd() -> ModuleType:
    """Return the zstd module: Python's own from 3.14 on, else the package of the same interface."""
    from importlib import import_module  # noqa: PLC0415

    # To look for what is not there takes longer than to decompress most modules.
    for name in ("compression.zstd", "backports.zstd")[sys.version_info < (3, 14) :]:
        try:
            return import_module(name)
        except ImportError:
            continue
    raise CannotDecompress(
        "it is compressed with zstd, which this Python cannot read: install the extra `kmodd[zstd]`",
        _errno.ENOSYS,
    )


class _Gzip:
    """zlib's decompressor with the interface of the other two."""

    __slots__ = ("_inner", "eof", "needs_input", "unused_data")

    def __init__(self, inner: zlib._Decompress) -> None:
        self._inner = inner
        self.eof = False
        self.needs_input = True
        self.unused_data = b""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        piece = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        self.eof = self._inner.eof
        self.unused_data = self._inner.unused_data
        # With a full piece zlib may hold back more, even where it has taken all of its input.
        self.needs_input = not self._inner.unconsumed_tail and len(piece) < max_length
        return piece


def read_module(path: str) -> bytes:
    """Return the plain image in a module's file.

    Raises:
        OSError: it cannot be opened or read; it is no regular file.
        CannotDecompress: it is compressed, and damaged; or it is larger than 512 MiB.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return module_in(fd, path)
    finally:
        os.close(fd)


def module_in(fd: int, path: str) -> bytes:
    """Return what `read_module` does, of a file that is open and has not been read.

    Raises:
        OSError, CannotDecompress: as `read_module`.
    """
    try:
        data = whole.contents(fd, path, LIMIT)
    except OSError as err:
        if err.errno == _errno.EFBIG:
            raise CannotDecompress(err.strerror or str(err), _errno.EFBIG) from err
        raise
    return data if compression(data[:_HEADER]) is None else decompress(data)
