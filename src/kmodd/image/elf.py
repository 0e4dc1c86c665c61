"""A kernel module's image: its sections, what .modinfo says, its symbol versions.

The layout is elf(5)'s, in either word size and byte order. Images come from files that may be damaged or
made to do harm: each read is checked against the image's end, and no loop is longer than a table of it.
"""

from __future__ import annotations

import errno as _errno
import struct

from kmodd.errors import KmoddError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Image = bytes | memoryview

_MAGIC = b"\x7fELF"
_ABSOLUTE = 0xFFF1  # SHN_ABS
_ALLOCATED = 2  # SHF_ALLOC
_NOBITS = 8
_VERSION_SIZE = 64
"""Bytes of a struct modversion_info: an unsigned long, and the name in what is left (kernel: module.h)."""
_CRC = b"__crc_"
_TEXTS_MAX = 4 << 20
"""Bytes of .modinfo and of __ksymtab_strings; the largest modules have some hundred thousand. Each byte may
become an entry of a hundred."""
_VERSIONS_MAX = 16 << 20


class MalformedModule(KmoddError):
    """A file that is no module, or a damaged one; `errno` is what kmod gives for it.

    ENOEXEC: it is no ELF file. EINVAL: it is damaged. ENOENT: a section that each module has is not there.
    """

    def __init__(self, message: str, errno: int = _errno.EINVAL) -> None:
        super().__init__(message)
        self.errno = errno


class _Section:
    """One line of the section table; `offset` and `size` are in the image, in bytes."""

    __slots__ = ("flags_at", "kind", "name_at", "offset", "size")

    def __init__(self, name_at: int, kind: int, flags_at: int, offset: int, size: int) -> None:
        self.name_at = name_at
        self.kind = kind
        self.flags_at = flags_at
        self.offset = offset
        self.size = size


class _Elf:
    """The section table of one image."""

    __slots__ = ("_names", "image", "order", "sections", "wide")

    def __init__(self, image: Image) -> None:
        self.image = memoryview(image)
        if len(image) < 6:
            raise MalformedModule("it is too short for any module")
        head = bytes(self.image[:16])
        if head[:4] != _MAGIC or len(self.image) <= 16:
            raise MalformedModule("it is no ELF file", _errno.ENOEXEC)
        if head[4] not in (1, 2) or head[5] not in (1, 2):
            raise MalformedModule("its word size or byte order is unknown")
        self.wide = head[4] == 2
        self.order = "<" if head[5] == 1 else ">"
        layout = struct.Struct(self.order + ("24xQ10x3H" if self.wide else "16xI10x3H"))
        # Behind e_ident there are e_type, e_machine, e_version and e_entry, e_phoff before e_shoff.
        if len(self.image) < 16 + layout.size:
            raise MalformedModule("it is cut within the ELF header")
        at, entry, count, names = layout.unpack_from(self.image, 16)
        self.sections = self._table(at, entry, count)
        if names >= count:
            raise MalformedModule("it has no table of section names")
        self._names = bytes(self.data(self.sections[names]))
        if not self._names.endswith(b"\0"):
            raise MalformedModule("its table of section names has no end")

    def _table(self, at: int, entry: int, count: int) -> list[_Section]:
        line = struct.Struct(self.order + ("IIQ8xQQ16x8x" if self.wide else "III4xII16x"))
        if entry != line.size:
            raise MalformedModule(f"its section table has entries of {entry} bytes, not {line.size}")
        if at + count * entry > len(self.image):
            raise MalformedModule("it is cut before the end of its section table")
        return [
            _Section(name, kind, at + number * entry + 8, offset, size)
            for number, (name, kind, _, offset, size) in enumerate(
                line.iter_unpack(self.image[at : at + count * entry])
            )
        ]

    def find(self, name: bytes) -> _Section | None:
        """Return the first section of a name."""
        wanted = name + b"\0"
        for section in self.sections:
            if self._names.startswith(wanted, section.name_at):
                return section
        return None

    def data(self, section: _Section) -> memoryview:
        """Return what a section has in the image."""
        if section.kind == _NOBITS:
            return self.image[:0]
        end = section.offset + section.size
        if end > len(self.image):
            raise MalformedModule("it is cut: a section lies behind its end")
        return self.image[section.offset : end]

    def named(self, name: bytes) -> memoryview | None:
        """Return what the first section of a name has in the image."""
        found = self.find(name)
        return None if found is None else self.data(found)

    def limited(self, name: bytes, most: int) -> memoryview | None:
        """Return the same, if it has no more than `most` bytes."""
        found = self.named(name)
        if found is not None and len(found) > most:
            raise MalformedModule(f"its section {name.decode()} has more than {most >> 20} MiB")
        return found


