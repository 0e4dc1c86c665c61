"""In a guest: the time of single requests, with one of the variants."""

from __future__ import annotations

from bench.inguest import control
from bench.inguest.asking import mounts, requests

_WARM_UP = 24
"""Requests that pay for the switch to a variant: the kernel has patched its code, QEMU translates it anew.

Of those behind a switch the first 8 took 1.4 times as long with all on as with all off, the second 1.3 times,
and all further ones 1.2 to 1.25 times.
"""


def once(variant: str, names: dict[str, list[str]], by: str = "module") -> dict[str, list[int]]:
    """Switch to a variant and ask for names; return the nanoseconds for each, without the first ones.

    `by`: the `module` that asks for names as they are, or `mount`, which asks for fs-NAME.
    """
    ask = mounts if by == "mount" else requests
    control.use(variant)
    ask([f"kmodd-warm-up-{n}" for n in range(_WARM_UP)])
    control.settle()
    return {case: ask(asked) for case, asked in names.items()}
