"""What the built helper consists of."""

import stat
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parents[2] / "helper/kmodd-helper.c"
LOAD, INTERPRETER, STACK = 1, 3, 0x6474E551
EXECUTE, WRITE, READ = 1, 2, 4


class Segment(NamedTuple):
    """One program header of a 64-bit ELF file."""

    kind: int
    flags: int
    offset: int
    address: int
    physical: int
    in_file: int
    in_memory: int
    alignment: int


def segments(program: Path) -> list[Segment]:
    data = program.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01"
    (start,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    return [Segment(*struct.unpack_from("<II6Q", data, start + size * i)) for i in range(count)]


def test_the_source_is_short() -> None:
    assert len(SOURCE.read_text().splitlines()) < 200


@pytest.mark.parametrize("build", ["lean", "libc", "arm64"])
def test_nothing_is_writable_and_executable(build: str, request: pytest.FixtureRequest) -> None:
    found = segments(request.getfixturevalue(build))
    assert not [segment for segment in found if segment.flags & EXECUTE and segment.flags & WRITE]
    assert [segment.flags for segment in found if segment.kind == STACK] == [READ | WRITE]
    assert INTERPRETER not in {segment.kind for segment in found}


@pytest.mark.parametrize("build", ["lean", "arm64"])
def test_lean_is_one_page(build: str, request: pytest.FixtureRequest) -> None:
    program: Path = request.getfixturevalue(build)
    load, stack = segments(program)
    assert (load.kind, stack.kind) == (LOAD, STACK)
    assert load.flags == READ | EXECUTE
    assert load.offset == 0
    assert load.in_file == load.in_memory
    assert program.stat().st_size < 4096


def test_installed_beside_the_package(lean: Path, tmp_path: Path) -> None:
    subprocess.run(
        ["meson", "install", "-C", lean.parents[1], "--no-rebuild", "--destdir", tmp_path],
        check=True,
        capture_output=True,
    )
    (installed,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert installed.parts[-2:] == ("kmodd", "kmodd-helper")
    assert stat.S_IMODE(installed.stat().st_mode) == 0o755
