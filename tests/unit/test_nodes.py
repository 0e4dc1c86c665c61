"""Device files that go with a module are put back as they were; where none went, nothing is made."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kmodd.kernel import nodes
from kmodd.kernel.nodes import Node, can_be_made, put_back, seen

TUN = ("net/tun", "c10:200")


class Made:
    """mknod(2) and chown(2) as they were called: only root may make device files, and not in every container."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[object, ...]] = []
        monkeypatch.setattr(nodes.os, "mknod", self.mknod)
        monkeypatch.setattr(nodes.os, "chown", self.chown)

    def mknod(self, path: str, mode: int, device: int) -> None:
        self.calls.append(("mknod", path, mode, device))
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))

    def chown(self, path: str, uid: int, gid: int, *, follow_symlinks: bool) -> None:
        assert not follow_symlinks
        self.calls.append(("chown", path, uid, gid))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    return Made(monkeypatch)


def test_those_of_the_right_device_are_seen() -> None:
    # The machine's own /dev/null.
    (found,) = seen(
        [("null", "c1:3"), ("nowhere", "c1:3"), ("null", "c1:5"), ("null", "b1:3"), ("zero", "c")]
    )
    state = os.stat("/dev/null")
    assert (found.path, found.mode, found.device) == ("/dev/null", state.st_mode, os.makedev(1, 3))
    assert (found.uid, found.gid) == (state.st_uid, state.st_gid)


def test_a_link_or_a_file_of_somebodys_own_is_not(tmp_path: Path) -> None:
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "zero").write_text("")
    assert seen([("null", "c1:3"), ("zero", "c1:5")], str(tmp_path)) == ()


def test_what_has_gone_is_made_as_it_was(tmp_path: Path, made: Made) -> None:
    path = f"{tmp_path}/net/tun"
    node = Node(path, stat.S_IFCHR | 0o666, 5, 6, os.makedev(10, 200), (("user.kmodd", b"x"),))
    assert put_back([node]) == [path]
    assert made.calls == [("mknod", path, stat.S_IFCHR | 0o600, os.makedev(10, 200)), ("chown", path, 5, 6)]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o666
    assert put_back([node]) == []
    assert len(made.calls) == 2


def test_one_that_comes_in_between_is_left(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(f"{tmp_path}/fuse", stat.S_IFCHR | 0o666, 0, 0, os.makedev(10, 229))
    (tmp_path / "fuse").write_text("the kernel's")
    monkeypatch.setattr(nodes.os.path, "lexists", lambda _path: False)
    assert put_back([node]) == []
    assert (tmp_path / "fuse").read_text() == "the kernel's"


def test_one_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "net").write_text("")
    with pytest.raises(OSError, match="net"):
        put_back([Node(f"{tmp_path}/net/tun", stat.S_IFCHR | 0o666, 0, 0, os.makedev(10, 200))])


@pytest.mark.parametrize(
    ("capabilities", "may"),
    [
        ("000001ffffffffff", True),
        ("0000000008000001", True),
        ("0000000008000000", False),
        ("0", False),
        ("", False),
    ],
)
def test_whether_one_can_be_made(tmp_path: Path, capabilities: str, may: bool) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text(
        f"Name:\tkmodd\nCapEff:\t{capabilities}\nCapBnd:\t000001ffffffffff\n"
    )
    assert can_be_made(str(tmp_path)) is may
    assert not can_be_made(str(tmp_path / "nothing"))
