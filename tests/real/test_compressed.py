"""On Debian's kernel 6.12, whose modules are all compressed: who decompresses them, and that they load.

Since Linux 5.17 the kernel can do it, where it is built for that and is told that the file is compressed. Its own
tracing shows each call with the flags, the daemon's too.
"""

from __future__ import annotations

import errno
import lzma
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kmodd.lab import Guest, LabOptions
from kmodd.lab.kernels import KERNELS_VARIABLE
from support.guests import Call, caller
from support.trees import COMPRESSED, tree

pytestmark = pytest.mark.real

Handed = tuple[str, int | None]
"""A call that hands over a module: its name, and its flags where it has any."""
Handover = Callable[[str], tuple[Any, list[Handed]]]

TO_DECOMPRESS = ("finit_module", 4)
"""MODULE_INIT_COMPRESSED_FILE of finit_module(2)."""
DECOMPRESSED = ("init_module", None)


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    tree(COMPRESSED)  # or there is none
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KERNELS_VARIABLE, str(COMPRESSED.parents[1]))
        with Guest(LabOptions(kernel="qemu", smp=2, timeout=300)) as guest:
            yield guest


@pytest.fixture(scope="module")
def call(guest: Guest) -> Call:
    return caller(guest)


@pytest.fixture(scope="module")
def handed_over(call: Call) -> Handover:
    """Return what an expression gave in the guest, and how modules were handed to the kernel meanwhile."""

    def run(work: str) -> tuple[Any, list[Handed]]:
        found = call(f"result = handed_over(lambda: {work})")
        return found["returned"], [tuple(one) for one in found["calls"]]

    return run


def test_the_kernel_decompresses_xz_and_there_is_nothing_else(guest: Guest) -> None:
    found = guest.run("sh", "-c", "uname -r; cat /sys/module/compression")
    assert found.stdout.split() == [tree(COMPRESSED).name, "xz"]
    assert list(tree(COMPRESSED).rglob("*.ko")) == []


def test_by_the_api_with_all_that_it_needs(call: Call, handed_over: Handover) -> None:
    answer, calls = handed_over('api("RequestModule", name="btrfs")')
    result = answer["result"]
    assert (result["outcome"], result["status"], result["error"]) == ("loaded", 0, None)
    assert {"btrfs", "xor", "raid6_pq", "libcrc32c"} <= set(result["modules"]) <= set(call("live"))
    # What is for another processor may be tried as well, and refused.
    assert len(calls) >= len(result["modules"])
    assert set(calls) == {TO_DECOMPRESS}


def test_asked_for_by_the_kernel(call: Call, handed_over: Handover) -> None:
    before = call("last_event")
    asked = '[mount("minix"), open_socket(29, protocol=1), open_socket(9), mount("nosuchfs")]'
    answer, calls = handed_over(asked)
    # The file system is there, what to mount is not.
    assert answer == [errno.ENOENT, 0, errno.EAFNOSUPPORT, errno.ENODEV]
    assert calls == [TO_DECOMPRESS] * 3
    told = call("events_are", count=5, since=before)
    assert [(event["source"], event["name"], event["outcome"], event["modules"]) for event in told] == [
        ("kernel", "fs-minix", "loaded", ["minix"]),
        ("kernel", "net-pf-29", "loaded", ["can"]),
        ("kernel", "can-proto-1", "loaded", ["can_raw"]),
        ("kernel", "net-pf-9", "not-found", []),
        ("kernel", "fs-nosuchfs", "not-found", []),
    ]


def test_by_our_modprobe_with_parameters(call: Call) -> None:
    source = """
from kmodd.cli import classic
result = handed_over(lambda: classic.run("modprobe", ["loop", "max_loop=5"]))
"""
    found = call(source)
    assert found["returned"] == 0
    assert found["calls"] == [list(TO_DECOMPRESS)]
    assert call("parameter", module="loop", name="max_loop") == 5


def test_where_the_kernel_decompresses_something_else_the_daemon_does_it(
    guest: Guest, handed_over: Handover
) -> None:
    shown = "/sys/module/compression"
    command = f"echo gzip >/run/compression && mount --bind /run/compression {shown}"
    assert guest.run("sh", "-c", command).returncode == 0
    try:
        answer, calls = handed_over('api("RequestModule", name="romfs")')
    finally:
        guest.run("umount", shown)
    assert (answer["result"]["outcome"], answer["result"]["modules"]) == ("loaded", ["mtd", "romfs"])
    assert calls == [DECOMPRESSED] * 2


def test_a_damaged_file_is_an_error_and_may_be_tried_again(call: Call, handed_over: Handover) -> None:
    cut = """
path = Path(f"/lib/modules/{os.uname().release}/kernel/fs/qnx4/qnx4.ko.xz")
whole = path.read_bytes()
path.write_bytes(whole[: len(whole) // 2])
result = handed_over(lambda: api("RequestModule", name="qnx4"))
path.write_bytes(whole)
"""
    found = call(cut)
    assert found["returned"]["result"]["outcome"] == "failed"
    assert found["returned"]["status"] == -errno.EINVAL
    assert found["calls"] == [list(TO_DECOMPRESS)]
    answer, calls = handed_over('api("RequestModule", name="qnx4")')
    assert (answer["result"]["outcome"], calls) == ("loaded", [TO_DECOMPRESS])


@pytest.mark.parametrize(
    ("check", "how"),
    [
        (lzma.CHECK_NONE, TO_DECOMPRESS),
        (lzma.CHECK_CRC32, TO_DECOMPRESS),
        (lzma.CHECK_CRC64, DECOMPRESSED),
        (lzma.CHECK_SHA256, DECOMPRESSED),
    ],
)
def test_what_xz_itself_writes_loads_too(call: Call, check: int, how: Handed) -> None:
    """The program takes CRC64, which the kernel does not know."""
    source = """
import lzma
path = Path(f"/lib/modules/{os.uname().release}/kernel/fs/qnx6/qnx6.ko.xz")
whole = path.read_bytes()
path.write_bytes(lzma.compress(lzma.decompress(whole), check=check))
result = handed_over(lambda: api("RequestModule", name="qnx6"))
path.write_bytes(whole)
assert unload(["qnx6"]) == []
"""
    found = call(source, check=check)
    assert found["calls"] == [list(how)]
    assert (found["returned"]["result"]["outcome"], found["returned"]["result"]["modules"]) == (
        "loaded",
        ["qnx6"],
    )
