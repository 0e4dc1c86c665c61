"""User-mode Linux: a kernel as an ordinary process, no root needed."""

from pathlib import Path

from kmodd.lab import initramfs, kernels
from kmodd.lab.memory import memory_file, path_of
from kmodd.lab.options import LabOptions
from kmodd.lab.recipe import Command

_DEFAULT_MEMORY = 1024
_BOOT_LIMIT = 120.0
_XSTATE = Path(__file__).with_name("uml-xstate.so")
"""Preloaded: without it the kernel panics on processors with AVX-512 (lab/uml-xstate.c)."""


def command(options: LabOptions, channel: int, scratch: Path) -> Command:
    """How to start it.

    The kernel's console goes to standard output; the agent has a serial line of its own.

    :raises LabError: a package is missing
    """
    kernel = kernels.find_uml()
    index = kernels.make_index(kernel, scratch)
    archive = initramfs.build(
        kernel, host_fs="hostfs", modules=["overlay"], channel="/dev/ttyS1", index=index
    )
    initrd = memory_file("kmodd-lab-initramfs", archive)
    argv = [
        str(kernel.image),
        f"mem={options.memory or _DEFAULT_MEMORY}M",
        f"initrd={path_of(initrd)}",
        # The management socket and the pid file would be in ~/.uml otherwise.
        f"uml_dir={scratch}/",
        "umid=guest",
        "con=null",
        "con0=null,fd:1",
        "ssl=null",
        f"ssl1=fd:{channel},fd:{channel}",
        "quiet",
        "panic=-1",
    ]
    environment = {"LD_PRELOAD": str(_XSTATE)} if _XSTATE.exists() else {}
    return Command(argv, (channel, initrd), _BOOT_LIMIT, environment)
