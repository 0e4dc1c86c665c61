"""A tree without modules.dep: what depmod(8) would have written, read from the modules themselves.

Each module names what it depends on directly, its aliases and its soft dependencies in its .modinfo; the
rest follows. It takes seconds for thousands of modules, and no symbols are known.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from kmodd.errors import KmoddError
from kmodd.image import compressed, elf, whole
from kmodd.tree.glob import BadBrackets, normalise

_ENDINGS = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")
_PROBLEMS_MAX = 20
_NEEDS_MAX = 5_000_000
"""Dependencies that are looked at for all modules together; four thousand real ones take some 30,000."""
_ORDER_MAX = 16 << 20
"""Bytes of modules.order."""


@dataclass(slots=True)
class Scanned:
    """What was found.

    `modules`: for each name a line as in modules.dep. `aliases`: patterns, normalised, with their module,
    in ascending priority. `softdeps`: lines as in modules.softdep.
    """

    modules: dict[str, str] = field(default_factory=dict)
    aliases: list[tuple[str, str]] = field(default_factory=list)
    softdeps: str = ""
    problems: list[str] = field(default_factory=list)


def scan(directory: str) -> Scanned:
    """Read every module below a directory; what cannot be read is left out and told."""
    found = Scanned()
    paths: dict[str, str] = {}
    direct: dict[str, tuple[str, ...]] = {}
    softdeps: list[str] = []
    unreadable = 0
    for path in _ordered(directory, sorted(_files(directory))):
        name = os.path.basename(path).partition(".")[0].replace("-", "_")
        if name in paths:
            continue  # the first one counts, as `updates` before `kernel` does for depmod
        try:
            entries = elf.modinfo(compressed.read_module(f"{directory}/{path}"))
        except (OSError, KmoddError) as err:
            unreadable += 1
            if unreadable <= _PROBLEMS_MAX:
                why = err.strerror if isinstance(err, OSError) else err
                found.problems.append(f"{directory}/{path} is left out: {why}")
            continue
        paths[name] = path
        direct[name] = ()
        for key, value in entries:
            if key == "depends":
                direct[name] = tuple(item.replace("-", "_") for item in value.split(",") if item)
            elif key == "alias" and " " not in value:
                with contextlib.suppress(BadBrackets):
                    found.aliases.append((normalise(value), name))
            elif key in {"softdep", "weakdep"}:
                softdeps.append(f"{key} {name} {value}\n")
    found.softdeps = "".join(softdeps)
    if unreadable > _PROBLEMS_MAX:
        found.problems.append(f"{directory}: {unreadable} modules in all cannot be read")
    left = _NEEDS_MAX
    for name, path in paths.items():
        order, steps = _closure(name, direct, left)
        left -= steps
        if left < 0:
            found.problems.append(
                f"{directory}: its modules need more than {_NEEDS_MAX} others; some are left out"
            )
            break
        closure = [paths[item] for item in order if item in paths]
        found.modules[name] = f"{path}: {' '.join(reversed(closure))}"
    return found


def _files(directory: str) -> Iterator[str]:
    """Yield the modules' files, relative to the directory; links to directories are not followed."""
    todo = [""]
    while todo:
        folder = todo.pop()
        try:
            names = os.listdir(f"{directory}/{folder}")
        except OSError:
            continue
        for name in names:
            path = f"{folder}{name}"
            full = f"{directory}/{path}"
            if name.endswith(_ENDINGS):
                yield path
            elif name not in {"build", "source"} and os.path.isdir(full) and not os.path.islink(full):
                todo.append(f"{path}/")


def _ordered(directory: str, paths: list[str]) -> list[str]:
    """Return the files in the order of modules.order, `updates` first and what it does not name last."""
    try:
        text = whole.read(f"{directory}/modules.order", _ORDER_MAX).decode("utf-8", errors="surrogateescape")
        order = {line: number for number, line in enumerate(text.split("\n"))}
    except OSError:
        order = {}

    def key(path: str) -> tuple[int, int, str]:
        plain = path.partition(".ko")[0] + ".ko"
        return (0 if path.startswith("updates/") else 1, order.get(plain, len(order)), path)

    return sorted(paths, key=key)


def _closure(name: str, direct: dict[str, tuple[str, ...]], most: int) -> tuple[list[str], int]:
    """Return what a module needs, directly or not, in an order in which it can be loaded; and the work.

    That is the number of dependencies looked at, of which there are no more than `most` and one.
    """
    steps = 0
    order: dict[str, None] = {}
    seen = {name}
    todo = [(name, iter(direct.get(name, ())))]
    while todo and steps <= most:
        module, needs = todo[-1]
        needed = next(needs, None)
        steps += 1
        if needed is None:
            order[module] = None
            todo.pop()
        elif needed not in seen:  # one in a circle is seen: no order is right for it
            seen.add(needed)
            todo.append((needed, iter(direct.get(needed, ()))))
    order.pop(name, None)
    return list(order), steps
