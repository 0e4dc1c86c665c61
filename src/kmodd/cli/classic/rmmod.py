"""`rmmod`: take modules out of the kernel, one by one and without what they depend on."""

from __future__ import annotations

import errno
import os

from kmodd.cli.classic import getopt, say
from kmodd.errors import KmoddError
from kmodd.kernel import libc

_USAGE = """\
Usage:
\t{prog} [options] modulename ...
Options:
\t-f, --force       forces a module unload and may crash your
\t                  machine. This requires Forced Module Removal
\t                  option in your kernel. DANGEROUS
\t-s, --syslog      print to syslog, not stderr
\t-v, --verbose     enables more messages
\t-V, --version     show version
\t-h, --help        show this help
"""
_SHORT = "fsvVh"
_LONG = {"force": "f", "syslog": "s", "verbose": "v", "version": "V", "help": "h"}


def main(argv: list[str], prog: str) -> int:
    """Run `rmmod ARGV`; return 0, or 1 where a module could not be removed."""
    messages = say.Messages(prog)
    flags = os.O_NONBLOCK
    syslog = False
    names: list[str] = []
    for letter, _ in getopt.options(argv, _SHORT, _LONG, prog, names):
        match letter:
            case "f":
                flags |= os.O_TRUNC
            case "s":
                syslog = True
            case "v":
                pass  # kmod's messages of its library's insides; there are none here
            case "h":
                say.write(_USAGE.format(prog=prog).encode())
                return 0
            case "V":
                say.print_version()
                return 0
            case _:
                return 1
    if syslog:
        messages.use_syslog()
    if not names:
        messages.error("missing module name.")
        return 1
    failed = False
    for name in names:
        problem = _remove(name, flags)
        if problem:
            messages.error(problem)
            failed = True
    return 1 if failed else 0


def _remove(argument: str, flags: int) -> str | None:
    """Remove the module of a name or of a file; return why it could not be done."""
    name = _module_name(argument)
    if name is None:
        return f"could not use module {argument}: {os.strerror(errno.ENOENT)}"
    if not flags & os.O_TRUNC:
        problem = _in_use(name)
        if problem:
            return problem
    try:
        libc.delete_module(name, flags)
    except OSError as err:
        return f"could not remove module {argument}: {err.strerror}"
    return None


def _module_name(argument: str) -> str | None:
    """Return the module that is meant: that of a file which exists, else the name up to its first dot.

    None: a directory, written with a slash behind.
    """
    try:
        os.stat(argument)
    except (OSError, ValueError):
        name = argument
    else:
        name = os.path.basename(argument)
        if not name:
            return None
    return name.partition(".")[0].replace("-", "_")


def _in_use(name: str) -> str | None:
    """Return why the kernel would refuse, in words that say more than its error number."""
    directory = f"/sys/module/{name}"
    # What is in the kernel image has no state, and perhaps not even a directory.
    if not os.path.exists(f"{directory}/initstate") and _is_builtin(name):
        return f"Module {name} is builtin."
    if not os.path.isdir(directory):
        return f"Module {name} is not currently loaded"
    try:
        holders = os.listdir(f"{directory}/holders")
    except OSError:
        holders = []
    if holders:
        return f"Module {name} is in use by: {' '.join(holders)}"
    try:
        with open(f"{directory}/refcnt", encoding="ascii") as file:
            count = int(file.read())
    except (OSError, ValueError):
        return "Module unloading is not supported"
    return f"Module {name} is in use" if count > 0 else None


def _is_builtin(name: str) -> bool:
    from kmodd.tree.index import Index  # noqa: PLC0415 - a loaded module needs none of it

    try:
        return Index(f"/lib/modules/{os.uname().release}").is_builtin(name)
    except KmoddError:
        return False
