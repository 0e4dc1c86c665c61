"""A writer for the "newc" cpio format, the kernel's for an initramfs.

Format: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import stat

_TRAILER = "TRAILER!!!"


class CpioWriter:
    """Collects files into an archive; parents have to be added before what is in them."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory."""
        self._entry(path, stat.S_IFDIR | mode)

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._entry(path, stat.S_IFREG | mode, content)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device."""
        self._entry(path, stat.S_IFCHR | mode, device=(major, minor))

    def finish(self) -> bytes:
        """The whole archive."""
        self._inode = -1
        self._entry(_TRAILER, 0)
        return bytes(self._data)

    def _entry(self, path: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        name = path.strip("/").encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device of the file, device that it is,
        # length of the name, checksum
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name), 0)
        self._data += b"070701" + b"".join(b"%08X" % value for value in fields)
        self._data += name
        self._pad()
        self._data += content
        self._pad()

    def _pad(self) -> None:
        self._data += bytes(-len(self._data) % 4)
