"""What is read of a tree, from each kind of file, whole and damaged; and what is kept of one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmodd.errors import KmoddError
from kmodd.tree import binary, keep, modprobed, snapshot
from kmodd.tree.index import Corrupt, Index, NoTree
from kmodd.tree.modprobed import Config, parse, parse_command_line
from kmodd.tree.plan import Action, Rules, Verdict, resolve
from kmodd.tree.watch import Watch
from support.trees import CLOUD, UML, tree

TEXT = ("modules.dep", "modules.alias", "modules.symbols", "modules.builtin", "modules.builtin.modinfo")
BIN = ("modules.dep.bin", "modules.alias.bin", "modules.symbols.bin", "modules.builtin.bin", "modules.builtin.alias.bin")  # fmt: skip

Copy = Callable[..., Path]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """A tree with some of the files of the real one."""

    def make(*names: str, modules: bool = False) -> Path:
        directory = tmp_path / "lib/modules/6.1"
        directory.mkdir(parents=True)
        for name in names:
            shutil.copy(tree(UML) / name, directory)
        if modules:
            (directory / "kernel").symlink_to(tree(UML) / "kernel")
        return directory

    return make


def content(index: Index) -> dict[str, object]:
    modules = sorted(index.modules())
    return {
        "modules": modules,
        "depends": {name: set(index.dependencies(name)) for name in modules},
        "aliases": sorted(index.aliases()),
        "builtins": sorted(index.builtins()),
    }


def test_text_and_bin_say_the_same(copy: Copy) -> None:
    real = Index(str(tree(UML)))
    directory = copy(*BIN)
    index = Index(str(directory))
    assert content(index) == content(real)
    assert index.source == "bin"
    assert list(index.symbols())
    assert sorted(index.symbols()) == sorted(real.symbols())
    for symbol in list(index.symbols())[::50]:
        assert index.symbol(symbol) == real.symbol(symbol)


@pytest.mark.parametrize("folder", [UML, CLOUD], ids=["plain", "compressed"])
def test_without_depmod_the_modules_say_the_same(folder: Path, tmp_path: Path) -> None:
    installed = tree(folder)
    real = Index(str(installed))
    directory = tmp_path / "6.1"
    shutil.copytree(installed / "kernel", directory / "kernel", copy_function=os.symlink)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        shutil.copy(installed / name, directory)
    taken = snapshot.take(str(directory), only_trusted=False)
    assert taken.index.scanned
    assert content(taken.index) == content(real)
    theirs = modprobed.load([], real.directory)
    assert {line.pattern for line in taken.config.softdeps.items} >= {
        line.pattern for line in theirs.softdeps.items
    }


@pytest.mark.parametrize("name", TEXT[:4])
@pytest.mark.parametrize("end", [-1, -7])
def test_a_half_written_text_file_is_no_text_file(copy: Copy, name: str, end: int) -> None:
    directory = copy(*TEXT)
    file = directory / name
    file.write_bytes(file.read_bytes()[:end])
    with pytest.raises(Corrupt, match=f"{name}.*in part"):
        Index(str(directory)).load_all()


def test_a_damaged_text_file_leaves_the_bin_file(copy: Copy) -> None:
    directory = copy(*TEXT, *BIN)
    file = directory / "modules.alias"
    file.write_bytes(file.read_bytes()[:5000])
    index = Index(str(directory))
    index.load_all()
    assert any("modules.alias" in problem for problem in index.problems)
    assert sorted(index.aliases()) == sorted(Index(str(tree(UML))).aliases())


def test_no_tree_names_the_release(tmp_path: Path) -> None:
    with pytest.raises(NoTree, match="6\\.99"):
        Index(str(tmp_path / "6.99"))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_damage_of_a_bin_file_is_told(data: st.DataObject) -> None:
    raw = bytearray((tree(UML) / "modules.builtin.alias.bin").read_bytes())
    for _ in range(data.draw(st.integers(0, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    try:
        for key, value, priority in binary.entries(bytes(raw[:cut])):
            assert isinstance(key, str)
            assert isinstance(value, str)
            assert priority >= 0
    except binary.CorruptIndex:
        pass


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_a_configuration(text: str) -> None:
    config = Config()
    parse(config, text, "x.conf")
    parse_command_line(config, text)
    for problem in config.problems:
        assert problem.place.file in {"x.conf", "/proc/cmdline"}


def test_the_kernel_command_line() -> None:
    config = Config()
    parse_command_line(
        config, 'quiet a.b=1 "my-mod.x=1 2" m.y="3 4" c.d.e=5 modprobe.blacklist=one-x,two a=b.c .x n.flag'
    )
    assert [(line.module, line.parameters) for line in config.options] == [
        ("a", "b=1"),
        ("my_mod", "x=1 2"),
        ("m", 'y="3 4"'),
        ("n", "flag"),
    ]
    assert list(config.blacklist) == ["one-x", "two"]


def test_files_mask_and_sort(tmp_path: Path) -> None:
    for folder, names in {"etc": ["b.conf", "z.txt", ".h.conf"], "lib": ["a.conf", "b.conf"]}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_text(f"blacklist from_{folder}_{name[0]}\n")
    config = modprobed.load([str(tmp_path / "etc"), str(tmp_path / "lib")])
    assert list(config.blacklist) == ["from_lib_a", "from_etc_b"]


def test_only_what_others_cannot_write_is_trusted(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir(mode=0o755)
    good, bad = folder / "a.conf", folder / "b.conf"
    good.write_text("blacklist good\n")
    bad.write_text("blacklist bad\n")
    bad.chmod(0o666)
    config = modprobed.load([str(folder)], only_trusted=True)
    assert list(config.blacklist) == ["good"]
    assert "written by others" in str(config.problems[0])
    bad.chmod(0o644)
    os.chown(bad, 1000, 0)
    assert list(modprobed.load([str(folder)], only_trusted=True).blacklist) == ["good"]


def test_where_kmodd_does_what_users_of_kmod_ask_for(tmp_path: Path) -> None:
    """kmod issues 33 (all softdep lines) and 446 (install and softdep together)."""
    index = Index(str(tree(UML)))
    config = Config()
    parse(config, "softdep vfat pre: cbc\nsoftdep vfat pre: minix\ninstall vfat true\n", "x.conf")

    def steps(rules: Rules) -> list[tuple[str, Action]]:
        return [
            (step.module, step.action) for step in resolve(index, config, (), "vfat", rules).targets[0].steps
        ]

    ours = steps(Rules())
    assert [module for module, _action in ours] == ["fat", "cbc", "minix", "vfat"]
    assert ours[-1][1] is Action.RUN
    kmods = steps(Rules(exact=True))
    assert [module for module, _action in kmods] == ["fat", "cbc", "vfat"]
    assert kmods[-1][1] is Action.INSERT


def test_a_circle_of_soft_dependencies_ends() -> None:
    index = Index(str(tree(UML)))
    config = Config()
    lines = (
        "softdep vfat pre: minix post: cbc\nsoftdep minix pre: vfat\nsoftdep cbc pre: vfat minix post: fat\n"
    )
    parse(config, lines, "x.conf")
    for name in ("vfat", "minix", "cbc"):
        (target,) = resolve(index, config, (), name).targets
        assert sorted(step.module for step in target.steps) == ["cbc", "fat", "minix", "vfat"]
        for number, step in enumerate(target.steps):
            assert all(before < number for before in step.after)


def test_what_is_live_needs_nothing() -> None:
    index = Index(str(tree(UML)))
    (target,) = resolve(index, Config(), {"vfat"}, "fs-vfat").targets
    assert (target.verdict, target.steps) == (Verdict.LIVE, ())
    (target,) = resolve(index, Config(), {"fat"}, "vfat").targets
    assert [step.action for step in target.steps] == [Action.NOTHING, Action.INSERT]


def test_a_blacklisted_module_is_held_back_by_an_alias_only() -> None:
    index = Index(str(tree(UML)))
    config = Config()
    parse(config, "blacklist vfat\n", "b.conf")
    (target,) = resolve(index, config, (), "fs-vfat").targets
    assert (target.verdict, target.blacklisted_at) == (Verdict.BLACKLISTED, "b.conf:1")
    assert resolve(index, config, (), "vfat").targets[0].verdict is Verdict.LOAD
    by_name = resolve(index, config, (), "vfat", Rules(blacklist_names=True))
    assert by_name.targets[0].verdict is Verdict.BLACKLISTED


def test_a_change_is_seen_without_waiting(tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    watch = Watch([str(watched), str(tmp_path / "later/deep")])
    assert not watch.maybe_changed()
    (watched / "a").write_text("x")
    assert watch.maybe_changed()
    assert not watch.maybe_changed()
    (watched / "a").rename(watched / "b")
    assert watch.maybe_changed()
    (tmp_path / "later").mkdir()
    assert watch.maybe_changed()
    watch.close()
    assert watch.maybe_changed(), "who cannot see says maybe"


def test_a_signature_changes_with_each_file(copy: Copy) -> None:
    directory = copy(*TEXT)
    before = snapshot.sign(str(directory))
    assert snapshot.sign(str(directory)) == before
    for name in TEXT:
        new = directory / "new"
        new.write_bytes((directory / name).read_bytes())
        new.rename(directory / name)
        after = snapshot.sign(str(directory))
        assert after != before
        before = after


def test_a_tree_is_kept_across_an_upgrade(tmp_path: Path) -> None:
    root = tmp_path / "modules"
    shutil.copytree(tree(UML) / "kernel/fs/fat", root / "6.1/kernel/fs/fat")
    shutil.copy(tree(UML) / "modules.order", root / "6.1")
    (root / "6.1/build").symlink_to("/usr/src")
    count = keep.keep("6.1", str(root), boot="this-boot")
    assert count == len([path for path in (root / "6.1").rglob("*") if path.is_file()])
    assert keep.keep("6.1", str(root), boot="this-boot") == 0
    kept = root / ".kmodd/this-boot/6.1"
    assert (kept / "kernel/fs/fat/vfat.ko").stat().st_ino == (
        root / "6.1/kernel/fs/fat/vfat.ko"
    ).stat().st_ino
    assert not (kept / "build").exists()
    shutil.rmtree(root / "6.1")
    (root / "6.1").mkdir()
    assert keep.usable("6.1", str(root)) == str(root / "6.1"), "of another boot: not ours to use"
    (root / ".kmodd/this-boot").rename(root / f".kmodd/{keep.boot_id()}")
    assert keep.usable("6.1", str(root)) == str(root / f".kmodd/{keep.boot_id()}/6.1")
    assert "vfat" in set(Index(keep.usable("6.1", str(root))).modules())
    keep.drop(str(root), but="later-boot")
    assert not (root / ".kmodd").exists()
    with pytest.raises(KmoddError, match="no modules"):
        keep.keep("6.1", str(root))
