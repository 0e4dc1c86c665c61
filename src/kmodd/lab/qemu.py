"""QEMU: a distribution's own kernel under software emulation."""

import functools
import re
import shutil
import subprocess
from pathlib import Path

from kmodd.lab import initramfs, kernels
from kmodd.lab.errors import LabError
from kmodd.lab.memory import memory_file, path_of
from kmodd.lab.options import LabOptions
from kmodd.lab.recipe import Command

_DEFAULT_MEMORY = 3072
_BOOT_LIMIT = 300.0
_MODULES = ["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"]
_KERNEL_COMMAND_LINE = (
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable cryptomgr.notests random.trust_cpu=on"
)
_STALE_CODE = (8, 1)
"""The version of QEMU from which on no processor goes on with code that another one has replaced.

Before it (QEMU's commit deba78709ae8 mended it) one that translated a breakpoint while the kernel patched its
code may hit that for ever, with interrupts off: the guest is dead and says nothing. It takes code that is
executed all the time, and that is the scheduler's: tracing patches it to note what tasks are called.
"""
_NO_NAMES = "trace_options=norecord-cmd"


def command(options: LabOptions, channel: int, scratch: Path) -> Command:
    """How to start it.

    The kernel's console is a serial line on standard output; the agent has a virtio port, because
    a serial line is emulated byte by byte.

    :raises LabError: QEMU or a kernel is missing
    """
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise LabError(
            "cannot start QEMU: qemu-system-x86_64 is not installed; "
            "apt-get install qemu-system-x86 brings it"
        )
    kernel = kernels.find_installed(options.release)
    index = kernels.make_index(kernel, scratch)
    archive = initramfs.build(kernel, host_fs="9p", modules=_MODULES, channel="/dev/vport0p1", index=index)
    initrd = memory_file("kmodd-lab-initramfs", archive)
    fds = [channel, initrd]
    image = str(kernel.image)
    if (content := kernels.uncompressed(kernel.image)) is not None:
        fds.append(memory_file("kmodd-lab-vmlinux", content))
        image = path_of(fds[-1])
    argv = [qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    argv += ["-accel", "tcg,thread=multi", "-cpu", "Nehalem"]
    argv += ["-smp", str(options.smp), "-m", str(options.memory or _DEFAULT_MEMORY)]
    argv += ["-kernel", image, "-initrd", path_of(initrd), "-append", kernel_command_line(_version(qemu))]
    argv += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
    argv += ["-chardev", f"socket,id=agent,fd={channel}"]
    argv += ["-device", "virtio-serial-pci", "-device", "virtserialport,nr=1,chardev=agent"]
    argv += ["-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"]
    argv += ["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]
    argv += options.qemu
    return Command(argv, tuple(fds), _BOOT_LIMIT)


def kernel_command_line(version: tuple[int, int] | None) -> str:
    """What the kernel is told, for a version of QEMU; None where that is not known."""
    if version is not None and version >= _STALE_CODE:
        return _KERNEL_COMMAND_LINE
    return f"{_KERNEL_COMMAND_LINE} {_NO_NAMES}"


@functools.cache
def _version(qemu: str) -> tuple[int, int] | None:
    try:
        done = subprocess.run([qemu, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"version (\d+)\.(\d+)", done.stdout)
    return None if found is None else (int(found[1]), int(found[2]))
