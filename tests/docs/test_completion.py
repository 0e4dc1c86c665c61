"""The completion scripts are what the parser gives, and the shells complete with them."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kmodd.cli.completion import script
from kmodd.model import Outcome
from kmodd.settings import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
FILES = {"bash": "kmodd.bash", "zsh": "_kmodd", "fish": "kmodd.fish"}
COMMANDS = {
    "serve", "request", "remove", "list", "resolve", "status", "tune", "hook", "log", "why", "lab", "completion",
    "modprobe", "insmod", "rmmod", "lsmod", "modinfo",
}  # fmt: skip

Complete = Callable[[str], set[str]]
"""From a command line to what the shell offers for its last word."""


@pytest.mark.parametrize("shell", FILES)
def test_completions_are_up_to_date(shell: str) -> None:
    path = ROOT / "completions" / FILES[shell]
    assert path.read_text() == script(shell), f"kmodd completion {shell} >completions/{FILES[shell]}"


def installed(shell: str) -> str:
    path = shutil.which(shell)
    assert path is not None, f"{shell} is not installed: apt-get install {shell}"
    return path


@pytest.fixture
def modules(tmp_path: Path) -> tuple[Path, Path]:
    """Stand-ins for /proc/modules and modules.dep, which a test machine may lack."""
    live = tmp_path / "modules"
    live.write_text("dm_crypt 65536 0 - Live 0x0\ndm_mod 188416 1 dm_crypt, Live 0x0\n")
    index = tmp_path / "modules.dep"
    index.write_text(
        "kernel/net/9p/9pnet-virtio.ko.xz: kernel/net/9p/9pnet.ko.xz\n"
        "kernel/net/9p/9pnet.ko.xz:\nkernel/drivers/md/dm-mod.ko:\n"
    )
    return live, index


@pytest.fixture(params=FILES)
def complete(request: pytest.FixtureRequest, modules: tuple[Path, Path], tmp_path: Path) -> Complete:
    shell: str = request.param
    live, index = modules
    text = script(shell)
    assert text.count("/proc/modules") == 1
    text = text.replace("/proc/modules", str(live))
    text, changed = re.subn(r"/lib/modules/\$?\(uname -r\)/modules\.dep", str(index), text)
    assert changed == 1
    path = tmp_path / FILES[shell]
    path.write_text(text)
    program = installed(shell)
    driver = {"bash": in_bash, "zsh": in_zsh, "fish": in_fish}[shell]
    return lambda line: driver(program, path, line)


BASH_DRIVER = r"""
source "$1"
compopt() { :; }  # only inside a real completion
COMP_LINE=$2 COMP_POINT=${#2} COMP_WORDS=() rest=$2
# The words as readline breaks them: at blanks, and `=` is a word of its own.
while [[ -n $rest ]]; do
    if [[ $rest == ' '* ]]; then rest=${rest# }; [[ -n $rest ]] || COMP_WORDS+=('')
    elif [[ $rest == =* ]]; then COMP_WORDS+=('='); rest=${rest#=}
    else word=${rest%%[ =]*}; COMP_WORDS+=("$word"); rest=${rest#"$word"}
    fi
done
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
"$(complete -p kmodd | sed -E 's/.*-F ([^ ]+).*/\1/')" kmodd "${COMP_WORDS[COMP_CWORD]}" ""
((${#COMPREPLY[@]} == 0)) || printf '%s\n' "${COMPREPLY[@]}"
"""


def in_bash(program: str, path: Path, line: str) -> set[str]:
    argv = [program, "--norc", "-u", "-c", BASH_DRIVER, "bash", str(path), line]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=30, stdin=subprocess.DEVNULL
    )
    assert done.stderr == ""
    return set(done.stdout.split())


def in_fish(program: str, path: Path, line: str) -> set[str]:
    home = {"HOME": str(path.parent), "XDG_CONFIG_HOME": str(path.parent), "PATH": os.environ["PATH"]}
    argv = [program, "--no-config", "-c", "source $argv[1]; complete -C $argv[2]", str(path), line]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=30, env=home, stdin=subprocess.DEVNULL
    )
    assert done.stderr == ""
    return {found.partition("\t")[0] for found in done.stdout.splitlines()}


# zsh completes only in its line editor: an interactive one, on a terminal of its own, whose Tab writes
# down what is offered instead of showing it, and ends.
ZSHRC = r"""
fpath=($ZDOTDIR/functions $fpath)
autoload -Uz compinit && compinit -u -D
PS1= RPS1= LISTMAX=1000
zstyle ':completion:*' completer _complete
compadd() {
    if [[ ${@[1,(i)(-|--)]} == *-[a-zA-Z]#[OAD]\ * ]]; then
        builtin compadd "$@"
        return
    fi
    local -a hits
    builtin compadd -A hits "$@"
    (($#hits == 0)) || print -rl -- $hits >>$ZDOTDIR/hits
    builtin compadd "$@"
}
capture() { _main_complete; touch $ZDOTDIR/done; exit }
zle -C capture complete-word capture
bindkey '^I' capture
"""


def in_zsh(program: str, path: Path, line: str) -> set[str]:
    folder = path.parent / "zsh"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "functions").mkdir(parents=True)
    shutil.copy(path, folder / "functions" / "_kmodd")
    (folder / ".zshrc").write_text(ZSHRC)
    environment = {"ZDOTDIR": str(folder), "HOME": str(folder), "TERM": "dumb", "PATH": os.environ["PATH"]}
    ours, its = pty.openpty()
    shell = subprocess.Popen(
        [program, "-d", "-i"], stdin=its, stdout=its, stderr=its, env=environment, start_new_session=True
    )
    os.close(its)
    shown = b""
    try:
        os.write(ours, line.encode() + b"\t")
        deadline = time.monotonic() + 60
        while shell.poll() is None and time.monotonic() < deadline:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    shown += os.read(ours, 65536)
                except OSError:  # EIO: it has closed the terminal
                    break
        shell.wait(timeout=10)
    finally:
        shell.kill()
        shell.wait()
        os.close(ours)
    assert (folder / "done").exists(), shown
    hits = folder / "hits"
    return set(hits.read_text().splitlines()) if hits.exists() else set()


def test_commands(complete: Complete) -> None:
    assert complete("kmodd ") >= COMMANDS
    assert complete("kmodd re") == {"request", "remove", "resolve"}


def test_options_of_a_command(complete: Complete) -> None:
    assert complete("kmodd request --") == {"--help", "--json", "--timeout", "--no-wait"}
    assert "--holders" in complete("kmodd remove --json --h")
    assert "--follow" not in complete("kmodd status --")


def test_a_choice(complete: Complete) -> None:
    assert complete("kmodd serve --kernel ") == {"linux", "simulated"}
    assert complete("kmodd hook o") == {"on", "off"}
    assert complete("kmodd completion ") == {"bash", "zsh", "fish"}


def test_an_option_with_its_value_in_one_word(complete: Complete) -> None:
    # fish offers the whole word, the others its end
    found = {word.rpartition("=")[2] for word in complete("kmodd serve --kernel=")}
    assert found == {"linux", "simulated"}


def test_a_directory(complete: Complete, tmp_path: Path) -> None:
    (tmp_path / "somewhere").mkdir()
    (tmp_path / "some-file").touch()
    found = {word.rstrip("/").rpartition("/")[2] for word in complete(f"kmodd serve --root {tmp_path}/some")}
    assert found == {"somewhere"}


def test_modules_to_remove_are_live_ones(complete: Complete) -> None:
    assert complete("kmodd remove dm") == {"dm_crypt", "dm_mod"}
    assert complete("kmodd remove dm_mod dm_c") == {"dm_crypt"}


def test_modules_to_request_are_installed_ones(complete: Complete) -> None:
    assert complete("kmodd request ") >= {"9pnet", "9pnet_virtio", "dm_mod"}
    assert complete("kmodd request 9pnet_") == {"9pnet_virtio"}
    assert complete("kmodd log --module 9pnet_") == {"9pnet_virtio"}


def test_settings(complete: Complete) -> None:
    assert complete("kmodd tune ") >= set(SETTINGS)
    assert complete("kmodd tune load_timeout=3 fall") == {"fallback"}
    assert complete("kmodd tune fallback=") <= {"fallback="}


def test_outcomes(complete: Complete) -> None:
    assert complete("kmodd log --outcome ") == {outcome.value for outcome in Outcome}


def test_a_command_for_the_lab(complete: Complete) -> None:
    assert "mandoc" in complete("kmodd lab mando")
    assert "mandoc" in complete("kmodd lab --kernel uml -- mando")


def test_one_word_is_enough_where_one_is_taken(complete: Complete) -> None:
    assert not complete("kmodd hook on ") & {"on", "off", "status"}
