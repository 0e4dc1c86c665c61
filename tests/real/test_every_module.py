"""Every module of the User-mode Linux tree, by kmodd and, in another boot, by the real modprobe."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kmodd.lab import Guest, LabOptions
from support.guests import caller

pytestmark = pytest.mark.real

RIVALS = {
    "mtdblock_ro": "mtdblock",
    "nhc_ghc_ext_dest": "nhc_dest",
    "nhc_ghc_ext_frag": "nhc_fragment",
    "nhc_ghc_ext_hop": "nhc_hop",
    "nhc_ghc_ext_route": "nhc_routing",
    "nhc_ghc_udp": "nhc_udp",
}
"""Modules of which the second keeps out the first that comes later, and the other way round."""

BY_KMODD = """
names = every_module()
before = set(live())
results = [api("RequestModule", name=name) for name in names]
failed = sorted(name for name, answer in zip(names, results) if "error" in answer)
result = {"names": names, "failed": failed, "live": sorted(live()), "parameters": parameters()}
"""
AT_ONCE = """
names = every_module()
left = unload_all()
answers = api_at_once(names)
failed = sorted(name for name, answer in answers.items() if "error" in answer)
result = {"left": left, "failed": failed, "live": sorted(live()), "parameters": parameters()}
"""
BY_MODPROBE = """
names = every_module()
failed = sorted(
    name for name in names if subprocess.run(["/sbin/modprobe", "-q", "--", name], capture_output=True).returncode
)
result = {"names": names, "failed": failed, "live": sorted(live()), "parameters": parameters()}
"""


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest(LabOptions(kernel="uml", memory=2048, timeout=300)) as guest:
        yield guest


@pytest.fixture(scope="module")
def stock() -> Iterator[Guest]:
    with Guest(LabOptions(kernel="uml", serve=False, memory=2048, timeout=300)) as guest:
        yield guest


@pytest.fixture(scope="module")
def both(guest: Guest, stock: Guest) -> tuple[dict[str, Any], dict[str, Any]]:
    """By kmodd and by modprobe, at the same time: each guest has one processor."""
    with ThreadPoolExecutor() as threads:
        ours = threads.submit(caller(guest), BY_KMODD, timeout=280)
        theirs = threads.submit(caller(stock), BY_MODPROBE, timeout=280)
        return ours.result(), theirs.result()


@pytest.fixture(scope="module")
def one_by_one(both: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    return both[0]


@pytest.fixture(scope="module")
def by_modprobe(both: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    return both[1]


def test_the_same_modules_can_be_loaded(one_by_one: dict[str, Any], by_modprobe: dict[str, Any]) -> None:
    assert len(one_by_one["names"]) > 900
    assert one_by_one["names"] == by_modprobe["names"]
    assert one_by_one["live"] == by_modprobe["live"]
    # An init that says EEXIST, of what a rival has registered: modprobe takes that for success.
    untrue = set(by_modprobe["names"]) - set(by_modprobe["live"]) - set(by_modprobe["failed"])
    assert untrue
    assert untrue <= RIVALS.keys()
    assert set(one_by_one["failed"]) == set(by_modprobe["failed"]) | untrue
    assert set(one_by_one["failed"]) == set(one_by_one["names"]) - set(one_by_one["live"])
    assert len(one_by_one["live"]) > 700


def test_with_the_same_parameters(one_by_one: dict[str, Any], by_modprobe: dict[str, Any]) -> None:
    assert one_by_one["parameters"] == by_modprobe["parameters"]


def test_all_at_once_gives_the_same(guest: Guest, one_by_one: dict[str, Any]) -> None:
    """After unloading all of them again, as far as the kernel lets go of them."""
    found = caller(guest)(AT_ONCE, timeout=280)
    assert len(found["left"]) < 60
    rivals = {*RIVALS, *RIVALS.values()}
    assert set(found["failed"]) - rivals == set(one_by_one["failed"]) - rivals
    assert set(found["live"]) - rivals == set(one_by_one["live"]) - rivals
    # Which of two rivals is first is chance; one of them is, and whoever asked for the other knows.
    for rival, other in RIVALS.items():
        assert len({rival, other} & set(found["live"])) == 1, (rival, other)
        assert len({rival, other} & set(found["failed"])) == 1, (rival, other)

    def of_others(result: dict[str, Any]) -> dict[str, str]:
        return {key: value for key, value in result["parameters"].items() if key.split(".")[0] not in rivals}

    assert of_others(found) == of_others(one_by_one)


def test_lsmod_shows_the_same(guest: Guest, one_by_one: dict[str, Any]) -> None:
    theirs, ours = guest.run("/sbin/lsmod"), guest.run("kmodd", "lsmod")
    assert ours.stdout == theirs.stdout
    assert len(ours.stdout.splitlines()) == len(one_by_one["live"]) + 1
