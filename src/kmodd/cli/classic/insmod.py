"""`insmod`: put the module in a file into the kernel, without what it depends on."""

from __future__ import annotations

import errno
import os

from kmodd.cli.classic import getopt, say
from kmodd.errors import KmoddError
from kmodd.kernel import modulecalls

_USAGE = """\
Usage:
\t{prog} [options] filename [args]
Options:
\t-V, --version     show version
\t-h, --help        show this help
"""
_SHORT = "psfVh"
_LONG = {"version": "V", "help": "h"}
_MEANINGS = {
    errno.ENOEXEC: "Invalid module format",
    errno.ENOENT: "Unknown symbol in module",
    errno.ESRCH: "Module has wrong symbol version",
    errno.EINVAL: "Invalid parameters",
}


def main(argv: list[str], prog: str) -> int:
    """Run `insmod ARGV`; return 0, or 1 where the module could not be inserted."""
    messages = say.Messages(prog)
    force_flags = 0
    words: list[str] = []
    for letter, _ in getopt.options(argv, _SHORT, _LONG, prog, words):
        match letter:
            case "f":
                force_flags = modulecalls.IGNORE_MODVERSIONS | modulecalls.IGNORE_VERMAGIC
            case "p" | "s":
                pass  # the module-init-tools had them: nothing comes of them, as in kmod
            case "h":
                say.write(_USAGE.format(prog=prog).encode())
                return 0
            case "V":
                say.print_version()
                return 0
            case _:
                return 1
    problem = _insert(words, force_flags)
    if problem:
        messages.error(problem)
        return 1
    return 0


def _insert(words: list[str], force_flags: int) -> str | None:
    """Insert the module in the file that the first word names; return why it could not be done."""
    if not words:
        return "missing filename."
    path, *parameters = words
    if path == "-":
        return "this tool does not support loading from stdin!"
    try:
        os.stat(path)
    except OSError as err:
        return f"could not load module {path}: {err.strerror}"
    if not os.path.basename(path):
        return f"could not load module {path}: {os.strerror(errno.ENOENT)}"
    try:
        modulecalls.load_image(path, os.fsencode(" ".join(parameters)), force_flags=force_flags)
    except (OSError, KmoddError) as err:
        return f"could not insert module {path}: {meaning(err)}"
    return None


def meaning(err: OSError | KmoddError) -> str:
    """Return what an error means where a module is inserted, in kmod's words where it has some."""
    words = _MEANINGS.get(getattr(err, "errno", None) or 0)
    return words or (err.strerror if isinstance(err, OSError) else None) or str(err)
