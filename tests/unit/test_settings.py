"""Settings: where they are read, what they may be, and that a refused one changes nothing (S12)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd import settings
from kmodd.errors import SettingsError


def write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_without_files_everything_is_default(tmp_path: Path) -> None:
    assert settings.load(str(tmp_path)) == settings.defaults()


def test_later_files_win_and_an_earlier_directory_masks_a_name(tmp_path: Path) -> None:
    write(tmp_path, "etc/kmodd/kmodd.toml", "load_timeout = 1\nunload_delay = 1\nstop_timeout = 1")
    write(tmp_path, "usr/lib/kmodd/kmodd.toml.d/10-a.toml", "load_timeout = 2\nunload_delay = 2")
    write(tmp_path, "run/kmodd/kmodd.toml.d/10-a.toml", "load_timeout = 3")
    write(tmp_path, "etc/kmodd/kmodd.toml.d/20-b.toml", "load_timeout = 4")
    write(tmp_path, "etc/kmodd/kmodd.toml.d/.hidden.toml", "load_timeout = 5")
    write(tmp_path, "etc/kmodd/kmodd.toml.d/other.conf", "load_timeout = 6")
    values = settings.load(str(tmp_path))
    assert (values["load_timeout"], values["unload_delay"], values["stop_timeout"]) == (4, 1, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fallbak = 'deny'", "unknown setting 'fallbak'"),
        ("fallback = 'perhaps'", "must be one of modprobe, deny"),
        ("load_timeout = -1", "must be from 0"),
        ("load_timeout = nan", "takes a number"),
        ("load_timeout = true", "takes a number"),
        ("modprobe_path = 'sbin/modprobe'", "must be an absolute path"),
        ("modprobe_args = [1]", "takes a list of strings"),
        ("journal_keep = '30'", "a whole number and a unit"),
        ("journal_keep = ''", "a whole number and a unit"),
        ("load_timeout = = 1", "not TOML"),
        ("a = " + "[" * 5000, "not TOML"),
    ],
)
def test_a_bad_file_is_refused_with_its_name(tmp_path: Path, text: str, words: str) -> None:
    write(tmp_path, "etc/kmodd/kmodd.toml", text)
    with pytest.raises(SettingsError, match=r"kmodd\.toml") as caught:
        settings.load(str(tmp_path))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "etc/kmodd").mkdir(parents=True)
    (tmp_path / "etc/kmodd/kmodd.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="not UTF-8"):
        settings.load(str(tmp_path))


ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(st.sampled_from([*settings.SETTINGS, "unknown", ""]), ANYTHING)
def test_a_refused_value_changes_nothing(key: str, value: object) -> None:
    live = settings.Settings()
    told: list[str] = []
    live.subscribe(lambda changed, _old, _new: told.append(changed))
    before = live.as_dict()
    try:
        changed = live.set(key, value)
    except SettingsError:
        assert live.as_dict() == before
        assert told == []
    else:
        assert live.as_dict()[key] == value
        assert told == ([key] if changed else [])


def test_a_set_of_values_is_taken_whole_or_not_at_all() -> None:
    live = settings.Settings({"load_timeout": 5})
    with pytest.raises(SettingsError):
        live.replace({"load_timeout": 7, "fallback": "perhaps"})
    assert live.load_timeout == 5
    assert live.replace({"load_timeout": 7, "fallback": "modprobe"}) == ["load_timeout"]


def test_what_is_set_while_files_are_read_holds() -> None:
    live = settings.Settings({"load_timeout": 1, "unload_delay": 1})
    live.set("unload_delay", 2)
    begun = live.moment
    live.set("load_timeout", 30)
    assert live.replace({"load_timeout": 0, "unload_delay": 3}, but_since=begun) == ["unload_delay"]
    assert (live.load_timeout, live.unload_delay) == (30, 3)
    # The next reload has been begun later than that.
    assert live.replace({"load_timeout": 0}, but_since=live.moment) == ["load_timeout"]
