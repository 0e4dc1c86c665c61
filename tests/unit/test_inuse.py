"""What uses modules whose reference count is 0, of made-up machines: each is found, and the idle ones are not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

from kmodd.kernel import links
from kmodd.kernel.inuse import OF_THE_LOAD, UNSEEN, WITHOUT_ALIAS, look
from kmodd.kernel.links import Link, Links
from kmodd.kernel.uses import Kinds, Uses
from support.shipped import indexes

ALIASES = {
    "rtnl-link-bond": ["bonding"],
    "rtnl-link-vti": ["ip_vti"],
    "rtnl-link-dummy": ["dummy"],
    "input:b0003v046D": ["evdev", "mousedev"],
    "cpu:type:x86": ["kvm_intel", "aesni_intel"],
    "dmi:bvn": ["thinkpad_acpi"],
    "pci:v00008086": ["e1000", "e1000e", "i2c_i801"],
    "fs-vfat": ["vfat"],
}


class Machine:
    """A machine to fill."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.proc, self.sys = folder / "proc", folder / "sys"
        (self.proc / "1").mkdir(parents=True)
        (self.sys / "devices").mkdir(parents=True)
        self.links = Links()
        monkeypatch.setattr(links, "everywhere", self._everywhere)

    def _everywhere(self, proc: str) -> Links:
        assert proc == str(self.proc)
        return self.links

    def write(self, path: str, text: str) -> None:
        file = self.sys / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def bind(self, module: str, bus: str, driver: str, *devices: str) -> None:
        folder = self.sys / f"bus/{bus}/drivers/{driver}"
        folder.mkdir(parents=True)
        (self.sys / f"module/{module}/drivers").mkdir(parents=True, exist_ok=True)
        (self.sys / f"module/{module}/drivers/{bus}:{driver}").symlink_to(folder)
        for device in devices:
            (folder / device).symlink_to(f"../../../../devices/{device}")

    def device(self, name: str, bus: str, modalias: str) -> None:
        self.write(f"devices/{name}/modalias", modalias)
        (self.sys / f"bus/{bus}/devices").mkdir(parents=True, exist_ok=True)
        (self.sys / f"bus/{bus}/devices/{name}").symlink_to(f"../../../devices/{name}")

    def look(self, *modules: str, makers: Collection[str] | None = None) -> Mapping[str, Uses]:
        everything = frozenset(module for found in ALIASES.values() for module in found)
        kinds = None if makers is None else Kinds(frozenset(makers), everything)
        return look(modules, lambda name: ALIASES.get(name, ()), kinds, str(self.proc), str(self.sys))

    def told(self, *modules: str, makers: Collection[str] | None = None) -> dict[str, str]:
        return {module: uses.told() for module, uses in self.look(*modules, makers=makers).items() if uses}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_each_that_is_asked_for_is_told_of(machine: Machine) -> None:
    assert machine.look("minix", "vfat") == {"minix": Uses(), "vfat": Uses()}
    assert machine.look() == {}


def test_interfaces_wherever_they_are(machine: Machine) -> None:
    machine.links = Links(
        (
            Link("br0", "bridge", True),
            Link("d0", "dummy", False, elsewhere=True),
            Link("b1", "bond", False),
            Link("v\x1b", "vti", True),
            Link("eth0", "", True),
            Link("macvlan", "", True),
        )
    )
    assert machine.told("bridge", "dummy", "bonding", "ip_vti", "macvlan", "minix") == {
        "bridge": "network interface br0 (bridge)",
        "dummy": "network interface d0 (dummy) in another network namespace",
        "bonding": "network interface b1 (bond)",
        "ip_vti": "network interface v\\x1b (vti)",
    }


def test_what_came_with_the_load_counts_once_it_is_up(machine: Machine) -> None:
    machine.links = Links(tuple(Link(name, "bond", False) for name in OF_THE_LOAD))
    assert machine.told("bonding") == {}
    machine.links = Links((Link("bond0", "bond", True), Link("sit0", "sit", True, elsewhere=True)))
    assert list(machine.told("bonding", "sit")) == ["bonding", "sit"]


