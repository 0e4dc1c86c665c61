"""A disposable real kernel with kmodd in charge of its modules.

The names below are imported when they are asked for: the agent in the guest is part of this package
too, and starts several times faster when nothing else comes with it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kmodd.lab.errors import GuestDied, LabError, LabTimeout
    from kmodd.lab.guest import Guest
    from kmodd.lab.options import LabOptions
    from kmodd.lab.session import run

__all__ = ["Guest", "GuestDied", "LabError", "LabOptions", "LabTimeout", "run"]

_HOMES = {
    "Guest": "guest",
    "GuestDied": "errors",
    "LabError": "errors",
    "LabOptions": "options",
    "LabTimeout": "errors",
    "run": "session",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(name)
    value: object = getattr(import_module(f"kmodd.lab.{_HOMES[name]}"), name)
    return value
