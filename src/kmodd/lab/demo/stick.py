"""A memory stick without hardware: a tiny FAT image in memory, on a loop device."""

import ctypes
import fcntl
import os
import struct

FILE = "HELLO.TXT"
_SECTOR = 512
_SECTORS = 128
_LOOP_CONTROL = "/dev/loop-control"
_LOOP_CONTROL_NUMBER = (10, 237)
_LOOP_SET_FD = 0x4C00  # include/uapi/linux/loop.h
_LOOP_CTL_GET_FREE = 0x4C82
_MS_RDONLY = 1


def image(content: bytes) -> bytes:
    """A FAT12 file system with one file of at most 512 bytes: boot sector, FAT, root directory, data."""
    boot = struct.pack(
        "<3s8sHBHBHHBHHHII",
        *(b"\xeb\x3c\x90", b"kmodd"),
        *(_SECTOR, 1, 1, 1, 16, _SECTORS, 0xF8, 1, 1, 1, 0, 0),
    )
    boot += struct.pack("<BBBI11s8s", 0x80, 0, 0x29, 0, b"KMODD DEMO ", b"FAT12   ")
    boot = boot.ljust(_SECTOR - 2, b"\0") + b"\x55\xaa"
    fat = b"\xf8\xff\xff\xff\x0f"
    entry = struct.pack("<11sB14xHI", b"HELLO   TXT", 0x20, 2, len(content))
    sectors = (boot, fat, entry, content)
    return b"".join(sector.ljust(_SECTOR, b"\0") for sector in sectors).ljust(_SECTORS * _SECTOR, b"\0")


def plug_in(content: bytes) -> str:
    """Put an image on a free loop device: its path.

    Opening a device node whose driver is not there is what asks for `char-major-10-237`.

    :raises OSError: there is no loop device to be had
    """
    if not os.path.exists(_LOOP_CONTROL):
        # udev would have made it at boot, from modules.devname; there is none in the lab.
        os.mknod(_LOOP_CONTROL, 0o20600, os.makedev(*_LOOP_CONTROL_NUMBER))
    control = os.open(_LOOP_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    path = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
    os.close(control)
    device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    memory = os.memfd_create("stick")
    os.write(memory, image(content))
    fcntl.ioctl(device, _LOOP_SET_FD, memory)
    os.close(memory)
    os.close(device)
    return path


def mount(source: str, target: str, kind: str) -> None:
    """mount(2), read-only.

    :raises OSError: as the kernel says
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(_MS_RDONLY), None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)
