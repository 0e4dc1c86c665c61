"""A guest full of devices, links and sockets: brought into use, and tried for whether each still works.

Run in the guest. What must stay open is held by a process of its own (`hold`), which does what it is told over
a socket. Nothing here needs a tool that is not Python's.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import glob
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from inguest import api, events, live, tune, until

from kmodd.kernel import libc
from kmodd.lab.demo import stick

HOLDER = "/run/holder.sock"
BEFORE = "/run/before"
"""The modules that were there before."""
TEXT = b"kmodd was here\n"

# Bringing devices to life, as udev does


def plug() -> list[str]:
    """Request a module for each device's modalias until no further device appears; what is not there yet."""
    Path(BEFORE).write_text(" ".join(live()))
    seen: set[str] = set()
    missing: list[str] = []

    def look() -> None:
        for path in (*glob.glob("/sys/bus/*/devices/*/modalias"), *glob.glob("/sys/class/input/*/modalias")):
            name = Path(path).read_text().strip()
            if name and name not in seen:
                seen.add(name)
                api("RequestModule", name=name)
        missing[:] = [what for what, there in PRESENT.items() if not there()]
        assert not missing, missing

    with contextlib.suppress(AssertionError):
        until(look, limit=60)
    return missing


def _driver(device: str) -> str:
    try:
        return os.path.basename(os.readlink(f"{device}/driver"))
    except OSError:
        return ""


def nic(driver: str) -> str:
    """Return the network interface of a driver."""
    for path in glob.glob("/sys/class/net/*"):
        if _driver(f"{path}/device") == driver:
            return os.path.basename(path)
    raise AssertionError(f"{driver} has no interface")


def disk(pattern: str) -> str:
    """Return the block device whose place in sysfs matches."""
    for path in glob.glob("/sys/block/*"):
        if pattern in os.path.realpath(path):
            return "/dev/" + os.path.basename(path)
    raise AssertionError(f"there is no disk {pattern}")


def tablet() -> str:
    for path in glob.glob("/sys/class/input/event*"):
        if "Tablet" in Path(f"{path}/device/name").read_text():
            return "/dev/input/" + os.path.basename(path)
    raise AssertionError("there is no tablet")


def _there(look: Callable[[], object]) -> Callable[[], bool]:
    def there() -> bool:
        try:
            look()
        except (AssertionError, OSError):
            return False
        return True

    return there


DISKS = {"virtio": "/virtio", "nvme": "/nvme", "usb": "/usb"}
PRESENT: dict[str, Callable[[], bool]] = {
    "e1000": _there(lambda: nic("e1000")),
    "virtio_net": _there(lambda: nic("virtio_net")),
    **{f"{name} disk": _there(lambda where=where: disk(where)) for name, where in DISKS.items()},  # type: ignore[misc]
    "tablet": _there(tablet),
    "sound": lambda: bool(glob.glob("/dev/snd/controlC*")),
    "graphics": lambda: bool(glob.glob("/dev/dri/card*")),
    "watchdog": lambda: os.path.exists("/dev/watchdog0"),
}

# The calls


def _libc(name: str, *arguments: Any) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(arguments[1]))


def _mount(device: str, point: str, kind: str) -> None:
    os.makedirs(point)
    _libc("mount", device.encode(), point.encode(), kind.encode(), ctypes.c_ulong(0), None)


def _node(path: str, kind: int, major: int, minor: int) -> str:
    """Return a device file, made as udev would have made it at boot."""
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.mknod(path, kind | 0o600, os.makedev(major, minor))
    return path


def _attribute(kind: int, data: bytes) -> bytes:
    return (struct.pack("=HH", 4 + len(data), kind) + data).ljust((4 + len(data) + 3) & ~3, b"\0")


def new_link(name: str, kind: str, master: int = 0) -> None:
    """Make a network interface and set it up: RTM_NEWLINK (rtnetlink(7))."""
    info = _attribute(18, _attribute(1, kind.encode()))
    port = _attribute(10, struct.pack("=I", master)) if master else b""
    body = struct.pack("=BxHiII", 0, 0, 0, 1, 1) + _attribute(3, name.encode() + b"\0") + info + port
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asking:
        asking.send(struct.pack("=IHHII", 16 + len(body), 16, 0x405, 1, 0) + body)  # CREATE, ACK, REQUEST
        answer = asking.recv(4096)
    error = struct.unpack_from("=i", answer, 16)[0]
    if error:
        raise OSError(-error, os.strerror(-error), f"{kind} {name}")


