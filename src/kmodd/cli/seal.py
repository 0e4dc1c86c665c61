"""`kmodd seal` and `kmodd unseal`."""

from __future__ import annotations

import os
import sys
from argparse import Namespace

from kmodd.connection import Connection, Reply
from kmodd.errors import KmoddError, NotPermitted

DISABLED = "/proc/sys/kernel/modules_disabled"
_PATIENCE = 5.0
"""Seconds that the daemon may take to write down what is done already."""


def seal(arguments: Namespace) -> int:
    """Seal by the daemon; with --hard by the kernel, for good."""
    if arguments.hard:
        return _hard(confirmed=arguments.yes)
    _tell_daemon(Connection(), sealed=True)
    print("sealed: nothing new comes in but what the policy lists; kmodd unseal ends it, and so does a boot")
    return 0


def unseal(_arguments: Namespace) -> int:
    """Open the daemon's seal."""
    _tell_daemon(Connection(), sealed=False)
    print("unsealed")
    return 0


def _tell_daemon(connection: Connection, **what: bool) -> None:
    try:
        connection.call("Seal", **what)
    except Reply as reply:
        raise reply.as_error() from None


def _hard(*, confirmed: bool) -> int:
    """Set kernel.modules_disabled, which cannot be taken back (proc_sys_kernel(5))."""
    if os.geteuid() != 0:
        raise NotPermitted("may not set kernel.modules_disabled: be root")
    if not confirmed:
        print(
            "No module can be loaded or unloaded any more, by nobody, until this machine is booted again.\n"
            "Type yes to do that: ",
            end="",
            flush=True,
        )
        if sys.stdin is None or sys.stdin.readline().strip() != "yes":
            raise KmoddError("not sealed: nothing but yes does it")
    try:
        with open(DISABLED, "w", encoding="ascii") as file:
            file.write("1\n")
    except OSError as err:
        raise KmoddError(f"cannot set kernel.modules_disabled: {err.strerror}") from err
    print("sealed by the kernel: no module is loaded or unloaded until the next boot")
    try:
        _tell_daemon(Connection(patience=_PATIENCE), sealed=True, hard=True)
    except (KmoddError, OSError) as err:
        print(f"kmodd: that is not in the journal: {err}", file=sys.stderr)
    return 0
