"""Files made to do harm, or by mistake of a kind that does: no hang, no flood, and always a reason."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.tree import binary, modprobed
from kmodd.tree.index import FILES, Corrupt, Index
from kmodd.tree.modprobed import Config, parse
from kmodd.tree.plan import Rules, TooLarge, resolve
from kmodd.tree.snapshot import Snapshot
from support.images import image


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    """What takes a power of the input's size would take minutes."""
    began = time.process_time()
    yield
    assert time.process_time() - began < 10


# The .bin files

HEADER = struct.pack(">II", 0xB007F457, 0x20001)


def test_a_trie_whose_nodes_share_their_values() -> None:
    values = b"".join(struct.pack(">I", number) + b"a\0" for number in range(2000))
    leaf = 0x40000000 | 12
    nodes = struct.pack(">I", 2000) + values
    root = 12 + len(nodes)
    data = HEADER + struct.pack(">I", 0x20000000 | root) + nodes + b"\0\xff" + struct.pack(">I", leaf) * 256
    with pytest.raises(binary.CorruptIndex, match="twice to one place"):
        list(binary.entries(data))


def test_a_trie_of_long_keys() -> None:
    data = bytearray(HEADER + bytes(4))
    prefix = len(data)
    data += b"x" * 8000 + b"\0"
    # Behind the prefix: a node of children, whose last has children again.
    data += b"\0\xff"
    first = len(data)
    leaves = first + 4 * 256
    data += b"".join(struct.pack(">I", 0x40000000 | leaves + 10 * number) for number in range(256))
    data += (struct.pack(">II", 1, 0) + b"a\0") * 256
    struct.pack_into(">I", data, 8, 0xA0000000 | prefix)
    assert len(list(binary.entries(bytes(data)))) == 256
    data = bytearray(HEADER + struct.pack(">I", 0xA0000000 | 12) + b"x" * 8000 + b"\0\0\xff")
    table = len(data)
    data += bytes(4 * 256)
    for number in range(256):
        struct.pack_into(">I", data, table + 4 * number, 0x20000000 | len(data))
        data += b"\0\xff"
        leaves = len(data) + 4 * 256
        data += b"".join(struct.pack(">I", 0x40000000 | leaves + 10 * leaf) for leaf in range(256))
        data += (struct.pack(">II", 1, 0) + b"a\0") * 256
    with pytest.raises(binary.CorruptIndex, match="keys have more than"):
        list(binary.entries(bytes(data)))


def test_a_trie_that_is_a_circle() -> None:
    data = HEADER + struct.pack(">I", 0x20000000 | 12) + b"aa" + struct.pack(">I", 0x20000000 | 12)
    with pytest.raises(binary.CorruptIndex, match="circle"):
        list(binary.entries(data))


# What is no file


def config_of(directory: Path) -> Config:
    return modprobed.load([str(directory)])


def test_no_regular_file_in_modprobe_d(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.conf")
    (tmp_path / "b.conf").mkdir()
    (tmp_path / "c.conf").symlink_to("c.conf")
    (tmp_path / "d.conf").symlink_to("/dev/zero")
    (tmp_path / "e.conf").symlink_to("/dev/null")
    (tmp_path / "f.conf").symlink_to("nowhere")
    (tmp_path / "g.conf").write_text("blacklist g\n")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "h.conf"))
        found = config_of(tmp_path)
    assert list(found.blacklist) == ["g"]
    told = {os.path.basename(problem.place.file): problem.text for problem in found.problems}
    assert told == {
        "a.conf": "cannot be read: it is not a regular file",
        "c.conf": f"cannot be read: {os.strerror(errno.ELOOP)}",
        "d.conf": "cannot be read: it is not a regular file",
        "h.conf": f"cannot be read: {os.strerror(errno.ENXIO)}",
    }


def test_a_pipe_that_is_named(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"blacklist a\n")
    os.close(writing)
    assert list(modprobed.load([f"/dev/fd/{reading}"]).blacklist) == ["a"]
    os.close(reading)


