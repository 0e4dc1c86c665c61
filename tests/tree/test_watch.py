"""Whether files may have changed: what happens to others in the same directory is no change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kmodd.tree import watch as watch_room
from kmodd.tree.watch import Watch


@pytest.fixture
def no_mounts(tmp_path: Path) -> str:
    """A list of mounts that never changes: other tests may mount something."""
    return str(tmp_path / "no-such-file")


def test_what_happens_in_a_watched_directory(tmp_path: Path, no_mounts: str) -> None:
    there = tmp_path / "modprobe.d"
    there.mkdir()
    watch = Watch([str(there)], no_mounts)
    assert not watch.maybe_changed()
    for change in (
        lambda: (there / "a.conf").write_text("x"),
        lambda: (there / "a.conf").chmod(0o600),
        lambda: (there / "a.conf").rename(there / "b.conf"),
        (there / "b.conf").unlink,
        lambda: there.chmod(0o700),
        there.rmdir,
    ):
        change()
        assert watch.maybe_changed()
        assert not watch.maybe_changed()
    watch.close()


@pytest.mark.parametrize("missing", ["modprobe.d", "local/lib/modprobe.d"])
def test_a_directory_that_is_not_there_yet(tmp_path: Path, no_mounts: str, missing: str) -> None:
    wanted = tmp_path / "run" / missing
    (tmp_path / "run").mkdir()
    watch = Watch([str(wanted)], no_mounts)
    others = tmp_path / "run/sshd.pid"
    others.write_text("1")
    others.rename(tmp_path / "run/modprobe.d.tmp")
    (tmp_path / "run/modprobe").mkdir()
    assert not watch.maybe_changed(), "files come and go in /run all the time"
    wanted.mkdir(parents=True)
    assert watch.maybe_changed()
    watch.close()
    again = Watch([str(wanted)], no_mounts)
    (wanted / "a.conf").touch()
    assert again.maybe_changed()
    again.close()


def test_a_link_to_a_directory_that_is_not_there_yet(tmp_path: Path, no_mounts: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/modprobe.d").symlink_to("../opt/modprobe.d")
    watch = Watch([str(tmp_path / "etc/modprobe.d")], no_mounts)
    (tmp_path / "etc/passwd").touch()
    assert not watch.maybe_changed()
    (tmp_path / "opt/modprobe.d").mkdir(parents=True)
    assert watch.maybe_changed()
    watch.close()
    (tmp_path / "etc/loop").symlink_to("loop")
    watch = Watch([str(tmp_path / "etc/loop")], no_mounts)
    (tmp_path / "etc/loop").unlink()
    assert watch.maybe_changed()
    watch.close()


def test_one_that_is_watched_itself_and_for_what_is_missing_in_it(tmp_path: Path, no_mounts: str) -> None:
    for directories in (["a", "a/b"], ["a/b", "a"]):
        (tmp_path / "a").mkdir(exist_ok=True)
        watch = Watch([str(tmp_path / name) for name in directories], no_mounts)
        (tmp_path / "a/anything").touch()
        assert watch.maybe_changed()
        watch.close()


def test_more_than_the_kernel_keeps_is_a_change(tmp_path: Path, no_mounts: str) -> None:
    watch = Watch([str(tmp_path / "missing")], no_mounts)
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    names = [str(tmp_path / "x"), str(tmp_path / "y")]
    Path(names[0]).touch()
    for number in range(most // 2 + 2):
        os.rename(names[number % 2], names[1 - number % 2])
    assert watch.maybe_changed()
    watch.close()


def test_one_that_comes_while_it_is_looked_for(
    tmp_path: Path, no_mounts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tmp_path / "modprobe.d"
    real = watch_room._nearest

    def nearest(path: str) -> tuple[str, str | None]:
        found = real(path)
        wanted.mkdir(exist_ok=True)
        return found

    monkeypatch.setattr(watch_room, "_nearest", nearest)
    watch = Watch([str(wanted)], no_mounts)
    assert not watch.maybe_changed()
    (wanted / "a.conf").touch()
    assert watch.maybe_changed()
    watch.close()


def test_a_closed_one_knows_nothing(tmp_path: Path, no_mounts: str) -> None:
    watch = Watch([str(tmp_path)], no_mounts)
    watch.close()
    assert watch.maybe_changed()
