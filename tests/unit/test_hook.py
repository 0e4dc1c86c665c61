"""The hook: what kernel.modprobe held before comes back, whatever happened in between (invariant 4)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kmodd.errors import KmoddError
from kmodd.kernel import hook as hook_module
from kmodd.kernel.hook import DENIED, Hook, check_helper


@pytest.fixture
def sysctl(tmp_path: Path) -> Path:
    file = tmp_path / "modprobe"
    file.write_text("/sbin/modprobe\n")
    return file


@pytest.fixture
def make(tmp_path: Path, sysctl: Path, monkeypatch: pytest.MonkeyPatch) -> Hook:
    monkeypatch.setattr(hook_module, "check_helper", lambda _path: None)
    (tmp_path / "run").mkdir()
    return Hook(str(tmp_path / "run"), "/usr/lib/kmodd/kmodd-helper", str(sysctl))


def test_on_and_off(make: Hook, sysctl: Path, tmp_path: Path) -> None:
    sysctl.write_text("/usr/local/sbin/modprobe\n")
    make.on("modprobe")
    assert sysctl.read_text() == "/usr/lib/kmodd/kmodd-helper\n"
    assert make.is_on()
    assert os.readlink(tmp_path / "run/fallback") == "/usr/local/sbin/modprobe"
    assert make.off()
    assert sysctl.read_text() == "/usr/local/sbin/modprobe\n"
    assert not make.off()


def test_a_daemon_that_was_killed_and_comes_back_knows_what_was_before(
    make: Hook, sysctl: Path, tmp_path: Path
) -> None:
    sysctl.write_text("/opt/modprobe\n")
    make.on("modprobe")
    again = Hook(str(tmp_path / "run"), "/usr/lib/kmodd/kmodd-helper", str(sysctl))
    again.on("modprobe")
    assert os.readlink(tmp_path / "run/fallback") == "/opt/modprobe"
    assert again.off()
    assert sysctl.read_text() == "/opt/modprobe\n"


def test_a_helper_of_another_version_is_never_what_to_fall_back_to(
    make: Hook, sysctl: Path, tmp_path: Path
) -> None:
    sysctl.write_text("/opt/old/kmodd-helper\n")
    make.on("modprobe")
    assert os.readlink(tmp_path / "run/fallback") == "/sbin/modprobe"


def test_deny_makes_the_link_lead_nowhere_and_back_at_once(make: Hook, tmp_path: Path) -> None:
    make.on("deny")
    assert os.readlink(tmp_path / "run/fallback") == DENIED
    assert not os.path.exists(DENIED)
    make.set_fallback("modprobe")
    assert os.readlink(tmp_path / "run/fallback") == "/sbin/modprobe"


def test_autoload_that_was_off_is_off_without_the_daemon_and_after_it(
    make: Hook, sysctl: Path, tmp_path: Path
) -> None:
    sysctl.write_text("\n")
    make.on("modprobe")
    assert os.readlink(tmp_path / "run/fallback") == DENIED
    make.off()
    assert sysctl.read_text() == "\n"


def test_what_somebody_else_has_set_since_is_left(make: Hook, sysctl: Path) -> None:
    make.on("modprobe")
    sysctl.write_text("/opt/other\n")
    assert not make.off()
    assert sysctl.read_text() == "/opt/other\n"


def test_a_kernel_without_modules_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(KmoddError, match="without loadable modules"):
        Hook(str(tmp_path), "/x", str(tmp_path / "none")).current()


def test_the_kernel_is_told_the_real_path(tmp_path: Path, sysctl: Path) -> None:
    """A link on the way may be somebody else's: what is checked is what is executed."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    hook = Hook(str(tmp_path), str(tmp_path / "link/kmodd-helper"), str(sysctl))
    assert hook.helper == str(tmp_path / "real/kmodd-helper")


def test_a_helper_that_others_may_change_is_refused(tmp_path: Path) -> None:
    helper = tmp_path / "kmodd-helper"
    with pytest.raises(KmoddError, match="is missing"):
        check_helper(str(helper))
    helper.write_text("#!/bin/sh\n")
    helper.chmod(0o777)
    with pytest.raises(KmoddError, match="can be changed by others"):
        check_helper(str(helper))
    with pytest.raises(KmoddError, match="longer than"):
        check_helper("/" + "x" * 255)
