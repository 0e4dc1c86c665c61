"""The groups hold what they say, in real trees of modules."""

from __future__ import annotations

import pytest

from kmodd.policy import groups
from kmodd.policy.groups import BadGroups, parse
from kmodd.tree.glob import is_literal, matches
from support.shipped import ELSEWHERE, indexes, modules, with_alias

GROUPS = groups.load()


def holds(group: str) -> set[str]:
    return {module for module in modules() if GROUPS[group].holds(module)}


def test_the_groups_that_the_manual_promises_are_there() -> None:
    assert {"net-protocols", "filesystems", "crypto-user-api", "never-on-servers"} <= GROUPS.keys()


def test_names_without_wildcards_are_installed_here_or_somewhere() -> None:
    literal = {pattern for group in GROUPS.values() for pattern in group.patterns if is_literal(pattern)}
    assert literal - modules() == ELSEWHERE.keys()


UNMATCHED = {
    "*_kunit": "developers' kernels",
    "gb_*": "phones",
    "hns_roce*": "Huawei's servers",
    "microread*": "ARM boards",
    "nci_*": "ARM boards",
    "nfcmrvl*": "ARM boards",
    "s3fwrn5*": "ARM boards",
    "st21nfca*": "ARM boards",
}


def test_patterns_match_something_here_or_somewhere() -> None:
    wild = {pattern for group in GROUPS.values() for pattern in group.patterns if not is_literal(pattern)}
    unmatched = {pattern for pattern in wild if not any(matches(pattern, name) for name in modules())}
    assert unmatched == UNMATCHED.keys()


def test_every_file_system_is_in_filesystems() -> None:
    # fs/binfmt_misc.ko is a file system in form only; it is in @binary-formats.
    registering = with_alias("fs_", below="/kernel/fs/") - {"binfmt_misc"}
    assert len(registering) > 50
    assert registering <= holds("filesystems")
    of_drivers = {"gadgetfs", "ib_qib", "ibmasm", "sunrpc", "usb_f_fs", "xenfs"}
    assert with_alias("fs_") - holds("filesystems") == of_drivers | {"binfmt_misc"}


ORDINARY_PROTOCOLS = {
    "ipv6": "the internet",
    "cfg80211": "wireless networks: asked for by what shows them",
    "cn": "the connector: process events",
    "drop_monitor": "what drops packets, for administrators",
    # In groups of their own.
    "af_alg": "@crypto-user-api",
    "crypto_user": "@crypto-user-api",
    "gtp": "@virtual-devices",
    "macsec": "@virtual-devices",
    "openvswitch": "@virtual-devices",
    "wireguard": "@virtual-devices",
    "ib_core": "@rdma",
    "ip_vs": "@netfilter",
    "nfnetlink": "@netfilter",
    "nbd": "@network-storage",
    "scsi_transport_iscsi": "@network-storage",
    "xfrm_user": "@ipsec",
    "af_packet_diag": "@sock-diag",
    "inet_diag": "@sock-diag",
    "netlink_diag": "@sock-diag",
    "raw_diag": "@sock-diag",
    "tcp_diag": "@sock-diag",
    "udp_diag": "@sock-diag",
    "unix_diag": "@sock-diag",
    "xsk_diag": "@sock-diag",
}


def test_every_protocol_is_in_net_protocols_or_ordinary() -> None:
    assert with_alias("net_pf_") - holds("net-protocols") == ORDINARY_PROTOCOLS.keys()
    for module, where in ORDINARY_PROTOCOLS.items():
        if where[0] == "@":
            assert GROUPS[where[1:]].holds(module), module


@pytest.mark.parametrize(
    ("prefix", "group", "others"),
    [
        ("net_pf_16_proto_4_type_", "sock-diag", set()),
        ("bt_proto_", "bluetooth", set()),
        ("can_proto_", "can", set()),
        ("tty_ldisc_", "line-disciplines", set()),
        ("nft_", "netfilter", set()),
        ("nf_", "netfilter", set()),
        ("nfnetlink_subsys_", "netfilter", set()),
        ("ipt_", "netfilter", set()),
        ("net_sch_", "net-schedulers", set()),
        ("net_cls_", "net-schedulers", set()),
        ("net_act_", "net-schedulers", set()),
        ("ematch_kind_", "net-schedulers", set()),
        ("xfrm_type_", "ipsec", set()),
        ("rdma_", "rdma", set()),
        ("snd_", "sound", set()),
        # Those two are of adapters that one can touch.
        ("rtnl_link_", "virtual-devices", {"can_dev", "ib_ipoib"}),
    ],
)
def test_what_is_asked_for_by_one_kind_of_name_is_in_its_group(
    prefix: str, group: str, others: set[str]
) -> None:
    found = with_alias(prefix)
    assert found
    assert found - holds(group) == others


def test_what_af_alg_asks_for() -> None:
    assert {module for module in modules() if module.startswith("algif_")} <= holds("crypto-user-api")
    assert {"af_alg", "crypto_user"} <= holds("crypto-user-api")


