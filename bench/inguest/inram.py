"""In a guest: what is compared is executed and read from the guest's memory, as from a disk's cache.

The guest sees the host's files through 9p, where each open(2) asks the host: that would be most of what is
measured, and more of it where more files are opened, which is modprobe.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

PLACE = Path("/run/kmodd-bench")
_STOCK = "/sbin/modprobe"


def of_the_helpers(helper: str) -> None:
    """Do so for kmodd's helper and for modprobe with all that it opens."""
    release = Path("/lib/modules", os.uname().release)
    libraries = subprocess.run(["ldd", _STOCK], check=True, capture_output=True, text=True).stdout
    files = [helper, _STOCK, "/etc/ld.so.cache", *re.findall(r"(/\S+) \(0x", libraries)]
    files += map(str, release.glob("modules.*"))
    for directory in ("/etc/modprobe.d", "/usr/lib/modprobe.d"):
        files += map(str, Path(directory).glob("*.conf"))
    copy_up(files)


def copy_up(files: Iterable[str]) -> None:
    """Have the overlay take these files into its upper layer: it does when one is opened for writing."""
    for name in files:
        path = Path(name).resolve()
        if path.exists():
            os.close(os.open(path, os.O_RDWR))


def take(program: str) -> str:
    """Copy a program into the guest's memory; return its path there."""
    PLACE.mkdir(exist_ok=True)
    return str(shutil.copy(program, str(PLACE)))


def write(path: str, text: str) -> None:
    """Write a file of the configuration, as only root can change it."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    target.chmod(0o644)
