"""The modules that are never unloaded although nothing is seen to use them, each with its reason.

The list is `keep.toml` beside this file, which also says how each reason was found.
"""

from __future__ import annotations

import functools
import os
import tomllib
from dataclasses import dataclass

_FILE = os.path.join(os.path.dirname(__file__), "keep.toml")


@dataclass(frozen=True, slots=True)
class Keep:
    """Modules that are never unloaded: a glob on their names, and why, which ends `it is kept: ...`."""

    glob: str
    reason: str


@functools.cache
def shipped() -> tuple[Keep, ...]:
    """Return those that ship with kmodd, as they are in the file; it is read when it is first asked for.

    Raises:
        OSError: it is not there, which is a broken installation.
    """
    with open(_FILE, "rb") as file:
        entries = tomllib.load(file)["keep"]
    return tuple(Keep(glob, entry["reason"]) for entry in entries for glob in entry["globs"])
