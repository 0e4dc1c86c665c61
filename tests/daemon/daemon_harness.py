"""A real daemon on the simulated kernel, and hands to reach it: its command line, its API, its helper socket."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

PATIENCE = 30.0
"""Seconds that nothing takes unless it hangs."""

NOBODY = 65534

MODULES = """
[plain]
[dep]
[top]
depends = ["dep"]
aliases = ["alias-top"]
[built]
builtin = true
aliases = ["alias-built"]
[bad]
error = "ENODEV"
[worse]
error = "ENOMEM"
[slow]
latency = 0.3
[long]
latency = 3600
[itself]
requests = ["itself"]
[outer]
requests = ["inner"]
[inner]
[stuck]
permanent = true
"""

# The modules of a client command are imported before the identity is changed: a checkout may be root's alone.
_AS_SOMEBODY = """
import os, sys
import encodings.idna
import kmodd.cli.client, kmodd.connection, kmodd.views.show
from kmodd.cli import main
uid, gid, groups = int(sys.argv[1]), int(sys.argv[2]), [int(item) for item in sys.argv[3].split(",") if item]
os.setgroups(groups)
os.setresgid(gid, gid, gid)
os.setresuid(uid, uid, uid)
sys.exit(main(sys.argv[4:]))
"""

_SERVE = "\nimport sys\nfrom kmodd.cli import main\nsys.exit(main())\n"


def environment(**more: str) -> dict[str, str]:
    """What a child needs to find this kmodd, and nothing that tells it of another service manager."""
    found = {
        key: value
        for key, value in os.environ.items()
        if key not in {"NOTIFY_SOCKET", "KMODD_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}
        and not key.startswith("LISTEN_")
    }
    if "PYTHONPATH" in found:
        parts = found["PYTHONPATH"].split(os.pathsep)
        found["PYTHONPATH"] = os.pathsep.join(os.path.abspath(part) for part in parts if part)
    return found | more


def wait_until(check: Callable[[], object], what: str) -> None:
    """Look again and again until `check` is true; a hang fails."""
    end = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.005)


@contextlib.contextmanager
def identity(uid: int, gid: int | None = None, groups: tuple[int, ...] = ()) -> Iterator[None]:
    """Connect as somebody else: SO_PEERCRED is what the effective credentials are at connect()."""
    old = os.getgroups()
    os.setgroups(groups)
    os.setegid(uid if gid is None else gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(old)


class Reply(Exception):
    """An error reply."""

    def __init__(self, error: str, parameters: dict[str, Any]) -> None:
        super().__init__(error, parameters)
        self.error = error
        self.parameters = parameters


class Api:
    """A varlink connection by hand, so that it can do what no good client does."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self._buffer = b""
        try:
            self.sock.connect(str(path))
        except OSError:
            self.sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.sock.close()

    def send(self, method: str, *, more: bool = False, oneway: bool = False, **parameters: Any) -> None:
        """Make a call without waiting for its reply."""
        if "." not in method:
            method = f"io.kmodd.{method}"
        message: dict[str, Any] = {"method": method, "parameters": parameters}
        if more:
            message["more"] = True
        if oneway:
            message["oneway"] = True
        self.sock.sendall(json.dumps(message).encode() + b"\0")

    def message(self) -> dict[str, Any] | None:
        """Return the next message as it is; None where the connection has ended."""
        while b"\0" not in self._buffer:
            try:
                data = self.sock.recv(1 << 20)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self._buffer += data
        raw, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(raw)
        return found

    def receive(self) -> dict[str, Any]:
        """Return the parameters of the next reply."""
        message = self.message()
        assert message is not None, "the daemon has hung up"
        if "error" in message:
            raise Reply(message["error"], message.get("parameters") or {})
        found: dict[str, Any] = message.get("parameters") or {}
        return found

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Make a call and return what it returns."""
        self.send(method, **parameters)
        return self.receive()

    def event(self, **wanted: object) -> dict[str, Any]:
        """Of a Log call that follows: return the next event with these fields."""
        while True:
            event = self.receive()["event"]
            assert event is not None, "the log has ended"
            if all(event.get(key) == value for key, value in wanted.items()):
                found: dict[str, Any] = event
                return found


class Helper:
    """The kernel's helper by hand."""

    def __init__(self, path: Path, name: bytes | None = None) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(PATIENCE)
        try:
            self.sock.connect(str(path))
        except OSError:
            self.sock.close()
            raise
        if name is not None:
            self.sock.send(name + b"\0")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.sock.close()

    def packet(self) -> bytes:
        """Return the next packet; empty where the daemon has hung up."""
        try:
            return self.sock.recv(8192)
        except ConnectionResetError:
            return b""

    def packets(self) -> list[bytes]:
        """Return all packets until the daemon hangs up, but `a`: where the status comes soon there is none."""
        return [packet for packet in iter(self.packet, b"") if packet != b"a"]


