"""What is installed in the trees here, for tests of what the policy ships with."""

from __future__ import annotations

import functools

from kmodd.tree.index import Index
from support.trees import COMPRESSED, DEBIAN, UML, tree


@functools.lru_cache(maxsize=1)
def indexes() -> tuple[Index, ...]:
    return tuple(Index(str(tree(folder))) for folder in (DEBIAN, COMPRESSED, UML))


@functools.lru_cache(maxsize=1)
def modules() -> frozenset[str]:
    """Every module of every tree, but for those of our own tests."""
    found = {module for index in indexes() for module in index.modules()}
    return frozenset(module for module in found if not module.startswith("kmodd_"))


def with_alias(prefix: str, below: str = "") -> set[str]:
    """The modules that have an alias of such a beginning, and whose file is below a folder of the tree."""
    return {
        module
        for index in indexes()
        for alias, module in index.aliases()
        if alias.startswith(prefix) and below in (index.path(module) or "")
    }


ELSEWHERE = {
    # Hardware and options that other distributions and processors have.
    "amt": "a tunnel for multicast, 5.16",
    "bareudp": "a tunnel, 5.7",
    "btmtksdio": "ARM boards",
    "btqcomsmd": "Qualcomm",
    "caif_serial": "up to 5.15",
    "dmascc": "ISA",
    "efa": "Amazon's cloud kernels",
    "erdma": "Alibaba's, 6.0",
    "g_audio": "embedded systems",
    "g_cdc": "embedded systems",
    "g_hid": "embedded systems",
    "g_midi": "embedded systems",
    "g_multi": "embedded systems",
    "g_ncm": "embedded systems",
    "g_printer": "embedded systems",
    "g_webcam": "embedded systems",
    "g_zero": "embedded systems",
    "hci_bcm4377": "Apple's processors, 6.2",
    "mctp_serial": "machines with a BMC, 5.17",
    "netkit": "built in in Debian's, 6.7",
    "ovpn": "6.16",
    "pfcp": "6.10",
    "raw_gadget": "fuzzers' kernels, 5.7",
    "rmnet": "Qualcomm",
    "scc": "ISA",
    "siw": "RDMA over TCP, 5.3: Fedora's",
    "st_drv": "Texas Instruments, up to 6.8",
    "trf7970a": "ARM boards",
    "virtio_bt": "5.13",
    # Left the kernel.
    "binfmt_aout": "up to 5.18",
    "decnet": "up to 6.0",
    "ia32_aout": "up to 5.18",
    "ntfs": "up to 6.8",
    "r8712u": "up to 6.12",
    "vt6655_stage": "up to 6.12",
    # Built into the kernels here.
    "ext2": "Debian has ext4 do it",
    "ext3": "up to 4.2 and in derived kernels: ext4 does it",
    # Tests, which distributions leave out.
    "kunit": "developers' kernels",
    "locktorture": "developers' kernels",
    "netdevsim": "Fedora's",
    "ntb_perf": "other architectures",
    "ntb_tool": "other architectures",
    "rcutorture": "developers' kernels",
    "torture": "developers' kernels",
}
"""Names without a wildcard that no tree here has, and where there is one."""
