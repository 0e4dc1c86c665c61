"""What is known to use a live module: filesystems mounted, disks in use, devices bound to its drivers.

Only reads. A module's reference count says how many hold it and not who; this says who, as far as /sys and
PID 1's mounts show it. A bound device holds nothing: its module can be unloaded at a reference count of 0.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kmodd.names import escape, normalise

SHOWN_MAX = 5
"""How many of a kind are named; of the others their number is told."""

StandsFor = Callable[[str], Collection[str]]
"""Which modules an alias such as `fs-vfat` or `block-major-7-0` stands for; none where nobody knows."""


@dataclass(frozen=True, slots=True)
class Kinds:
    """What the aliases of the installed modules say of them.

    `link_makers`: those that make network interfaces of a kind (`rtnl-link-*`); `for_devices`: those that are
    there for devices (modaliases, which have a `:`). `nodes`: the device files that stand for a module before
    it is there (modules.devname), each with its device, such as `("net/tun", "c10:200")`.
    """

    link_makers: frozenset[str] = frozenset()
    for_devices: frozenset[str] = frozenset()
    nodes: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted filesystem. `point`: as PID 1 sees it; `device`: `MAJOR:MINOR`, one for each superblock."""

    type: str
    point: bytes
    device: str

    def __str__(self) -> str:
        """Return it in words."""
        return f"{safe(self.type)} mounted at {escape(self.point)}"


@dataclass(frozen=True, slots=True)
class Disk:
    """A block device in use, whole or a partition.

    `holders`: the block devices on top of it; `file`: what a loop device shows, None for others; `contents`:
    what it holds although nothing has it open, such as `an array`.
    """

    name: str
    mounted_at: tuple[bytes, ...] = ()
    holders: tuple[str, ...] = ()
    file: bytes | None = None
    contents: str | None = None

    def __str__(self) -> str:
        """Return it in words."""
        how = [f"with {self.contents}"] if self.contents is not None else []
        if self.mounted_at:
            how.append(f"mounted at {some([escape(point) for point in self.mounted_at], 1)}")
        if self.holders:
            how.append(f"held by {some([safe(name) for name in self.holders], 1)}")
        if self.file is not None and not how:
            how.append(f"on {escape(self.file)}")
        return f"block device {safe(self.name)} {' and '.join(how)}"


@dataclass(frozen=True, slots=True)
class Device:
    """A device bound to a driver. `path`: its directory in sysfs; `interfaces`: its network interfaces."""

    name: str
    bus: str
    driver: str
    path: str
    interfaces: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return it in words."""
        return f"device {safe(self.name)} ({safe(self.bus)} driver {safe(self.driver)})"


@dataclass(frozen=True, slots=True)
class Uses:
    """What is known to use one module. Empty: nothing is known, which does not say that nothing does.

    `others`: what else does, each in words.
    """

    mounts: tuple[Mount, ...] = ()
    disks: tuple[Disk, ...] = ()
    devices: tuple[Device, ...] = ()
    others: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything is known."""
        return bool(self.mounts or self.disks or self.devices or self.others)

    def told(self) -> str:
        """Return what is known in words, as in `device 0000:00:03.0 (pci driver e1000)`."""
        return some([str(use) for use in (*self.mounts, *self.disks, *self.devices)] + list(self.others))

    def words(self, refcount: int) -> str:
        """Return `it has N users`, with what is known of them, and the devices bound to its drivers."""
        told = f"it has {refcount} user{'s' if refcount != 1 else ''}"
        holding = [str(use) for use in (*self.mounts, *self.disks)]
        if holding:
            # Bind mounts are one superblock, which counts once.
            known = len({mount.device for mount in self.mounts}) + len(self.disks)
            told += f"{':' if known >= refcount else ', among them'} {some(holding)}"
        interfaces = [
            f"network interface {safe(name)}" for device in self.devices for name in device.interfaces
        ]
        driven = [some([str(device) for device in self.devices]), some(interfaces)]
        return told + (f"; it drives {', '.join(filter(None, driven))}" if self.devices else "")


def some(words: Sequence[str], limit: int = SHOWN_MAX) -> str:
    """Return the first `limit` with commas between them, and how many more there are."""
    left = len(words) - limit
    return ", ".join(words[:limit]) + (f" and {left} more" if left > 0 else "")


def safe(name: str) -> str:
    """Return a name that may hold anything, to be shown."""
    return escape(os.fsencode(name))


