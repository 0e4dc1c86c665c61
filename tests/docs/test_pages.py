"""The pages in the top directory: links lead somewhere, and the README's session runs as it is shown."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd import __version__

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "ARCHITECTURE.md", "CHANGELOG.md")


def anchors(page: str) -> set[str]:
    titles = re.findall(r"(?m)^#+ (.*)$", page)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / page).parent / (path or page)
        assert there.exists(), target
        assert not anchor or anchor in anchors(there.read_text()), target


def test_the_changelog_has_this_version() -> None:
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_make_targets_that_the_readme_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?m)^ {4}make (\S+)", (ROOT / "README.md").read_text()):
        assert re.search(rf"(?m)^{target}:", makefile), target


def session() -> list[tuple[str, str]]:
    """The commands of the README's first session, each with what it shows."""
    page = (ROOT / "README.md").read_text()
    found = re.search(r"(?m)^## A first look(?:.*\n)+?\n((?:    .*\n)+)", page)
    assert found
    lines = [line[4:] for line in found[1].splitlines()]
    steps: list[tuple[str, list[str]]] = []
    for line in lines:
        if line.startswith("$ "):
            steps.append((line[2:], []))
        else:
            steps[-1][1].append(line)
    return [(command, "\n".join(shown)) for command, shown in steps]


def alike(text: str) -> str:
    """Without what differs from run to run."""
    text = re.sub(r"(\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d(\.\d{3})?", "TIME", text)
    text = re.sub(r"\(by \S+ \(pid [^()]*\)\)", "(by WHO)", text)
    return re.sub(r" *\d+\.\d ms", " N ms", text).strip()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A simulated daemon and a `kmodd` for the shell, in an environment."""
    program = tmp_path / "bin/kmodd"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kmodd "$@"\n')
    program.chmod(0o755)
    path = tmp_path / "run/kmodd/io.kmodd"
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "KMODD_SOCKET": str(path)}
    argv = [sys.executable, "-m", "kmodd", "serve", "--kernel", "simulated", "--root", str(tmp_path)]
    serving = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert serving.poll() is None
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(path)) == 0:
                    break
            time.sleep(0.02)
        yield environment
    finally:
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(timeout=60) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="requesting modules needs root")
def test_the_session_of_the_readme(daemon: dict[str, str]) -> None:
    steps = session()
    assert steps[0] == ("kmodd serve --kernel simulated --root /tmp/try &", "")
    assert steps[1] == ("export KMODD_SOCKET=/tmp/try/run/kmodd/io.kmodd", "")
    assert steps[-1] == ("kill %1", "")
    before = 0
    for command, shown in steps[2:-1]:
        done = subprocess.run(
            ["bash", "-c", f"(exit {before}); {command}"],
            env=daemon,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
        )
        assert alike(done.stdout) == alike(shown), command
        before = done.returncode
