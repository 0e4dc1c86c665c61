"""Who can make the kernel ask for a name: knowledge of its calls of request_module(), Linux 5.3 to 6.12.

From the kernel's sources, and where `tests/real/test_reach.py` has a name of that kind, tried on a real one.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator

from kmodd.tree.glob import is_literal
from kmodd.tree.index import Index

_NAME_MAX = 55
"""Characters: request_module() refuses more (MODULE_NAME_LEN)."""
_INTERFACE_MAX = 15
"""Characters of the name of a network interface (IFNAMSIZ)."""


class Reach(enum.Enum):
    """The least that one has to be to make the kernel ask for a name."""

    ANYONE = "anyone"
    """An ordinary user, by a system call, or a device node of everybody's or of who sits at the machine."""
    USER_NAMESPACE = "user namespace"
    """Root of a user namespace, with network and mount namespaces of its own. Where unprivileged user
    namespaces are allowed, as most distributions have it, that is any user who makes one."""
    PRIVILEGED = "privileged"
    """Who has capabilities in the initial user namespace, or a device node of root's."""

    def covers(self, other: Reach) -> bool:
        """Return whether who is this can do what takes that."""
        return _ORDER[other] <= _ORDER[self]


_ORDER = {Reach.ANYONE: 0, Reach.USER_NAMESPACE: 1, Reach.PRIVILEGED: 2}

# As the kernel has them in its calls: %d a number, %s anything, %x four hexadecimal digits.

_ANYONE = (
    # socket(2). The family is asked for before anything is checked (__sock_create), and so is the protocol
    # (inet_create, netlink_create, pppox_create, bt_sock_create, can_create).
    "net-pf-%d",
    "net-pf-%d-proto-%d",
    "net-pf-%d-proto-%d-type-%d",
    "bt-proto-%d",
    "can-proto-%d",
    # Looking a family of generic netlink up by its name; sock_diag; RDMA's netlink.
    "net-pf-16-proto-16-family-%s",
    "net-pf-16-proto-4-type-%d-%d",
    "rdma-netlink-subsys-%d",
    "rdma-client-%s",
    # bind(2) of an AF_ALG socket, and add_key(2) and keyctl(2) with the name of a cipher. Both are the user's
    # own words: crypto-user is the module crypto_user.
    "algif-%s",
    "crypto-%s",
    "cryptomgr",
    # ioctl(2) and setsockopt(2) of sockets that anybody can have.
    "bridge",
    "8021q",
    "atm-device-%d",
    *("br2684", "clip", "lec", "mpoa", "pppoatm"),
    *("rds_rdma", "rds_tcp"),
    "bpfilter",  # up to 6.7
    # TIOCSETD on a terminal, unless the sysctl dev.tty.ldisc_autoload is 0.
    "tty-ldisc-%d",
    # execve(2) of a file that begins with something unprintable: its third and fourth byte.
    "binfmt-%x",
    # Opening a device node that is there before its module (modules.devname) and that udev's rules of systemd
    # have for everybody: net/tun, fuse; vhost-net and vhost-vsock, with the mode of kvm.
    "char-major-10-200",
    "char-major-10-229",
    "char-major-10-238",
    "char-major-10-241",
    # Those of sound are for who sits at the machine: snd/seq, snd/timer. What they ask for then.
    "char-major-116",
    "char-major-116-1",
    "char-major-116-33",
    *("snd-card-%d", "snd-seq", "snd-seq-client-%d", "snd-timer", "snd-timer-%d"),
)
_USER_NAMESPACE = (
    # mount(2) and fsopen(2): get_fs_type() comes before it is looked whether a user namespace may mount that.
    "fs-%s",
    # Options of a file system that are read before the mount itself: udf, from 6.9 on (load_nls).
    "nls_%s",
    # rtnetlink: devices, tunnels of routes, traffic control. Up to 6.7 without net-.
    "rtnl-link-%s",
    "rtnl-lwt-%s",
    *("sch_%s", "net-sch-%s", "cls_%s", "net-cls-%s", "act_%s", "net-act-%s"),
    "ematch-kind-%d",
    "ife-meta-%s",
    "ts_%s",
    # The packet filter, in all its generations.
    "nfnetlink-subsys-%d",
    "nft-chain-%d-%s",
    "nft-expr-%s",
    "nft-obj-%d",
    "nf-flowtable-%d",
    "nf-logger-%d-%d",
    "nfct-helper-%s",
    *("nf-nat", "nf-nat-%d", "nf_nat_%s", "nf_conntrack_bridge", "ip_conntrack_netlink"),
    *("nf_log_syslog", "nfnetlink_log", "br_netfilter"),  # xt_LOG, xt_NFLOG and ebt_nflog, xt_physdev
    *("ipt_%s", "ip6t_%s", "arpt_%s", "ebt_%s"),
    *("iptable_%s", "ip6table_%s", "arptable_%s", "ebtable_%s"),
    "ip_set_%s",
    "ip_vs_%s",
    # IPsec, L2TP, Open vSwitch.
    "xfrm-type-%d-%d",
    "xfrm-offload-%d-%d",
    "net-l2tp-type-%d",
    "vport-type-%d",
)
_PRIVILEGED = (
    # CAP_NET_ADMIN in the initial user namespace: setsockopt(2), ioctl(2) on an interface, netlink.
    "tcp_%s",
    "tcp-ulp-%s",
    "netdev-%s",
    "team-mode-%s",
    "rdma-link-%s",
    # CAP_SYS_ADMIN.
    *("quota_v1", "quota_v2"),
    # Options of file systems that only root mounts, and settings in sysfs, procfs and configfs.
    *(
        "9p-%s",
        "nfsv%d",
        "nfs-layouttype4-%d",
        "rpc-auth-%d",
        "rpc-auth-gss-%s",
        "rpc%s",
        "svc%s",
        "ocfs2_stack_%s",
    ),
    *("%s-iosched", "zpool-%s", "cpufreq_%s", "governor_%s", "scsi_dh_%s"),
    *("nvme-%s", "nvmet-transport-%d", "usbfunc:%s", "ledtrig:%s"),
    # Device nodes of root's, or of groups that come close.
    "char-major-%d",
    "char-major-%d-%d",
    "block-major-%d",
    "block-major-%d-%d",
    *("dm-%s", "md-%s", "ppp-compress-%d"),
    *("sound-slot-%d", "sound-service-%d-%d"),
)
_NOT_ANYONE = ("net-pf-35-proto-%d",)
"""Phonet looks for CAP_SYS_ADMIN first (pn_socket_create)."""


