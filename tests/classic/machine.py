"""A made-up machine that two programs are run on one after the other: kmod's modprobe, and ours.

Both have fakeroot.c preloaded and see the same tree, configuration and modules in the kernel. Ours is forked
from a server that has all imports behind it: hundreds of runs cost what a few starts of Python would.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

SERVER = """
import json, os, sys
from kmodd.cli import classic
from kmodd.cli.classic import insert, modprobe, query, remove, seen
from kmodd.tree import modprobed, snapshot
for line in sys.stdin:
    wanted = json.loads(line)
    pid = os.fork()
    if not pid:
        for number, name in ((0, os.devnull), (1, wanted["out"]), (2, wanted["err"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT, 0o644), number)
        for number in wanted["closed"]:
            os.close(number)
        os.environ.clear()
        os.environ.update(wanted["environment"])
        os.chdir(wanted["cwd"])
        status = 70
        try:
            status = classic.run("modprobe", wanted["argv"])
        except SystemExit as err:
            status = err.code
        except BaseException:
            import traceback
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Done(NamedTuple):
    """How a run ended; `live` is each module in the kernel afterwards, with its use count."""

    status: int
    out: bytes
    err: list[bytes]
    live: dict[str, str]


class Machine:
    """Its root directory; `modprobe` runs both programs from the same start."""

    def __init__(self, root: Path, library: Path, tree: Path, release: str) -> None:
        self.root = root
        self._library = library
        (root / "lib/modules").mkdir(parents=True)
        (root / "lib/modules" / release).symlink_to(tree)
        for directory in (
            "proc",
            "sys/module",
            "etc/modprobe.d",
            "run/modprobe.d",
            "lib/modprobe.d",
            "usr/lib",
        ):
            (root / directory).mkdir(parents=True, exist_ok=True)
        # kmod 30 knows the one name, newer ones both; on a distribution of today it is one directory.
        (root / "usr/lib/modprobe.d").symlink_to("../../lib/modprobe.d")
        (root / "proc/modules").touch()
        self.command_line("")
        environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(sys.path)}
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(10)
        assert self._server.stdout is not None
        self._server.stdout.close()

    # What there is

    def command_line(self, text: str) -> None:
        """Set the kernel command line."""
        (self.root / "proc/cmdline").write_text(text + "\n")

    def configure(self, files: Mapping[str, str]) -> None:
        """Make these the files of modprobe.d; a path that begins with `/` is elsewhere than in /etc."""
        for directory in ("etc", "run", "lib"):
            shutil.rmtree(self.root / directory / "modprobe.d")
            (self.root / directory / "modprobe.d").mkdir()
        for name, text in files.items():
            path = self.root / (name[1:] if name.startswith("/") else f"etc/modprobe.d/{name}")
            path.write_text(text)

    def _live(self, modules: Mapping[str, Mapping[str, object]]) -> None:
        shutil.rmtree(self.root / "sys/module")
        for name, module in modules.items():
            directory = self.root / "sys/module" / name
            (directory / "holders").mkdir(parents=True)
            (directory / "initstate").write_text(f"{module.get('state', 'live')}\n")
            (directory / "depends").write_text(",".join(module.get("depends", ())))  # type: ignore[arg-type]
        (self.root / "sys/module").mkdir(exist_ok=True)
        for name, module in modules.items():
            for dependency in module.get("depends", ()):  # type: ignore[attr-defined]
                (self.root / f"sys/module/{dependency}/holders/{name}").symlink_to(f"../../{name}")
        for name, module in modules.items():
            holders = len(os.listdir(self.root / f"sys/module/{name}/holders"))
            count = module.get("refs", 0) + holders  # type: ignore[operator]
            (self.root / f"sys/module/{name}/refcnt").write_text(f"{count}\n")

    def _now_live(self) -> dict[str, str]:
        found = {}
        for directory in sorted((self.root / "sys/module").iterdir()):
            refcnt = directory / "refcnt"
            found[directory.name] = refcnt.read_text().strip() if refcnt.exists() else ""
        return found

    # Runs

    def modprobe(
        self,
        argv: Sequence[str],
        live: Mapping[str, Mapping[str, object]] | None = None,
        environment: Mapping[str, str] | None = None,
        closed: Sequence[int] = (),
    ) -> tuple[Done, Done]:
        """Return what kmod's modprobe does and what ours does, on the same machine."""
        settings = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LD_PRELOAD": str(self._library),
            "FAKEROOT": str(self.root),
            "FAKE_KERNEL": "yes",
            **(environment or {}),
        }
        self._live(live or {})
        theirs = self._theirs(argv, settings, closed)
        self._live(live or {})
        return theirs, self._ours(argv, settings, closed)

    def _theirs(self, argv: Sequence[str], environment: Mapping[str, str], closed: Sequence[int]) -> Done:
        command = ["modprobe", *argv]
        redirect = " ".join(f"{number}>&-" for number in closed)
        done = subprocess.run(
            ["/bin/sh", "-c", f'exec "$@" {redirect}', "sh", *command] if closed else command,
            executable=None if closed else "/sbin/modprobe",
            env=dict(environment),
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        return self._done(done.returncode, done.stdout, done.stderr)

    def _ours(self, argv: Sequence[str], environment: Mapping[str, str], closed: Sequence[int]) -> Done:
        out, err = self.root / "out", self.root / "err"
        for path in (out, err):
            path.unlink(missing_ok=True)
        wanted = {
            "argv": list(argv),
            "environment": dict(environment),
            "cwd": str(self.root),
            "out": str(out),
            "err": str(err),
            "closed": list(closed),
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(wanted).encode() + b"\n")
        self._server.stdin.flush()
        status = int(self._server.stdout.readline())
        return self._done(status, out.read_bytes(), err.read_bytes())

    def _done(self, status: int, out: bytes, err: bytes) -> Done:
        # kmod's library puts the place in its source before what it says, and with `-vv` tells of its insides.
        # A bad line of modprobe.d both tell with its place, in other words.
        err = re.sub(
            rb"(?m)^libkmod: ERROR \S+ kmod_config_parse: \S*/(\S+) line (\d+): .*$", rb"bad: \1:\2", err
        )
        err = re.sub(rb"(?m)^modprobe: ERROR: \S*/modprobe\.d/(\S+:\d+): .*$", rb"bad: \1", err)
        lines = re.sub(rb"\.\./libkmod/\S+ \w+\(\) ", b"", err).splitlines()
        lines = [line for line in lines if not re.search(rb"^(modprobe: |syslog\(\d, )(INFO|DEBUG): ", line)]
        return Done(status, out, lines, self._now_live())