def section(image: Image, name: str) -> bytes | None:
    """Return the contents of the first section of a name, None where there is none.

    Raises:
        MalformedModule: the image cannot be read so far.
    """
    found = _Elf(image).named(name.encode("utf-8", "surrogateescape"))
    return None if found is None else bytes(found)


def modinfo(image: Image) -> list[tuple[str, str]]:
    """Return the key and the value of each entry of .modinfo, in the file's order.

    An entry without `=` is a key with an empty value, as in kmod. What is not UTF-8 is surrogate-escaped.

    Raises:
        MalformedModule: the image cannot be read so far, or has no such section (ENOENT).
    """
    data = _Elf(image).limited(b".modinfo", _TEXTS_MAX)
    if data is None:
        raise MalformedModule("it has no .modinfo section", _errno.ENOENT)
    if len(data) <= 1:  # kmod wants more for an entry
        return []
    out = []
    for entry in bytes(data).split(b"\0"):
        if entry:
            key, _, value = entry.partition(b"=")
            out.append((_text(key), _text(value)))
    return out


def modversions(image: Image) -> list[tuple[int, str]]:
    """Return the checksum and the name of each symbol that the module was built against (__versions).

    Raises:
        MalformedModule: the image cannot be read so far.
    """
    elf = _Elf(image)
    data = elf.limited(b"__versions", _VERSIONS_MAX)
    if data is None:
        return []
    if len(data) % _VERSION_SIZE:
        raise MalformedModule("its __versions section has a part of an entry")
    entry = struct.Struct(elf.order + ("Q56s" if elf.wide else "I60s"))
    return [(crc, _text(name.partition(b"\0")[0])) for crc, name in entry.iter_unpack(data)]


def exports(image: Image) -> list[tuple[int, str]]:
    """Return the checksum and the name of each symbol that the module exports.

    From the `__crc_` symbols; where there are none, from __ksymtab_strings with a checksum of 0.

    Raises:
        MalformedModule: the image cannot be read so far.
    """
    elf = _Elf(image)
    found = list(_checksums(elf))
    if not found:
        names = elf.limited(b"__ksymtab_strings", _TEXTS_MAX)
        found = [(0, _text(name)) for name in bytes(names or b"").split(b"\0") if name]
    return found


def _checksums(elf: _Elf) -> Iterator[tuple[int, str]]:
    table, strings = elf.named(b".symtab"), elf.named(b".strtab")
    if table is None or strings is None:
        return
    names = bytes(strings)
    symbol = struct.Struct(elf.order + ("I2xHQ8x" if elf.wide else "II4x2xH"))
    if len(table) % symbol.size:
        raise MalformedModule("its symbol table has a part of an entry")
    left = len(names)
    for line in symbol.iter_unpack(table):
        at, where, value = line if elf.wide else (line[0], line[2], line[1])
        if not names.startswith(_CRC, at):
            continue
        end = names.find(b"\0", at)
        if end < 0:
            raise MalformedModule("its table of symbol names has no end")
        left -= end - at
        if left < 0:  # a small file could stand for gigabytes of names
            raise MalformedModule("its symbols share the text of their names")
        yield _checksum(elf, where, value), _text(names[at + len(_CRC) : end])


def _checksum(elf: _Elf, where: int, value: int) -> int:
    """Return a checksum: the symbol's value, or where it is in a section what is there (Linux 4.11)."""
    if where in (0, _ABSOLUTE) or where >= len(elf.sections):
        return value
    data = elf.data(elf.sections[where])
    if value + 4 > len(data):
        raise MalformedModule("a checksum lies behind the end of its section")
    (crc,) = struct.unpack_from(elf.order + "I", data, value)
    return int(crc)


def without_checks(image: bytes, *, vermagic: bool, versions: bool) -> bytes:
    """Return the image as a kernel without finit_module(2) takes it unchecked, as `insmod -f` asks for.

    `vermagic`: the kernel it was built for is overwritten. `versions`: its __versions are not loaded.

    Raises:
        MalformedModule: the image cannot be read so far.
    """
    elf = _Elf(image)
    out = bytearray(image)
    if versions and (found := elf.find(b"__versions")):
        field = struct.Struct(elf.order + ("Q" if elf.wide else "I"))
        (flags,) = field.unpack_from(out, found.flags_at)
        field.pack_into(out, found.flags_at, flags & ~_ALLOCATED)
    if vermagic and (found := elf.find(b".modinfo")):
        at = found.offset
        for entry in bytes(elf.data(found)).split(b"\0"):
            if entry.startswith(b"vermagic="):
                out[at : at + len(entry)] = bytes(len(entry))
            at += len(entry) + 1
    return bytes(out)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
