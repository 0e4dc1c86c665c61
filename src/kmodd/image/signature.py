"""The signature behind a module's image: who signed it, with which key, and how.

The kernel's format (linux/module_signature.h): the signature, 12 bytes that describe it, and a line of
text. Today's signatures are PKCS#7 (RFC 2315), of which only what modinfo shows is read. Nothing is verified.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kmodd.image.elf import Image

_MARK = b"~Module signature appended~\n"
_TRAILER = struct.Struct(">BBBBB3xI")
_KINDS = ("PGP", "X509", "PKCS#7")
_SIZE_MAX = 1 << 20
"""Bytes. A signature that has certificates with it has some thousand."""
_ALGORITHMS = 2  # DSA and RSA: kmod shows nothing of others
_HASHES = ("md4", "md5", "sha1", "rmd160", "sha256", "sha384", "sha512", "sha224", "sm3")
_HASH_OIDS = {
    bytes.fromhex("2a864886f70d0204"): "md4",
    bytes.fromhex("2a864886f70d0205"): "md5",
    bytes.fromhex("2b0e03021a"): "sha1",
    bytes.fromhex("2b24030201"): "rmd160",
    bytes.fromhex("608648016503040201"): "sha256",
    bytes.fromhex("608648016503040202"): "sha384",
    bytes.fromhex("608648016503040203"): "sha512",
    bytes.fromhex("608648016503040204"): "sha224",
    bytes.fromhex("2a811ccf55018311"): "sm3",
}
_SIGNED_DATA = bytes.fromhex("2a864886f70d010702")
_COMMON_NAME = bytes.fromhex("550403")
_INTEGER, _OCTETS, _OID, _SEQUENCE, _SET, _EXPLICIT = 0x02, 0x04, 0x06, 0x30, 0x31, 0xA0


class Signature:
    """What modinfo shows of a signature: its format's name, the signer's, the key, the hash and the bytes."""

    __slots__ = ("hash_name", "key", "kind", "signer", "value")

    def __init__(self, kind: str, signer: str, key: bytes, hash_name: str, value: bytes) -> None:
        self.kind = kind
        self.signer = signer
        self.key = key
        self.hash_name = hash_name
        self.value = value

    def fields(self) -> list[tuple[str, str]]:
        """Return the fields and their texts as modinfo names them; bytes are hexadecimal, 20 a line."""
        return [
            ("sig_id", self.kind),
            ("signer", self.signer),
            ("sig_key", _hexadecimal(self.key)),
            ("sig_hashalgo", self.hash_name),
            ("signature", _hexadecimal(self.value)),
        ]


def signature(image: Image) -> Signature | None:
    """Return the signature behind an image; None where there is none, or one that cannot be made out.

    As in kmod 30, a PKCS#7 signature that names its key by the key's id, not by issuer and serial number,
    cannot be made out.
    """
    view = memoryview(image)
    end = len(view) - len(_MARK) - _TRAILER.size
    if end < 0 or view[-len(_MARK) :] != _MARK:
        return None
    algorithm, hash_number, kind, signer_size, key_size, size = _TRAILER.unpack_from(view, end)
    if algorithm >= _ALGORITHMS or hash_number >= len(_HASHES) or kind >= len(_KINDS):
        return None
    if not 0 < size <= _SIZE_MAX or signer_size + key_size + size > end:
        return None
    value = bytes(view[end - size : end])
    if _KINDS[kind] == "PKCS#7":
        try:
            return _pkcs7(value)
        except _Unreadable:
            return None
    key_at = end - size - key_size
    signer = bytes(view[key_at - signer_size : key_at])
    return Signature(
        _KINDS[kind], _text(signer), bytes(view[key_at : key_at + key_size]), _HASHES[hash_number], value
    )


def _hexadecimal(data: bytes) -> str:
    lines = [data[at : at + 20].hex(":").upper() for at in range(0, len(data), 20)]
    return ":\n\t\t".join(lines)


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")


# PKCS#7


class _Unreadable(Exception):
    pass


class _Element:
    """One element of DER: its tag, and where in the data its contents start and stop."""

    __slots__ = ("after", "start", "stop", "tag")

    def __init__(self, tag: int, start: int, stop: int, after: int) -> None:
        self.tag = tag
        self.start = start
        self.stop = stop
        self.after = after


def _pkcs7(data: bytes) -> Signature:
    """Return what the first SignerInfo says; the path to it is RFC 2315's, section 9."""
    top = _element(data, 0, len(data))
    kind, content = _children(data, top, (_OID, _EXPLICIT))
    if data[kind.start : kind.stop] != _SIGNED_DATA:
        raise _Unreadable
    (signed,) = _children(data, content, (_SEQUENCE,))
    signers = _last(data, signed)
    if signers.tag != _SET:
        raise _Unreadable
    (signer,) = _children(data, signers, (_SEQUENCE,))
    _, issuer_and_serial, digest, *rest = _children(data, signer, (_INTEGER, _SEQUENCE, _SEQUENCE), rest=True)
    issuer, serial = _children(data, issuer_and_serial, (_SEQUENCE, _INTEGER))
    (oid,) = _children(data, digest, (_OID,))
    hash_name = _HASH_OIDS.get(data[oid.start : oid.stop])
    values = [element for element in rest if element.tag == _OCTETS]
    if hash_name is None or not values:
        raise _Unreadable
    value = data[values[0].start : values[0].stop]
    return Signature("PKCS#7", _issuer(data, issuer), _magnitude(data, serial), hash_name, value)