def set_up(name: str, address: str = "") -> None:
    """Set an interface up, with an address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        if address:
            to = struct.pack("16sHH4s8x", name.encode(), socket.AF_INET, 0, socket.inet_aton(address))
            fcntl.ioctl(asking, 0x8916, to)  # SIOCSIFADDR
        fcntl.ioctl(asking, 0x8914, struct.pack("16sH22x", name.encode(), 0x1043))  # SIOCSIFFLAGS


def _dm(control: int, number: int, name: str, data: bytes = b"", targets: int = 0) -> bytes:
    """Make a call of device mapper (include/uapi/linux/dm-ioctl.h)."""
    size = 312 + len(data)
    head = struct.pack("=IIIIIIiIII", 4, 0, 0, size, 312, targets, 0, 0, 0, 0)
    buffer = bytearray((head + struct.pack("=Q", 0) + name.encode()).ljust(312, b"\0") + data)
    fcntl.ioctl(control, 3 << 30 | 312 << 16 | 0xFD << 8 | number, buffer)
    return bytes(buffer)


def new_mapping(name: str, sectors: int, target: str, parameters: str) -> str:
    """Make a device of device mapper with one target."""
    control = os.open(_node("/dev/mapper/control", 0o20000, 10, 236), os.O_RDWR)
    try:
        number = struct.unpack_from("=Q", _dm(control, 3, name), 40)[0]
        line = parameters.encode() + b"\0"
        line = line.ljust((len(line) + 7) & ~7, b"\0")
        spec = struct.pack("=QQiI16s", 0, sectors, 0, 40 + len(line), target.encode())
        _dm(control, 9, name, spec + line, 1)
        _dm(control, 6, name)  # resumed: the table is live
    finally:
        os.close(control)
    minor = (number & 0xFF) | (number >> 12 & 0xFFF00)
    return f"/dev/dm-{minor}"


# What is in use, and whether it works


class Holder:
    """Holds it all, and tries it."""

    def __init__(self) -> None:
        self.open: dict[str, Any] = {}

    def bring(self) -> None:
        """Bring everything into use that is not by being there."""
        for number, driver in enumerate(("e1000", "virtio_net")):
            set_up(nic(driver), f"10.9.{number}.1")
        for name, where in DISKS.items():
            _mount(disk(where), f"/run/disk-{name}", "vfat")
        new_link("tried0", "bridge")
        new_link("tried1", "dummy", socket.if_nametoindex("tried0"))
        new_link("tried2", "dummy")
        set_up("tried2", "10.9.9.1")
        set_up("tried0")
        new_link("tried3", "wireguard")
        new_link("tried4", "vcan")
        set_up("tried4")
        self.open["away"] = _in_new_namespace()
        api("RequestModule", name="zram")
        Path("/sys/block/zram0/disksize").write_text("1048576")
        Path("/dev/zram0").write_bytes(TEXT.ljust(4096))
        loop = stick.plug_in(TEXT)
        self.open["linear"] = new_mapping("linear", 64, "linear", f"{loop} 0")
        key = "00" * 32 + "11" * 32
        self.open["crypt"] = new_mapping("crypt", 2048, "crypt", f"aes-xts-plain64 {key} 0 /dev/zram0 0")
        Path(self.open["crypt"]).write_bytes(TEXT.ljust(4096))
        for kind, algorithm in (("hash", "rmd160"), ("skcipher", "ecb(twofish)")):
            using = socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)
            using.bind((kind, algorithm))
            if kind == "skcipher":
                using.setsockopt(279, 1, b"k" * 16)  # SOL_ALG, ALG_SET_KEY
            self.open[kind] = using
        streams = {"sctp": (socket.AF_INET, socket.IPPROTO_SCTP, ("127.0.0.1", 9991))}
        streams["vsock"] = (socket.AF_VSOCK, 0, (1, 9992))
        for name, (family, protocol, address) in streams.items():
            listening = socket.socket(family, socket.SOCK_STREAM, protocol)
            listening.bind(address)
            listening.listen()
            self.open[name] = (listening, family, protocol, address)
        tcp = socket.socket()
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")
        self.open["bbr"] = tcp
        can = [socket.socket(socket.AF_CAN, socket.SOCK_RAW, 1) for _ in range(2)]
        for end in can:
            end.bind(("tried4",))
        self.open["can"] = can

    def tries(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yield each thing with how it is tried."""
        yield "network", self._network
        for name in DISKS:
            yield f"{name} disk", lambda name=name: _file(f"/run/disk-{name}/TRIED.TXT")  # type: ignore[misc]
        yield "sound", lambda: _ioctl(glob.glob("/dev/snd/controlC*")[0], 0x81785501, 376, b"Intel")
        yield "tablet", lambda: _ioctl(tablet(), 0x81004506, 256, b"Tablet")
        yield "graphics", lambda: _version(glob.glob("/dev/dri/card*")[0])
        yield "watchdog", _watchdog
        yield "bridge", lambda: _same(os.listdir("/sys/class/net/tried0/brif"), ["tried1"])
        yield "dummy", lambda: _bound("10.9.9.1")
        yield "wireguard", lambda: _same(socket.if_nametoindex("tried3") > 0, True)
        yield "another namespace", lambda: _same(_inside(self.open["away"]), True)
        yield "zram and crypt", lambda: _device(self.open["crypt"])
        yield "loop and linear", lambda: _same(Path(self.open["linear"]).read_bytes()[3:8], b"kmodd")
        yield "hash", self._hash
        yield "cipher", self._cipher
        yield "sctp", lambda: self._stream("sctp")
        yield "vsock", lambda: self._stream("vsock")
        yield "bbr", lambda: _same(self.open["bbr"].getsockopt(6, 13, 16).rstrip(b"\0"), b"bbr")
        yield "can", self._can

    def try_all(self) -> dict[str, str]:
        """Return what does not work, and how that shows."""
        found = {}
        for name, trying in self.tries():
            try:
                trying()
            except Exception as err:  # noqa: BLE001 - that it fails is what is told
                found[name] = f"{type(err).__name__}: {err}"
        return found

    def _network(self) -> None:
        """A frame from each of the two cards, which are on one wire, reaches the other."""
        ends = []
        for driver in ("e1000", "virtio_net"):
            end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
            end.bind((nic(driver), 0x88B5))
            end.settimeout(5)
            ends.append(end)
        try:
            for one, other in (ends, ends[::-1]):
                frame = b"\xff" * 6 + b"\x02" + os.urandom(5) + b"\x88\xb5" + TEXT.ljust(46)
                one.send(frame)
                _same(other.recv(2048), frame)
        finally:
            for end in ends:
                end.close()

    def _hash(self) -> None:
        using, _ = self.open["hash"].accept()
        with using:
            using.send(b"abc")
            _same(using.recv(20).hex(), "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc")  # ISO/IEC 10118-3

    def _cipher(self) -> None:
        using, _ = self.open["skcipher"].accept()
        with using:
            using.sendmsg_afalg([b"0" * 16], op=socket.ALG_OP_ENCRYPT)
            sealed = using.recv(16)
        using, _ = self.open["skcipher"].accept()
        with using:
            using.sendmsg_afalg([sealed], op=socket.ALG_OP_DECRYPT)
            _same((using.recv(16), sealed != b"0" * 16), (b"0" * 16, True))

    def _stream(self, name: str) -> None:
        listening, family, protocol, address = self.open[name]
        with socket.socket(family, socket.SOCK_STREAM, protocol) as calling:
            calling.settimeout(10)
            calling.connect(address)
            taken, _ = listening.accept()
            with taken:
                taken.settimeout(10)
                calling.send(TEXT)
                _same(taken.recv(64), TEXT)

    def _can(self) -> None:
        sending, taking = self.open["can"]
        taking.settimeout(5)
        frame = struct.pack("=IB3x8s", 0x123, 8, b"kmodd 12")
        sending.send(frame)
        _same(taking.recv(16), frame)


