"""Finding kernels and modules, without booting any."""

import gzip
import lzma
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kmodd.lab import initramfs, kernels
from kmodd.lab.errors import LabError


def install(root: Path, *releases: str) -> None:
    (root / "boot").mkdir(parents=True, exist_ok=True)
    for release in releases:
        (root / f"boot/vmlinuz-{release}").write_bytes(b"image")
        (root / f"lib/modules/{release}/kernel").mkdir(parents=True)


def test_the_newest_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "6.1.0-9-amd64", "6.12.3", "6.1.0-56-amd64")
    monkeypatch.setenv("KMODD_LAB_KERNELS", str(tmp_path))
    assert kernels.find_installed().release == "6.12.3"
    assert kernels.find_installed("6.1.0-9-amd64").image == tmp_path / "boot/vmlinuz-6.1.0-9-amd64"


def test_the_newest_of_one_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "6.1.0-9-amd64", "6.1.0-56-amd64")
    monkeypatch.setenv("KMODD_LAB_KERNELS", str(tmp_path))
    assert kernels.find_installed().release == "6.1.0-56-amd64"


def test_no_kernel_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KMODD_LAB_KERNELS", str(tmp_path))
    with pytest.raises(LabError, match=r"linux-image-amd64.*KMODD_LAB_KERNELS"):
        kernels.find_installed()
    install(tmp_path, "6.1.0-9-amd64")
    with pytest.raises(LabError, match=r"no kernel 5\.10 "):
        kernels.find_installed("5.10")


@pytest.mark.parametrize(
    ("function", "package"), [(kernels.find_uml, "user-mode-linux"), (initramfs.busybox, "busybox-static")]
)
def test_what_is_missing_is_named(function: object, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(LabError, match=f"apt-get install {package}"):
        function()  # type: ignore[operator]


def test_a_dynamic_busybox_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: "/bin/ls")
    with pytest.raises(LabError, match=r"dynamically.*busybox-static"):
        initramfs.busybox()


def test_dependencies_come_first(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text(
        "a/x-top.ko: a/mid.ko a/base.ko\na/mid.ko: a/base.ko\na/base.ko:\nb/other.ko.xz: a/base.ko\n"
    )
    assert kernels.with_dependencies(tmp_path, ["x_top", "built_in", "other"]) == [
        "a/base.ko",
        "a/mid.ko",
        "a/x-top.ko",
        "b/other.ko.xz",
    ]


def test_compressed_modules_are_read(tmp_path: Path) -> None:
    content = b"\x7fELF" + bytes(5000)
    (tmp_path / "m.ko").write_bytes(content)
    (tmp_path / "m.ko.xz").write_bytes(lzma.compress(content, check=lzma.CHECK_CRC32))
    (tmp_path / "m.ko.gz").write_bytes(gzip.compress(content))
    subprocess.run(["zstd", "-q", tmp_path / "m.ko"], check=True)
    for suffix in ("ko", "ko.xz", "ko.gz", "ko.zst"):
        assert kernels.read_module(tmp_path / f"m.{suffix}") == content


def test_without_zstd_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(LabError, match="apt-get install zstd"):
        kernels.read_module(tmp_path / "m.ko.zst")


@pytest.mark.parametrize("compress", [lzma.compress, gzip.compress])
def test_vmlinux_is_found_in_the_image(tmp_path: Path, compress: object) -> None:
    vmlinux = b"\x7fELF" + bytes(range(256)) * 50
    packed: bytes = compress(vmlinux)  # type: ignore[operator]
    # A magic number that begins nothing, code before, a size and more code behind: as in a bzImage.
    (tmp_path / "bz").write_bytes(b"MZ\x1f\x8b\x08\xfd7zXZ\0" + bytes(999) + packed + b"\1\2\3\4" + bytes(99))
    assert kernels.uncompressed(tmp_path / "bz") == vmlinux
    (tmp_path / "other").write_bytes(b"MZ" + bytes(999))
    assert kernels.uncompressed(tmp_path / "other") is None


def test_an_index_is_made_beside_a_tree_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "lib/modules/6.1.0"
    (tree / "kernel").mkdir(parents=True)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    access = os.access
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK and access(path, mode))
    index = kernels.make_index(kernels.InstalledKernel("6.1.0", tmp_path, tree), scratch)
    assert index is not None
    assert (index / "modules.dep").exists()
    assert not (tree / "modules.dep").exists()
