"""S7: what may be asked for, and how the rest is shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd import names
from kmodd.errors import InvalidName


@given(st.binary(max_size=5000))
def test_s7_a_name_is_taken_whole_or_refused(raw: bytes) -> None:
    try:
        taken = names.check(raw)
    except InvalidName as err:
        assert str(err).isprintable()
        assert len(str(err)) < 2000
        bad = not raw or len(raw) > 4096 or raw[0] in b"-/." or any(not 0x21 <= byte <= 0x7E for byte in raw)
        assert bad
    else:
        assert taken.encode("ascii") == raw


@pytest.mark.parametrize(
    "raw", [b"net-pf-33", b"crypto-cbc(aes)", b"a" * 55, b"pci:v00008086d*", b"x;$(y)`z`|\\"]
)
def test_s7_names_of_the_kernel_are_taken(raw: bytes) -> None:
    assert names.check(raw, names.KERNEL_MAX).encode() == raw


@given(st.binary(max_size=600))
def test_escape_shows_any_bytes_as_printable_ascii(raw: bytes) -> None:
    shown = names.escape(raw)
    assert shown.isascii()
    assert not any(char.isspace() or not char.isprintable() for char in shown)
    if len(raw) <= 256:
        assert shown.encode().decode("unicode_escape").encode("latin-1") == raw


@given(st.binary(max_size=2000))
def test_printable_is_one_line(raw: bytes) -> None:
    assert all(char.isprintable() for char in names.printable(raw))


@pytest.mark.parametrize(
    ("name", "plain"),
    [("dm-crypt", "dm_crypt"), ("a[b-c]d-e", "a[b-c]d_e"), ("x", "x"), ("a]-b", "a]_b"), ("a[-", "a[-")],
)
def test_normalise(name: str, plain: str) -> None:
    assert names.normalise(name) == plain