def _same(got: object, wanted: object) -> None:
    assert got == wanted, f"{got!r} instead of {wanted!r}"


def _file(path: str) -> None:
    """Write a file to its disk and read it from there."""
    text = os.urandom(64)
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.write(file, text)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        _same(os.pread(file, 64, 0), text)
    finally:
        os.close(file)


def _device(path: str) -> None:
    """Write to a block device and read that from below its cache."""
    text = os.urandom(4096)
    file = os.open(path, os.O_RDWR)
    try:
        os.write(file, text)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        _same(os.pread(file, 4096, 0), text)
    finally:
        os.close(file)


def _ioctl(path: str, number: int, size: int, wanted: bytes) -> None:
    buffer = bytearray(size)
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.ioctl(file, number, buffer)
    finally:
        os.close(file)
    assert wanted in buffer, bytes(buffer)


def _version(path: str) -> None:
    """Ask a graphics driver who it is (DRM_IOCTL_VERSION)."""
    name = ctypes.create_string_buffer(64)
    buffer = bytearray(struct.pack("=iii4xQQQQQQ", 0, 0, 0, 63, ctypes.addressof(name), 0, 0, 0, 0))
    file = os.open(path, os.O_RDWR)
    try:
        fcntl.ioctl(file, 3 << 30 | len(buffer) << 16 | ord("d") << 8, buffer)
    finally:
        os.close(file)
    assert name.value.startswith(b"bochs"), name.value


