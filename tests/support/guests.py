"""Calling inguest.py in a guest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kmodd.lab import Guest

Call = Callable[..., Any]

_HERE = str(Path(__file__).parents[1] / "real")


def caller(guest: Guest) -> Call:
    """Return a function that runs a function of inguest.py, or source that uses it, in the guest."""

    def call(source: str, *, timeout: float = 120, **arguments: object) -> Any:
        prefix = f"import sys\nsys.path.insert(0, {_HERE!r})\nfrom inguest import *\n"
        if source.isidentifier():
            source = f"result = {source}(**arguments)"
            return guest.python(prefix + source, timeout=timeout, arguments=arguments)
        return guest.python(prefix + source, timeout=timeout, **arguments)

    return call
