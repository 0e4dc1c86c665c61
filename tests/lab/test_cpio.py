"""The archive writer, against an independent reader."""

import shutil
import subprocess
from pathlib import Path

from kmodd.lab.cpio import CpioWriter


def test_another_program_unpacks_it(tmp_path: Path) -> None:
    archive = CpioWriter()
    archive.directory("d", 0o700)
    archive.file("d/odd", b"abc", 0o755)
    archive.file("d/empty", b"")
    archive.symlink("l", "d/odd")
    busybox = shutil.which("busybox")
    assert busybox is not None
    subprocess.run(
        [busybox, "cpio", "-id"], input=archive.finish(), cwd=tmp_path, check=True, capture_output=True
    )
    assert (tmp_path / "l").readlink() == Path("d/odd")
    assert (tmp_path / "d/odd").read_bytes() == b"abc"
    assert (tmp_path / "d/odd").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "d/empty").read_bytes() == b""