class Daemon:
    """A `kmodd serve` below a root directory of its own."""

    def __init__(self, modules: str = MODULES, settings: str = "stop_timeout = 0\n") -> None:
        # Short, as a socket's address holds 107 bytes; open to all, as other users connect.
        self.root = Path(tempfile.mkdtemp(prefix="kmodd-", dir="/tmp"))
        self.root.chmod(0o755)
        self.run_dir = self.root / "run/kmodd"
        self.api_path = self.run_dir / "io.kmodd"
        self.helper_path = self.run_dir / "helper.sock"
        self.settings_path = self.root / "etc/kmodd/kmodd.toml"
        self.errors_path = self.root / "stderr"
        self.settings_path.parent.mkdir(parents=True)
        self.settings_path.write_text(settings)
        (self.root / "etc/kmodd/simulated.toml").write_text(modules)
        self._notify_path = self.root / "notify"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.settimeout(PATIENCE)
        self._notify.bind(str(self._notify_path))
        self._notified: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None

    # Its life

    def spawn(
        self,
        *,
        prelude: str | None = None,
        before: tuple[str, ...] = (),
        kernel: str = "simulated",
        pass_fds: tuple[int, ...] = (),
        **variables: str,
    ) -> subprocess.Popen[bytes]:
        """Start it and return at once. `prelude`: Python that runs in it before kmodd does."""
        start = ["-m", "kmodd"] if prelude is None else ["-c", prelude + _SERVE]
        with self.errors_path.open("ab") as errors:
            self.process = subprocess.Popen(
                [*before, sys.executable, *start, "serve", "--kernel", kernel, "--root", str(self.root)],
                env=environment(NOTIFY_SOCKET=str(self._notify_path), **variables),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=pass_fds,
            )
        return self.process

    def start(self, **how: Any) -> Daemon:
        """Start it and wait until it serves."""
        self.spawn(**how)
        self.notified("READY=1")
        self.barrier()
        return self

    def barrier(self) -> None:
        """Return when the daemon has done what it was doing, such as closing its end of a notification.

        A helper's packet without NUL is answered and leaves no trace.
        """
        with self.helper() as helper:
            helper.sock.send(b"x")
            assert helper.packets() == [b"f"]

    def notified(self, wanted: str) -> str:
        """Wait for a notification that has `wanted` as a line; return it whole."""
        end = time.monotonic() + PATIENCE
        assert self.process is not None
        ended = os.pidfd_open(self.process.pid)
        try:
            while True:
                ready, _, _ = select.select([self._notify, ended], [], [], max(0.0, end - time.monotonic()))
                assert ready, f"waited in vain for {wanted}; {self.errors()}"
                assert self._notify in ready, f"ended without {wanted}: {self.errors()}"
                message = self._notify.recv(4096).decode()
                self._notified.append(message)
                if wanted in message.splitlines():
                    return message
        finally:
            os.close(ended)

    def notifications(self) -> list[str]:
        """Return all that it has told so far, of an ended daemon all that it told."""
        self._notify.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._notified.append(self._notify.recv(4096).decode())
        self._notify.settimeout(PATIENCE)
        return self._notified

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def send_signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end; return its exit status."""
        assert self.process is not None
        return self.process.wait(PATIENCE)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it as a service manager does, and look at how it ends."""
        self.send_signal(number)
        assert self.wait() == 0, self.errors()

    def kill_and_start(self) -> None:
        """Kill it as a defect would, and start the next one."""
        self.send_signal(signal.SIGKILL)
        self.wait()
        self.start()

    def errors(self) -> str:
        """Return what it wrote to stderr."""
        return self.errors_path.read_text(errors="replace") if self.errors_path.exists() else ""

    def clean(self) -> None:
        """End whatever is left and remove the directory; it must have ended well and said nothing odd."""
        try:
            if self.process is not None:
                if self.process.poll() is None:
                    self.send_signal(signal.SIGTERM)
                    try:
                        assert self.wait() == 0, self.errors()
                    finally:
                        if self.process.poll() is None:
                            self.process.kill()
                            self.process.wait(PATIENCE)
                said = self.errors()
                for word in (
                    "Traceback",
                    "Exception ignored",
                    "never retrieved",
                    "was destroyed",
                    "unhandled",
                ):
                    assert word not in said, said
        finally:
            self._notify.close()
            shutil.rmtree(self.root, ignore_errors=True)

    # Its clients

    def command(
        self, *arguments: str, uid: int = 0, gid: int | None = None, groups: tuple[int, ...] = ()
    ) -> list[str]:
        """Return the command that runs `kmodd` with these arguments."""
        if uid == 0:
            return [sys.executable, "-m", "kmodd", *arguments]
        who = [str(uid), str(uid if gid is None else gid), ",".join(map(str, groups))]
        return [sys.executable, "-c", _AS_SOMEBODY, *who, *arguments]

    def kmodd(self, *arguments: str, **who: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end. A traceback is always a mistake."""
        done = subprocess.run(
            self.command(*arguments, **who),
            env=environment(KMODD_SOCKET=str(self.api_path)),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def begin(self, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        """Start a command with pipes for its output."""
        return subprocess.Popen(
            self.command(*arguments),
            env=environment(KMODD_SOCKET=str(self.api_path)),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )

    def api(self) -> Api:
        """Connect to the API."""
        return Api(self.api_path)

    def helper(self, name: bytes | None = None) -> Helper:
        """Connect to the helper socket, and send a name where one is given."""
        return Helper(self.helper_path, name)

    def follow(self, **filters: Any) -> Api:
        """Return a connection on which events come, the present ones first."""
        api = self.api()
        api.send("Log", more=True, follow=True, **filters)
        return api

    def events(self, **wanted: object) -> list[dict[str, Any]]:
        """Return the events that have these fields."""
        with self.api() as api:
            api.send("Log", more=True)
            found = list(itertools.takewhile(bool, (api.receive()["event"] for _ in itertools.repeat(0))))
        return [event for event in found if all(event.get(key) == value for key, value in wanted.items())]

    def status(self) -> dict[str, Any]:
        with self.api() as api:
            found: dict[str, Any] = api.call("GetStatus")["status"]
        return found

    def tune(self, key: str, value: object) -> None:
        with self.api() as api:
            api.call("SetSetting", key=key, value=value)

    def settings(self) -> dict[str, Any]:
        with self.api() as api:
            return {item["key"]: item["value"] for item in api.call("GetSettings")["settings"]}

    def live(self) -> list[str]:
        with self.api() as api:
            return [module["name"] for module in api.call("ListModules")["modules"]]

    # What /proc says of it

    def proc(self, key: str) -> str:
        """Return a field of its /proc/PID/status."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == key:
                return value.strip()
        raise KeyError(key)

    def rss(self) -> int:
        """Return its resident memory in bytes."""
        return int(self.proc("VmRSS").split()[0]) * 1024

    def descriptors(self) -> list[str]:
        """Return what its open files are, but for the journal's, which it opens when it has to write."""
        folder = f"/proc/{self.pid}/fd"
        found = []
        for fd in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(f"{folder}/{fd}"))
        return [file for file in found if "/journal.db" not in file]

    def children(self) -> list[int]:
        """Return its child processes."""
        text = "".join(path.read_text() for path in Path(f"/proc/{self.pid}/task").glob("*/children"))
        return [int(pid) for pid in text.split()]

    def switches(self) -> int:
        """Return how often its threads have gone to sleep."""
        total = 0
        for path in Path(f"/proc/{self.pid}/task").glob("*/status"):
            for line in path.read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches:"):
                    total += int(line.split()[1])
        return total


def refused(sock: socket.socket) -> bool:
    """Whether the daemon hangs up on a connection that was just made."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def peer_credentials(sock: socket.socket) -> tuple[int, int, int]:
    """Return pid, uid and gid of the peer."""
    pid, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid
