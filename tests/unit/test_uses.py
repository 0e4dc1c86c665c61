"""What uses a module, read from made-up /proc and /sys: truthful, bounded, and safe to show."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import pytest

from kmodd.kernel import uses
from kmodd.kernel.linux import LinuxKernel
from kmodd.kernel.uses import Disk, Mount, Uses

ALIASES = {
    "fs-vfat": ["vfat"],
    "fs-ext3": ["ext4"],
    "block-major-7-0": ["loop"],
    "block-major-8-0": ["sd_mod"],
}


def stands_for(name: str) -> Collection[str]:
    return ALIASES.get(name, ())


def nothing_known(_name: str) -> Collection[str]:
    return ()


class Machine:
    """A /proc and a /sys to fill."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.sys = folder / "sys"
        (self.proc / "1").mkdir(parents=True)
        (self.sys / "devices").mkdir(parents=True)
        (self.sys / "block").mkdir()

    def mounted(self, *lines: bytes) -> None:
        (self.proc / "1/mountinfo").write_bytes(b"".join(line + b"\n" for line in lines))

    def bind(self, module: str, bus: str, driver: str, device: str) -> Path:
        """Bind a device, by its path below /sys/devices, to a driver of a module."""
        path = self.sys / "devices" / device
        path.mkdir(parents=True, exist_ok=True)
        folder = self.sys / "bus" / bus / "drivers" / driver
        drivers = self.sys / "module" / module / "drivers"
        if not folder.exists():
            folder.mkdir(parents=True)
            drivers.mkdir(parents=True, exist_ok=True)
            (folder / "module").symlink_to(f"../../../../module/{module}")
            for name in ("bind", "unbind", "uevent"):
                (folder / name).write_text("")
            (drivers / f"{bus}:{driver}").symlink_to(f"../../../bus/{bus}/drivers/{driver}")
        (folder / path.name).symlink_to(f"../../../../devices/{device}")
        return path

    def disk(self, parent: str, name: str, number: str, *parts: tuple[str, str]) -> Path:
        path = self.sys / "devices" / parent / "block" / name
        for folder, its_number in ((path, number), *((path / part, number) for part, number in parts)):
            (folder / "holders").mkdir(parents=True)
            (folder / "dev").write_text(its_number + "\n")
        for index, (part, _number) in enumerate(parts):
            (path / part / "partition").write_text(f"{index + 1}\n")
        (self.sys / "block" / name).symlink_to(f"../devices/{parent}/block/{name}")
        return path

    def find(self, module: str, known: uses.StandsFor = stands_for) -> Uses:
        return LinuxKernel(str(self.proc), str(self.sys)).uses(module, known)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_nothing_there_nothing_known(tmp_path: Path) -> None:
    found = LinuxKernel(str(tmp_path), str(tmp_path)).uses("vfat", stands_for)
    assert not found
    assert found.words(2) == "it has 2 users"


def test_a_mounted_filesystem(machine: Machine) -> None:
    machine.mounted(
        b"21 1 0:20 / / rw,relatime shared:1 - overlay overlay rw",
        b"22 21 8:1 / /mnt/x ro,relatime - vfat /dev/sda1 ro",
        b"23 21 8:2 / /old rw - ext3 /dev/sda2 rw",
    )
    found = machine.find("vfat")
    assert found.mounts == (Mount("vfat", b"/mnt/x", "8:1"),)
    assert found.words(1) == "it has 1 user: vfat mounted at /mnt/x"
    assert machine.find("ext4").words(1) == "it has 1 user: ext3 mounted at /old"
    assert machine.find("fat").words(1) == "it has 1 user"


def test_without_an_index_the_name_counts(machine: Machine) -> None:
    machine.mounted(b"22 21 8:1 / /x rw - vfat v rw", b"22 21 8:2 / /y rw - ext3 v rw")
    assert machine.find("vfat", nothing_known).mounts
    assert not machine.find("ext4", nothing_known)


def test_what_is_known_is_not_told_as_all(machine: Machine) -> None:
    machine.mounted(b"22 21 8:1 / /a rw - vfat v rw", b"23 21 8:1 / /b rw - vfat v rw")
    assert (
        machine.find("vfat").words(2) == "it has 2 users, among them vfat mounted at /a, vfat mounted at /b"
    )
    assert machine.find("vfat").words(1) == "it has 1 user: vfat mounted at /a, vfat mounted at /b"


def test_a_fuse_subtype_is_its_users_choice(machine: Machine) -> None:
    machine.mounted(rb"22 21 0:50 / /home/u/m rw - fuse.[x]\040vfat vfat rw,user_id=1000")
    assert machine.find("fuse").words(1) == "it has 1 user: fuse mounted at /home/u/m"
    assert not machine.find("vfat")


