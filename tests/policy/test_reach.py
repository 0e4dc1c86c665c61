"""Who can make the kernel ask for a name, and for which modules of real trees."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.policy.reach import Reach, reach, reachable_aliases
from support.shipped import indexes

NAMES = {
    Reach.ANYONE: (
        "net-pf-33 net-pf-2-proto-132 net-pf-2-proto-132-type-1 net-pf-16-proto-12 net-pf-24-proto-1 bt-proto-3 "
        "net-pf-16-proto-16-family-wireguard net-pf-16-proto-4-type-17 net-pf-16-proto-4-type-2-132 can-proto-2 "
        "rdma-netlink-subsys-5 rdma-client-issm algif-aead crypto-xts(aes) crypto-user crypto-user-all cryptomgr "
        "8021q bridge tty-ldisc-13 binfmt-464c binfmt-0403 char-major-10-200 char-major-10-229 char-major-116-1 "
        "snd-seq-client-14 snd-timer-3 snd-seq mpoa atm-device-0 rds_tcp bpfilter crypto_user algif_hash net_pf_9"
    ),
    Reach.USER_NAMESPACE: (
        "fs-ext4 fs-fuse.sshfs nls_cp437 rtnl-link-vxlan rtnl-lwt-MPLS sch_htb net-sch-htb cls_u32 net-cls-u32 "
        "act_gact net-act-gact ematch-kind-1 ife-meta-skbmark nfnetlink-subsys-10 nft-chain-2-nat nft-expr-masq "
        "nft-expr-2-fib nft-obj-5 nf-flowtable-2 nf-logger-2-0 nfct-helper-ftp nf-nat nf_nat_ftp ipt_REJECT "
        "ip6t_REJECT arpt_mangle ebt_arp iptable_nat ip6table_nat arptable_filter ebtable_nat ip_set_hash_ip "
        "ip_vs_rr xfrm-type-2-50 xfrm-offload-10-50 net-l2tp-type-5 vport-type-4 ts_kmp br_netfilter"
    ),
    Reach.PRIVILEGED: (
        "tcp_bbr tcp-ulp-tls netdev-sit0 dccp xfs pcspkr net-pf-35-proto-2 char-major-10-237 char-major-108-0 "
        "block-major-7-0 block-major-11 dm-crypt md-level-5 md-level--1 9p-virtio quota_v2 team-mode-random "
        "rdma-link-rxe bfq-iosched zpool-z3fold cpufreq_powersave usbfunc:ffs nvmet-transport-254 ppp-compress-18 "
        "nfs-layouttype4-1 rpc-auth-gss-krb5 sound-slot-0 binfmt_misc"
    ),
    None: (
        "pci:v00008086d0000100Esv* usb:v1D6Bp0002d0510dc09dsc00dp01ic09isc00in00 cpu:type:x86 platform:i8042 "
        "symbol:printk nf_conntrack_netlink snd-hda-codec-atihdmi ip_conntrack_amanda"
    ),
}


@pytest.mark.parametrize(
    ("name", "who"), [(name, who) for who, names in NAMES.items() for name in names.split()]
)
def test_who_can_have_a_name_asked_for(name: str, who: Reach | None) -> None:
    assert reach(name) is who


def test_names_that_request_module_refuses_have_no_reach() -> None:
    assert reach("") is None
    assert reach("crypto-" + "x" * 48) is Reach.ANYONE
    assert reach("crypto-" + "x" * 49) is None
    assert reach("x" * 15) is Reach.PRIVILEGED
    assert reach("x" * 16) is None


def test_who_is_more_can_do_what_takes_less() -> None:
    for one, who in enumerate(Reach):
        for other, what in enumerate(Reach):
            assert who.covers(what) is (one >= other)


@given(st.text(max_size=60))
def test_any_text_has_a_reach_or_none_and_dashes_do_not_count(name: str) -> None:
    assert reach(name) is reach(name.replace("-", "_"))


def test_of_a_distributions_modules_hundreds_are_anybodys() -> None:
    index = indexes()[0]
    found = list(reachable_aliases(index))
    assert all(module in index and reach(name) is who for name, module, who in found)
    assert not [name for name, _module, _who in found if ":" in name or "*" in name]
    least: dict[str, Reach] = {}
    for _name, module, who in found:
        if module not in least or least[module].covers(who):
            least[module] = who
    count = {who: sum(1 for other in least.values() if other is who) for who in Reach}
    assert count[Reach.ANYONE] > 150
    assert count[Reach.USER_NAMESPACE] > 400
    # What udev loads for its device: names too long for an interface.
    assert len(least) < len(list(index.modules()))
    for module, who in {
        "nf_tables": Reach.USER_NAMESPACE,
        "esp4": Reach.USER_NAMESPACE,
        "cifs": Reach.USER_NAMESPACE,
        "rxrpc": Reach.ANYONE,
        "algif_aead": Reach.ANYONE,
        "vsock_loopback": Reach.ANYONE,
        "crypto_user": Reach.ANYONE,
        "n_hdlc": Reach.ANYONE,
        "xt_conntrack": Reach.USER_NAMESPACE,
        "tcp_bbr": Reach.PRIVILEGED,
        "e1000e": Reach.PRIVILEGED,
    }.items():
        assert least[module] is who, module


@pytest.mark.parametrize("number", range(3))
def test_every_alias_without_a_colon_and_a_wildcard_is_known(number: int) -> None:
    """What no call is known for: names of algorithms and of the past, and what drivers ask for."""
    index = indexes()[number]
    ours = {name for name, _module, _who in reachable_aliases(index)}
    families = (
        "net_",
        "nft_",
        "nf_",
        "ipt_",
        "fs_",
        "rtnl_",
        "tty_",
        "crypto_",
        "char_major_",
        "block_major_",
        "xfrm_",
    )
    left = {
        alias
        for alias, _module in index.aliases()
        if alias.startswith(families) and "*" not in alias and alias not in ours
    }
    assert left == set()


def test_it_takes_no_time() -> None:
    index = indexes()[0]
    index.load_all()
    start = time.process_time()
    assert sum(1 for _each in reachable_aliases(index)) > 4000
    # 30 ms here.
    assert time.process_time() - start < 1
