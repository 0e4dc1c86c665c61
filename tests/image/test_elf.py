"""elf.py and signature.py, with images made here, damaged ones, and what kmod says of real ones."""

from __future__ import annotations

import errno
import os
import random
import struct
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmodd.errors import KmoddError
from kmodd.image import elf
from kmodd.image.compressed import read_module
from kmodd.image.signature import signature
from support.images import compressed_modules, image, real_modules, signed, small_modules

SHAPES = [(bits, little) for bits in (32, 64) for little in (True, False)]
INFO = b"license=GPL\0\0name=thing\0parm=a:b=c\0noequals\0=nokey\0author=\xc3\xa9\xff\0last=1"


def read_all(data: bytes) -> None:
    """Everything that reads an image; only a KmoddError may come out of it."""
    for read in (
        elf.modinfo,
        elf.modversions,
        elf.exports,
        signature,
        lambda data: elf.section(data, ".text"),
        lambda data: elf.without_checks(data, vermagic=True, versions=True),
    ):
        try:
            read(data)
        except KmoddError as err:
            assert str(err)
            assert isinstance(err, elf.MalformedModule)
            assert err.errno in (errno.EINVAL, errno.ENOEXEC, errno.ENOENT)


@pytest.mark.parametrize(("bits", "little"), SHAPES)
def test_modinfo(bits, little):
    data = image([(".text", b"code"), (".modinfo", INFO)], bits=bits, little=little)
    assert elf.modinfo(data) == [
        ("license", "GPL"),
        ("name", "thing"),
        ("parm", "a:b=c"),
        ("noequals", ""),
        ("", "nokey"),
        ("author", "é\udcff"),
        ("last", "1"),
    ]
    assert elf.modinfo(memoryview(data)) == elf.modinfo(data)
    assert elf.section(data, ".text") == b"code"
    assert elf.section(data, ".tex") is None


@pytest.mark.parametrize(("bits", "little"), SHAPES)
def test_modversions(bits, little):
    entry = struct.Struct(("<" if little else ">") + ("Q56s" if bits == 64 else "I60s"))
    data = entry.pack(0x9060323F, b"module_layout") + entry.pack(1, b"x" * 60)
    found = elf.modversions(image([("__versions", data)], bits=bits, little=little))
    assert found == [(0x9060323F, "module_layout"), (1, "x" * (56 if bits == 64 else 60))]
    with pytest.raises(elf.MalformedModule, match="part of an entry"):
        elf.modversions(image([("__versions", data[:-1])], bits=bits, little=little))


def symbols(bits: int, little: bool, entries: list[tuple[int, int, int]]) -> bytes:
    order = "<" if little else ">"
    if bits == 64:
        return b"".join(
            struct.pack(order + "IBBHQQ", at, 0, 0, where, value, 0) for at, where, value in entries
        )
    return b"".join(struct.pack(order + "IIIBBH", at, value, 0, 0, 0, where) for at, where, value in entries)


@pytest.mark.parametrize(("bits", "little"), SHAPES)
def test_exports(bits, little):
    names = b"\0__crc_absolute\0__crc_placed\0other\0"
    table = symbols(bits, little, [(0, 0, 0), (1, 0xFFF1, 0xABCD), (16, 1, 4), (29, 0xFFF1, 5)])
    crcs = struct.pack("<II" if little else ">II", 7, 0x12345678)
    found = elf.exports(
        image([("__kcrctab", crcs), (".symtab", table), (".strtab", names)], bits=bits, little=little)
    )
    assert found == [(0xABCD, "absolute"), (0x12345678, "placed")]


def test_exports_without_checksums():
    assert elf.exports(image([("__ksymtab_strings", b"one\0\0two\0")])) == [(0, "one"), (0, "two")]
    assert elf.exports(image([(".text", b"")])) == []


@pytest.mark.parametrize(
    ("data", "number"),
    [
        (b"", errno.EINVAL),
        (b"\x7fELF", errno.EINVAL),
        (b"no ELF file at all", errno.ENOEXEC),
        (image([(".modinfo", b"a=b\0")])[:16], errno.ENOEXEC),
        (image([(".modinfo", b"a=b\0")])[:60], errno.EINVAL),
        (image([(".modinfo", b"a=b\0")])[:-1], errno.EINVAL),
        (image([(".text", b"a=b\0")]), errno.ENOENT),
    ],
)
def test_malformed(data, number):
    with pytest.raises(elf.MalformedModule) as caught:
        elf.modinfo(data)
    assert caught.value.errno == number


@given(st.binary(max_size=400))
def test_arbitrary_bytes(data):
    read_all(data)
    read_all(b"\x7fELF" + data)
    assert signature(data) is None or data.endswith(b"appended~\n")


