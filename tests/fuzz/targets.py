"""What is fuzzed: functions that take bytes from a stranger and raise only where something is wrong with kmodd.

Each has seeds, made here from valid input, so that a fuzzer begins behind the first checks.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gzip
import lzma
import os
import re
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kmodd import names
from kmodd.errors import InvalidName, KmoddError
from kmodd.image import compressed, elf, signature
from kmodd.tree import binary, glob, modprobed
from kmodd.tree.aliases import AliasTable
from kmodd.tree.index import Corrupt, Index
from kmodd.tree.plan import Rules, TooLarge, resolve
from support.images import image, signed

REGRESSIONS = Path(__file__).parent / "regressions"
_SECONDS_MAX = 5.0
"""Of processor time for one input. Inputs have some kilobytes, and most take less than a millisecond."""


@dataclass(frozen=True, slots=True)
class Target:
    """`runs`: how often a test runs it under atheris, which is some seconds' work. `words`: to put in."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    runs: int
    longest: int = 4096
    words: tuple[bytes, ...] = ()


def regressions(name: str) -> list[Path]:
    """Return the inputs that once showed a defect."""
    return sorted((REGRESSIONS / name).glob("*"))


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    began = time.process_time()
    yield
    took = time.process_time() - began
    assert took < _SECONDS_MAX, f"it took {took:.1f} s"


# modprobe.d, the kernel command line, and plans

_DEP = """\
kernel/a.ko: kernel/b.ko kernel/c-d.ko
kernel/b.ko: kernel/c-d.ko
kernel/c-d.ko:
kernel/e.ko: kernel/f.ko
kernel/f.ko: kernel/e.ko
kernel/g.ko.xz: kernel/nowhere.ko
/elsewhere/h.ko:
"""
_ALIAS = """\
# Aliases extracted from modules themselves.
alias fs-x a
alias net-pf-3 b
alias pci:v00008086d*sv*sd*bc*sc*i* e
alias pci:v0000*d[0-9]*sv* f
alias usb:v?p??d* g
alias acpi*:PNP0501:* h
"""
_SYMBOLS = "alias symbol:one a\nalias symbol:two b\nalias symbol:two c_d\n"
_SOFTDEP = "# Soft dependencies\nsoftdep a pre: g post: h\nsoftdep h pre: a\n"
_BUILTIN = "kernel/i.ko\nkernel/drivers/j-k.ko\n"
_BUILTIN_INFO = b"i.license=GPL\0i.alias=fs-i\0j_k.alias=pci:v*d*bc0Csc03i30*\0j_k.parm=x:y\0"
_DEVNAME = "# Device nodes\ne fuse c10:229\nf net/tun c10:200\n"
TEXT_FILES = {
    "modules.dep": _DEP.encode(),
    "modules.alias": _ALIAS.encode(),
    "modules.symbols": _SYMBOLS.encode(),
    "modules.softdep": _SOFTDEP.encode(),
    "modules.builtin": _BUILTIN.encode(),
    "modules.builtin.modinfo": _BUILTIN_INFO,
    "modules.devname": _DEVNAME.encode(),
}
_ASKED = (
    "a", "c-d", "e", "h", "i", "fs-x", "fs-i", "net-pf-3", "symbol:two", "nosuch", "al", "pci:v00008086d00001234sv1sd1",
    "pci:v1d1bc0Csc03i30x", "usb:v1p22d3", "acpi:x:PNP0501:", "a[b-c]d", "a]",
)  # fmt: skip
_RULES = (Rules(), Rules(exact=True), Rules(exact=True, show_all=True, ignore_commands=True))


