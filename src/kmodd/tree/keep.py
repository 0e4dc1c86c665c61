"""The running kernel's modules kept across an upgrade: hard links beside the tree, until the next boot.

`/lib/modules/.kmodd/BOOT/RELEASE`, where BOOT is the id of this boot (random(4)). Packages replace files by
renaming, so a link goes on naming the old one.
"""

from __future__ import annotations

import contextlib
import os
import shutil

from kmodd.errors import KmoddError
from kmodd.kernel.boot import boot_id
from kmodd.tree.snapshot import ROOT

_PLACE = ".kmodd"


def usable(release: str, root: str = ROOT) -> str:
    """Return the directory of a release's modules: the kept one where the tree itself is gone."""
    tree = f"{root}/{release}"
    if os.path.isdir(f"{tree}/kernel"):
        return tree
    with contextlib.suppress(OSError):
        kept = f"{root}/{_PLACE}/{boot_id()}/{release}"
        # A package that is removed may leave what others have put there, `updates` for instance.
        if os.path.isdir(f"{kept}/kernel") or (_has_modules(kept) and not _has_modules(tree)):
            return kept
    return tree


def _has_modules(tree: str) -> bool:
    """Whether a tree has modules: packages may leave an empty directory, or one with depmod's files alone."""
    return any(os.path.isdir(f"{tree}/{name}") for name in ("kernel", "updates", "extra", "misc"))


def keep(release: str, root: str = ROOT, boot: str | None = None) -> int:
    """Link what is in the tree of a release, and was not linked before; return how many files that are.

    What is kept already is never replaced: it is what the running kernel was installed with.

    Raises:
        KmoddError: there is nothing to keep, or it cannot be linked.
    """
    tree = f"{root}/{release}"
    if not _has_modules(tree):
        raise KmoddError(f"cannot keep {tree}: there are no modules")
    target = f"{root}/{_PLACE}/{boot or boot_id()}/{release}"
    linked = 0
    try:
        for folder, directories, files in os.walk(tree):
            directories[:] = [
                name
                for name in directories
                if name not in {"build", "source"} and not os.path.islink(f"{folder}/{name}")
            ]
            place = target + folder[len(tree) :]
            os.makedirs(place, mode=0o755, exist_ok=True)
            for name in files:
                with contextlib.suppress(FileExistsError):
                    os.link(f"{folder}/{name}", f"{place}/{name}", follow_symlinks=False)
                    linked += 1
    except OSError as err:
        raise KmoddError(f"cannot keep {tree} in {target}: {err.strerror}") from err
    return linked


def drop(root: str = ROOT, *, but: str | None = None) -> None:
    """Remove what was kept, except of the boot `but`; nothing of it is anybody's but ours."""
    place = f"{root}/{_PLACE}"
    with contextlib.suppress(OSError):
        for name in os.listdir(place):
            if name != but:
                shutil.rmtree(f"{place}/{name}", ignore_errors=True)
        os.rmdir(place)
