"""A guest for each test module, booted once for each loader, with kmodd in charge of its kernel's modules.

Every behaviour holds for both loaders: the daemon's own, and the external modprobe as in 1998.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kmodd.lab import Guest, LabOptions
from support.guests import Call, caller


def load_by(guest: Guest, path: str) -> None:
    """Set modprobe_path for this daemon and those that the tests start."""
    assert (
        guest.run(
            "sh", "-c", f"mkdir -p /etc/kmodd; echo 'modprobe_path = \"{path}\"' >/etc/kmodd/kmodd.toml"
        ).returncode
        == 0
    )
    assert guest.run("kmodd", "tune", f'modprobe_path="{path}"').returncode == 0


@pytest.fixture(scope="module", params=["", "/sbin/modprobe"], ids=["in-process", "modprobe"])
def uml(request: pytest.FixtureRequest) -> Iterator[Guest]:
    with Guest(LabOptions(kernel="uml", timeout=180)) as guest:
        load_by(guest, request.param)
        yield guest


@pytest.fixture(scope="module", params=["", "/sbin/modprobe"], ids=["in-process", "modprobe"])
def qemu(request: pytest.FixtureRequest) -> Iterator[Guest]:
    with Guest(LabOptions(kernel="qemu", smp=4, timeout=400)) as guest:
        load_by(guest, request.param)
        assert guest.run("modprobe", "kmodd_ask").returncode == 0
        yield guest


@pytest.fixture
def in_uml(uml: Guest) -> Call:
    return caller(uml)


@pytest.fixture
def in_qemu(qemu: Guest) -> Call:
    return caller(qemu)
