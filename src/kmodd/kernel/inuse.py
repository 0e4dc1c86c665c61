"""What is known to use each of many modules whose reference count is 0, looked at once for all of them.

Measured on Linux 6.1, this has no reference while it is in use, and is looked for here:

- a device bound to a driver, of any bus;
- a network interface of any kind but tun and nlmon, in any network namespace (`links`): dummy, bridge, veth,
  bonding, vlan, vxlan, wireguard, macvlan, ipip, sit, gre, vrf, team, vcan, geneve, xfrm, batman-adv;
- zram with a size, its contents in it; an md array that is not running;
- a SCSI host that a driver without a device made (iscsi_tcp, tcm_loop, scsi_debug) before a disk is opened;
- what works for a device without a driver that is bound to it: evdev for an input device, kvm_intel for the
  processor, a module by the machine's name. The kernel would not ask for it a second time: a device is
  announced once, and another implementation of an algorithm takes over without a word.

This does have one, and is looked for no further: sockets of any family, mounts, tfms and af_alg sockets,
loop devices that are bound, swap, device mapper tables, running arrays, qdiscs, filters and actions,
congestion controls of a socket or the default, xfrm states, governors, tun interfaces, character devices
that are open. What else works without one is on the keep list: tables of rules, binfmt_misc, mpls routes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterator, Mapping

from kmodd.kernel import links, uses
from kmodd.kernel.links import Link
from kmodd.kernel.uses import Device, Disk, Kinds, StandsFor, Uses, names, read, safe
from kmodd.names import normalise

OF_THE_LOAD = frozenset(
    {"tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"}
    | {"ifb0", "ifb1", "bond0"}
)
"""Interfaces that are made, in each namespace, as the module comes: as long as one is down nobody uses it.

Whoever gives it an address sets it up as well. Were these to count their modules would stay for ever.
"""

WITHOUT_ALIAS = frozenset({"openvswitch", "tun", "wwan"})
"""Modules that make links of a kind and have no alias for it (Linux 6.1): their names are the kinds'."""

_DRIVERLESS = ("class/input", "class/dmi")
"""Where devices are announced that no driver is bound to; those of buses are looked at too."""
_PROCESSORS = "devices/system/cpu/modalias"

UNSEEN = "a network namespace that cannot be looked into, where it may have interfaces"


def look(
    modules: Collection[str],
    stands_for: StandsFor,
    kinds: Kinds | None = None,
    proc: str = "/proc",
    sys: str = "/sys",
) -> Mapping[str, Uses]:
    """Return what is known to use each of these live modules, by their names as the kernel spells them.

    `kinds`: None: not known, any module may be of each kind. For each maker of network interfaces it is told
    where there is a network namespace that cannot be looked into. What else cannot be read is not known:
    nothing is raised. It blocks for as long as it takes to read some thousand files of procfs and sysfs, none
    of them on a disk but where a namespace is kept by nothing but a mount of PID 1's.
    """
    stands_for = functools.cache(stands_for)
    mounts = uses.mounts(proc)
    bound = {module: uses.devices(module, sys) for module in modules}
    others: dict[str, list[str]] = {module: [] for module in modules}
    for module, told in (
        *_links(modules, stands_for, None if kinds is None else kinds.link_makers, proc),
        *_hosts(sys),
        *_for_devices(bound, stands_for, None if kinds is None else kinds.for_devices, sys),
    ):
        if module in others:
            others[module].append(told)
    full = list(_full(sys))
    return {
        module: Uses(
            mounts=uses.mounts_of(module, mounts, stands_for),
            disks=(
                *uses.disks(module, bound[module], mounts, stands_for, sys),
                *(disk for owner, disk in full if owner == module),
            ),
            devices=bound[module],
            others=tuple(others[module]),
        )
        for module in modules
    }


# Network interfaces


def _links(
    modules: Collection[str], stands_for: StandsFor, makers: Collection[str] | None, proc: str
) -> Iterator[tuple[str, str]]:
    if not modules:
        return
    every = links.everywhere(proc)
    of_kind: dict[str, Collection[str]] = {}
    for link in every.found:
        if not link.kind or (link.name in OF_THE_LOAD and not link.up):
            continue
        if link.kind not in of_kind:
            of_kind[link.kind] = {normalise(link.kind), *stands_for(f"rtnl-link-{link.kind}")}
        for module in of_kind[link.kind]:
            yield module, _link_in_words(link)
    if every.unseen:
        yield from (
            (module, UNSEEN)
            for module in modules
            if makers is None or module in makers or module in WITHOUT_ALIAS
        )


def _link_in_words(link: Link) -> str:
    where = " in another network namespace" if link.elsewhere else ""
    return f"network interface {safe(link.name)} ({safe(link.kind)}){where}"


# Devices


def _hosts(sys: str) -> Iterator[tuple[str, str]]:
    """Yield the modules of SCSI hosts: `proc_name` is the driver's own name."""
    for host in names(f"{sys}/class/scsi_host"):
        if name := read(f"{sys}/class/scsi_host/{host}/proc_name"):
            yield normalise(os.fsdecode(name)), f"SCSI host {safe(host)}"


def _for_devices(
    bound: Mapping[str, tuple[Device, ...]], stands_for: StandsFor, some: Collection[str] | None, sys: str
) -> Iterator[tuple[str, str]]:
    """Yield the modules that are there for a device, and have no driver that could be bound to it.

    One that has a driver on the device's bus is used if it is bound, which has been looked at.
    """
    buses = {
        module: {entry.partition(":")[0] for entry in names(f"{sys}/module/{module}/drivers")}
        for module in bound
        if some is None or module in some
    }
    if not buses:
        return  # it would take as long as all the rest
    for bus, name, modalias in _modaliases(sys):
        for module in stands_for(modalias):
            if module in buses and bus not in buses[module]:
                yield module, f"{safe(bus)} device {safe(name)}, which it is there for"


def _modaliases(sys: str) -> Iterator[tuple[str, str, str]]:
    """Yield the bus or class, the name and the modalias of all devices that have one."""
    folders = [(bus, f"{sys}/bus/{bus}/devices") for bus in names(f"{sys}/bus")]
    folders += [(os.path.basename(folder), f"{sys}/{folder}") for folder in _DRIVERLESS]
    for bus, folder in folders:
        for name in names(folder):
            if modalias := read(f"{folder}/{name}/modalias"):
                yield bus, name, os.fsdecode(modalias)
    if modalias := read(f"{sys}/{_PROCESSORS}"):
        yield "system", "cpu", os.fsdecode(modalias)


# Disks


def _full(sys: str) -> Iterator[tuple[str, Disk]]:
    """Yield the block devices that hold something although nothing has them open."""
    for name in names(f"{sys}/block"):
        size = read(f"{sys}/block/{name}/disksize")
        if name.startswith("zram") and size not in {None, b"0"}:
            yield "zram", Disk(name, contents=f"a size of {os.fsdecode(size or b'')} bytes")
        state = read(f"{sys}/block/{name}/md/array_state")
        if state not in {None, b"clear"}:
            yield "md_mod", Disk(name, contents=f"an array ({safe(os.fsdecode(state or b''))})")
