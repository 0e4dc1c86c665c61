"""On User-mode Linux: the classic tools, by their links, do to a real kernel what kmod's do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from kmodd.lab import Guest, LabOptions

pytestmark = pytest.mark.real

OURS = "/run/tools"
KMOD = "/sbin"


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest(LabOptions(kernel="uml", timeout=180)) as booted:
        names = "modprobe insmod rmmod lsmod modinfo"
        links = f'mkdir {OURS}; for tool in {names}; do ln -s "$(command -v kmodd)" {OURS}/$tool; done'
        assert booted.run("sh", "-c", links).returncode == 0
        yield booted


def live(guest: Guest) -> set[str]:
    return {line.split()[0] for line in guest.run("cat", "/proc/modules").stdout.splitlines()}


def story(guest: Guest, tools: str, *lines: str) -> list[tuple[str, int, str, str, list[str]]]:
    """What each command line does, one after the other, from the same start, with the tools of a directory."""
    found = []
    for line in lines:
        done = guest.run("sh", "-c", f"PATH={tools}:$PATH; {line}")
        # kmod's library puts the place in its source before what it says.
        said = re.sub(r"\.\./libkmod/\S+ \w+\(\) ", "", done.stderr)
        found.append((line, done.returncode, done.stdout, said, sorted(live(guest))))
    return found


STORIES = {
    "insert and remove": (
        "modprobe -v dm_crypt",
        "modprobe dm-crypt",
        "modprobe --first-time dm_crypt",
        "rmmod dm_mod",
        "modprobe -r dm_mod",
        "modprobe -rv dm_crypt",
        "modprobe -r dm_crypt",
        "rmmod dm_crypt",
    ),
    "by alias": ("modprobe -v fs-minix", "modprobe -a fs-minix net-pf-33 nosuch", "modprobe -ra minix rxrpc"),
    "with parameters": (
        "modprobe dummy numdummies=3",
        "ls /sys/class/net",
        "rmmod dummy",
        "modprobe dummy numdummies=none",
        "modprobe dummy nonsense=1",
        "modprobe -r dummy",
    ),
    "a file alone": (
        "insmod $(modinfo -n vfat)",
        "insmod $(modinfo -n fat)",
        "insmod $(modinfo -n vfat)",
        "insmod $(modinfo -n vfat)",
        "lsmod",
        "rmmod fat",
        "rmmod vfat fat",
        "insmod /etc/passwd",
    ),
    "holders": ("modprobe vfat", "modprobe -r --remove-holders fat", "modprobe -r vfat"),
    "only shown": (
        "modprobe -D dm_crypt",
        "modprobe -n -v dm_crypt",
        "modprobe -R fs-minix",
        "modprobe nosuch",
    ),
}


@pytest.mark.parametrize("name", STORIES)
def test_the_same_as_with_kmods(guest: Guest, name: str) -> None:
    theirs = story(guest, KMOD, *STORIES[name])
    assert story(guest, OURS, *STORIES[name]) == theirs
    assert len({tuple(modules) for *_, modules in theirs}) > 1 or name == "only shown"


def test_modprobe_k_marks_what_it_inserts(guest: Guest) -> None:
    assert guest.run(f"{OURS}/modprobe", "-s", "-k", "vfat").returncode == 0
    listed = [json.loads(line) for line in guest.run("kmodd", "list", "--json").stdout.splitlines()]
    marked = {module["name"]: module["autoclean"] for module in listed}
    assert (marked["vfat"], marked["fat"]) == (True, True)
    assert not marked["overlay"]


def test_as_the_external_modprobe_of_1998(guest: Guest) -> None:
    """The daemon runs it with the arguments that it had then."""
    settings = [f"modprobe_path={OURS}/modprobe", 'modprobe_args=["-s","-k","--"]']
    assert guest.run("kmodd", "tune", *settings).returncode == 0
    result = json.loads(guest.run("kmodd", "request", "--json", "minix").stdout)
    assert (result["outcome"], result["modules"]) == ("loaded", ["minix"])
    listed = [json.loads(line) for line in guest.run("kmodd", "list", "--json").stdout.splitlines()]
    assert next(module for module in listed if module["name"] == "minix")["autoclean"]
