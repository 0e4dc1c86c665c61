"""What the lab's tests share: a guest per kernel, the lab as a command, what is left on the host."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kmodd
from kmodd.lab.guest import Guest
from kmodd.lab.options import LabOptions

LAB = """
import sys
from kmodd.lab.options import LabOptions
from kmodd.lab.session import run
kernel, timeout, *argv = sys.argv[1:]
sys.exit(run(LabOptions(kernel=kernel, serve=False, timeout=float(timeout), argv=tuple(argv))))
"""


@pytest.fixture(scope="session")
def lab_command() -> Callable[..., list[str]]:
    def command(*argv: str, kernel: str = "uml", timeout: float = 120) -> list[str]:
        return [sys.executable, "-c", LAB, kernel, str(timeout), *argv]

    return command


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and an empty place for temporary files, so that what is left is ours."""
    path = tmp_path / "home"
    (path / "tmp").mkdir(parents=True)
    source = str(Path(kmodd.__path__[0]).parent)
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.setenv("TMPDIR", str(path / "tmp"))
    monkeypatch.setenv("PYTHONPATH", source)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return path


@pytest.fixture
def lab(
    home: Path, lab_command: Callable[..., list[str]]
) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    def run(
        *argv: str,
        kernel: str = "uml",
        timeout: float = 120,
        input: bytes | None = None,  # noqa: A002
    ) -> subprocess.CompletedProcess[bytes]:
        command = lab_command(*argv, kernel=kernel, timeout=timeout)
        if input is None:
            return subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
        return subprocess.run(command, capture_output=True, check=False, input=input)

    return run


def guest_processes(home: Path) -> list[str]:
    """Command lines of live processes that name a lab's directory below `home`, or have it as HOME."""
    found = []
    mark = f"HOME={home}".encode()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def uml() -> Iterator[Guest]:
    with Guest(LabOptions(serve=False)) as guest:
        yield guest


@pytest.fixture(scope="module")
def qemu() -> Iterator[Guest]:
    with Guest(LabOptions(kernel="qemu", smp=2, serve=False)) as guest:
        yield guest
