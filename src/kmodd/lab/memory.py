"""Files without a name: nothing to remove afterwards."""

import os


def memory_file(name: str, content: bytes) -> int:
    """An inheritable descriptor of a file that exists in memory only."""
    fd = os.memfd_create(name, 0)
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    return fd


def path_of(fd: int) -> str:
    """A path under which a process that inherited `fd` opens it."""
    return f"/proc/self/fd/{fd}"
