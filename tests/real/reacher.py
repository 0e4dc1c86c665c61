"""Run in a guest as somebody: makes the kernel ask for one name of each family, as far as it lets us."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import socket
import struct
import sys
from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)

NODES = "/dev/reach"
CLONE_NEWUSER_NEWNS_NEWNET = 0x10000000 | 0x00020000 | 0x40000000
NLM_REQUEST_ACK, NLM_CREATE = 0x5, 0x400


# Netlink


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def text(kind: int, what: str) -> bytes:
    return attribute(kind, what.encode() + b"\0")


def message(kind: int, body: bytes, flags: int = NLM_REQUEST_ACK, sequence: int = 1) -> bytes:
    return struct.pack("IHHII", 16 + len(body), kind, flags, sequence, 0) + body


def netlink(protocol: int, *messages: bytes) -> None:
    """Send messages as one; wait for the kernel to have dealt with them, which it has when send() returns."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
        sock.send(b"".join(messages))


def route(kind: int, body: bytes) -> None:
    netlink(0, message(kind, body, NLM_REQUEST_ACK | NLM_CREATE))


def traffic(
    kind: int, what: str, parent: int = 0xFFFFFFFF, info: int = 0, handle: int = 0, options: bytes = b""
) -> None:
    """Traffic control on lo: struct tcmsg, TCA_KIND."""
    route(kind, struct.pack("BBHiIII", 0, 0, 0, 1, handle, parent, info) + text(1, what) + options)


def classifier(kind: str, options: bytes = b"") -> None:
    """A classifier on what comes in at lo; who asked before has made the queue already."""
    traffic(36, "ingress", 0xFFFFFFF1, handle=0xFFFF0000)
    traffic(44, kind, 0xFFFF0000, 0x10008, options=attribute(2, options))


def generic(family: str) -> None:
    netlink(16, message(16, b"\x03\x01\x00\x00" + text(2, family)))


def family_number(name: str) -> int:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16) as sock:
        sock.send(message(16, b"\x03\x01\x00\x00" + text(2, name)))
        answer = sock.recv(65536)
    at = 20
    while at < len(answer):
        length, kind = struct.unpack_from("HH", answer, at)
        if kind == 1:
            return int(struct.unpack_from("H", answer, at + 4)[0])
        at += length + -length % 4
    raise OSError(errno.ENOENT, name)


def netfilter(*messages: tuple[int, bytes]) -> None:
    """Send messages of nf_tables as one batch; struct nfgenmsg for IPv4."""
    batch = struct.pack("BBH", 0, 0, socket.htons(10))
    head = struct.pack("BBH", 2, 0, 0)
    parts = [message(16, batch, 1, 1)]
    parts += [
        message(10 << 8 | kind, head + body, NLM_REQUEST_ACK | NLM_CREATE, 2 + number)
        for number, (kind, body) in enumerate(messages)
    ]
    parts.append(message(17, batch, 1, 9))
    netlink(12, *parts)


def rule_of(expression: str) -> None:
    """nf_tables: a table, a chain and a rule with one expression."""
    one = attribute(0x8001, text(1, expression))
    netfilter(
        (0, text(1, "t")),
        (3, text(1, "t") + text(3, "c")),
        (6, text(1, "t") + text(2, "c") + attribute(0x8004, one)),
    )


def ip_set(kind: str) -> None:
    """IPSET_CMD_CREATE, protocol 7, a set of a type."""
    body = struct.pack("BBH", 2, 0, 0) + attribute(1, b"\x07") + text(2, "s") + text(3, kind)
    body += attribute(4, b"\0") + attribute(5, b"\x02") + attribute(0x8007, b"")
    netlink(12, message(6 << 8 | 2, body, NLM_REQUEST_ACK | NLM_CREATE))


def ipsec(protocol: int, family: int) -> None:
    """XFRM_MSG_NEWSA with struct xfrm_usersa_info, and an algorithm."""
    address = bytes([127, 0, 0, 1]).ljust(16, b"\0")
    selector = address + address + struct.pack("HHHHHBBBxxxiI", 0, 0, 0, 0, family, 0, 0, 0, 0, 0)
    identity = address + struct.pack(">I", 0x100) + struct.pack("Bxxx", protocol)
    lifetime = struct.pack("QQQQ", *[2**64 - 1] * 4) + bytes(32) + bytes(32)
    rest = bytes(12) + struct.pack("IIHBBBxxxxxxx", 0, 0, family, 0, 0, 0)
    body = selector + identity + address + lifetime + rest
    algorithm = b"digest_null".ljust(64, b"\0") + struct.pack("I", 0)
    cipher = b"cipher_null".ljust(64, b"\0") + struct.pack("I", 0)
    netlink(6, message(0x10, body + attribute(1, algorithm) + attribute(2, cipher)))


