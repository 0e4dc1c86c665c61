"""Every name, alias and symbol of whole trees, and hundreds of configurations: the same as the real modprobe."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kmodd.errors import KmoddError
from kmodd.tree import modprobed
from kmodd.tree.index import Index
from kmodd.tree.modprobed import Config
from kmodd.tree.plan import Rules, resolve
from support.tools import ours
from support.trees import CLOUD, DEBIAN, UML, Modprobe, concrete, show_depends, tree

EXACT = Rules(exact=True, show_all=True)
BATCH = 400

Answer = Callable[[str], list[str]]


@pytest.fixture(scope="module", params=[UML, DEBIAN, CLOUD], ids=["uml", "debian", "cloud"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Modprobe:
    return Modprobe(tmp_path_factory.mktemp("root"), tree(request.param))


def differences(real: Modprobe, option: str, names: list[str], answer: Answer) -> list[str]:
    """The names for which both differ, found by halving what differs."""
    if (0, [line for name in names for line in answer(name)]) == real.answers(option, names):
        return []
    if len(names) == 1:
        return names
    half = len(names) // 2
    first = differences(real, option, names[:half], answer)
    return first if len(first) > 5 else first + differences(real, option, names[half:], answer)


def everything(index: Index, what: str) -> list[str]:
    """All names of a kind that a tree answers to."""
    names = {
        "names": lambda: list(index.modules()),
        "builtins": lambda: list(index.builtins()),
        "aliases": lambda: concrete([pattern for pattern, _module in index.aliases()]),
        "symbols": lambda: list(index.symbols()),
    }[what]()
    assert len(names) > 80
    return names


@pytest.mark.parametrize("what", ["names", "builtins", "aliases", "symbols"])
def test_every_one_of_a_tree(whole: Modprobe, what: str) -> None:
    index = Index(str(whole.directory))
    config = modprobed.load(tree=index.directory)
    names = everything(index, what)

    def depends(name: str) -> list[str]:
        return show_depends(resolve(index, config, (), name, EXACT))

    def resolved(name: str) -> list[str]:
        return [target.module for target in resolve(index, config, (), name, EXACT).targets]

    for start in range(0, len(names), BATCH):
        assert differences(whole, "-D", names[start : start + BATCH], depends) == []
        assert differences(whole, "-R", names[start : start + BATCH], resolved) == []


# One name a run, as the kernel asks: that costs milliseconds each, so not all of the largest tree

NOT_FOUND = [
    "nosuch", "no-such", "EXT4", "ext4.ko", "ext4.ko.xz", "ext4 ", " ", "", "-", ":", "x" * 300, "é", "a\nb",
    "*", "?", "[a-z]*", "a[b", "a]b", "a[b-c]", "fs-nosuch", "net-pf-1-proto-9", "crypto-nosuch-all", "pci:",
    "symbol:", "symbol:nosuch", "modules.dep", "kernel/fs/ext4/ext4.ko", "/nosuch.ko", "./nosuch.ko", "./",
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "about"), [("names", 600), ("builtins", 30), ("aliases", 30), ("symbols", 30)]
)
def test_output_and_status_one_by_one(whole: Modprobe, what: str, about: int) -> None:
    names = everything(Index(str(whole.directory)), what)
    sample = names[:: max(1, len(names) // about)]
    assert len(sample) >= about
    assert {one_by_one(whole, "-D", name) for name in sample} == {0}
    assert {one_by_one(whole, "-R", name) for name in sample[::5]} == {0}


@pytest.mark.parametrize("option", ["-D", "-R", "-qR"])
def test_output_and_status_of_what_is_not_found(whole: Modprobe, option: str) -> None:
    assert {one_by_one(whole, option, name) for name in NOT_FOUND} == {1}


def one_by_one(real: Modprobe, option: str, name: str) -> int:
    """Ask both for one name; return the exit status that they agree on."""
    found = ours("modprobe", [*real.options, option, "--", name])
    assert found == real.done(option, "--", name), name
    return found[0]


# Generated configurations

NAMES = [
    "ext4",
    "vfat",
    "fat",
    "dm-crypt",
    "dm_crypt",
    "nosuch",
    "myalias",
    "my-alias-x",
    "fs-vfat",
    "crc32c",
]
PATTERNS = [*NAMES, "my*", "*", "vf?t", "[vf]*", "dm[-_]crypt", "fs-*", "ex[!a]4", "x[", "x]"]
WORDS = st.sampled_from(NAMES)
PATTERN = st.sampled_from(PATTERNS)
COMMANDS = ["/bin/true", "echo $CMDLINE_OPTS", "modprobe -i x # y", "a\\\n b"]

LINE = st.one_of(
    st.builds("alias {} {}".format, PATTERN, WORDS),
    st.builds("options {} {}".format, WORDS, st.sampled_from(["a=1", "b=2 c", 'd="x y"'])),
    st.builds("blacklist {}".format, WORDS),
    st.builds("install {} {}".format, PATTERN, st.sampled_from(COMMANDS)),
    st.builds("remove {} {}".format, PATTERN, st.sampled_from(COMMANDS)),
    st.builds("softdep {} pre: {} post: {}".format, WORDS, WORDS, WORDS),
    st.builds("softdep {} {} post: {}".format, PATTERN, WORDS, WORDS),
    st.sampled_from(
        ["", "# alias a b", " # no comment", "\talias\tmyalias\tvfat", "alias", "alias x", "options vfat", "what ever",
         "include /x", "softdep vfat", "install", "alias my-alias-x \\", "vfat"]
    ),
)  # fmt: skip
CONFIG = st.lists(
    st.tuples(st.sampled_from(["a.conf", "n.conf", "zz.conf"]), st.lists(LINE, max_size=6)), max_size=3
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=CONFIG)
def test_generated_configurations(files: list[tuple[str, list[str]]], tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as place:
        folder = Path(place, "modprobe.d")
        folder.mkdir()
        for name, lines in files:
            (folder / name).write_text("".join(line + "\n" for line in lines))
        real = Modprobe(tmp_path / "root", tree(UML), folder)
        index = Index(str(real.directory))
        config = modprobed.load([str(folder)], index.directory)
        asked = sorted({*NAMES, "my-alias-y", "symbol:crc32c", "ext2"})
        for name in asked:
            compare(real, index, config, name)


def compare(real: Modprobe, index: Index, config: Config, name: str) -> None:
    done = real.run("-D", "--", name)
    try:
        plan = resolve(index, config, (), name, EXACT)
    except KmoddError:
        assert done.returncode != 0
        return
    # What cannot be found on disk ends modprobe in the middle of what it prints.
    complete = all(step.path is not None or step.command for target in plan.targets for step in target.steps)
    if complete:
        assert done.stdout.splitlines() == show_depends(plan), (name, done.stderr)
    shown = real.run("-R", "--", name).stdout.splitlines()
    assert shown == [target.module for target in plan.targets], name
