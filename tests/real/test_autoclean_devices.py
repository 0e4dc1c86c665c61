"""On QEMU: a machine full of devices, disks, links and sockets goes on working while autoclean makes its passes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kmodd.lab import Guest, LabOptions
from kmodd.lab.demo import stick
from support.guests import Call, caller

pytestmark = pytest.mark.real

PASSES = 50
WRONG = re.compile(r"WARNING:|BUG:|Oops|Call Trace|general protection|refcount_t|still has|leaked|hung task")


def devices(folder: Path) -> tuple[str, ...]:
    """Devices of several buses: two network cards on one wire, three disks, sound, a tablet, a watchdog."""
    added = []
    for number, card in enumerate(("e1000", "virtio-net-pci")):
        added += ["-netdev", f"hubport,id=net{number},hubid=0"]
        added += ["-device", f"{card},netdev=net{number},romfile="]
    for name in ("virtio", "nvme", "usb"):
        image = folder / name
        image.write_bytes(stick.image(b"hello\n"))
        added += ["-drive", f"if=none,id={name},format=raw,file={image}"]
    for device in (
        "virtio-blk-pci,drive=virtio",
        "nvme,serial=1,drive=nvme",
        "qemu-xhci,id=xhci",
        "usb-storage,bus=xhci.0,drive=usb",
        "usb-tablet,bus=xhci.0",
        "intel-hda",
        "hda-duplex,audiodev=none",
        "i6300esb",
        "bochs-display",
    ):
        added += ["-device", device]
    return (*added, "-audiodev", "none,id=none", "-watchdog-action", "none")


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    added = devices(tmp_path_factory.mktemp("disks"))
    with Guest(LabOptions(kernel="qemu", smp=2, timeout=400, qemu=added)) as booted:
        yield booted


@pytest.fixture(scope="module")
def inside(guest: Guest) -> Call:
    call = caller(guest)
    return lambda source, **arguments: call(f"from devices import *\n{source}", **arguments)


@pytest.fixture(scope="module")
def passed(inside: Call) -> dict[str, Any]:
    """Bring everything into use, have it all be autoclean's, and make the passes."""
    assert inside("result = plug()") == []
    inside("hold()")
    assert inside("result = told('bring')") is None
    assert inside("result = told('try_all')") == {}
    marked = set(inside("result = mark()"))
    # ecb is part of later kernels.
    assert marked >= (USED | IDLE) - set(inside("result = built_in()"))
    found: dict[str, Any] = inside(f"result = passes({PASSES})", timeout=240)
    found["marked"] = marked
    found["live"] = set(inside("result = live()"))
    return found


USED = {
    *("e1000", "virtio_net", "virtio_blk", "nvme", "usb_storage", "sd_mod", "xhci_pci", "usbhid", "evdev"),
    *("snd_hda_intel", "snd_hda_codec_generic", "bochs", "i6300esb", "vfat", "nls_cp437"),
    *("bridge", "dummy", "wireguard", "vcan", "ifb", "zram", "loop", "dm_mod", "dm_crypt"),
    *(
        "algif_hash",
        "rmd160",
        "algif_skcipher",
        "ecb",
        "sctp",
        "vsock",
        "vsock_loopback",
        "tcp_bbr",
        "can_raw",
    ),
}
IDLE = {
    *("minix", "udf", "blowfish_generic", "rxrpc", "can_bcm", "tcp_vegas", "dm_snapshot", "vxlan", "ipip"),
    *("sch_sfq", "nbd", "xt_length", "nls_koi8_r"),
}


def test_nothing_that_works_stops_working(passed: dict[str, Any]) -> None:
    assert passed["broken"] == []
    assert passed["failed"] == []
    assert passed["live"] >= USED & passed["marked"]


def test_all_that_is_idle_has_gone(passed: dict[str, Any]) -> None:
    assert passed["live"] & IDLE == set()
    assert set(passed["went"]) >= IDLE
    # Those that came with a device and are for another one, too; and no module that something uses.
    assert set(passed["went"]) >= {"ata_generic", "serio_raw"}
    assert set(passed["went"]) & USED == set()
    # Everything that is left has a user, or a reason to be kept: no time that runs out.
    waiting = {module: reason for module, reason in passed["left"].items() if " ago" in reason}
    assert waiting == {}


def test_the_kernel_has_nothing_to_complain_about(guest: Guest, passed: dict[str, Any]) -> None:
    complaints = [line for line in guest.dmesg().splitlines() if WRONG.search(line)]
    assert complaints == []


def test_gets_are_counted_by_the_kernel_and_survive_a_daemon(inside: Call) -> None:
    assert inside("result = api('Autoclean')['result']['uses']") == "counted"
    source = """
from kmodd.kernel import usecounts
usecounts.NAME = "kmodd-tried"
before, after = usecounts.UseCounts(), usecounts.UseCounts()
before.start()
first = before.counts()
for _ in range(7):
    os.close(os.open("/dev/loop-control", os.O_RDWR))
after.start()
result = [before.problem, first.get("loop", 0), after.problem, after.counts()["loop"]]
after.stop()
result += [after.counts(), os.path.exists("/sys/kernel/tracing/instances/kmodd-tried")]
"""
    begun, first, taken_over, second, stopped, left = inside(source)
    assert (begun, taken_over, stopped, left) == (None, None, None, False)
    assert second - first == 7


def test_a_device_file_that_goes_with_its_module_is_put_back_and_asks_for_it(inside: Call) -> None:
    source = """
from kmodd.kernel import nodes
api("RequestModule", name="tun")
found = nodes.seen([("net/tun", "c10:200")])
gone = unload(["tun"]) == [] and not os.path.exists("/dev/net/tun")
made = nodes.put_back(found)
os.close(os.open("/dev/net/tun", os.O_RDWR))
result = [gone, made, "tun" in live(), unload(["tun"]), os.path.exists("/dev/net/tun")]
"""
    assert inside(source) == [True, ["/dev/net/tun"], True, [], True]
