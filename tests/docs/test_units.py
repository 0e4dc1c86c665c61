"""The systemd units are well formed, sandboxed, and fit the code."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kmodd.kernel import instance
from kmodd.settings import SETTINGS
from kmodd.sources import connections, helper

UNITS = Path(__file__).resolve().parents[2] / "systemd"
NAMES = ("kmodd.service", "kmodd.socket", "kmodd-helper.socket")


def values(unit: str, key: str) -> list[str]:
    return re.findall(rf"(?m)^{key}=(.*)$", (UNITS / unit).read_text())


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = ["systemd-analyze", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


def test_verify(tmp_path: Path) -> None:
    """As installed, but that /usr/bin/kmodd, which a test machine lacks, is a program that it has."""
    for name in NAMES:
        shutil.copy(UNITS / name, tmp_path)
    service = tmp_path / "kmodd.service"
    text, changed = re.subn(r"(?m)^ExecStart=/usr/bin/kmodd ", "ExecStart=/bin/true ", service.read_text())
    assert changed == 1
    service.write_text(text)
    done = analyze("verify", "--man=no", *(str(tmp_path / name) for name in NAMES))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_only_the_program_is_missing_in_the_unit_itself() -> None:
    done = analyze("verify", "--man=no", str(UNITS / "kmodd.service"))
    missing = "kmodd.service: Command /usr/bin/kmodd is not executable: No such file or directory"
    assert set(done.stderr.splitlines()) <= {missing}


def test_exposure() -> None:
    done = analyze("security", "--offline=yes", "--no-pager", str(UNITS / "kmodd.service"))
    found = re.search(r"Overall exposure level for kmodd\.service: ([\d.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= 3.0


@pytest.mark.parametrize(
    ("unit", "name", "listens"),
    [
        ("kmodd-helper.socket", helper.SOCKET, "ListenSequentialPacket"),
        ("kmodd.socket", connections.SOCKET, "ListenStream"),
    ],
)
def test_sockets_are_named_as_the_daemon_knows_them(unit: str, name: str, listens: str) -> None:
    assert values(unit, "FileDescriptorName") == [name]
    assert values(unit, listens) == [f"/run/kmodd/{name}"]


def test_modes_of_the_sockets() -> None:
    assert values("kmodd-helper.socket", "SocketMode") == ["0600"]
    assert values("kmodd.socket", "SocketMode") == ["0666"]


def test_the_service_manager_waits_longer_than_the_daemon() -> None:
    (limit,) = values("kmodd.service", "TimeoutStopSec")
    default = SETTINGS["stop_timeout"].default
    assert isinstance(default, int)
    assert int(limit) > default


def test_what_must_outlive_the_daemon_does() -> None:
    assert values("kmodd.service", "RuntimeDirectoryPreserve") == ["yes"]
    assert values("kmodd.service", "KillMode") == ["process"]


def test_the_tracing_instance_can_be_made() -> None:
    (paths,) = values("kmodd.service", "ReadWritePaths")
    # The dash: tracefs may be missing, and kmodd does without.
    assert f"-{instance.TRACEFS[0]}/instances" in paths.split()