def _watchdog() -> None:
    file = os.open("/dev/watchdog0", os.O_WRONLY)
    try:
        os.write(file, b".")
        os.write(file, b"V")  # it stops as it is closed
    finally:
        os.close(file)


def _bound(address: str) -> None:
    with socket.socket() as using:
        using.bind((address, 0))


def _in_new_namespace() -> int:
    """Return a network namespace that nothing keeps but this file, with an interface in it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        libc.unshare(libc.CLONE_NEWNET)
        new_link("away0", "ifb")
        os.write(writing, b".")
        time.sleep(1000)
    os.read(reading, 1)
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    os.close(reading)
    os.close(writing)
    return namespace


def _inside(namespace: int) -> bool:
    pid = os.fork()
    if not pid:
        try:
            libc.setns(namespace, libc.CLONE_NEWNET)
            os._exit(0 if socket.if_nametoindex("away0") else 1)
        finally:
            os._exit(2)
    return os.waitpid(pid, 0)[1] == 0


# From outside


def hold() -> None:
    """Bring everything into use, by a process that stays."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(HOLDER)
    listening.listen()
    if os.fork():
        return
    os.setsid()
    for fd in range(256):
        if fd != listening.fileno():
            with contextlib.suppress(OSError):
                os.close(fd)
    for _ in range(3):
        os.open("/dev/null", os.O_RDWR)
    holder = Holder()
    while True:
        asking, _ = listening.accept()
        with asking:
            try:
                answer: object = getattr(holder, asking.recv(64).decode())()
            except Exception as err:  # noqa: BLE001 - whoever asks is told
                answer = {"": f"{type(err).__name__}: {err}"}
            asking.send(json.dumps(answer).encode())


def told(what: str) -> Any:
    """Have the holder do something; what it says."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
        asking.settimeout(60)
        asking.connect(HOLDER)
        asking.send(what.encode())
        return json.loads(asking.recv(1 << 16))


IDLE = (
    *("fs-minix", "fs-udf", "crypto-blowfish", "net-pf-33", "can-proto-2", "tcp_vegas", "dm-snapshot"),
    *("rtnl-link-vxlan", "rtnl-link-ipip", "sch_sfq", "nbd", "xt_length", "nls_koi8_r"),
)
"""What nobody uses."""


def mark() -> list[str]:
    """Bring in what nobody uses, and have all be autoclean's that was not there as the daemon came."""
    for name in IDLE:
        answer = api("RequestModule", name=name)
        assert answer.get("result", {}).get("status") == 0, (name, answer)
    before = set(Path(BEFORE).read_text().split())
    answer = api("MarkAutoclean", names=[name for name in live() if name not in before])
    assert "error" not in answer, answer
    return sorted(answer["marked"])


def built_in() -> list[str]:
    """Return the modules that are part of the kernel."""
    lines = Path(f"/lib/modules/{os.uname().release}/modules.builtin").read_text().splitlines()
    return [Path(line).stem.replace("-", "_") for line in lines]


def passes(count: int) -> dict[str, Any]:
    """Make so many passes, with a delay of a second, while everything is tried on and on.

    Returns what was unloaded, what did not work, and what is left, each with its reason.
    """
    tune(unload_delay=1)
    unloaded: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    broken: list[dict[str, str]] = []
    for _ in range(count):
        made = api("Autoclean", now=True)["result"]
        unloaded += made["unloaded"]
        failed += made["failed"]
        if found := told("try_all"):
            broken.append(found)
    left = {one["module"]: one["reason"] for one in api("Autoclean")["result"]["modules"]}
    went = {event["module"] for event in events(kind="unload")}
    return {"unloaded": unloaded, "failed": failed, "broken": broken, "left": left, "went": sorted(went)}