def l2tp(pseudowire: int) -> None:
    """A tunnel between two sockets of ours, then a session of a type in it."""
    family = family_number("l2tp")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.connect(("127.0.0.1", 9))
        tunnel = b"\x01\x01\0\0" + attribute(9, struct.pack("I", 7)) + attribute(10, struct.pack("I", 7))
        tunnel += attribute(7, b"\x03") + attribute(2, struct.pack("H", 0))
        tunnel += attribute(23, struct.pack("I", sock.fileno()))
        session = b"\x05\x01\0\0" + attribute(9, struct.pack("I", 7)) + attribute(11, struct.pack("I", 1))
        session += attribute(12, struct.pack("I", 1)) + attribute(1, struct.pack("H", pseudowire))
        netlink(16, message(family, tunnel), message(family, session))


# System calls


def sock(family: int, kind: int = socket.SOCK_RAW, protocol: int = 0) -> None:
    socket.socket(family, kind, protocol).close()


def algorithm(kind: str, name: str) -> None:
    with socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET) as alg:
        alg.bind((kind, name))


def device_ioctl(number: int, argument: bytes, family: int = socket.AF_INET) -> None:
    kind = socket.SOCK_DGRAM
    with socket.socket(family, kind) as inet:
        fcntl.ioctl(inet, number, argument)


def get_option(level: int, option: int, argument: bytes) -> None:
    """A getsockopt() that reads its buffer first."""
    family = socket.AF_INET6 if level == socket.IPPROTO_IPV6 else socket.AF_INET
    # Packet filters look at the options of raw sockets alone.
    buffer = ctypes.create_string_buffer(argument, max(len(argument), 1024))
    length = ctypes.c_uint(len(argument))
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        libc.getsockopt(raw.fileno(), level, option, buffer, ctypes.byref(length))


