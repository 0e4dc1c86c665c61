"""A module's file handed to the kernel, by whichever of its two system calls will do."""

from __future__ import annotations

import errno
import os

from kmodd.image import compressed, elf
from kmodd.kernel import libc

IGNORE_MODVERSIONS = 1
IGNORE_VERMAGIC = 2
"""Flags of finit_module(2): load a module that was built for another kernel."""
_COMPRESSED_FILE = 4  # Linux 5.17: the kernel decompresses
_KERNEL_COMPRESSION = "/sys/module/compression"
_HEADER = 8
_KERNEL_CHECKS = frozenset({0, 1})
"""Of the checks that an xz file names in its header those that the kernel knows: none, and CRC32.

lib/xz, Linux 6.12. The program xz takes CRC64 where it is not told another, and the kernel refuses that with
EINVAL, which could be the module's own: so it is not tried (dkms issue 386 and many more).
"""


def load_image(path: str, parameters: bytes, *, force_flags: int = 0) -> None:
    """Insert the module in a file, as kmod does.

    By finit_module(2) where the file is plain, or the kernel decompresses what it is compressed with; else,
    and where there is no such call, by init_module(2) with the plain image.

    `force_flags`: IGNORE_MODVERSIONS, IGNORE_VERMAGIC or both; where init_module(2) has to be taken, what
    they ignore is taken out of the image.

    Raises:
        OSError: the file cannot be read, or the kernel refuses the module.
        KmoddError: the file cannot be decompressed, or forced, because it is damaged.
    """
    # Not to wait for who writes to a FIFO: the kernel takes regular files alone.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        header = os.pread(fd, _HEADER, 0)
        kind = compressed.compression(header)
        if kind is None or (kind == _kernel_compression() and _kernel_knows(kind, header)):
            try:
                libc.finit_module(fd, parameters, force_flags | (_COMPRESSED_FILE if kind else 0))
            except OSError as err:
                if err.errno != errno.ENOSYS:
                    raise
            else:
                return
        image = compressed.module_in(fd, path)
    finally:
        os.close(fd)
    if force_flags:
        image = elf.without_checks(
            image,
            vermagic=bool(force_flags & IGNORE_VERMAGIC),
            versions=bool(force_flags & IGNORE_MODVERSIONS),
        )
    libc.init_module(image, parameters)


def _kernel_knows(kind: str, header: bytes) -> bool:
    """Return whether the kernel can read a file of the compression that it has, by the file's header.

    The second byte behind the magic number of xz is the kind of its checks (the .xz file format, 2.1.1.2).
    """
    return kind != "xz" or (len(header) == _HEADER and header[7] & 0x0F in _KERNEL_CHECKS)


def _kernel_compression() -> str | None:
    """Return what the kernel decompresses, as the names of `compression()`; None where nothing."""
    try:
        fd = os.open(_KERNEL_COMPRESSION, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, 16).decode("ascii", "replace").strip()
    except OSError:
        return None
    finally:
        os.close(fd)