@st.composite
def mutated(draw):
    bits, little = draw(st.sampled_from(SHAPES))
    made = image([(".modinfo", INFO), ("__versions", bytes(64)), (".symtab", bytes(48)), (".strtab", b"\0")],
                 bits=bits, little=little)  # fmt: skip
    sources = [made, signed(made, PKCS7)] + [Path(path).read_bytes() for path in small_modules(3)]
    data = bytearray(draw(st.sampled_from(sources)))
    for _ in range(draw(st.integers(1, 4))):
        where = draw(st.sampled_from(["head", "tail", "any", "cut"]))
        length = len(data)
        if not length:
            break
        if where == "cut":
            del data[draw(st.integers(0, length - 1)) :]
            continue
        low, high = {
            "head": (0, min(64, length) - 1),
            "tail": (max(0, length - 1200), length - 1),
            "any": (0, length - 1),
        }[where]
        data[draw(st.integers(low, high))] = draw(st.integers(0, 255))
    return bytes(data)


@settings(max_examples=300, deadline=None)
@given(mutated())
def test_mutated_modules(data):
    read_all(data)


def test_time_grows_with_size_only():
    """Each of these would take minutes, or gigabytes, if some loop were within another."""
    began = time.monotonic()
    many = image([(".modinfo", b"a=" * (1 << 20) + b"\0" * (1 << 20) + b"b\0" * (1 << 18))])
    assert len(elf.modinfo(many)) == 1 + (1 << 18)
    shared = b"__crc_" + b"a" * (1 << 20) + b"\0"
    with pytest.raises(elf.MalformedModule, match="share"):
        elf.exports(image([(".symtab", symbols(64, True, [(0, 0xFFF1, 1)] * 50000)), (".strtab", shared)]))
    assert elf.section(image([("x" * 40, b"")] * 60000), "x" * 39) is None
    for blob in (b"\x30\x80" * 400_000, b"\x30\x80\x06\x00" * 200_000 + b"\0\0" * 200_000, b"\0\0" * 400_000):
        assert signature(signed(b"", blob)) is None
    assert signature(signed(b"", bytes(2 << 20), kind=1, signer=0, key=0)) is None
    assert time.monotonic() - began < 20


# Signatures


def der(tag: int, *parts: bytes) -> bytes:
    data = b"".join(parts)
    if len(data) < 128:
        return bytes([tag, len(data)]) + data
    width = (len(data).bit_length() + 7) // 8
    return bytes([tag, 0x80 | width]) + len(data).to_bytes(width, "big") + data


def indefinite(tag: int, *parts: bytes) -> bytes:
    return bytes([tag, 0x80]) + b"".join(parts) + b"\0\0"


def pkcs7(
    names=((b"\x55\x04\x0a", b"Org"), (b"\x55\x04\x03", b"Schl\xc3\xbcssel")), serial=b"\x00\xff\x01",
    digest="608648016503040201", value=bytes(range(25)), sequence=der,
):  # fmt: skip
    oid = der(6, bytes.fromhex(digest))
    issuer = der(0x30, *(der(0x31, der(0x30, der(6, kind), der(12, text))) for kind, text in names))
    signer = sequence(
        0x30,
        der(2, b"\1"),
        der(0x30, issuer, der(2, serial)),
        der(0x30, oid, der(5)),
        der(0xA0, der(0x30, der(4, b"an attribute"))),
        der(0x30, oid),
        der(4, value),
    )
    content = der(0x30, der(6, bytes.fromhex("2a864886f70d010701")))
    data = sequence(
        0x30, der(2, b"\1"), der(0x31, der(0x30, oid)), content, der(0xA0, b""), der(0x31, signer)
    )
    return sequence(0x30, der(6, bytes.fromhex("2a864886f70d010702")), sequence(0xA0, data))


PKCS7 = pkcs7()
PLAIN = image([(".modinfo", b"a=b\0")])


@pytest.mark.parametrize("sequence", [der, indefinite])
def test_pkcs7(sequence):
    found = signature(signed(PLAIN, pkcs7(sequence=sequence)))
    assert found is not None
    assert found.fields() == [
        ("sig_id", "PKCS#7"),
        ("signer", "Schlüssel"),
        ("sig_key", "FF:01"),
        ("sig_hashalgo", "sha256"),
        ("signature", "00:01:02:03:04:05:06:07:08:09:0A:0B:0C:0D:0E:0F:10:11:12:13:\n\t\t14:15:16:17:18"),
    ]


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"names": ()}, "signer", ""),
        ({"names": ((b"\x55\x04\x0a", b"one"), (b"\x55\x04\x0b", b"two"))}, "signer", "two"),
        ({"names": ((b"\x55\x04\x03", b"one"), (b"\x55\x04\x03", b"two"))}, "signer", "one"),
        ({"serial": b"\x00"}, "key", b""),
        ({"serial": b"\xfb"}, "key", b"\x05"),
        ({"digest": "2b0e03021a"}, "hash_name", "sha1"),
        ({"digest": "2a811ccf55018311"}, "hash_name", "sm3"),
    ],
)
def test_pkcs7_parts(change, field, value):
    found = signature(signed(PLAIN, pkcs7(**change)))
    assert getattr(found, field) == value


