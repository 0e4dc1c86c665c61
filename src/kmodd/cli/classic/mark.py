"""`modprobe -k`: what was inserted is marked for autoclean, where the daemon is there to do that."""

from __future__ import annotations

import contextlib

from kmodd.connection import Connection, Reply
from kmodd.errors import KmoddError

_PATIENCE = 1.0
"""Seconds: the modules are in the kernel already, and nobody is to wait for a daemon that hangs."""


def mark(modules: list[str]) -> None:
    """Tell the daemon; without one, or without the right to, nothing comes of it."""
    with contextlib.suppress(KmoddError, Reply):
        Connection(patience=_PATIENCE).call("MarkAutoclean", names=modules)
