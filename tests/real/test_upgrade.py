"""On User-mode Linux: the running kernel's modules go away under the daemon, as in an upgrade."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kmodd.lab import Guest, LabOptions
from support.guests import Call, caller

pytestmark = pytest.mark.real

TREE = """
from inguest import _true
release = os.uname().release
tree = Path(f"/usr/lib/modules/{release}")
kept = Path("/usr/lib/modules/.kmodd", Path("/proc/sys/kernel/random/boot_id").read_text().strip(), release)
"""


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """A guest whose modules are files of its own, that can be linked, moved and removed."""
    with Guest(LabOptions(kernel="uml", timeout=180)) as booted:
        script = """
            set -e
            tree=/usr/lib/modules/$(uname -r)
            mkdir -p /run/own/kernel
            cp -r $tree/kernel/fs $tree/kernel/lib $tree/kernel/net /run/own/kernel/
            cp $tree/modules.builtin* $tree/modules.order /run/own/
            umount $tree
            cp -r /run/own/. $tree/
            depmod
        """
        done = booted.run("sh", "-c", script)
        assert done.returncode == 0, done.stderr
        yield booted


@pytest.fixture
def inside(guest: Guest) -> Call:
    call = caller(guest)

    def with_tree(source: str, **arguments: object) -> Any:
        return call(source if source.isidentifier() else TREE + source, **arguments)

    return with_tree


def test_a_tree_that_is_gone_is_told_with_its_release(guest: Guest, inside: Call) -> None:
    release = guest.run("uname", "-r").stdout.strip()
    told = inside(
        """
tree.rename("/usr/lib/modules/new")
result = [mount("vfat"), api("RequestModule", name="vfat"), api("GetStatus")["status"]["tree"]["problem"]]
Path("/usr/lib/modules/new").rename(tree)
"""
    )
    number, answer, problem = told
    assert number == 19  # ENODEV: no such filesystem type
    assert answer["error"].startswith(
        f"cannot load vfat: the modules of the running kernel {release} are not installed"
    )
    assert answer["result"]["outcome"] == "failed"
    assert problem in answer["error"]
    # It is back, and nobody has to tell the daemon.
    assert inside('result = api("RequestModule", name="vfat")["result"]["outcome"]') == "loaded"


def test_kept_modules_are_usable_after_the_upgrade(inside: Call) -> None:
    told = inside(
        """
unload(["vfat", "fat", "minix"])
tune(**{"kernel.keep_tree": True})
files = [path for path in tree.rglob("*") if path.is_file()]
until(lambda: _true(sum(path.is_file() for path in kept.rglob("*")) == len(files)))
linked = all((kept / path.relative_to(tree)).stat().st_ino == path.stat().st_ino for path in files)
tree.rename("/usr/lib/modules/9.9.9-next")
result = [linked, mount("vfat"), api("RequestModule", name="minix")["result"], "vfat" in live()]
"""
    )
    linked, number, result, live = told
    assert linked
    assert number != 19
    assert (result["outcome"], result["modules"]) == ("loaded", ["minix"])
    assert live


def test_what_was_kept_goes_with_the_setting(inside: Call) -> None:
    told = inside(
        """
unload(["minix"])
tune(**{"kernel.keep_tree": False})
until(lambda: _true(not kept.exists()))
result = api("RequestModule", name="minix")["error"]
Path("/usr/lib/modules/9.9.9-next").rename(tree)
"""
    )
    assert "are not installed" in told


def test_without_modules_dep_the_modules_say_it_themselves(inside: Call) -> None:
    told = inside(
        """
unload(["vfat", "fat"])
for path in tree.glob("modules.*"):
    path.unlink()
result = [api("RequestModule", name="vfat")["result"], mount("minix") != errno.ENODEV, api("GetStatus")["status"]["tree"]]
"""
    )
    result, by_alias, status = told
    assert (result["outcome"], result["modules"]) == ("loaded", ["fat", "vfat"])
    assert by_alias
    assert status["from"] == "modules"
    assert "has no modules.dep" in status["problem"]
