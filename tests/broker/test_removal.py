"""Unloading on request: in order, by `remove` commands of modprobe.d where there are some, and why not."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kmodd.broker.installed import Installed as InstalledModules
from kmodd.broker.removal import Remover
from kmodd.errors import KernelError, KmoddError
from kmodd.kernel import init
from kmodd.kernel.interface import Module
from kmodd.kernel.simulated import Installed, SimulatedKernel
from kmodd.kernel.uses import Device, Mount, StandsFor, Uses
from kmodd.tree import modprobed
from kmodd.tree.modprobed import Config
from support.kept import KeptRecorder

MODULES = (
    Installed("dep"),
    Installed("mid", depends=("dep",)),
    Installed("top", depends=("mid",)),
    Installed("stuck", permanent=True),
)


class Kernel(SimulatedKernel):
    """One in which a command can unload too: by making the file `gone/NAME`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(MODULES)
        self.gone = folder / "gone"
        self.gone.mkdir()
        self.unloaded: list[str] = []
        self.used_by = Uses()
        for module in MODULES:
            self.load(module.name)

    def modules(self) -> dict[str, Module]:
        return {name: item for name, item in super().modules().items() if not (self.gone / name).exists()}

    def unload(self, name: str) -> None:
        super().unload(name)
        self.unloaded.append(name)

    def uses(self, name: str, stands_for: StandsFor) -> Uses:
        return self.used_by if name in stands_for(f"fs-{name}") else Uses()


class Configured:
    def __init__(self, text: str, error: KmoddError | None = None) -> None:
        self._text = text
        self._error = error

    async def config(self) -> Config:
        if self._error is not None:
            raise self._error
        config = Config()
        modprobed.parse(config, self._text, "/etc/modprobe.d/a b.conf")
        return config

    def aliased(self, name: str) -> list[str]:
        return [name.removeprefix("fs-")]


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kernel = Kernel(folder)
        self.recorder = KeptRecorder(now=lambda: datetime.now(UTC))
        self.entered = 0

    def enter(self) -> None:
        self.entered += 1

    def remover(self, text: str = "", error: KmoddError | None = None) -> Remover:
        return Remover(self.kernel, self.recorder, Configured(text, error), self.enter)

    def remove(self, name: str, text: str = "", *, holders: bool = False) -> list[str]:
        return asyncio.run(self.remover(text).remove(name, holders=holders))

    def refusal(self, name: str, text: str = "", *, holders: bool = False) -> KernelError:
        with pytest.raises(KernelError) as raised:
            self.remove(name, text, holders=holders)
        return raised.value

    def recorded(self) -> list[str]:
        return [event.fields["module"] for event in self.recorder.events() if event.event == "unload"]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_without_a_command_the_kernel_unloads(bench: Bench) -> None:
    assert bench.remove("dep", "remove other false\n", holders=True) == ["top", "mid", "dep"]
    assert bench.kernel.unloaded == bench.recorded() == ["top", "mid", "dep"]
    assert bench.entered == 0


def test_a_command_is_run_in_place_of_delete_module_as_modprobe_runs_it(bench: Bench, tmp_path: Path) -> None:
    script = (
        f"cd {tmp_path}; env >env; read -r pid comm state ppid pgrp session rest </proc/$$/stat; "
        'echo "$$ $pgrp $session" >session; echo "[$CMDLINE_OPTS]" >options; >gone/$MODPROBE_MODULE'
    )
    assert bench.remove("top", f"options top a=1\nremove t?p {script}\nremove top false\n") == ["top"]
    assert bench.kernel.unloaded == []
    assert bench.recorded() == ["top"]
    assert bench.entered == 1
    environment = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert environment["MODPROBE_MODULE"] == "top"
    assert set(environment) - {"PWD", "OLDPWD", "SHLVL", "_"} == {"HOME", "PATH", "TERM", "MODPROBE_MODULE"}
    assert len(set((tmp_path / "session").read_text().split())) == 1
    assert (tmp_path / "options").read_text() == "[]\n"


@pytest.mark.parametrize(
    ("command", "words", "status"),
    [
        ("exit 3", "ended with exit status 3", 3),
        (r"echo first; printf 'se\033cond\n' >&2; exit 1", "ended with exit status 1: first; se\\x1bcond", 1),
        ("kill -9 $$", "was killed by signal 9", 137),
        ("/nonexistent/program 2>/dev/null", "ended with exit status 127", 127),
    ],
)
def test_a_command_that_fails_is_told(bench: Bench, command: str, words: str, status: int) -> None:
    error = bench.refusal("top", f"# one\nremove top {command}\n")
    assert str(error) == f"cannot unload top: its remove command (/etc/modprobe.d/a\\x20b.conf:2) {words}"
    assert (error.errno, error.status) == (errno.EIO, status)
    assert bench.recorded() == []
    assert bench.kernel.is_live("top")


def test_one_that_fails_with_the_module_gone_is_told_as_both(bench: Bench, tmp_path: Path) -> None:
    error = bench.refusal("top", f"remove top >{tmp_path}/gone/top; exit 2\n")
    assert str(error).startswith("top is unloaded, but its remove command (")
    assert error.status == 2
    assert bench.recorded() == ["top"]


def test_success_without_an_unload_is_not_told_as_one(bench: Bench) -> None:
    error = bench.refusal("top", "remove top /bin/true\n")
    assert str(error) == (
        "cannot unload top: its remove command (/etc/modprobe.d/a\\x20b.conf:1) ended with success and left it "
        "in the kernel: Operation not permitted (EPERM)"
    )
    assert error.status == -errno.EPERM
    assert bench.recorded() == []