def set_option(level: int, option: int, argument: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
        tcp.setsockopt(level, option, argument)


def line_discipline(number: int) -> None:
    ours, theirs = os.openpty()
    try:
        fcntl.ioctl(theirs, 0x5423, struct.pack("i", number))
    finally:
        os.close(ours)
        os.close(theirs)


def execute(path: str) -> None:
    pid = os.fork()
    if not pid:
        with contextlib.suppress(OSError):
            os.execv(path, [path])
        os._exit(1)
    os.waitpid(pid, 0)


def node(name: str) -> None:
    os.close(os.open(f"{NODES}/{name}", os.O_RDWR))


def mount(kind: str) -> None:
    libc.mount(b"none", b"/mnt", kind.encode(), 0, None)


def reliable(transport: int) -> None:
    """RDS: SO_RDS_TRANSPORT."""
    with socket.socket(21, socket.SOCK_SEQPACKET) as rds:
        rds.setsockopt(276, 8, struct.pack("i", transport))


def virtual_service(scheduler: str) -> None:
    """IPVS: IP_VS_SO_SET_ADD with struct ip_vs_service_user."""
    service = struct.pack("=HxxIHxxI16sIII", 6, 0x0100007F, 0x5000, 0, scheduler.encode(), 0, 0, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.setsockopt(socket.IPPROTO_IP, 1154, service)


def name32(name: str, size: int = 32) -> bytes:
    return name.encode().ljust(size, b"\0")


TRIGGERS: dict[str, Callable[[], None]] = {
    "net-pf-7": lambda: sock(7),
    "net-pf-2-proto-250": lambda: sock(socket.AF_INET, socket.SOCK_SEQPACKET, 250),
    "net-pf-10-proto-250": lambda: sock(socket.AF_INET6, socket.SOCK_SEQPACKET, 250),
    "net-pf-16-proto-22": lambda: sock(socket.AF_NETLINK, protocol=22),
    "net-pf-24-proto-1": lambda: sock(24, socket.SOCK_DGRAM, 1),
    "net-pf-35-proto-9": lambda: sock(35, socket.SOCK_DGRAM, 9),
    "net-pf-16-proto-16-family-nosuch": lambda: generic("nosuch"),
    "net-pf-16-proto-4-type-35": lambda: netlink(4, message(20, b"\x23" + bytes(71))),
    "net-pf-16-proto-4-type-2-1": lambda: netlink(4, message(20, b"\x02\x01" + bytes(70))),
    "bt-proto-7": lambda: sock(socket.AF_BLUETOOTH, protocol=7),
    "can-proto-3": lambda: sock(socket.AF_CAN, socket.SOCK_DGRAM, 3),
    "algif-nosuch": lambda: algorithm("nosuch", "sha256"),
    "crypto-nosuch": lambda: algorithm("hash", "nosuch"),
    "rdma-netlink-subsys-2": lambda: netlink(20, message(2 << 10 | 1, b"")),
    "crypto-user": lambda: algorithm("hash", "user"),
    "rds_tcp": lambda: reliable(2),
    "mpoa": lambda: device_ioctl(0x61D8, bytes(64), 8),
    "lec": lambda: device_ioctl(0x61D0, bytes(64), 8),
    "clip": lambda: device_ioctl(0x61E1, bytes(64), 8),
    "br2684": lambda: device_ioctl(0x400261F2, struct.pack("i", 2).ljust(64, b"\0"), 8),
    "pppoatm": lambda: device_ioctl(0x400261F2, struct.pack("i", 1).ljust(64, b"\0"), 8),
    "atm-device-0": lambda: device_ioctl(0x61D8, bytes(64), 8),
    "bridge": lambda: device_ioctl(0x8940, struct.pack("LLLL", 0, 0, 0, 0)),
    "8021q": lambda: device_ioctl(0x8982, bytes(64)),
    "tty-ldisc-29": lambda: line_discipline(29),
    "binfmt-0403": lambda: execute(f"{NODES}/program"),
    "char-major-10-200": lambda: node("tun"),
    "char-major-116-1": lambda: node("seq"),
    "char-major-10-237": lambda: node("loop-control"),
    "char-major-10-203": lambda: node("cuse"),
    "block-major-7-99": lambda: node("loop99"),
    "fs-nosuch": lambda: mount("nosuch"),
    "rtnl-link-nosuch": lambda: route(16, bytes(16) + attribute(18, text(1, "nosuch"))),
    "rtnl-lwt-MPLS": lambda: route(
        24,
        struct.pack("BBBBBBBBI", 2, 32, 0, 0, 254, 4, 0, 1, 0)
        + attribute(1, bytes([10, 0, 0, 1]))
        + attribute(4, struct.pack("I", 1))
        + attribute(21, struct.pack("H", 1))
        + attribute(22, attribute(1, b"\0\0\x01\0")),
    ),
    "sch_nosuch": lambda: traffic(36, "nosuch"),
    "cls_nosuch": lambda: classifier("nosuch"),
    # An action of a classifier; one of its own takes CAP_NET_ADMIN in the initial user namespace.
    "act_nosuch": lambda: classifier("matchall", attribute(2, attribute(1, text(1, "nosuch")))),
    "ematch-kind-999": lambda: classifier(
        "basic",
        attribute(
            2,
            attribute(1, struct.pack("HH", 1, 0))
            + attribute(2, attribute(1, struct.pack("HHHH", 0, 999, 0, 0))),
        ),
    ),
    "nfnetlink-subsys-5": lambda: netlink(12, message(5 << 8, struct.pack("BBH", 2, 0, 0))),
    "nft-chain-2-nosuch": lambda: netfilter(
        (0, text(1, "t")),
        (
            3,
            text(1, "t")
            + text(3, "c")
            + text(7, "nosuch")
            + attribute(0x8004, attribute(1, struct.pack(">I", 0)) + attribute(2, struct.pack(">I", 0))),
        ),
    ),
    "nft-expr-2-nosuch": lambda: rule_of("nosuch"),
    "ip_set_nosuch": lambda: ip_set("nosuch"),
    "ipt_nosuch": lambda: get_option(socket.IPPROTO_IP, 66, name32("nosuch", 29) + b"\0"),
    "ip6t_nosuch": lambda: get_option(socket.IPPROTO_IPV6, 68, name32("nosuch", 29) + b"\0"),
    "arpt_nosuch": lambda: get_option(socket.IPPROTO_IP, 99, name32("nosuch", 29) + b"\0"),
    "iptable_nosuch": lambda: get_option(socket.IPPROTO_IP, 64, name32("nosuch") + bytes(52)),
    "ip6table_nosuch": lambda: get_option(socket.IPPROTO_IPV6, 64, name32("nosuch") + bytes(52)),
    "arptable_nosuch": lambda: get_option(socket.IPPROTO_IP, 96, name32("nosuch") + bytes(36)),
    "ebtable_nosuch": lambda: get_option(socket.IPPROTO_IP, 128, name32("nosuch") + bytes(88)),
    "ip_vs_nosuch": lambda: virtual_service("nosuch"),
    "xfrm-type-2-50": lambda: ipsec(50, 2),
    "net-l2tp-type-5": lambda: l2tp(5),
    "tcp-ulp-nosuch": lambda: set_option(socket.IPPROTO_TCP, 31, b"nosuch"),
    "tcp_nosuch": lambda: set_option(socket.IPPROTO_TCP, 13, b"nosuch"),
    "netdev-nosuch0": lambda: device_ioctl(0x8913, name32("nosuch0", 40)),
    "nosuch1": lambda: device_ioctl(0x8913, name32("nosuch1", 40)),
}
"""What makes the kernel ask for each name, if it does."""


def main() -> None:
    order = json.loads(sys.argv[1])
    uid = order["uid"]
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    if order["unshare"]:
        libc.prctl(4, 1)  # PR_SET_DUMPABLE, which setuid() has taken: else /proc/self is root's
        if libc.unshare(CLONE_NEWUSER_NEWNS_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        for name, line in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {uid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(line)
        # lo has to be up, as it is in the initial namespace.
        route(16, struct.pack("BxHiII", 0, 0, 1, 1, 1))
    failed = {}
    for name, work in TRIGGERS.items():
        try:
            work()
        except OSError as err:
            failed[name] = errno.errorcode.get(err.errno or 0, str(err))
    print(json.dumps(failed))


main()
