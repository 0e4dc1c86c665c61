"""In a guest: the time of single requests, with one of the variants."""

from __future__ import annotations

from bench.inguest import control
from bench.inguest.asking import mounts, requests


def once(variant: str, names: dict[str, list[str]], warm_up: int, by: str = "module") -> dict[str, list[int]]:
    """Switch to a variant and ask for names; return the nanoseconds for each, without the first ones.

    `by`: the `module` that asks for names as they are, or `mount`, which asks for fs-NAME.
    """
    ask = mounts if by == "mount" else requests
    control.use(variant)
    ask([f"kmodd-warm-up-{n}" for n in range(warm_up)])
    control.settle()
    return {case: ask(asked) for case, asked in names.items()}