@pytest.mark.parametrize("name", FILES)
def test_no_regular_file_in_a_tree(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    os.mkfifo(tmp_path / "x.ko")
    index = Index(str(tmp_path))
    if name in {"modules.order", "modules.softdep", "modules.weakdep"}:
        index.load_all()
        assert [str(problem) for problem in index.problems] == [
            f"{tmp_path}/x.ko is left out: it is not a regular file"
        ]
    elif index_needs(name):
        with pytest.raises(Corrupt, match="not a regular file"):
            index.load_all()


def index_needs(name: str) -> bool:
    """A scan, where there is no modules.dep, finds all aliases."""
    return not name.startswith("modules.alias")


def test_circles_of_links(tmp_path: Path) -> None:
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel/again").symlink_to("..")
    (tmp_path / "kernel/self").symlink_to("self")
    (tmp_path / "kernel/x.ko").symlink_to("x.ko")
    index = Index(str(tmp_path))
    index.load_all()
    assert not list(index.modules())
    (problem,) = index.problems
    assert "x.ko is left out" in problem


# Lines


def parsed(text: str) -> Config:
    found = Config()
    parse(found, text, "x.conf")
    return found


def test_what_is_wrong_is_told_a_thousand_times() -> None:
    found = parsed("nonsense\n" * 300_000)
    assert len(found.problems) == 1001
    assert (
        str(found.problems[-1]) == "x.conf:1001: 'nonsense' is no directive; what else is wrong is not told"
    )


@pytest.mark.parametrize("text", ["[" * 1_000_000, "?" * 1_000_000, "[\\]" * 1_000_000, "a" * 1_000_000])
def test_a_pattern_without_an_end(text: str) -> None:
    found = parsed(
        f"alias {text} a\noptions {text} x=1\nalias b {text}\nsoftdep c pre: {text}\nblacklist d\n"
    )
    assert [problem.place.line for problem in found.problems] == [1, 2, 3]
    assert all(len(str(problem)) < 200 for problem in found.problems)
    assert "d" in found.blacklist


def test_bytes_of_every_kind() -> None:
    found = parsed("alias a\0b c\r\n\udcff\udcfe x\nalias \udcff d\n\\\n\\\n\nblacklist e\\")
    assert [(line.pattern, line.module) for line in found.aliases.items] == [("ab", "c\r"), ("\udcff", "d")]
    assert [problem.place.line for problem in found.problems] == [2]
    assert "e" in found.blacklist


def test_wildcards_without_an_end() -> None:
    found = parsed("".join(f"alias {number}? a\n" for number in range(20_000)) + "alias b a\n")
    assert len(found.problems) == 1001
    assert "more than 10000 such lines" in str(found.problems[0])
    assert found.aliases.find(["b"])


def test_more_than_all_files_may_have(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.conf").write_text(f"blacklist {name}\n#" + "x" * (6 << 20))
    (tmp_path / "0.conf").write_bytes(bytes(17 << 20))
    found = config_of(tmp_path)
    assert list(found.blacklist) == ["a", "b"]
    assert list(map(str, found.problems)) == [
        f"{tmp_path}/0.conf: cannot be read: it is larger than 16 MiB",
        f"{tmp_path}/c.conf: left out: all files have more than 16 MiB",
    ]


def test_problems_are_printable() -> None:
    found = parsed("alias \x1b[31m\udcff a\n")
    index = Index("/")
    (text,) = Snapshot(index, found, ()).problems()
    assert text == "x.conf:1: unmatched bracket in \\x1b[31m\\xff"


# A tree's files


def test_one_alias_of_many_modules(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text("kernel/a.ko:\n")
    lines = "".join(f"alias x m{number}\n" for number in range(200_000))
    (tmp_path / "modules.alias").write_text(lines)
    (tmp_path / "modules.symbols").write_text(lines.replace(" x ", " symbol:x "))
    index = Index(str(tmp_path))
    index.load_all()
    assert len(index.alias("x")) == len(index.symbol("symbol:x")) == 200_000


@pytest.mark.parametrize(("name", "line"), [("modules.dep", "nonsense"), ("modules.alias", "alias a")])
def test_a_line_that_is_wrong_is_named(tmp_path: Path, name: str, line: str) -> None:
    (tmp_path / "modules.dep").write_text("kernel/a.ko:\n")
    (tmp_path / name).write_text(f"{'a.ko:' if name == 'modules.dep' else '#'}\n{line}\n")
    with pytest.raises(Corrupt, match=f"/{name}:2: '{line}' is no line of depmod's"):
        Index(str(tmp_path)).load_all()


# Plans


@pytest.fixture
def many(tmp_path: Path) -> Index:
    """Modules m0 to m19999 that need nothing."""
    (tmp_path / "modules.dep").write_text("".join(f"kernel/m{number}.ko:\n" for number in range(20_000)))
    return Index(str(tmp_path))


def test_soft_dependencies_that_multiply(many: Index) -> None:
    """Each module wants all of the next level, which would be 2 to the power of 64 ways."""
    lines = (
        f"softdep m{n} pre: m{n // 2 * 2 + 2} m{n // 2 * 2 + 3} post: m{n // 2 * 2 + 2}\n" for n in range(200)
    )
    plan = resolve(many, parsed("".join(lines)), (), "m0")
    assert len(plan.targets[0].steps) == 129  # 64 levels of two modules, and the first


@pytest.mark.parametrize(
    "text",
    [
        # Many names, each of which stands for many modules.
        "".join(f"alias x* m{n}\n" for n in range(9000))
        + f"softdep m1 pre: {' '.join(f'x{n}' for n in range(9000))}\n",
        "softdep m* pre: " + " ".join(f"m{n}" for n in range(5000)) + "\n",
        "softdep m1 pre: " + "nosuch " * 2_000_000 + "\n",
        # The name itself stands for all, each with soft dependencies.
        "".join(f"alias m1 m{n}\n" for n in range(9000))
        + f"softdep m* pre: {' '.join(f'm{n}' for n in range(900))}\n",
        # And each has the options of the name.
        "".join(f"alias m1 m{n}\n" for n in range(9000)) + f"options m1 x={'y' * 1_000_000}\n",
    ],
)
@pytest.mark.parametrize("exact", [False, True])
def test_plans_without_an_end(many: Index, text: str, exact: bool) -> None:
    with pytest.raises(TooLarge):
        resolve(many, parsed(text), (), "m1", Rules(exact=exact))


def test_modules_that_need_each_other(tmp_path: Path) -> None:
    lines = [
        f"m{n}.ko: {' '.join(f'm{other}.ko' for other in range(300) if other != n)}\n" for n in range(300)
    ]
    (tmp_path / "modules.dep").write_text("".join(lines))
    index = Index(str(tmp_path))
    config = parsed("softdep m* pre: m1 m2 m3 post: m1 m299\n")
    for exact in (False, True):
        try:
            plan = resolve(index, config, (), "m0", Rules(exact=exact))
        except TooLarge:
            continue
        assert {step.module for step in plan.targets[0].steps} == {f"m{n}" for n in range(300)}


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_a_name_that_cannot_be_printed_is_shown(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "modules.dep").write_bytes(b"kernel/a\xff.ko:\n")
    (tmp_path / "modules.alias").write_bytes(b"alias foo a\xff\n")
    done = subprocess.run(
        [sys.executable, "-m", "kmodd", "resolve", "--tree", str(tmp_path), "foo"],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "a\\udcff" in done.stdout


def test_modules_that_all_need_each_other(tmp_path: Path) -> None:
    """Without modules.dep, where what a module needs is found from what each names."""
    names = ",".join(f"m{number}" for number in range(1000))
    data = image([(".modinfo", f"depends={names}\0".encode())])
    for number in range(1000):
        (tmp_path / f"m{number}.ko").write_bytes(data)
    index = Index(str(tmp_path))
    index.load_all()
    assert 0 < len(list(index.modules())) < 1000
    assert index.problems == [f"{tmp_path}: its modules need more than 5000000 others; some are left out"]