def _magnitude(data: bytes, element: _Element) -> bytes:
    """Return an integer's absolute value without leading zeros, as OpenSSL keeps it."""
    number = abs(int.from_bytes(data[element.start : element.stop], "big", signed=True))
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def _issuer(data: bytes, issuer: _Element) -> str:
    """Return an issuer's first common name; where it has none, its last part."""
    found = b""
    for part in _all(data, issuer):
        for pair in _all(data, part):
            kind, value = _children(data, pair, (_OID, None))
            found = data[value.start : value.stop]
            if data[kind.start : kind.stop] == _COMMON_NAME:
                return _text(found)
    return _text(found)


def _children(
    data: bytes, parent: _Element, tags: tuple[int | None, ...], *, rest: bool = False
) -> list[_Element]:
    """Return the first children, whose tags must be these (None: any), and with `rest` the others too."""
    out: list[_Element] = []
    at = parent.start
    while at < parent.stop and (rest or len(out) < len(tags)):
        element = _element(data, at, parent.stop)
        if len(out) < len(tags) and tags[len(out)] not in (None, element.tag):
            raise _Unreadable
        out.append(element)
        at = element.after
    if len(out) < len(tags):
        raise _Unreadable
    return out


def _all(data: bytes, parent: _Element) -> list[_Element]:
    return _children(data, parent, (), rest=True)


def _last(data: bytes, parent: _Element) -> _Element:
    children = _all(data, parent)
    if not children:
        raise _Unreadable
    return children[-1]


def _element(data: bytes, at: int, stop: int) -> _Element:
    """Return the element at `at`; one without a length (BER's indefinite form) ends with two zeros."""
    tag, start, size = _header(data, at, stop)
    if size >= 0:
        if size > stop - start:
            raise _Unreadable
        return _Element(tag, start, start + size, start + size)
    depth, at = 1, start
    while depth:
        inner, begin, size = _header(data, at, stop)
        if inner == 0 and size == 0:
            depth -= 1
        elif size < 0:
            depth += 1
        last, at = at, begin + max(size, 0)
    return _Element(tag, start, last, at)


def _header(data: bytes, at: int, stop: int) -> tuple[int, int, int]:
    """Return an element's tag, where its contents start, their size in bytes or -1 for none given."""
    if stop - at < 2:
        raise _Unreadable
    tag, size = data[at], data[at + 1]
    at += 2
    if tag & 0x1F == 0x1F:  # a tag of more than one byte: nothing in PKCS#7 has one
        raise _Unreadable
    if size == 0x80:
        return tag, at, -1
    if size > 0x80:
        width = size & 0x7F
        if width > 4 or width > stop - at:
            raise _Unreadable
        size = int.from_bytes(data[at : at + width], "big")
        at += width
    return tag, at, size
