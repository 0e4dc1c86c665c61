"""`lsmod`: what is in the kernel, how large it is, and who uses it."""

from __future__ import annotations

import os

from kmodd.cli.classic import say

_MODULES = "/proc/modules"
_SYSFS = "/sys/module"
_UNKNOWN = "-2"
"""What kmod prints as the use count of a module that has none: a kernel that cannot unload, -ENOENT."""


def main(argv: list[str], prog: str) -> int:
    """Run `lsmod ARGV`; return 0, or 1 where the kernel does not tell."""
    if argv:
        say.write_error(f"Usage: {prog}")
        return 1
    try:
        text = _read(_MODULES)
    except OSError as err:
        say.write_error(f"Error: could not get list of modules: {err.strerror}")
        return 1
    say.write(os.fsencode(table(text, _SYSFS)))
    return 0


def table(modules: str, sysfs: str) -> str:
    """Return the table of the modules that the text of /proc/modules names.

    Sizes, use counts and holders are those of `sysfs` (/sys/module), as in kmod; where it has no such
    module, one that has just gone, they are those of the text.
    """
    lines = ["Module                  Size  Used by"]
    for line in modules.splitlines():
        name, size, count, users, *_ = (*line.split(), "", "", "", "")
        if not name:
            continue
        directory = f"{sysfs}/{name}"
        size = _number(f"{directory}/coresize", size)
        count = _number(f"{directory}/refcnt", count)
        try:
            holders = ",".join(os.listdir(f"{directory}/holders"))
        except OSError:
            holders = users.replace("[permanent],", "").strip(",-")
        lines.append(f"{name:<19} {size:>8}  {count}{' ' if holders else ''}{holders}")
    return "\n".join(lines) + "\n"


def _number(path: str, otherwise: str) -> str:
    try:
        text = _read(path).strip()
    except OSError:
        text = otherwise
    return text if text.isdecimal() else _UNKNOWN


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()