def _compiled(formats: Iterable[str]) -> re.Pattern[str]:
    """Return what matches a name, with `_` for `-`, that one of the kernel's formats gives."""
    parts = [re.escape(each.replace("-", "_")) for each in formats]
    parts = [part.replace("%d", r"_?\d+").replace("%s", ".+").replace("%x", "[0-9a-f]{4}") for part in parts]
    return re.compile("|".join(parts), re.DOTALL)


_WHO = (
    (_compiled(_NOT_ANYONE), Reach.PRIVILEGED),
    (_compiled(_ANYONE), Reach.ANYONE),
    (_compiled(_USER_NAMESPACE), Reach.USER_NAMESPACE),
    (_compiled(_PRIVILEGED), Reach.PRIVILEGED),
)


def reach(name: str) -> Reach | None:
    """Return the least that one has to be to make the kernel ask for `name`, given with `-` or `_`.

    None: only the kernel's own drivers ask for it, or nobody, as for aliases of devices, which udev loads. A
    module's own name has its reach as well: of crypto_user it is that of crypto-user.
    """
    plain = name.replace("-", "_")
    if not 0 < len(plain) <= _NAME_MAX:
        return None
    for pattern, who in _WHO:
        if pattern.fullmatch(plain):
            return who
    # dev_load() with CAP_SYS_MODULE: any name that could be an interface's. It is cut at a colon.
    return Reach.PRIVILEGED if len(plain) <= _INTERFACE_MAX and ":" not in plain else None


def reachable_aliases(index: Index) -> Iterator[tuple[str, str, Reach]]:
    """Yield each name that somebody can make the kernel ask for, its module, and who that is.

    Names are those of modules and their aliases without wildcards, with `_` for `-`. Where several modules
    have one alias it comes as often. Modules without a file, built in, are left out.
    """
    for module in index.modules():
        who = reach(module)
        if who is not None:
            yield module, module, who
    for alias, module in index.aliases():
        # Most are of devices: `pci:v*d*`.
        if ":" not in alias and is_literal(alias) and alias != module:
            who = reach(alias)
            if who is not None:
                yield alias, module, who
