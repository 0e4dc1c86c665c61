"""Network interfaces: what the kernel answers, whatever it is, and where the namespaces are found."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.kernel import links
from kmodd.kernel.links import Link, Unreadable, everywhere, interface, messages


def attribute(kind: int, data: bytes) -> bytes:
    return (struct.pack("=HH", 4 + len(data), kind) + data).ljust((4 + len(data) + 3) & ~3, b"\0")


def newlink(name: bytes, kind: bytes = b"", flags: int = 0) -> bytes:
    info = attribute(18 | 0x8000, attribute(1, kind + b"\0") + attribute(2, b"")) if kind else b""
    return (
        struct.pack("=BxHiII", 0, 1, 7, flags, 0) + attribute(3, name + b"\0") + info + attribute(4, b"abcd")
    )


def message(kind: int, body: bytes, flags: int = 2) -> bytes:
    length = 16 + len(body)
    return (struct.pack("=IHHII", length, kind, flags, 1, 0) + body).ljust((length + 3) & ~3, b"\0")


def test_an_interface() -> None:
    assert interface(newlink(b"br0", b"bridge", 0x1003)) == ("br0", "bridge", True)
    assert interface(newlink(b"eth0", flags=0x1002)) == ("eth0", "", False)
    assert interface(newlink(b"e\xff\n")) == (os.fsdecode(b"e\xff\n"), "", False)


def test_several_messages_of_any_length() -> None:
    data = message(16, b"abc") + message(16, b"") + message(3, b"\0\0\0\0", flags=0x12)
    assert list(messages(data)) == [(16, 2, b"abc"), (16, 2, b""), (3, 0x12, b"\0\0\0\0")]


@given(st.binary(max_size=200))
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    for read in (interface, lambda data: list(messages(data))):
        with contextlib.suppress(Unreadable):
            read(data)


@given(st.integers(0, 60), st.integers(0, 255))
def test_a_damaged_interface_is_read_or_refused(place: int, value: int) -> None:
    data = bytearray(newlink(b"br0", b"bridge"))
    data[place % len(data)] = value
    with contextlib.suppress(Unreadable):
        interface(bytes(data))


class Proc:
    """A /proc to fill: a namespace is a file, and its link's text what its name is."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def task(self, pid: int, net: str, mnt: str = "mnt:[1]", thread: int | None = None) -> Path:
        task = self.root / str(pid)
        (task / "task" / str(pid)).mkdir(parents=True, exist_ok=True)
        if thread is not None:
            task = task / "task" / str(thread)
        (task / "ns").mkdir(parents=True)
        (task / "ns/net").symlink_to(net)
        (task / "ns/mnt").symlink_to(mnt)
        (task / "fd").mkdir()
        (task / "mountinfo").write_bytes(b"21 1 0:20 / / rw - overlay overlay rw\n")
        return task


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def found(proc: Proc) -> tuple[dict[str, str | None], bool]:
    names, whole = links._namespaces(str(proc.root))
    return {
        name: None if path is None else path.removeprefix(f"{proc.root}/") for name, path in names.items()
    }, whole


def test_namespaces_of_tasks_threads_and_open_files(proc: Proc) -> None:
    proc.task(1, "net:[10]")
    proc.task(7, "net:[20]")
    proc.task(7, "net:[30]", thread=8)
    file = proc.task(9, "net:[10]") / "fd"
    (file / "3").symlink_to("net:[40]")
    (file / "4").symlink_to("mnt:[5]")
    (file / "5").symlink_to("/home/net:[6]")
    (proc.root / "self").symlink_to("9")
    names, whole = found(proc)
    assert names.pop("net:[10]") in {"1/ns/net", "9/ns/net"}
    assert names == {
        "net:[20]": "7/ns/net",
        "net:[30]": "7/task/8/ns/net",
        "net:[40]": "9/fd/3",
    }
    assert whole


def test_mounts_are_opened_in_the_mount_namespace_of_pid_1_only(proc: Proc) -> None:
    nsfs = b"30 21 0:4 net:[%d] %s rw shared:1 - nsfs nsfs rw\n"
    (proc.task(1, "net:[10]") / "mountinfo").write_bytes(
        nsfs % (50, rb"/run/netns/a\040b")
        + nsfs % (10, b"/run/netns/first")
        + b"31 21 0:4 mnt:[9] /m rw - nsfs nsfs rw\n"
    )
    # In PID 1's too, but confined to a part of the tree.
    (proc.task(2, "net:[10]") / "mountinfo").write_bytes(nsfs % (70, b"/elsewhere"))
    (proc.task(7, "net:[10]", "mnt:[2]") / "mountinfo").write_bytes(
        nsfs % (60, b"/run/netns/c") + nsfs % (50, b"/x") + b" - nsfs \n"
    )
    names, _whole = found(proc)
    assert names.pop("net:[10]") in {"1/ns/net", "2/ns/net", "7/ns/net"}
    assert names == {"net:[50]": "1/root/run/netns/a b", "net:[60]": None}


def test_more_files_than_are_looked_at(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    file = proc.task(1, "net:[10]") / "fd"
    for number in range(4):
        (file / str(number)).symlink_to("/dev/null")
    monkeypatch.setattr(links, "FILES_MAX", 4)
    assert found(proc) == ({"net:[10]": "1/ns/net"}, True)
    monkeypatch.setattr(links, "FILES_MAX", 3)
    assert found(proc) == ({"net:[10]": "1/ns/net"}, False)


class Inside:
    """What is in the namespaces, in place of the kernel's answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **found: list[Link]) -> None:
        self.found = found
        self.refused: list[str] = []
        monkeypatch.setattr(links, "_inside", self)

    def __call__(self, path: str, name: str, *, elsewhere: bool) -> list[Link]:
        if path in self.refused:
            self.refused.remove(path)
            raise PermissionError(path)
        return [
            Link(link.name, link.kind, link.up, elsewhere)
            for link in self.found[name.replace("net:[", "n").rstrip("]")]
        ]


def test_links_of_all_namespaces(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    proc.task(1, "net:[10]")
    proc.task(7, "net:[20]")
    inside = Inside(monkeypatch, n10=[Link("br0", "bridge", True)], n20=[Link("d0", "dummy", False)])
    every = everywhere(str(proc.root))
    assert set(every.found) == {Link("br0", "bridge", True), Link("d0", "dummy", False, elsewhere=True)}
    assert every.unseen == 0
    # Its task has ended just then: the next look finds another way.
    inside.refused = [f"{proc.root}/7/ns/net"]
    again = everywhere(str(proc.root))
    assert (set(again.found), again.unseen) == (set(every.found), 0)
    inside.refused = [f"{proc.root}/7/ns/net"] * 3
    every = everywhere(str(proc.root))
    assert (every.found, every.unseen) == ((Link("br0", "bridge", True),), 1)


def test_without_the_right_to_look_at_pid_1_not_all_is_seen(
    proc: Proc, monkeypatch: pytest.MonkeyPatch
) -> None:
    Inside(monkeypatch, n10=[])
    proc.task(7, "net:[10]")
    assert everywhere(str(proc.root)).unseen == 1


def test_a_made_up_namespace_is_not_entered(proc: Proc) -> None:
    task = proc.task(1, "net:[10]")
    (task / "ns/net:[10]").write_text("")
    assert everywhere(str(proc.root)) == links.Links((), 1)
