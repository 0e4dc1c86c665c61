"""Who can make a real kernel ask for which names: what policy/reach.py says of them.

One name of each kind, that nothing is installed for or that is kept out, so that it is asked for each time.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kmodd.lab import Guest, LabOptions
from kmodd.policy.reach import Reach, reach
from support.guests import caller

pytestmark = pytest.mark.real

Asked = dict[str, dict[str, dict[str, Any]]]


def triggers() -> list[str]:
    """The names of TRIGGERS in reacher.py, which runs in the guest alone."""
    tree = ast.parse(Path(__file__).with_name("reacher.py").read_text())
    [table] = [node.value for node in tree.body if isinstance(node, ast.AnnAssign)]
    assert isinstance(table, ast.Dict)
    return [ast.literal_eval(key) for key in table.keys if key is not None]


@pytest.fixture(scope="module")
def asked() -> Iterator[Asked]:
    with Guest(LabOptions(kernel="qemu", smp=2, timeout=500)) as guest:
        call = caller(guest)
        call("prepare_reach", timeout=300)
        yield {
            "user": call("reached", uid=1000, unshare=False, timeout=200),
            "user namespace": call("reached", uid=1000, unshare=True, timeout=200),
            "root": call("reached", uid=0, unshare=False, timeout=200),
        }
        log = guest.dmesg()
        for word in ("BUG:", "WARNING:", "Oops", "Call Trace"):
            assert word not in log, log[-4000:]


INITIAL_NETWORK = ("bt-", "atm-", "rdma-", "mpoa", "lec", "clip", "br2684", "pppoatm")
"""Sockets that there are in the initial network namespace only, which root of a user namespace had left."""


@pytest.mark.parametrize("name", triggers())
def test_who_can_and_who_cannot(asked: Asked, name: str) -> None:
    who = reach(name)
    assert who is not None
    # From 6.8 on traffic control asks for net-sch-nosuch.
    spellings = {name, "net-" + name.replace("_", "-", 1)}
    can = {requester: not spellings.isdisjoint(names) for requester, names in asked.items()}
    expected = {
        "user": who is Reach.ANYONE,
        "user namespace": who is not Reach.PRIVILEGED and not name.startswith(INITIAL_NETWORK),
        "root": True,
    }
    assert can == expected


def test_names_that_came_along_have_a_reach_as_well(asked: Asked) -> None:
    """Those that a trigger asks for beside its own: crypto-nosuch-all, net-pf-2-proto-250-type-5."""
    for requester, names in asked.items():
        for name in names:
            who = reach(name)
            assert who is not None, (requester, name)
            if requester == "user":
                assert who is Reach.ANYONE, name
            elif requester == "user namespace":
                assert who is not Reach.PRIVILEGED, name


def test_they_were_who_they_should_be(asked: Asked) -> None:
    whose = {
        requester: {(who["uid"], who["privileged"]) for who in names.values()}
        for requester, names in asked.items()
    }
    assert whose == {"user": {(1000, False)}, "user namespace": {(1000, False)}, "root": {(0, True)}}


def test_a_file_system_is_asked_for_before_it_is_looked_whether_it_may_be_mounted(asked: Asked) -> None:
    assert asked["user namespace"]["fs-nosuch"]["call_site"] == "get_fs_type"
    assert "fs-nosuch" not in asked["user"]


def test_a_cipher_of_a_users_choice_is_a_module_of_that_name(asked: Asked) -> None:
    """bind() of an AF_ALG socket to "user" asks for crypto-user: the module crypto_user, which is no cipher."""
    assert asked["user"]["crypto-user"]["call_site"] == "crypto_alg_mod_lookup"
    assert reach("crypto_user") is Reach.ANYONE
