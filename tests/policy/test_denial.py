"""A denial by command where no daemon of the tests can stand: real trees, no daemon at all, no hook."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from kmodd.cli import policycommand, policydenial, resolve
from kmodd.cli.policydenial import Meaning, few, meaning, obstacle
from kmodd.errors import Unreachable
from kmodd.policy import files
from kmodd.policy.files import COMMANDS
from kmodd.tree.index import Index
from kmodd.tree.modprobed import Config, parse


@pytest.fixture(autouse=True)
def no_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_what: object, **_more: object) -> None:
        raise Unreachable("nobody is there")

    monkeypatch.setattr(policydenial, "ask", ask)
    monkeypatch.setattr(policycommand, "ask", ask)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Config:
    tree = tmp_path / "6.1.0"
    tree.mkdir()
    (tree / "modules.dep").write_text("kernel/foo.ko: kernel/bar-base.ko\nkernel/bar-base.ko:\n")
    (tree / "modules.alias").write_text("alias net-pf-98 foo\nalias net-pf-99 bar_base\nalias both foo\n")
    (tree / "modules.builtin").write_text("kernel/inside.ko\n")
    config = Config()
    monkeypatch.setattr(resolve, "sources", lambda _release, _tree: (Index(str(tree)), config, ()))
    return config


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("foo", Meaning("foo", ("foo",))),
        ("bar-base", Meaning("bar-base", ("bar_base",))),
        ("net-pf-98", Meaning("net-pf-98", ("foo",), (True,))),
        ("inside", Meaning("inside", ("inside",), built_in=("inside",))),
        ("absent", Meaning("absent", ())),
    ],
)
@pytest.mark.usefixtures("installed")
def test_what_a_word_stands_for(word: str, meant: Meaning) -> None:
    assert meaning(word) == meant


def test_a_module_that_modprobe_d_has_another_name_for_is_denied_both_ways(installed: Config) -> None:
    parse(installed, "alias foo bar_base\nalias new bar_base\n", "x.conf")
    assert meaning("foo") == Meaning("foo", ("bar_base",), (True, False))
    assert meaning("new") == Meaning("new", ("bar_base",), (True,))


@pytest.mark.parametrize(
    ("word", "modules", "ways"),
    [
        ("f*", ("foo",), (False,)),
        ("bar-*", ("bar_base",), (False,)),
        ("in?ide", ("inside",), (False,)),
        ("net-pf-*", ("foo", "bar_base"), (True,)),
        ("x*", (), (False,)),
        ("@filesystems", (), (False,)),
    ],
)
@pytest.mark.usefixtures("installed")
def test_a_glob_is_of_modules_and_else_of_aliases(
    word: str, modules: tuple[str, ...], ways: tuple[bool, ...]
) -> None:
    found = meaning(word)
    assert (found.modules, found.ways) == (modules, ways)
    assert found.globs is not None


def test_nobody_can_say_where_no_tree_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resolve, "sources", lambda *_where: Index(str(tmp_path / "none")))
    assert meaning("foo") == Meaning("foo", None)
    assert meaning("f*").modules is None


@pytest.mark.usefixtures("installed")
def test_without_a_daemon_nothing_is_called_denied(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files, "place", lambda root, *, runtime=False: f"{tmp_path}{root}{runtime}")
    words = Namespace(what=["foo", "net-pf-99"], reason="CVE-1", until=None, unload=False, runtime=False)
    assert policycommand.deny(words) == 69
    out, err = capsys.readouterr()
    assert out == ""
    for word, line in zip(words.what, err.splitlines(), strict=True):
        assert line.startswith(
            f"kmodd: {word} is not denied yet: the daemon is not running; {tmp_path}/False"
        )
    text = (tmp_path / "False" / COMMANDS).read_text()
    assert 'module = "foo"' in text
    assert 'name = "net-pf-99"' in text


@pytest.mark.parametrize(
    ("kernel", "hook", "stands"),
    [
        ("linux", {"on": True, "error": None}, True),
        ("linux", {"on": False, "error": None}, False),
        ("linux", {"on": False, "error": "there is no such file"}, True),
        ("simulated", {"on": False, "error": None}, True),
    ],
)
def test_a_kernel_that_asks_somebody_else_is_told(
    monkeypatch: pytest.MonkeyPatch, kernel: str, hook: dict[str, Any], stands: bool
) -> None:
    told: dict[str, Any] = {
        "GetPolicy": {
            "mode": "enforce",
            "files": [{"name": COMMANDS, "text": '[[rule]]\nmodule = "foo"\naction = "deny"\n'}],
        },
        "GetStatus": {"kernel": {"type": kernel}, "hook": hook},
        "CheckPolicy": {"allowed": False, "modules": ["foo"]},
    }
    monkeypatch.setattr(policydenial, "ask", lambda method, _what, **_more: told[method])
    why = obstacle(Meaning("foo", ("foo",)), COMMANDS)
    assert why is None if stands else why is not None and "`kmodd hook on`" in why


def test_what_the_daemon_still_allows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(method: str, _what: str, **facts: Any) -> dict[str, Any]:
        if method == "CheckPolicy":
            root = facts["uid"] == 0
            return {"allowed": root, "modules": ["foo"], "problem": None, "why": "50-x.toml:3: mine"}
        text = '[[rule]]\nmodule = "foo"\naction = "deny"\n'
        return {
            "mode": "enforce",
            "files": [{"name": COMMANDS, "text": text}],
            "kernel": {"type": "simulated"},
            "hook": {"on": False, "error": None},
        }

    monkeypatch.setattr(policydenial, "ask", ask)
    assert obstacle(Meaning("foo", ("foo",)), COMMANDS) == "uid 0 is still allowed foo: 50-x.toml:3: mine"


def test_few_of_many_are_shown() -> None:
    assert few(["a", "b\n"]) == "a b"
    assert few([f"m{number}" for number in range(20)]).endswith("m7 and 12 more")