def test_a_namespace_that_cannot_be_looked_into(machine: Machine) -> None:
    machine.links = Links((Link("br0", "bridge", True),), unseen=1)
    assert machine.told("bridge", "dummy", "minix", makers={"bridge", "dummy"}) == {
        "bridge": f"network interface br0 (bridge), {UNSEEN}",
        "dummy": UNSEEN,
    }
    # Who makes links nobody knows.
    assert list(machine.told("dummy", "minix")) == ["dummy", "minix"]


def test_a_kind_that_has_no_alias(machine: Machine) -> None:
    machine.links = Links((Link("ovs0", "openvswitch", False),), unseen=1)
    assert machine.told("openvswitch", "tun", "minix", makers={"bridge"}) == {
        "openvswitch": f"network interface ovs0 (openvswitch), {UNSEEN}",
        "tun": UNSEEN,
    }


def test_the_kinds_without_alias_are_those_of_a_real_kernel() -> None:
    index = indexes()[0]
    aliased = {module for alias, module in index.aliases() if alias.startswith("rtnl_link_")}
    making = {
        module
        for module in index.modules()
        if (path := index.path(module)) and b"rtnl_link_register\0" in Path(path).read_bytes()
    }
    assert {"bridge", "dummy", "wireguard"} <= making & aliased
    assert making - aliased == WITHOUT_ALIAS


def test_what_works_for_a_device_without_a_driver(machine: Machine) -> None:
    machine.write("class/input/input3/modalias", "input:b0003v046D")
    machine.write("class/dmi/id/modalias", "dmi:bvn")
    machine.write("devices/system/cpu/modalias", "cpu:type:x86")
    assert machine.told("evdev", "kvm_intel", "thinkpad_acpi", "joydev") == {
        "evdev": "input device input3, which it is there for",
        "kvm_intel": "system device cpu, which it is there for",
        "thinkpad_acpi": "dmi device id, which it is there for",
    }


def test_who_has_a_driver_for_the_bus_is_used_if_it_is_bound(machine: Machine) -> None:
    machine.device("0000:00:03.0", "pci", "pci:v00008086")
    machine.bind("e1000", "pci", "e1000", "0000:00:03.0")
    machine.bind("e1000e", "pci", "e1000e")
    machine.bind("i2c_i801", "platform", "i801")
    assert machine.told("e1000", "e1000e", "i2c_i801") == {
        "e1000": "device 0000:00:03.0 (pci driver e1000)",
        "i2c_i801": "pci device 0000:00:03.0, which it is there for",
    }


def test_scsi_hosts(machine: Machine) -> None:
    machine.write("class/scsi_host/host2/proc_name", "iscsi-tcp")
    machine.write("class/scsi_host/host3/proc_name", "<NULL>")
    assert machine.told("iscsi_tcp", "scsi_debug") == {"iscsi_tcp": "SCSI host host2"}


def test_disks_that_hold_something(machine: Machine) -> None:
    machine.write("block/zram0/disksize", "0")
    machine.write("block/md0/md/array_state", "clear")
    machine.write("block/sda/disksize", "7")
    assert machine.told("zram", "md_mod", "sd_mod") == {}
    machine.write("block/zram1/disksize", "1048576")
    machine.write("block/md1/md/array_state", "inactive")
    assert machine.told("zram", "md_mod") == {
        "zram": "block device zram1 with a size of 1048576 bytes",
        "md_mod": "block device md1 with an array (inactive)",
    }


def test_mounts(machine: Machine) -> None:
    (machine.proc / "1/mountinfo").write_text("22 21 8:1 / /mnt/x rw - vfat /dev/sda1 rw\n")
    assert machine.told("vfat", "minix") == {"vfat": "vfat mounted at /mnt/x"}
