"""Builds the initramfs that both kernels boot: busybox, a few modules, the two init scripts."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import kmodd
from kmodd.lab import bootscript, kernels
from kmodd.lab.cpio import CpioWriter
from kmodd.lab.errors import LabError

_APPLETS = (
    *("cp", "hostname", "insmod", "ip", "ln", "mkdir", "mount", "poweroff", "sh", "sleep"),
    "switch_root",
)
_DIRECTORIES = ("bin", "dev", "host", "modules", "new", "over", "proc", "sys")
_PT_INTERP = 3


def build(
    kernel: kernels.InstalledKernel,
    *,
    host_fs: str,
    modules: Sequence[str],
    channel: str,
    index: Path | None = None,
) -> bytes:
    """The archive.

    `host_fs` is the file system that shows the host's files (hostfs or 9p), `modules` those that
    have to be loaded before it can, `channel` the device on which the agent talks to the lab,
    `index` a directory of depmod's files to copy over the module tree's own.

    :raises LabError: busybox or a module is missing
    """
    archive = CpioWriter()
    for directory in _DIRECTORIES:
        archive.directory(directory)
    archive.device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox().read_bytes(), 0o755)
    for applet in _APPLETS:
        archive.symlink(f"bin/{applet}", "busybox")
    order = kernels.with_dependencies(index or kernel.modules, list(modules))
    names = []
    for path in order:
        name = f"{kernels.module_name(path)}.ko"
        archive.file(f"modules/{name}", kernels.read_module(kernel.modules / path))
        names.append(name)
    if index is not None:
        archive.directory("index")
        for file in sorted(index.glob("modules.*")):
            archive.file(f"index/{file.name}", file.read_bytes())
    settings = {
        "RELEASE": kernel.release,
        "BOOT_MODULES": " ".join(names),
        "HOST_FS": host_fs,
        "MODULE_TREE": str(kernel.modules.resolve()),
        "CHANNEL": channel,
        "AGENT_PYTHON": sys.executable,
        "AGENT_PYTHONPATH": python_path(),
        "AGENT_PATH": os.environ.get("PATH") or os.defpath,
    }
    assignments = (f"{name}={shlex.quote(value)}\n" for name, value in settings.items())
    archive.file("lab.conf", "".join(assignments).encode())
    archive.file("stage2", bootscript.STAGE2.encode())
    archive.file("init", bootscript.STAGE1.encode(), 0o755)
    return archive.finish()


def python_path() -> str:
    """PYTHONPATH with which a Python in the guest imports this very kmodd."""
    ours = str(Path(kmodd.__path__[0]).absolute().parent)
    theirs = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join([ours, *(os.path.abspath(path) for path in theirs if path)])


def busybox() -> Path:
    """The static busybox.

    :raises LabError: there is none
    """
    path = shutil.which("busybox", path=os.environ.get("PATH", os.defpath) + ":/bin:/usr/bin")
    if path is None:
        raise LabError(
            "cannot start a lab: busybox is not installed; apt-get install busybox-static brings it"
        )
    if not _is_static(Path(path).read_bytes()):
        raise LabError(
            f"cannot start a lab: {path} is linked dynamically; "
            "apt-get install busybox-static brings one that is not"
        )
    return Path(path)


def _is_static(elf: bytes) -> bool:
    """No program header asks for a dynamic loader (ELF-64, little-endian)."""
    offset = int.from_bytes(elf[32:40], "little")
    size = int.from_bytes(elf[54:56], "little")
    count = int.from_bytes(elf[56:58], "little")
    headers = (elf[offset + n * size : offset + n * size + 4] for n in range(count))
    return all(int.from_bytes(kind, "little") != _PT_INTERP for kind in headers)
