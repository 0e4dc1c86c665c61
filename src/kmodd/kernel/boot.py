"""Which boot of the machine this is (random(4))."""

from __future__ import annotations

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def boot_id(path: str = _BOOT_ID) -> str:
    """Return the id of this boot, a UUID.

    Raises:
        OSError: /proc is not mounted.
    """
    with open(path, encoding="ascii") as file:
        return file.read(64).strip()
