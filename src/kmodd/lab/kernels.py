"""Finds a kernel to boot, its modules, and what a module depends on."""

import gzip
import lzma
import os
import re
import shutil
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

from kmodd.lab.errors import LabError

KERNELS_VARIABLE = "KMODD_LAB_KERNELS"
"""Environment: a directory with boot/vmlinuz-* and lib/modules/*, such as an unpacked package."""


@dataclass(frozen=True, slots=True)
class InstalledKernel:
    """A kernel on the host."""

    release: str
    image: Path
    """The executable (User-mode Linux) or the bzImage (QEMU)."""
    modules: Path
    """The directory with modules.dep and kernel/."""


def find_uml() -> InstalledKernel:
    """User-mode Linux from Debian's package.

    :raises LabError: it is not installed
    """
    image = shutil.which("linux.uml")
    trees = sorted(Path("/usr/lib/uml/modules").glob("*/kernel"))
    if image is None or not trees:
        raise LabError(
            "cannot start User-mode Linux: it is not installed; apt-get install user-mode-linux brings it"
        )
    # The kernel tells its own release; asked for only where several module trees are installed.
    release = trees[0].parent.name if len(trees) == 1 else _uml_release(image)
    return InstalledKernel(release, Path(image), Path("/usr/lib/uml/modules", release))


def _uml_release(image: str) -> str:
    return subprocess.run([image, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def find_installed(release: str | None = None) -> InstalledKernel:
    """A kernel for QEMU: below KMODD_LAB_KERNELS if that is set, else the host's own; the newest.

    :raises LabError: there is none, or not the one asked for, or it cannot be read
    """
    root = Path(os.environ.get(KERNELS_VARIABLE) or "/").absolute()
    found = [
        InstalledKernel(image.name.removeprefix("vmlinuz-"), image, tree)
        for image in sorted(root.glob("boot/vmlinuz-*"))
        for tree in _module_trees(root, image.name.removeprefix("vmlinuz-"))
    ]
    if release is not None:
        found = [kernel for kernel in found if kernel.release == release]
    if not found:
        wanted = "no kernel" if release is None else f"no kernel {release}"
        raise LabError(
            f"cannot start QEMU: {wanted} with its modules in {root}; apt-get install "
            f"linux-image-amd64, or unpack such a package (apt-get download linux-image-RELEASE, "
            f"dpkg -x FILE DIRECTORY) and name the directory in {KERNELS_VARIABLE}"
        )
    newest = max(found, key=lambda kernel: _version_key(kernel.release))
    if not os.access(newest.image, os.R_OK):
        raise LabError(
            f"cannot start QEMU: {newest.image} may not be read by this user; "
            f"be root, or unpack a kernel package and name its directory in {KERNELS_VARIABLE}"
        )
    return newest


def _module_trees(root: Path, release: str) -> list[Path]:
    trees = (root / "lib/modules" / release, root / "usr/lib/modules" / release)
    return [tree for tree in trees if (tree / "kernel").is_dir()][:1]


def _version_key(release: str) -> list[tuple[int, int, str]]:
    """Orders releases as people do: numbers as numbers."""
    parts = re.findall(r"\d+|[^\d]+", release)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


def make_index(kernel: InstalledKernel, scratch: Path) -> Path | None:
    """Run depmod for a tree without modules.dep, as an unpacked package is.

    In the tree where that is writable: it takes seconds, and the next run finds it done. Otherwise
    into `scratch`; the directory returned then goes into the guest's overlay.

    :raises LabError: depmod is missing or fails
    """
    if (kernel.modules / "modules.dep").exists():
        return None
    depmod = shutil.which("depmod", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if depmod is None:
        raise LabError(
            f"cannot index the modules in {kernel.modules}: depmod is missing; apt-get install kmod brings it"
        )
    # depmod wants a base with lib/modules/RELEASE below it; links make one of any tree.
    base = scratch / "depmod/lib/modules" / kernel.release
    base.parent.mkdir(parents=True)
    in_place = os.access(kernel.modules, os.W_OK)
    if in_place:
        base.symlink_to(kernel.modules)
    else:
        base.mkdir()
        for entry in kernel.modules.iterdir():
            (base / entry.name).symlink_to(entry)
    command = [depmod, "-b", str(scratch / "depmod"), kernel.release]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"cannot index the modules in {kernel.modules}: {done.stderr.strip()}")
    return None if in_place else base


def with_dependencies(index: Path, names: list[str]) -> list[str]:
    """Paths of the named modules below their tree, each after all that it depends on.

    Names that are not in modules.dep are left out: they are built in, or the kernel has no such
    module.
    """
    closures: dict[str, list[str]] = {}
    for line in (index / "modules.dep").read_text().splitlines():
        path, _, dependencies = line.partition(":")
        # modules.dep lists the nearest first (depmod's output, kmod 30).
        closures[module_name(path)] = [*reversed(dependencies.split()), path]
    ordered: dict[str, None] = {}
    for name in names:
        ordered.update(dict.fromkeys(closures.get(name, [])))
    return list(ordered)


def module_name(path: str) -> str:
    """`kernel/net/9p/9pnet_virtio.ko.xz` is the module 9pnet_virtio."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def read_module(path: Path) -> bytes:
    """A module's ELF file, decompressed.

    :raises LabError: no way to decompress it here
    """
    match path.suffix:
        case ".ko":
            return path.read_bytes()
        case ".xz":
            return lzma.decompress(path.read_bytes())
        case ".gz":
            return gzip.decompress(path.read_bytes())
        case ".zst" if zstd := shutil.which("zstd"):
            return subprocess.run([zstd, "-dcq", path], capture_output=True, check=True).stdout
        case ".zst":
            raise LabError(f"cannot read {path}: the program zstd is missing; apt-get install zstd brings it")
        case suffix:
            raise LabError(f"cannot read {path}: modules compressed as {suffix} are not known")


_XZ, _GZIP = b"\xfd7zXZ\0", b"\x1f\x8b\x08"


def uncompressed(image: Path) -> bytes | None:
    """The vmlinux in a bzImage, or None where its compression is none of Python's own.

    QEMU enters it directly (PVH), which saves the guest the decompressing under emulation.
    """
    data = image.read_bytes()
    for magic in (_XZ, _GZIP):
        start = data.find(magic)
        while start >= 0:
            try:
                content = _decompress(magic, data[start:])
            except (lzma.LZMAError, zlib.error):
                content = b""
            if content.startswith(b"\x7fELF"):
                return content
            start = data.find(magic, start + 1)
    return None


def _decompress(magic: bytes, data: bytes) -> bytes:
    """What `data` begins with, whatever follows it."""
    if magic == _GZIP:
        return zlib.decompressobj(wbits=31).decompress(data)
    return lzma.LZMADecompressor().decompress(data)