def test_a_command_may_take_others_with_it(bench: Bench, tmp_path: Path) -> None:
    text = f"remove top cd {tmp_path}/gone && touch top mid dep\n"
    assert bench.remove("dep", text, holders=True) == ["top", "mid", "dep"]
    assert bench.kernel.unloaded == []


def test_a_commands_failure_ends_it_there(bench: Bench) -> None:
    error = bench.refusal("dep", "remove mid exit 4\n", holders=True)
    assert "cannot unload mid: its remove command" in str(error)
    assert bench.recorded() == ["top"]


def test_a_command_is_not_run_for_what_is_not_there(bench: Bench, tmp_path: Path) -> None:
    error = bench.refusal("absent", f"remove absent touch {tmp_path}/ran\n")
    assert error.errno == errno.ENOENT
    assert not (tmp_path / "ran").exists()


def test_a_command_that_asks_for_itself_is_refused_while_it_runs(bench: Bench, tmp_path: Path) -> None:
    async def main() -> None:
        remover = bench.remover(
            f"remove top cd {tmp_path}; >started; while ! [ -e go ]; do sleep 0.01; done; >gone/top\n"
        )
        first = asyncio.create_task(remover.remove("top", holders=False))
        while not (tmp_path / "started").exists():
            await asyncio.sleep(0.005)
        with pytest.raises(KernelError, match="is running already") as raised:
            await remover.remove("top", holders=False)
        assert raised.value.errno == errno.EALREADY
        (tmp_path / "go").write_text("")
        assert await first == ["top"]
        with pytest.raises(KernelError, match="not in the kernel"):
            await remover.remove("top", holders=False)

    asyncio.run(main())


def test_what_has_begun_is_recorded_when_nobody_waits_any_more(bench: Bench, tmp_path: Path) -> None:
    async def main() -> None:
        remover = bench.remover(
            f"remove top cd {tmp_path}; >started; while ! [ -e go ]; do sleep 0.01; done; >gone/top\n"
        )
        left = asyncio.create_task(remover.remove("mid", holders=True))
        while not (tmp_path / "started").exists():
            await asyncio.sleep(0.005)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        with pytest.raises(KernelError, match="is running already"):
            await remover.remove("top", holders=False)
        (tmp_path / "go").write_text("")
        while not bench.recorded():
            await asyncio.sleep(0.005)

    asyncio.run(main())
    assert bench.recorded() == ["top"]
    assert bench.kernel.unloaded == []


def raising(error: OSError) -> Callable[[], None]:
    def enter() -> None:
        raise error

    return enter


def refused(work: Coroutine[Any, Any, list[str]]) -> str:
    with pytest.raises(KernelError) as raised:
        asyncio.run(work)
    return str(raised.value)


def test_where_it_cannot_be_run_the_module_stays(bench: Bench) -> None:
    enter = raising(PermissionError(errno.EPERM, "Operation not permitted", init.ROOT))
    remover = Remover(bench.kernel, bench.recorder, Configured("remove top true\n"), enter)
    assert refused(remover.remove("top", holders=False)) == (
        "cannot unload top: cannot enter /proc/1/root: Operation not permitted (EPERM)"
    )
    assert bench.kernel.unloaded == []


def test_nothing_is_unloaded_past_a_configuration_that_cannot_be_read(bench: Bench) -> None:
    remover = bench.remover(error=KmoddError("cannot read modprobe.d: Input/output error"))
    assert refused(remover.remove("top", holders=False)) == (
        "cannot unload top: cannot read modprobe.d: Input/output error"
    )
    assert bench.kernel.unloaded == []


def test_where_no_modules_are_installed_the_configuration_is_read_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "modprobe.d"
    folder.mkdir()
    (folder / "x.conf").write_text("remove top true\n")
    monkeypatch.setattr("kmodd.broker.installed.DIRECTORIES", (str(folder),))
    monkeypatch.setattr("kmodd.tree.modprobed.untrusted", lambda _path: None)

    async def main() -> None:
        installed = InstalledModules(lambda: "0.0-none", lambda: None)
        assert [line.pattern for line in (await installed.config()).remove.items] == ["top"]
        assert installed.aliased("fs-vfat") == []
        monkeypatch.setattr("kmodd.tree.modprobed.untrusted", lambda _path: "it is not root's")
        assert (await installed.config()).remove.items == []

    asyncio.run(main())


def test_what_uses_a_module_is_told_where_the_kernel_refuses(bench: Bench) -> None:
    bench.kernel.used_by = Uses(
        mounts=(Mount("top", b"/mnt/x", "8:1"),), devices=(Device("1-1", "usb", "top", "/sys/devices/1-1"),)
    )
    bench.kernel.use("top", 1)
    error = bench.refusal("top")
    assert str(error) == (
        "cannot unload top: it has 1 user: top mounted at /mnt/x; it drives device 1-1 (usb driver top)"
    )
    assert error.status == -errno.EAGAIN
    bench.kernel.use("top", 1)
    bench.kernel.used_by = Uses()
    assert str(bench.refusal("top")) == "cannot unload top: it has 2 users"
    assert str(bench.refusal("mid")) == "cannot unload mid: it is used by top (try --holders)"
    assert str(bench.refusal("stuck")) == "cannot unload stuck: it is permanent: it has no exit function"
    bench.kernel.use("top", -2)
    # Bound devices hold nothing: what the administrator asks for is done.
    bench.kernel.used_by = Uses(devices=(Device("1-1", "usb", "top", "/sys/devices/1-1"),))
    assert bench.remove("top") == ["top"]