def find(module: str, stands_for: StandsFor, proc: str = "/proc", sys: str = "/sys") -> Uses:
    """Return what is known to use a module that is in the kernel, by its name as the kernel spells it.

    It blocks. What cannot be read is not known: nothing is raised.
    """
    everything = mounts(proc)
    bound = devices(module, sys)
    return Uses(
        mounts=mounts_of(module, everything, stands_for),
        disks=tuple(disks(module, bound, everything, stands_for, sys)),
        devices=bound,
    )


# Filesystems


def mounts(proc: str = "/proc") -> list[Mount]:
    """Return what is mounted in PID 1's mount namespace (/proc/PID/mountinfo, proc(5))."""
    try:
        with open(f"{proc}/1/mountinfo", "rb") as file:
            lines = file.read().split(b"\n")  # not at a \r, which a mount point may hold
    except OSError:
        return []
    found = []
    for line in lines:
        fields = line.split(b" ")
        if b"-" not in fields[6:-1]:
            continue
        # A type may have a subtype that its user chose, as in `fuse.sshfs`.
        kind = fields[fields.index(b"-", 6) + 1].partition(b".")[0]
        found.append(Mount(os.fsdecode(kind), _unescape(fields[4]), os.fsdecode(fields[2])))
    return found


def _unescape(field: bytes) -> bytes:
    return re.sub(rb"\\([0-3][0-7]{2})", lambda octal: bytes((int(octal[1], 8),)), field)


def mounts_of(module: str, everything: Iterable[Mount], stands_for: StandsFor) -> tuple[Mount, ...]:
    """Return those whose type a module provides: it has the type's name, or its alias `fs-TYPE`."""
    provided: dict[str, bool] = {}
    for mount in everything:
        if mount.type not in provided:
            provided[mount.type] = normalise(mount.type) == module or module in stands_for(f"fs-{mount.type}")
    return tuple(mount for mount in everything if provided[mount.type])


# Devices


def devices(module: str, sys: str = "/sys") -> tuple[Device, ...]:
    """Return the devices bound to a module's drivers, whatever its reference count is.

    /sys/module/MODULE/drivers/BUS:DRIVER is the driver's directory, in which each bound device is a link.
    """
    found = []
    drivers = f"{sys}/module/{module}/drivers"
    inside = os.path.realpath(sys) + "/devices/"
    for entry in names(drivers):
        bus, _, driver = entry.partition(":")
        directory = os.path.realpath(f"{drivers}/{entry}")
        for name in names(directory):
            path = _link(directory, name)
            if name != "module" and path is not None and path.startswith(inside):
                found.append(Device(name, bus, driver, path, tuple(names(f"{path}/net"))))
    return tuple(found)


def names(directory: str) -> list[str]:
    """Return what is in a directory; nothing where there is none."""
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _link(directory: str, name: str) -> str | None:
    """Return where a link of sysfs points to, which has no other links on its way; None: it is no link."""
    try:
        return os.path.normpath(os.path.join(directory, os.readlink(f"{directory}/{name}")))
    except OSError:
        return None


# Disks


def disks(
    module: str, bound: Iterable[Device], everything: Iterable[Mount], stands_for: StandsFor, sys: str
) -> Iterator[Disk]:
    """Yield the block devices in use: those of bound devices, and those whose major number is the module's.

    A filesystem with a device number of its own (btrfs) is not seen as a use of its disk.
    """
    points: dict[str, list[bytes]] = {}
    for mount in everything:
        points.setdefault(mount.device, []).append(mount.point)
    for disk in _whole_disks(module, bound, stands_for, sys):
        parts = [f"{disk}/{name}" for name in names(disk) if os.path.exists(f"{disk}/{name}/partition")]
        for path in (disk, *parts):
            number = os.fsdecode(read(f"{path}/dev") or b"")
            found = Disk(
                os.path.basename(path),
                tuple(points.get(number, ())),
                tuple(names(f"{path}/holders")),
                read(f"{path}/loop/backing_file"),
            )
            if found.mounted_at or found.holders or found.file is not None:
                yield found


def _whole_disks(module: str, bound: Iterable[Device], stands_for: StandsFor, sys: str) -> list[str]:
    folders = [f"{device.path}/block" for device in bound]
    found = {name: f"{folder}/{name}" for folder in folders for name in names(folder)}
    for name in names(f"{sys}/block"):
        number = os.fsdecode(read(f"{sys}/block/{name}/dev") or b"")
        if number and module in stands_for(f"block-major-{number.replace(':', '-')}"):
            found.setdefault(name, f"{sys}/block/{name}")
    return [found[name] for name in sorted(found)]


def read(path: str) -> bytes | None:
    """Return a line of sysfs; None where there is no such file."""
    try:
        with open(path, "rb") as file:
            return file.read(4096).removesuffix(b"\n")
    except OSError:
        return None
