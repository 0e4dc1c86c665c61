"""compressed.py: what the real compressors write comes back, damage is said, and bombs do not go off."""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import shutil
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmodd.errors import KmoddError
from kmodd.image import compressed
from kmodd.image.compressed import CannotDecompress, compression, decompress, read_module
from support.images import small_modules

zstd = pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")

COMPRESS = {"xz": lzma.compress, "zstd": zstd.compress, "gzip": gzip.compress}
COMMANDS = {
    "xz": ["xz", "--check=crc32", "--lzma2=dict=1MiB"],
    "xz -9": ["xz", "-9e", "--threads=2", "--block-size=65536"],
    "zstd": ["zstd", "-q"],
    "zstd -19": ["zstd", "-q", "--ultra", "-22", "--long=27"],
    "gzip": ["gzip", "-9n"],
}
KINDS = sorted(COMPRESS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_what_the_programs_write(name, tmp_path):
    command = COMMANDS[name]
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    for number, path in enumerate(small_modules(60)[::20]):
        plain = Path(path).read_bytes()
        packed = subprocess.run([*command, "-c"], input=plain, stdout=subprocess.PIPE, check=True).stdout
        assert compression(packed[:6]) == command[0]
        assert decompress(packed) == plain
        where = tmp_path / f"{number}.ko.x"
        where.write_bytes(packed)
        assert read_module(str(where)) == plain
        assert read_module(path) == plain


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.binary(max_size=3000), min_size=1, max_size=4))
def test_streams_one_after_the_other(kind, parts):
    packed = b"".join(COMPRESS[kind](part) for part in parts)
    plain = b"".join(parts)
    assert decompress(packed) == plain
    assert decompress(packed, len(plain)) == plain
    if plain:
        with pytest.raises(CannotDecompress, match="more than"):
            decompress(packed, len(plain) - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_anywhere(kind):
    plain = bytes(range(256)) * 30
    packed = COMPRESS[kind](plain)
    for length in range(len(packed)):
        with pytest.raises(CannotDecompress):
            decompress(packed[:length])
    assert decompress(packed) == plain


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mutated(kind, data):
    packed = bytearray(COMPRESS[kind](b"some text, " * 50 + bytes(range(256))))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decompress(bytes(packed), 1 << 20)
    except KmoddError as err:
        assert str(err)
    else:
        assert len(found) <= 1 << 20


@given(st.binary(max_size=200))
def test_arbitrary_bytes(data):
    for magic in (b"", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x1f\x8b\x08"):
        try:
            found = decompress(magic + data, 1 << 20)
        except KmoddError as err:
            assert str(err)
        else:
            assert len(found) <= 1 << 20


def test_what_is_behind():
    plain = b"contents" * 10
    for kind in KINDS:
        packed = COMPRESS[kind](plain)
        with pytest.raises(CannotDecompress):
            decompress(packed + b"garbage behind it, of some length")
        if kind != "zstd":  # xz(1) pads with zeros, and gzip(1) passes over them
            assert decompress(packed + bytes(512)) == plain
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    assert decompress(zstd.compress(plain) + skippable + zstd.compress(plain)) == plain * 2


def bomb(kind: str, size: int) -> bytes:
    """A file of a few hundred KiB at most that stands for `size` bytes."""
    piece = bytes(1 << 20)
    if kind == "gzip":
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    elif kind == "xz":
        packer = lzma.LZMACompressor(preset=0)
    else:
        packer = zstd.ZstdCompressor()
    return b"".join(packer.compress(piece) for _ in range(size >> 20)) + packer.flush()


@pytest.mark.parametrize("kind", KINDS)
def test_a_bomb_is_given_up_at_the_limit(kind):
    packed = bomb(kind, 96 << 20)
    limit = 8 << 20
    assert len(packed) < 1 << 20
    tracemalloc.start()
    try:
        with pytest.raises(CannotDecompress, match=f"more than {limit} bytes") as caught:
            decompress(packed, limit)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.errno == errno.EFBIG
    assert peak < limit + (8 << 20)  # what the decompressors need of their own


@pytest.mark.parametrize("kind", KINDS)
def test_many_empty_streams_cost_no_time(kind):
    with pytest.raises(CannotDecompress, match="more than 1024"):
        decompress(COMPRESS[kind](b"") * 20_000)


def test_a_dictionary_of_4_gib_is_refused():
    packed = bytearray(lzma.compress(b"x", lzma.FORMAT_XZ, lzma.CHECK_NONE, filters=[
        {"id": lzma.FILTER_LZMA2, "dict_size": 4096}]))  # fmt: skip
    assert packed[12:16] == b"\x02\x00\x21\x01"  # the block's header: one filter, LZMA2, one byte follows
    packed[16] = 40
    packed[20:24] = zlib.crc32(packed[12:20]).to_bytes(4, "little")
    with pytest.raises(CannotDecompress, match=r"[Mm]emory"):
        decompress(bytes(packed))


def test_not_compressed():
    assert compression(b"\x7fELF\2\1") is None
    assert compression(b"") is None
    with pytest.raises(CannotDecompress, match="not compressed"):
        decompress(b"\x7fELF")


def test_read_module(tmp_path, monkeypatch):
    where = tmp_path / "m.ko"
    where.write_bytes(b"plain")
    assert read_module(str(where)) == b"plain"
    where.write_bytes(b"")
    assert read_module(str(where)) == b""
    with pytest.raises(FileNotFoundError):
        read_module(str(tmp_path / "none.ko"))
    with pytest.raises(IsADirectoryError):
        read_module(str(tmp_path))
    monkeypatch.setattr(compressed, "LIMIT", 4096)
    where.write_bytes(bytes(4096))
    assert len(read_module(str(where))) == 4096
    where.write_bytes(bytes(4097))
    with pytest.raises(CannotDecompress, match="larger"):
        read_module(str(where))
    os.mkfifo(tmp_path / "fifo")
    for other in ("/dev/zero", tmp_path / "fifo"):  # without an end, and without a beginning
        with pytest.raises(OSError, match="not a regular file"):
            read_module(str(other))


def test_no_descriptor_is_left(tmp_path):
    where = tmp_path / "m.ko.xz"
    where.write_bytes(lzma.compress(b"x")[:-4])
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CannotDecompress):
        read_module(str(where))
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_the_package_the_sentence_says_what_to_install(monkeypatch):
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(CannotDecompress, match=r"kmodd\[zstd\]"):
        decompress(zstd.compress(b"x"))
    assert decompress(lzma.compress(b"x")) == b"x"


def test_pieces_are_bounded():
    """What is read ahead of the limit is one piece."""
    sizes = [len(piece) for piece in compressed._pieces(bomb("gzip", 4 << 20), "gzip")]
    assert sum(sizes) == 4 << 20
    assert max(sizes) == 1 << 20