def test_mount_points_can_neither_forge_lines_nor_words(machine: Machine) -> None:
    machine.mounted(
        b"22 21 8:1 / /a\\040\\134,\\011b\\012c rw - vfat v rw",
        b"23 21 8:2 / /\r24 21 8:3 / /forged rw - vfat v rw",
        b"25 21 8:4 / /\x1b[31m\xff rw master:3 shared:1 - vfat v rw",
        b"26 21",
        b"27 21 8:5 / /short rw shared:2 -",
        b"",
    )
    found = machine.find("vfat")
    assert [mount.point for mount in found.mounts] == [b"/a \\,\tb\nc", b"/\r24", b"/\x1b[31m\xff"]
    assert found.words(3) == (
        "it has 3 users: vfat mounted at /a\\x20\\x5c,\\x09b\\x0ac, vfat mounted at /\\x0d24, "
        "vfat mounted at /\\x1b[31m\\xff"
    )


def test_the_words_are_bounded(machine: Machine) -> None:
    long = b"/" + b"a" * 4000
    machine.mounted(
        *(b"%d 21 9:%d / %s%d rw - vfat v rw" % (n, n, long if n == 0 else b"/m", n) for n in range(2000))
    )
    told = machine.find("vfat").words(2000)
    assert told.endswith("vfat mounted at /m4 and 1995 more")
    assert len(told) < 1000


def test_bound_devices_and_their_interfaces_are_told_at_any_reference_count(machine: Machine) -> None:
    device = machine.bind("virtio_net", "virtio", "virtio_net", "pci0000:00/0000:00:03.0/virtio1")
    (device / "net/eth0").mkdir(parents=True)
    found = machine.find("virtio_net")
    assert [(item.name, item.bus, item.interfaces) for item in found.devices] == [
        ("virtio1", "virtio", ("eth0",))
    ]
    assert found.words(1) == (
        "it has 1 user; it drives device virtio1 (virtio driver virtio_net), network interface eth0"
    )
    assert found
    assert not machine.find("e1000")


def test_only_links_to_devices_are_devices(machine: Machine) -> None:
    machine.bind("odd", "pci", "odd-pci", "pci0000:00/0000:00:03.0")
    folder = machine.sys / "bus/pci/drivers/odd-pci"
    (folder / "elsewhere").symlink_to("../../../../module/odd")
    (folder / "above").symlink_to("../../../../devices/../module")
    (folder / "folder").mkdir()
    assert [str(device) for device in machine.find("odd").devices] == [
        "device 0000:00:03.0 (pci driver odd-pci)"
    ]


def test_a_driver_on_two_buses_has_both(machine: Machine) -> None:
    machine.bind("both", "usb", "both", "usb1/1-1:1.0")
    machine.bind("both", "pci", "both", "pci0/0000:00:04.0")
    machine.bind("both", "pci", "both", "pci0/0000:00:05.0")
    told = machine.find("both").words(1)
    assert told == (
        "it has 1 user; it drives device 0000:00:04.0 (pci driver both), device 0000:00:05.0 (pci driver both), "
        "device 1-1:1.0 (usb driver both)"
    )


def test_names_of_devices_and_interfaces_are_shown_escaped(machine: Machine) -> None:
    device = machine.bind("evil", "usb", "evil", "usb1/x\x1b[2J, device y")
    (device / "net" / os.fsdecode(b"e\xff\n0")).mkdir(parents=True)
    assert machine.find("evil").words(1) == (
        "it has 1 user; it drives device x\\x1b[2J,\\x20device\\x20y (usb driver evil), "
        "network interface e\\xff\\x0a0"
    )


def test_a_disk_of_a_bound_device_in_use(machine: Machine) -> None:
    machine.bind("sd_mod", "scsi", "sd", "pci0/host0/0:0:0:0")
    disk = machine.disk("pci0/host0/0:0:0:0", "sda", "8:0", ("sda1", "8:1"), ("sda2", "8:2"), ("sda3", "8:3"))
    (disk / "sda2/holders/dm-0").mkdir()
    machine.mounted(b"22 21 8:1 / /a rw - ext3 /dev/sda1 rw", b"23 21 8:1 /b /b rw - ext3 /dev/sda1 rw")
    found = machine.find("sd_mod")
    assert found.disks == (Disk("sda1", (b"/a", b"/b")), Disk("sda2", (), ("dm-0",)))
    assert found.words(2) == (
        "it has 2 users: block device sda1 mounted at /a and 1 more, block device sda2 held by dm-0; "
        "it drives device 0:0:0:0 (scsi driver sd)"
    )


def test_a_loop_device_is_its_modules_by_its_number(machine: Machine) -> None:
    disk = machine.disk("virtual", "loop0", "7:0")
    assert not machine.find("loop")
    (disk / "loop").mkdir()
    (disk / "loop/backing_file").write_bytes(b"/home/u/a file\xff\n")
    assert machine.find("loop").words(1) == "it has 1 user: block device loop0 on /home/u/a\\x20file\\xff"
    machine.mounted(b"22 21 7:0 / /mnt rw - vfat /dev/loop0 rw")
    assert machine.find("loop").words(1) == "it has 1 user: block device loop0 mounted at /mnt"
    assert not machine.find("loop", nothing_known)