def test_what_cannot_be_made_out_is_no_signature():
    assert signature(signed(PLAIN, PKCS7)) is not None
    assert signature(PLAIN) is None
    for blob in (b"", PKCS7[:-1], PKCS7[1:], b"garbage", pkcs7(digest="608648016503040208")):
        assert signature(signed(PLAIN, blob)) is None
    for size in (0, len(PKCS7) - 1, 1 << 20, (1 << 32) - 1):
        assert signature(signed(PLAIN, PKCS7, size=size)) is None
    assert signature(signed(PLAIN, PKCS7, kind=3)) is None
    assert signature(signed(PLAIN, PKCS7, algorithm=2)) is None
    assert signature(signed(PLAIN, PKCS7, hash_number=9)) is None


def test_older_formats():
    found = signature(signed(PLAIN, b"SIGNERKEYvalue", kind=1, hash_number=4, signer=6, key=3, size=5))
    assert found is not None
    assert (found.kind, found.signer, found.key) == ("X509", "SIGNER", b"KEY")
    assert (found.hash_name, found.value) == ("sha256", b"value")


# What kmod says


def test_as_modprobe_on_real_modules():
    if not os.path.exists("/sbin/modprobe"):
        pytest.skip("kmod's modprobe is not installed")
    modules = [*real_modules()[::25], *compressed_modules()[::25]]
    seen = 0
    for path in modules:
        data = read_module(path)
        for option, read in (("--show-modversions", elf.modversions), ("--show-exports", elf.exports)):
            done = subprocess.run(
                ["/sbin/modprobe", option, path], capture_output=True, text=True, check=False
            )
            ours = "".join(f"0x{crc:08x}\t{name}\n" for crc, name in read(data))
            assert ours == done.stdout, f"{option} {path}"
            seen += bool(ours)
    assert seen > len(modules) // 4


def test_a_forced_image_is_the_same_but_for_the_checks():
    version = struct.pack("<Q56s", 1, b"module_layout")
    plain = image([(".modinfo", b"a=b\0vermagic=6.1 SMP\0license=GPL\0"), ("__versions", version)])
    both = elf.without_checks(plain, vermagic=True, versions=True)
    assert elf.modinfo(both) == [("a", "b"), ("license", "GPL")]
    changed = [at for at in range(len(plain)) if plain[at] != both[at]]
    assert len(plain) == len(both)
    assert len(changed) == len("vermagic=6.1 SMP") + 1  # the one flag of the section's
    assert elf.without_checks(plain, vermagic=False, versions=False) == plain
    only = elf.without_checks(plain, vermagic=False, versions=True)
    assert sum(a != b for a, b in zip(plain, only, strict=True)) == 1


def test_damage_is_seen_where_kmod_sees_it(tmp_path):
    """Unsigned images: OpenSSL is stricter about signatures than what modinfo shows of them needs."""
    if not os.path.exists("/sbin/modinfo"):
        pytest.skip("kmod's modinfo is not installed")
    dice = random.Random(1)
    refused = 0
    for number in range(150):
        bits, little = SHAPES[number % 4]
        data = bytearray(image([(".text", b"code"), (".modinfo", INFO)], bits=bits, little=little))
        if dice.random() < 0.3:
            del data[dice.randrange(1, len(data)) :]
        else:
            data[dice.randrange(4, len(data))] = dice.choice([0, 1, 255, dice.randrange(256)])
        path = tmp_path / "m.ko"
        path.write_bytes(data)
        done = subprocess.run(["/sbin/modinfo", "-0", path], capture_output=True, check=False)
        if done.returncode < 0:
            continue  # kmod 30 aborts where the number of the table of names is off
        try:
            found = [(key, value) for key, value in elf.modinfo(bytes(data)) if key != "parm"]
        except elf.MalformedModule:
            refused += 1
            assert done.returncode == 1, data
            continue
        assert done.returncode == 0, bytes(data)
        theirs = [item.decode("utf-8", "surrogateescape") for item in done.stdout.split(b"\0")[1:-1]]
        assert [f"{key}={value}" for key, value in found] == [
            item for item in theirs if not item.startswith("parm: ")
        ]
    assert 20 < refused < 130


@pytest.mark.parametrize(
    ("name", "read"),
    [(".modinfo", elf.modinfo), ("__versions", elf.modversions), ("__ksymtab_strings", elf.exports)],
)
def test_a_section_of_many_small_entries(name, read):
    """512 MiB of them, which is the largest module that is read, would be some ten gigabytes of objects."""
    data = image([(name, b"a\0" * (9 << 20))])
    with pytest.raises(elf.MalformedModule, match=f"section {name} has more than"):
        read(data)
