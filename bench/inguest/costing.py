"""In a guest: the time of single requests, with one of the variants."""

from __future__ import annotations

from bench.inguest import control
from bench.inguest.asking import requests


def once(variant: str, names: dict[str, list[str]], warm_up: int) -> dict[str, list[int]]:
    """Switch to a variant and ask for names; return the nanoseconds for each, without the first ones."""
    control.use(variant)
    requests([f"kmodd-warm-up-{n}" for n in range(warm_up)])
    control.settle()
    return {case: requests(asked) for case, asked in names.items()}
