"""The policy's files: order, masking, whom one has to trust, and the last good ones."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from kmodd.policy import files
from kmodd.policy.files import LastGood, Policy
from kmodd.policy.parse import PolicyError

DENY = '[[rule]]\naction = "deny"\n'
ETC, RUN, LIB = "etc/kmodd/policy.d", "run/kmodd/policy.d", "usr/lib/kmodd/policy.d"


@pytest.fixture(autouse=True)
def _umask() -> None:
    os.umask(0o022)


def put(root: Path, name: str, text: str = DENY, mode: int = 0o644) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def refusal(root: Path) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        files.read(str(root))
    return caught.value


# Order and masking


def test_there_need_not_be_any(tmp_path: Path) -> None:
    assert files.read(str(tmp_path)) == {}
    assert files.load(str(tmp_path)).rules == ()


def test_they_are_read_in_the_order_of_their_names_wherever_they_are(tmp_path: Path) -> None:
    for name in (f"{ETC}/50-b.toml", f"{LIB}/10-z.toml", f"{RUN}/30-a.toml", f"{ETC}/A.toml"):
        put(tmp_path, name)
    put(tmp_path, f"{ETC}/.hidden.toml", "no TOML")
    put(tmp_path, f"{ETC}/50-b.toml.bak", "no TOML")
    policy = files.load(str(tmp_path))
    assert [rule.place for rule in policy.rules] == ["10-z.toml:1", "30-a.toml:1", "50-b.toml:1", "A.toml:1"]
    assert dict(policy.texts)["30-a.toml"] == DENY
    assert files.COMMANDS < "10-z.toml"


def test_a_name_in_an_earlier_directory_masks_the_same_in_a_later_one(tmp_path: Path) -> None:
    for directory, reason in ((LIB, "lib"), (RUN, "run"), (ETC, "etc")):
        put(tmp_path, f"{directory}/50-a.toml", f'{DENY}reason = "{reason}"')
        assert [rule.reason for rule in files.load(str(tmp_path)).rules] == [reason]


@pytest.mark.parametrize("empty", ["/dev/null", None])
def test_an_empty_file_or_a_link_to_the_null_device_masks(tmp_path: Path, empty: str | None) -> None:
    put(tmp_path, f"{LIB}/50-a.toml")
    if empty is None:
        put(tmp_path, f"{ETC}/50-a.toml", "")
    else:
        (tmp_path / ETC).mkdir(parents=True)
        (tmp_path / ETC / "50-a.toml").symlink_to(empty)
    assert files.load(str(tmp_path)).rules == ()


# What cannot be read


def test_a_broken_file_is_told_by_its_name_and_nothing_is_taken(tmp_path: Path) -> None:
    put(tmp_path, f"{ETC}/10-a.toml")
    put(tmp_path, f"{ETC}/20-b.toml", "x = 1")
    with pytest.raises(PolicyError, match=r"^20-b\.toml: unknown key"):
        files.load(str(tmp_path))


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, f"{ETC}/10-a.toml")
    path.write_bytes(b"# \xff\n")
    assert str(refusal(tmp_path)) == f"{path}: not UTF-8 (byte 2)"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("gone", path)])
def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path, make: Callable[[str], None]) -> None:
    path = tmp_path / ETC / "10-a.toml"
    path.parent.mkdir(parents=True)
    make(str(path))
    assert refusal(tmp_path).file == str(path)


def test_files_are_bounded_each_and_all_together(tmp_path: Path) -> None:
    large = "#" * (1 << 20)
    for number in range(8):
        put(tmp_path, f"{ETC}/{number}.toml", large)
    assert len(files.read(str(tmp_path))) == 8
    put(tmp_path, f"{ETC}/8.toml", "#")
    assert "all policy files have more than 8 MiB" in str(refusal(tmp_path))
    put(tmp_path, f"{ETC}/8.toml", large + "#")
    assert "larger than 1 MiB" in str(refusal(tmp_path))


# Whom one has to trust


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646, 0o602])
def test_a_file_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = put(tmp_path, f"{ETC}/10-a.toml", mode=mode)
    err = refusal(tmp_path)
    assert err.message == f"refused: {path} can be changed by others than its owner (mode {mode:04o})"
    assert err.file == str(path)
    assert files.read(str(tmp_path), only_trusted=False) == {"10-a.toml": DENY}


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o444, 0o755])
def test_what_others_can_read_is_fine(tmp_path: Path, mode: int) -> None:
    put(tmp_path, f"{ETC}/10-a.toml", mode=mode)
    assert files.read(str(tmp_path)) == {"10-a.toml": DENY}


@pytest.mark.parametrize("above", [ETC, "etc/kmodd", "etc", "."])
def test_so_is_one_in_a_directory_that_others_can_write(tmp_path: Path, above: str) -> None:
    put(tmp_path, f"{ETC}/10-a.toml")
    directory = Path(os.path.normpath(tmp_path / above))
    directory.chmod(0o777)
    assert str(directory) in refusal(tmp_path).message
    # Nobody but its owner can replace a file of root's in a sticky directory.
    directory.chmod(0o1777)
    assert files.read(str(tmp_path)) == {"10-a.toml": DENY}


def test_what_is_above_the_root_is_not_looked_at(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put(root, f"{ETC}/10-a.toml")
    tmp_path.chmod(0o777)
    assert files.read(str(root)) == {"10-a.toml": DENY}


def test_where_a_link_leads_to_counts(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    path = put(other, "real.toml")
    (root / ETC).mkdir(parents=True)
    (root / ETC / "10-a.toml").symlink_to(path)
    assert files.read(str(root)) == {"10-a.toml": DENY}
    path.chmod(0o666)
    assert str(path) in refusal(root).message
    path.chmod(0o644)
    other.chmod(0o777)
    assert f"{other} can be changed" in refusal(root).message


def test_a_directory_that_is_a_link_counts_too(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    put(other, "10-a.toml")
    (root / "etc/kmodd").mkdir(parents=True)
    (root / ETC).symlink_to(other)
    assert files.read(str(root)) == {"10-a.toml": DENY}
    other.chmod(0o777)
    assert f"{other} can be changed" in refusal(root).message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("whose", ["file", "directory", "link", "between"])
def test_another_owner_is_refused(tmp_path: Path, whose: str) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    path = put(root, f"{ETC}/10-a.toml")
    if whose == "file":
        os.chown(path, 1000, 0)
    elif whose == "directory":
        os.chown(path.parent, 1000, 0)
    elif whose == "link":
        put(other, "a.toml")
        path.unlink()
        path.symlink_to(other / "a.toml")
        os.lchown(path, 1000, 0)
    else:
        # A link of root's to a link of somebody else's to a file of root's.
        put(other, "a.toml")
        path.unlink()
        (tmp_path / "theirs").symlink_to(other / "a.toml")
        os.lchown(tmp_path / "theirs", 1000, 0)
        path.symlink_to(tmp_path / "theirs")
    assert "belongs to uid 1000; only root's files decide" in refusal(root).message


def test_a_link_through_a_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    root, other, between = tmp_path / "root", tmp_path / "other", tmp_path / "between"
    put(other, "10-a.toml")
    between.mkdir()
    (between / "to").symlink_to(other)
    (root / "etc/kmodd").mkdir(parents=True)
    (root / ETC).symlink_to(between / "to")
    assert files.read(str(root)) == {"10-a.toml": DENY}
    between.chmod(0o777)
    assert f"{between} can be changed" in refusal(root).message


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / ETC).mkdir(parents=True)
    (tmp_path / ETC / "10-a.toml").symlink_to("10-b.toml")
    (tmp_path / ETC / "10-b.toml").symlink_to("10-a.toml")
    assert refusal(tmp_path).file.endswith("10-a.toml")


# Names


def test_names_are_those_of_this_machine_or_of_nobody() -> None:
    here = files.names()
    assert here.user("root") == 0
    assert here.group("root") == 0
    assert here.user("no such user") is None
    assert here.user("a\0b") is None
    assert "net-protocols" in here.groups
    nobody = files.names(ask=False)
    assert nobody.user("root") is None
    assert nobody.group("root") is None
    assert nobody.groups == here.groups


def test_without_asking_no_user_is_known_and_every_rule_is_there(tmp_path: Path) -> None:
    put(tmp_path, f"{ETC}/10-a.toml", '[[rule]]\nuser = "root"\naction = "deny"\n')
    [rule] = files.load(str(tmp_path), ask=False).rules
    assert rule.user is not None
    assert not rule.user.matches(0)


# The last good ones


def test_what_was_kept_comes_back_in_its_order(tmp_path: Path) -> None:
    put(tmp_path, f"{LIB}/10-z.toml", '# ü\n[[rule]]\nmodule = "@net-protocols"\naction = "deny"\n')
    put(tmp_path, f"{ETC}/50-b.toml")
    policy = files.load(str(tmp_path))
    kept = LastGood(str(tmp_path / "var/lib/kmodd/policy.json"))
    assert kept.load() is None
    kept.save(policy)
    assert kept.load() == policy
    assert stat.S_IMODE(os.stat(kept.path).st_mode) == 0o600
    kept.save(Policy())
    assert kept.load() == Policy()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "1", json.dumps({"a.toml": "x = 1"}), json.dumps({"a.toml": 1}), "\ufeff", "[" * 100_000],
)
def test_what_cannot_be_taken_is_as_if_it_were_not_there(tmp_path: Path, text: str) -> None:
    put(tmp_path, "policy.json", text)
    assert LastGood(str(tmp_path / "policy.json")).load() is None


def test_what_others_can_write_is_not_taken(tmp_path: Path) -> None:
    kept = LastGood(str(tmp_path / "policy.json"))
    kept.save(Policy())
    (tmp_path / "policy.json").chmod(0o666)
    assert kept.load() is None
    (tmp_path / "policy.json").chmod(0o644)
    tmp_path.chmod(0o777)
    assert kept.load() is None


# Written


def test_a_file_is_written_by_rename(tmp_path: Path) -> None:
    path = tmp_path / ETC / "00-commands.toml"
    files.write(str(path), "old\n")
    with path.open() as old:
        files.write(str(path), "new ü\n", 0o640)
        assert old.read() == "old\n"
    assert path.read_text(encoding="utf-8") == "new ü\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(path.parent) == ["00-commands.toml"]


def test_a_link_is_replaced_and_what_it_leads_to_is_left(tmp_path: Path) -> None:
    other = put(tmp_path, "other", "other\n")
    path = tmp_path / "a.toml"
    path.symlink_to(other)
    files.write(str(path), DENY)
    assert not path.is_symlink()
    assert other.read_text() == "other\n"


@pytest.mark.parametrize("text", ["\udc80", "x"])
def test_where_it_cannot_be_written_all_is_as_it_was(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path, "a.toml", "old")
    if text == "x":

        def full(_fd: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((OSError, UnicodeEncodeError)):
        files.write(str(path), text)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.toml"]


def test_what_is_being_written_is_no_policy_file_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, f"{ETC}/10-a.toml")
    seen: list[int] = []
    monkeypatch.setattr(os, "rename", lambda _old, _new: seen.append(len(files.read(str(tmp_path)))))
    files.write(str(tmp_path / ETC / "20-b.toml"), DENY)
    assert seen == [1]


def test_where_commands_write() -> None:
    assert files.place("/x") == "/x/etc/kmodd/policy.d"
    assert files.place("/x", runtime=True) == "/x/run/kmodd/policy.d"