@pytest.mark.parametrize(
    ("folder", "group", "others"),
    [
        ("/kernel/net/sched/", "net-schedulers", set()),
        ("/kernel/net/netfilter/", "netfilter", set()),
        ("/kernel/net/ipv4/netfilter/", "netfilter", set()),
        ("/kernel/net/ipv6/netfilter/", "netfilter", set()),
        ("/kernel/net/bridge/netfilter/", "netfilter", set()),
        ("/kernel/net/bluetooth/", "bluetooth", set()),
        ("/kernel/drivers/bluetooth/", "bluetooth", set()),
        ("/kernel/drivers/firewire/", "firewire", set()),
        ("/kernel/drivers/usb/gadget/", "usb-gadgets", set()),
        ("/kernel/drivers/input/joystick/", "joysticks", set()),
        ("/kernel/drivers/staging/", "staging", {"qlge"}),
        ("/kernel/net/nfc/", "nfc", set()),
        ("/kernel/drivers/nfc/", "nfc", set()),
        ("/kernel/fs/nls/", "character-sets", set()),
        ("/kernel/net/ax25/", "amateur-radio", set()),
        ("/kernel/drivers/net/hamradio/", "amateur-radio", set()),
        ("/kernel/drivers/infiniband/", "rdma", set()),
        # Codecs and such are named as their makers liked.
        ("/kernel/sound/", "sound", {"designware_i2s"}),
    ],
)
def test_what_one_folder_of_the_kernel_has_is_in_its_group(folder: str, group: str, others: set[str]) -> None:
    found = {
        module for index in indexes() for module in index.modules() if folder in (index.path(module) or "")
    }
    assert found
    assert found - holds(group) == others


# fmt: off
NECESSITIES = [
    "ahci", "ata_piix", "libata", "sd_mod", "sr_mod", "scsi_mod", "nvme", "nvme_core", "usb_storage",
    "uas", "mmc_block", "dm_mod", "dm_crypt", "dm_verity", "md_mod", "raid1", "raid456", "loop",
    "virtio", "virtio_blk", "virtio_net", "virtio_pci", "virtio_scsi", "xen_blkfront", "xen_netfront",
    "hv_netvsc", "hv_storvsc", "vmw_pvscsi", "vmxnet3", "e1000e", "igb", "ixgbe", "i40e", "mlx5_core",
    "bnxt_en", "r8169", "tg3", "mii", "usbcore", "xhci_hcd", "xhci_pci", "ehci_hcd", "usbhid", "hid",
    "hid_generic", "evdev", "psmouse", "drm", "drm_kms_helper", "i915", "amdgpu", "ipv6", "cfg80211",
    "mac80211", "iwlwifi", "kvm", "kvm_intel", "kvm_amd", "vhost_net", "vfio", "rc_core", "cec",
    "crc32c_generic", "libcrc32c", "aesni_intel", "xts", "cbc", "gcm", "ctr", "sunrpc", "tls",
    "ipmi_si", "watchdog", "softdog", "rtc_cmos", "msr", "efi_pstore", "jbd2", "mbcache", "raid6_pq",
    "xor", "zstd_compress", "i2c_core", "tpm_tis_spi", "binfmt_elf", "usb_common", "button", "ac",
    "battery",
]
DISKS = [
    "btrfs", "configfs", "efivarfs", "ext4", "f2fs", "fat", "fuse", "isofs", "overlay", "squashfs",
    "udf", "vfat", "xfs",
]
# fmt: on


def test_no_group_holds_what_every_machine_needs() -> None:
    assert len(modules() & set(NECESSITIES)) > 70
    for group in GROUPS.values():
        assert not [name for name in NECESSITIES if group.holds(name)], group.name
        if group.name != "filesystems":
            assert not [name for name in DISKS if group.holds(name)], group.name
    assert all(GROUPS["filesystems"].holds(name) for name in DISKS)


