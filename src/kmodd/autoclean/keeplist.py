"""The modules that are known to misbehave when they are unloaded, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keep:
    """Modules that are never unloaded: a glob on their names, and why, in a sentence."""

    glob: str
    reason: str


def shipped() -> tuple[Keep, ...]:
    """Return those that are known."""
    return ()
