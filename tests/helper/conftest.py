"""Builds the helper the way it ships: lean, with libc, and for arm64."""

import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROJECT = """
project('helper', 'c')
py = import('python').find_installation(pure: false)
subdir('helper')
"""
STRICT = ["-Wall", "-Wextra", "-Werror"]
# What a distribution, a sanitizer run or a user may ask for; none of it may reach the lean helper.
HOSTILE_CFLAGS = [
    *STRICT, "-g", "-O0", "-fPIE", "-fstack-protector-strong", "-fstack-clash-protection", "-fcf-protection",
    "-flto", "-fsanitize=address,undefined", "-D_FORTIFY_SOURCE=2",
]  # fmt: skip
HOSTILE_LDFLAGS = [
    "-pie",
    "-flto",
    "-Wl,-z,relro",
    "-Wl,-z,now",
    "-Wl,-z,separate-code",
    "-Wl,--build-id=sha1",
]


def build(
    directory: Path, *, compiler: str, family: str | None, cflags: list[str], ldflags: list[str]
) -> Path:
    """Build helper/ alone with meson; a family makes it a cross build."""
    (directory / "helper").symlink_to(HERE.parents[1] / "helper")
    (directory / "meson.build").write_text(PROJECT)
    machine = [
        f"[binaries]\nc = '{compiler}'",
        f"[built-in options]\nc_args = {cflags}\nc_link_args = {ldflags}",
    ]
    if family is not None:
        machine.append(
            f"[host_machine]\nsystem = 'linux'\ncpu_family = '{family}'\ncpu = '{family}'\nendian = 'little'"
        )
    (directory / "machine.ini").write_text("\n".join(machine) + "\n")
    kind = "--native-file" if family is None else "--cross-file"
    environment = {key: value for key, value in os.environ.items() if key not in {"CC", "CFLAGS", "LDFLAGS"}}
    for command in (
        ["meson", "setup", "--prefix=/usr", kind, "machine.ini", "build"],
        ["ninja", "-C", "build"],
    ):
        done = subprocess.run(
            command, cwd=directory, env=environment, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return directory / "build/helper/kmodd-helper"


@pytest.fixture(scope="session")
def lean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The helper without libc."""
    return build(
        tmp_path_factory.mktemp("lean"),
        compiler="cc",
        family=None,
        cflags=HOSTILE_CFLAGS,
        ldflags=HOSTILE_LDFLAGS,
    )


@pytest.fixture(scope="session")
def libc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The helper with libc, as on any other architecture: the compiler is told a false one."""
    return build(tmp_path_factory.mktemp("libc"), compiler="cc", family="riscv64", cflags=STRICT, ldflags=[])


@pytest.fixture(scope="session")
def arm64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The helper for arm64, with relative paths, because its emulator cannot run in a chroot."""
    return build(
        tmp_path_factory.mktemp("arm64"),
        compiler="aarch64-linux-gnu-gcc",
        family="aarch64",
        cflags=[*STRICT, '-DKMODD_DIRECTORY="run/kmodd"', '-DKMODD_MODPROBE="sbin/modprobe"'],
        ldflags=[],
    )


@pytest.fixture(scope="session")
def fake_modprobe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static program that records how it was started and exits with 7."""
    program = tmp_path_factory.mktemp("modprobe") / "modprobe"
    subprocess.run(
        ["cc", *STRICT, "-O2", "-static", str(HERE / "fake_modprobe.c"), "-o", str(program)], check=True
    )
    return program
