"""On QEMU: what a kernel that takes only signed modules, or none at all, is told as.

Each of the three is for good until the reboot, so they come in this order, in a guest of their own.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from kmodd.lab import Guest, LabOptions
from support.guests import Call, caller

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest(LabOptions(kernel="qemu", timeout=300)) as booted:
        yield booted


@pytest.fixture
def inside(guest: Guest) -> Call:
    return caller(guest)


def test_a_file_that_is_no_module(guest: Guest, inside: Call) -> None:
    where = guest.run("modinfo", "-n", "kmodd_many_00").stdout.strip()
    write = "dd if=/dev/zero of=%s bs=64 count=1 conv=notrunc"
    # The tree is the host's, to be read only.
    script = f"cp {where} /run/broken.ko && {write % '/run/broken.ko'} && mount --bind /run/broken.ko {where}"
    assert guest.run("sh", "-c", script).returncode == 0
    told = inside("api", method="RequestModule", name="kmodd_many_00")
    assert (told["error"], told["status"]) == (
        "cannot load kmodd_many_00: Invalid module format (ENOEXEC)",
        -errno.ENOEXEC,
    )
    assert guest.run("umount", where).returncode == 0


def test_a_parameter_that_is_refused_is_told_with_the_line_of_the_kernel_log(inside: Call) -> None:
    source = """
Path("/etc/modprobe.d/wrong.conf").write_text("options kmodd_fail errno=many\\n")
result = api("RequestModule", name="kmodd_fail")
os.unlink("/etc/modprobe.d/wrong.conf")
"""
    told = inside(source)
    assert told["status"] == -errno.EINVAL
    assert told["error"].startswith("cannot load kmodd_fail: Invalid argument (EINVAL): kmodd_fail: ")
    assert "`many' invalid for parameter `errno'" in told["error"]


def test_an_init_that_says_exists_is_not_told_as_live(inside: Call) -> None:
    source = """
Path("/etc/modprobe.d/exists.conf").write_text("options kmodd_fail errno=17\\n")
result = [api("RequestModule", name="kmodd_fail"), "kmodd_fail" in live()]
os.unlink("/etc/modprobe.d/exists.conf")
"""
    told, live = inside(source)
    assert not live
    assert (told["error"], told["status"]) == ("cannot load kmodd_fail: File exists (EEXIST)", -errno.EEXIST)


def test_lockdown_is_told_in_words(guest: Guest, inside: Call) -> None:
    lock = "mount -t securityfs none /sys/kernel/security; echo integrity >/sys/kernel/security/lockdown"
    assert guest.run("sh", "-c", lock).returncode == 0
    told = inside("api", method="RequestModule", name="kmodd_many_01")
    assert told["status"] == -errno.EPERM
    assert told["error"].startswith(
        "cannot load kmodd_many_01: kernel lockdown (integrity) takes only signed modules: "
        "Operation not permitted (EPERM)"
    )
    assert told["result"]["outcome"] == "failed"
    # What came in before goes on, and a request for it is answered.
    assert inside("api", method="RequestModule", name="overlay")["result"]["outcome"] == "already-live"


def test_a_missing_signature_is_told_in_words(guest: Guest, inside: Call) -> None:
    enforce = guest.run("sh", "-c", "echo 1 >/sys/module/module/parameters/sig_enforce")
    assert enforce.returncode == 0, enforce.stderr
    told = inside("api", method="RequestModule", name="kmodd_many_02")
    assert told["status"] == -errno.EKEYREJECTED
    assert told["error"].startswith(
        "cannot load kmodd_many_02: it is not signed by a key that this kernel trusts: "
        "Key was rejected by service (EKEYREJECTED)"
    )


def test_a_kernel_closed_to_modules_is_told_in_words(guest: Guest, inside: Call) -> None:
    assert guest.run("sh", "-c", "echo 1 >/proc/sys/kernel/modules_disabled").returncode == 0
    told = inside("api", method="RequestModule", name="kmodd_dep_b")
    assert told["status"] == -errno.EPERM
    assert told["error"] == (
        "cannot load kmodd_dep_b: cannot load its dependency kmodd_dep_a: module loading is disabled until "
        "reboot (kernel.modules_disabled): Operation not permitted (EPERM)"
    )
    # From then on the kernel asks nobody any more: request_module() fails before the helper is run.
    assert inside("api", method="RemoveModule", name="overlay")["error"]