@functools.cache
def _directory() -> str:
    path = tempfile.mkdtemp(prefix="kmodd-fuzz-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def _tree(name: str) -> str:
    path = f"{_directory()}/{name}"
    os.makedirs(f"{path}/kernel", exist_ok=True)
    for file, content in TEXT_FILES.items():
        Path(path, file).write_bytes(content)
    return path


@functools.cache
def _index() -> Index:
    index = Index(_tree("whole"))
    index.load_all()
    return index


def _plans(index: Index, config: modprobed.Config, asked: tuple[str, ...]) -> None:
    for name in asked:
        for rules in _RULES:
            try:
                plan = resolve(index, config, {"b"}, name, rules)
            except (glob.BadBrackets, TooLarge):
                continue
            for found in plan.targets:
                for number, step in enumerate(found.steps):
                    assert all(0 <= before < number for before in step.after)
            plan.as_json()


def config(data: bytes) -> None:
    """A file of modprobe.d, and behind a byte 1 a kernel command line; then plans of what they say."""
    text, _, line = (part.decode("utf-8", "surrogateescape") for part in data.partition(b"\1"))
    found = modprobed.Config()
    with _in_time():
        modprobed.parse(found, text, "x.conf")
        modprobed.parse_command_line(found, line)
        mentioned = [item.pattern for item in (*found.aliases.items[:2], *found.softdeps.items[:2])]
        _plans(_index(), found, (*_ASKED, *mentioned))
        for problem in found.problems:
            assert problem.text
            assert problem.place.line <= text.count("\n") + 1
            assert len(str(problem)) < 600


CONFIG_WORDS = (
    b"\nalias ", b"\noptions ", b"\ninstall ", b"\nremove ", b"\nsoftdep ", b"\nweakdep ", b"\nblacklist ", b" pre: ",
    b" post: ", b" a ", b" b ", b" c-d ", b" e ", b" fs-x ", b" al ", b" symbol:two ", b"*", b"?", b"[a-c]", b"\\\n", b"\r\n",
    b"\t", b"\n#", b"\1", b" a.x=1", b"modprobe.blacklist=",
)  # fmt: skip
_CONFIG_SEEDS = (
    b'alias al a\nalias al h\nalias fs-* e\noptions a x=1 y="a b"\noptions al z\nblacklist h\n',
    b"install a /bin/true $CMDLINE_OPTS\nremove a /sbin/rmmod a\ninstall i echo\noptions c-d q\n",
    b"softdep a pre: h g post: e\nsoftdep h pre: a post: a\nsoftdep e pre: fs-x [a] a[ post: a\n",
    b"weakdep a h\ninclude x\nconfig y\n# comment\nalias [a-b]?\\\n-c* h\nalias a[ b\nnonsense\n\nalias a\n",
    b'softdep e pre: e\r\n\talias  al\ta\r\n\1quiet a.x=1 e."q=1 2" modprobe.blacklist=a,b "h.y=z" a[.b=c x.y.z=1',
    b"\xff\xfe\0alias \xe9 a\n\1\xff.x=1\0",
)


# The tree

TREE_WORDS = (
    *CONFIG_WORDS, b"kernel/a.ko:", b" kernel/b.ko", b".ko.xz:", b"\nalias symbol:", b"i.alias=", b"\0", b" c10:229\n",
    b"depends=", b"alias=", b"softdep=",
)  # fmt: skip
_KINDS = (*TEXT_FILES, "kernel/new.ko")


def tree(data: bytes) -> None:
    """One damaged file of a tree, which the first byte chooses; a module where that has no modules.dep."""
    if not data:
        return
    directory = _tree_once("damaged")
    name = _KINDS[data[0] % len(_KINDS)]
    path = Path(directory, name)
    path.write_bytes(data[1:])
    if name not in TEXT_FILES:
        os.unlink(f"{directory}/modules.dep")
    try:
        with _in_time():
            _look_at(directory)
    finally:
        Path(directory, "modules.dep").write_bytes(TEXT_FILES["modules.dep"])
        path.unlink() if name not in TEXT_FILES else path.write_bytes(TEXT_FILES[name])


@functools.cache
def _tree_once(name: str) -> str:
    return _tree(name)


def _look_at(directory: str) -> None:
    index = Index(directory)
    try:
        index.load_all()
    except Corrupt as err:
        assert directory in str(err)
        return
    found = modprobed.load((), directory)
    if (lines := index.softdep_lines()) is not None:
        modprobed.parse(found, lines, "scanned")
    for problem in (*index.problems, *map(str, found.problems)):
        assert problem.startswith(directory) or "scanned" in problem
    modules = list(index.modules())[:3]
    for name in modules:
        assert index.path(name) is not None
        index.dependencies(name)
    index.aliases()
    index.devnames()
    list(index.symbols())
    for name in list(index.builtins())[:3]:
        index.builtin_info(name)
    _plans(index, found, (*_ASKED[:8], *modules))


def _tree_seeds() -> tuple[bytes, ...]:
    module = image([(".modinfo", b"depends=a,b\0alias=x*y\0softdep=pre: a\0license=GPL\0")])
    return tuple(bytes([number]) + TEXT_FILES.get(name, module) for number, name in enumerate(_KINDS))


# The .bin files


def trie(values: dict[bytes, list[tuple[int, bytes]]]) -> bytes:
    """Return a `.bin` file as depmod(8) writes one."""
    out = bytearray(12)
    root = _node(out, dict(values))
    struct.pack_into(">III", out, 0, 0xB007F457, 0x20001, root)
    return bytes(out)


def _node(out: bytearray, values: dict[bytes, list[tuple[int, bytes]]]) -> int:
    prefix = os.path.commonprefix(list(values))  # noqa: RUF071 - which is what is wanted
    values = {key[len(prefix) :]: found for key, found in values.items()}
    own = values.pop(b"", [])
    starts = sorted({key[0] for key in values})
    children = {
        char: _node(out, {key[1:]: found for key, found in values.items() if key[0] == char})
        for char in starts
    }
    at = len(out)
    if prefix:
        at |= 0x80000000
        out += prefix + b"\0"
    if children:
        at |= 0x20000000
        out += bytes((starts[0], starts[-1]))
        out += b"".join(struct.pack(">I", children.get(char, 0)) for char in range(starts[0], starts[-1] + 1))
    if own:
        at |= 0x40000000
        out += struct.pack(">I", len(own))
        out += b"".join(struct.pack(">I", priority) + text + b"\0" for priority, text in own)
    return at


def trie_file(data: bytes) -> None:
    """A `.bin` file: no more comes out of it than could have been put in."""
    with _in_time():
        try:
            found = list(binary.entries(data))
        except binary.CorruptIndex as err:
            assert str(err)
            return
        assert sum(1 + len(value) for _key, value, _priority in found) <= len(data)
        AliasTable((key, value) for key, value, _priority in found)


def _trie_seeds() -> tuple[bytes, ...]:
    aliases = {
        b"usb:v1p*": [(1, b"a"), (2, b"b")],
        b"usb:v2*": [(3, b"c")],
        b"pci:v0*d1*": [(4, b"d")],
        b"fs-x": [(5, b"a")],
    }
    modules = {b"a": [(0, b"kernel/a.ko: kernel/b.ko")], b"ab": [(0, b"kernel/ab.ko:")]}
    return trie(aliases), trie(modules), trie({b"symbol:x": [(0, b"a")]}), trie({b"": [(0, b"")]})


# Patterns


@functools.cache
def _libc() -> tuple[ctypes.CDLL, int]:
    libc = ctypes.CDLL(None)
    libc.newlocale.restype = libc.uselocale.restype = ctypes.c_void_p
    libc.newlocale.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    libc.uselocale.argtypes = (ctypes.c_void_p,)
    every_category = 0x1FBF  # LC_ALL_MASK
    return libc, libc.newlocale(every_category, b"C", None)


def fnmatch(pattern: bytes, name: bytes) -> bool:
    """fnmatch(3) in the C locale, whatever the locale of this process is."""
    libc, c_locale = _libc()
    before = libc.uselocale(c_locale)
    try:
        return libc.fnmatch(pattern, name, 0) == 0
    finally:
        libc.uselocale(before)


def pattern(data: bytes) -> None:
    """Patterns, one a line, and behind a NUL a name: compared with fnmatch(3) where they are short."""
    text, _, name = data.partition(b"\0")
    name = name.replace(b"\0", b"")
    lines = []
    for raw in text.split(b"\n"):
        line = raw.decode("latin-1")
        try:
            assert glob.normalise(line).replace("_", "-") == line.replace("_", "-")
        except glob.BadBrackets:
            continue  # such a pattern is refused before anything is compared with it
        lines.append(line)
    decoded = name.decode("latin-1")
    with _in_time():
        matching = [glob.matches(line, decoded) for line in lines]
        found = AliasTable((line, str(number)) for number, line in enumerate(lines)).find(decoded)
        assert found == [str(number) for number, matched in enumerate(matching) if matched]
        for line, matched in zip(lines, matching, strict=True):
            if _comparable(line) and len(name) <= 32:
                assert matched == fnmatch(line.encode("latin-1"), name), (line, decoded)
                assert not matched or decoded.startswith(line[: glob.prefix_length(line)])


def _comparable(line: str) -> bool:
    """Whether fnmatch(3) says something definite of a pattern, and soon.

    It goes back into what is behind each star, so there must be few. A bracket that has no end, or a class
    that has no name, it takes for one thing or another as the name goes on.
    """
    known = re.sub(
        r"\[:(alnum|alpha|blank|cntrl|digit|graph|lower|print|punct|space|upper|xdigit):\]", "", line
    )
    return len(line) <= 32 and line.count("*") < 8 and not re.search(r"\[[:=.]", known)


_PATTERN_SEEDS = (
    b"pci:v00008086d*sv*sd*bc*sc*i*\0pci:v00008086d00001234sv1sd2bc3sc4i5",
    b"a?c\n[a-c]*\n[!a]\n[]a]x\n[^]]\n\\*a\\\\\n*[0-9a-f]*\0abc",
    b"[[:alpha:]]*\n[[:digit:][:space:]_]\n[![:upper:]-]\0x1_",
    b"[a-]\n[a-c-e]\n[z-a]\n[\\]a]\n[\\a-\\c]\0a",
    b"*a*b*c?[d]\n*?*?*?*\n**\n*\n\n?\0aXbYcZd",
)


# Modules' files


def _only_kmodd(call: Callable[[bytes], object], data: bytes) -> None:
    try:
        call(data)
    except KmoddError as err:
        assert str(err)


def elf_file(data: bytes) -> None:
    """A module's image."""
    with _in_time():
        for call in (elf.modinfo, elf.modversions, elf.exports):
            _only_kmodd(call, data)
        for vermagic, versions in ((True, False), (False, True)):
            try:
                out = elf.without_checks(data, vermagic=vermagic, versions=versions)
            except KmoddError:
                continue
            assert len(out) == len(data)


def _elf_seeds() -> tuple[bytes, ...]:
    info = b"license=GPL\0depends=a\0vermagic=6.1 SMP\0alias=x*\0"
    out = []
    for bits in (32, 64):
        for little in (True, False):
            order = "<" if little else ">"
            symbol = struct.pack(
                order + ("IBBHQQ" if bits == 64 else "IIIBBH"),
                *((1, 0, 0, 2, 0, 0) if bits == 64 else (1, 0, 0, 0, 0, 2)),
            )
            version = struct.pack(order + ("Q56s" if bits == 64 else "I60s"), 7, b"printk")
            sections = [
                (".modinfo", info), ("__kcrctab", bytes(8)), (".symtab", symbol), (".strtab", b"\0__crc_one\0"),
                ("__versions", version), ("__ksymtab_strings", b"one\0two\0"),
            ]  # fmt: skip
            out += [image(sections, bits=bits, little=little), image(sections[-1:], bits=bits, little=little)]
    return tuple(out)


_LIMIT = 1 << 20


def packed(data: bytes) -> None:
    """A compressed module, whose contents are limited."""

    def call(data: bytes) -> None:
        assert len(compressed.decompress(data, _LIMIT)) <= _LIMIT

    with _in_time():
        _only_kmodd(call, data)


def _packed_seeds() -> tuple[bytes, ...]:
    plain = image([(".modinfo", b"license=GPL\0")])
    bomb = bytes(_LIMIT + 1)
    small = (
        lzma.compress(plain),
        gzip.compress(plain, mtime=0),
        lzma.compress(b"") + bytes(8),
        gzip.compress(b"", mtime=0) * 3,
    )
    try:
        zstd = compressed._zstd()
    except KmoddError:
        return (*small, lzma.compress(bomb))
    return (*small, lzma.compress(bomb), zstd.compress(plain), zstd.compress(plain) * 2, zstd.compress(bomb))


def _der(tag: int, *parts: bytes, indefinite: bool = False) -> bytes:
    content = b"".join(parts)
    if indefinite:
        return bytes((tag, 0x80)) + content + b"\0\0"
    length = len(content)
    size = bytes((length,)) if length < 0x80 else b"\x82" + length.to_bytes(2, "big")
    return bytes((tag,)) + size + content


def _pkcs7(*, indefinite: bool = False) -> bytes:
    name = _der(0x31, _der(0x30, _der(6, bytes.fromhex("550403")), _der(12, b"the signer")))
    oid = _der(6, bytes.fromhex("608648016503040202"))
    signer = _der(
        0x30, _der(2, b"\1"), _der(0x30, _der(0x30, name), _der(2, b"\0\x9a\1")), _der(0x30, oid),
        _der(0x30, _der(6, bytes.fromhex("2a864886f70d010101")), _der(5)), _der(4, bytes(64)),
    )  # fmt: skip
    body = _der(
        0x30,
        _der(2, b"\1"),
        _der(0x31, _der(0x30, oid)),
        _der(0x30),
        _der(0x31, signer),
        indefinite=indefinite,
    )
    kind = _der(6, bytes.fromhex("2a864886f70d010702"))
    return _der(0x30, kind, _der(0xA0, body, indefinite=indefinite), indefinite=indefinite)


def signature_block(data: bytes) -> None:
    """A signature behind an image; the first byte says whether the data has the kernel's trailer already."""
    whole = data[1:] if data[:1] == b"\0" else signed(b"", data[1:])
    with _in_time():
        found = signature.signature(whole)
        if found is not None:
            assert len(found.fields()) == 5


def _signature_seeds() -> tuple[bytes, ...]:
    return (
        b"\1" + _pkcs7(),
        b"\1" + _pkcs7(indefinite=True),
        b"\0" + signed(b"image", _pkcs7()),
        b"\0" + signed(b"image", b"the signerKEYsignature", kind=0, hash_number=4, signer=10, key=3, size=9),
    )


# Names


def name(data: bytes) -> None:
    """A name from the kernel or a program, and what a program printed."""
    shown = names.escape(data)
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) <= 4 * 256 + 30
    line = names.printable(data)
    assert line.isprintable()
    try:
        checked = names.check(data)
    except InvalidName as err:
        assert str(err).isprintable()
        return
    assert checked.encode() == data
    assert shown == checked.replace("\\", "\\x5c") or len(data) > 256
    plain = names.normalise(checked)
    assert names.normalise(plain) == plain
    with contextlib.suppress(glob.BadBrackets):
        assert glob.normalise(checked) == plain


_NAME_SEEDS = (
    b"net-pf-10",
    b"pci:v00008086d*",
    b"a[b-c]-d]-[",
    b"-x",
    b"/etc/passwd",
    b"\xc3\xa9\xff\r\n\x1b[31m\xe2\x80\xa8",
    b"a" * 300,
)

TARGETS = {
    "config": Target(config, _CONFIG_SEEDS, 2_500, 1024, CONFIG_WORDS),
    "tree": Target(tree, _tree_seeds(), 3_000, 1024, TREE_WORDS),
    "trie": Target(trie_file, _trie_seeds(), 60_000),
    "pattern": Target(pattern, _PATTERN_SEEDS, 20_000, 256),
    "elf": Target(elf_file, _elf_seeds(), 50_000),
    "compressed": Target(packed, _packed_seeds(), 20_000),
    "signature": Target(signature_block, _signature_seeds(), 60_000, 1024),
    "name": Target(name, _NAME_SEEDS, 50_000, 512),
}