NEEDED = {
    # A module of a group, and what outside of it needs it: its rule denies those, too.
    ("net-protocols", "atm"): "adapters for ATM and DSL",
    ("net-protocols", "bluetooth"): "adapters for both Wi-Fi and Bluetooth",
    ("net-protocols", "btrsi"): "adapters for both Wi-Fi and Bluetooth",
    ("net-protocols", "ieee802154"): "adapters for it",
    ("net-protocols", "mac802154"): "adapters for it",
    ("net-protocols", "phonet"): "adapters for it",
    ("net-protocols", "rxrpc"): "kafs speaks it",
    ("net-protocols", "vsock"): "vhost_vsock, its other end",
    ("net-protocols", "vmw_vsock_virtio_transport_common"): "vhost_vsock, its other end",
    ("line-disciplines", "hci_uart"): "adapters for Bluetooth",
    ("filesystems", "configfs"): "the settings of USB gadgets, targets and clusters",
    ("filesystems", "dlm"): "md_cluster",
    ("cluster-filesystems", "dlm"): "md_cluster",
    ("character-sets", "nls_ucs2_utils"): "cifs, jfs, ksmbd: the group is for rules that allow",
    ("network-storage", "libiscsi"): "adapters for iSCSI",
    ("network-storage", "libiscsi_tcp"): "adapters for iSCSI",
    ("network-storage", "scsi_transport_iscsi"): "adapters for iSCSI",
    ("network-storage", "iscsi_target_mod"): "adapters for iSCSI",
    ("virtual-devices", "bridge"): "filters on bridges",
    ("virtual-devices", "gre"): "pptp",
    ("virtual-devices", "macsec"): "two network cards: its description says so",
    ("virtual-devices", "ppp_generic"): "all that is PPP",
    ("virtual-devices", "tap"): "vhost_net",
    ("virtual-devices", "tun"): "vhost_net",
    ("bluetooth", "bluetooth"): "adapters for both Wi-Fi and Bluetooth",
    ("bluetooth", "btrsi"): "adapters for both Wi-Fi and Bluetooth",
    ("joysticks", "gameport"): "sound cards of the 1990s",
    ("usb-gadgets", "udc_core"): "dwc3, a controller that is both",
    ("rdma", "ib_core"): "smc",
}
GENERAL = {"netfilter", "sound", "video-capture", "old-hardware", "never-on-servers"}
"""Groups of whole subsystems, whose cores drivers of others build upon."""


def test_what_others_need_is_known() -> None:
    needed = set()
    for group in GROUPS.values():
        if group.name in GENERAL:
            continue
        held = holds(group.name)
        for index in indexes():
            for module in index.modules():
                if module not in held:
                    needed |= {(group.name, name) for name in held & set(index.dependencies(module))}
    assert needed == NEEDED.keys()


def test_a_server_starts_with_what_is_never_on_servers_denied() -> None:
    held = holds("never-on-servers")
    for index in indexes():
        for module in {
            *NECESSITIES,
            *DISKS,
            "8021q",
            "bonding",
            "bridge",
            "nf_tables",
            "overlay",
            "veth",
            "tun",
        }:
            assert held.isdisjoint(index.dependencies(module)), module


def test_rare_is_less_than_all() -> None:
    rare, every = holds("rare-filesystems"), holds("filesystems")
    assert rare < every
    removable = {"vfat", "exfat", "ntfs3", "isofs", "udf"}
    assert removable <= every - rare


# The file itself


def test_groups_are_read_once_and_cannot_be_changed() -> None:
    assert groups.load() is GROUPS
    with pytest.raises(TypeError):
        GROUPS["mine"] = GROUPS["can"]  # type: ignore[index]


def test_descriptions_are_one_paragraph() -> None:
    for group in GROUPS.values():
        assert group.description.endswith("."), group.name
        assert "\n" not in group.description
        assert 20 < len(group.description) < 400, group.name


def test_a_group_takes_in_another() -> None:
    text = '[a]\ndescription = "A."\nmodules = ["x", "@b"]\n[b]\ndescription = "B."\nmodules = ["y*", "x"]\n'
    found = parse(text, "f")
    assert found["a"].patterns == ("x", "y*")
    assert found["a"].holds("yes")
    assert not found["a"].holds("zyes")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[a", "f is not TOML"),
        ("a = 1", r"\[a\] has to have description and modules"),
        ('[A]\ndescription = "A."\nmodules = ["x"]', "no name of a group"),
        ('[a-]\ndescription = "A."\nmodules = ["x"]', "no name of a group"),
        ('[a]\ndescription = "A."', "has to have description and modules"),
        ('[a]\ndescription = "A."\nmodules = ["x"]\nmore = 1', "and nothing else"),
        ('[a]\ndescription = " "\nmodules = ["x"]', "description of .a. is not a text"),
        ('[a]\ndescription = 1\nmodules = ["x"]', "description of .a. is not a text"),
        ('[a]\ndescription = "A."\nmodules = "x"', "are not a list"),
        ('[a]\ndescription = "A."\nmodules = []', "are not a list"),
        ('[a]\ndescription = "A."\nmodules = [1]', "neither a glob"),
        ('[a]\ndescription = "A."\nmodules = ["x-y"]', "neither a glob on names with _ nor a group"),
        ('[a]\ndescription = "A."\nmodules = ["*"]', "neither a glob"),
        ('[a]\ndescription = "A."\nmodules = [""]', "neither a glob"),
        ('[a]\ndescription = "A."\nmodules = ["x", "x"]', "names something twice"),
        ('[a]\ndescription = "A."\nmodules = ["@b"]', r"\[a\] takes in @b, which is not there"),
        ('[a]\ndescription = "A."\nmodules = ["@a"]', r"\[a\] takes in itself"),
        (
            '[a]\ndescription = "A."\nmodules = ["@b"]\n[b]\ndescription = "B."\nmodules = ["@a"]',
            r"\[a\] takes in itself, by a and b",
        ),
    ],
)
def test_what_is_off_is_told(text: str, words: str) -> None:
    with pytest.raises(BadGroups, match=words):
        parse(text, "f")
