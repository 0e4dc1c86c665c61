"""What the tests do inside a guest: run by the lab's agent, in a fork of its own for each call."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asker  # beside this file

from kmodd.connection import Connection, Reply
from kmodd.errors import KmoddError
from kmodd.lab import service
from kmodd.lab.demo import stick

SYSCTL = "/proc/sys/kernel/modprobe"
SERVE = [sys.executable, "-m", "kmodd", "serve", "--hook"]


# The daemon


def api(method: str, **parameters: Any) -> dict[str, Any]:
    """Call the daemon; an error reply becomes its name and parameters."""
    try:
        return Connection().call(method, **parameters)
    except Reply as reply:
        return {"error": reply.error.removeprefix("io.kmodd."), **reply.parameters}


def events(since: int = 0, kind: str = "request") -> list[dict[str, Any]]:
    """Return the daemon's events of one kind that began after event number `since`, once no load runs."""
    until(lambda: _true(loads_running() == 0))
    found = [reply["event"] for reply in Connection().stream("Log")]
    wanted = [event for event in found if event["id"] > since and event["event"] == kind]
    return sorted(wanted, key=lambda event: event["id"])


def fallbacks(since: int) -> list[str]:
    """Return the names for which a helper fell back as the daemon was late: it is allowed to, by a second."""
    found = events(since, "daemon")
    return [event["name"] for event in found if event["action"] == "fallback"]


def last_event() -> int:
    """Return the newest event's number."""
    return max((reply["event"]["id"] for reply in Connection().stream("Log")), default=0)


def loader() -> str:
    """The modprobe_path that this guest is tested with."""
    with open("/etc/kmodd/kmodd.toml", "rb") as file:
        return str(tomllib.load(file)["modprobe_path"])


def tune(**settings: Any) -> None:
    """Change settings."""
    for key, value in settings.items():
        answer = api("SetSetting", key=key, value=value)
        assert "error" not in answer, answer


def daemon_pid() -> int:
    """Return the daemon's pid."""
    return int(api("GetStatus")["status"]["pid"])


def stop_daemon(number: int = signal.SIGTERM, pid: int | None = None) -> None:
    """Send the daemon a signal that ends it, and wait until it has gone."""
    target = pid or daemon_pid()
    fd = os.pidfd_open(target)
    os.kill(target, number)
    if not select.select([fd], [], [], 60)[0]:
        raise AssertionError(f"the daemon (pid {target}) goes on after signal {number}")
    os.close(fd)


def start_daemon(limit: float = 120) -> int:
    """Start the daemon and wait until it is ready; return its pid."""
    answer = service.start(SERVE, {**os.environ}, limit)
    assert answer["error"] is None, answer["error"]
    # READY may be what the killed one left: the hook is still on and its socket file still there.
    return until(daemon_pid, OSError, limit)


def until(look: Callable[[], Any], error: type[BaseException] = AssertionError, limit: float = 60) -> Any:
    """Return what `look` returns once it does not raise: the guest's world has no event for it."""
    deadline = time.monotonic() + limit
    while True:
        try:
            return look()
        except (error, KmoddError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


# The kernel


def live() -> list[str]:
    """Return the live modules."""
    return [line.split()[0] for line in Path("/proc/modules").read_text().splitlines() if " Live " in line]


def parameter(module: str, name: str = "result") -> int:
    """Return a number that a module shows."""
    return int(Path(f"/sys/module/{module}/parameters/{name}").read_text())


def ask(name: str, nowait: bool = False) -> int:
    """request_module() from this task: what the kernel's caller gets. The name's bytes as latin-1."""
    fd = os.open("/proc/kmodd_ask_nowait" if nowait else "/proc/kmodd_ask", os.O_RDWR)
    try:
        os.write(fd, name.encode("latin-1"))
        return int(os.read(fd, 64))
    finally:
        os.close(fd)


def at_once(work: list[Callable[[], int]]) -> list[int]:
    """Run each in a process of its own, all let go at the same moment; return what each returned."""
    gate_r, gate_w = os.pipe()
    out_r, out_w = os.pipe()
    pids = []
    for index, one in enumerate(work):
        pid = os.fork()
        if not pid:
            try:
                os.close(gate_w)
                os.read(gate_r, 1)
                value = one()
            except BaseException:  # noqa: BLE001 - it must not go on as the parent
                value = -999999
            os.write(out_w, b"%d %d\n" % (index, value))
            os._exit(0)
        pids.append(pid)
    os.close(gate_r)
    os.close(gate_w)
    os.close(out_w)
    with os.fdopen(out_r) as out:
        answers = dict(map(int, line.split()) for line in out)
    for pid in pids:
        os.waitpid(pid, 0)
    return [answers[index] for index in range(len(work))]


def ask_at_once(names: list[str]) -> list[int]:
    """request_module() for each name, each from a process of its own, all at the same moment."""
    return at_once([lambda name=name: ask(name) for name in names])  # type: ignore[misc]


def open_socket(family: int, kind: int = socket.SOCK_RAW, protocol: int = 0) -> int:
    """Open and close a socket; 0, or the errno."""
    try:
        socket.socket(family, kind, protocol).close()
    except OSError as err:
        return err.errno or -1
    return 0


def mount(kind: str) -> int:
    """Try to mount a filesystem of a type; the errno (ENODEV: no such type)."""
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.mount(b"none", b"/mnt", kind.encode("latin-1"), 0, None)
    if result == 0:
        libc.umount(b"/mnt")
        return 0
    return ctypes.get_errno()


def handed_over(work: Callable[[], Any]) -> dict[str, Any]:
    """Call `work`; return what it returned and, as the kernel traced them, the calls that hand over modules.

    Each is its name and its flags, where it has any. Not the task's name: the kernel sometimes has none to show.
    """
    calls = "/sys/kernel/tracing/events/syscalls/sys_enter_"
    trace = Path("/sys/kernel/tracing/trace")
    for name in ("finit_module", "init_module"):
        Path(f"{calls}{name}/enable").write_text("1")
    trace.write_text("")
    returned = work()
    found = re.findall(r": sys_(f?init_module)\(.*?(?:flags: (\w+))?\)$", trace.read_text(), re.MULTILINE)
    return {
        "returned": returned,
        "calls": [[name, int(flags, 16) if flags else None] for name, flags in found],
    }


def unload(names: list[str]) -> list[str]:
    """Unload what is live of these; return what stays."""
    for name in names:
        if Path(f"/sys/module/{name}").exists():
            subprocess.run(["rmmod", name], check=False, capture_output=True)
    return [name for name in names if name in live()]


def kmodd(*arguments: str) -> tuple[int, str]:
    """Run a command of kmodd; its exit status, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "kmodd", *arguments],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def stick_in_use(point: str) -> dict[str, list[tuple[int, str]]]:
    """Unload the modules of a FAT image on a loop device while it is mounted, and once it is not."""
    device = stick.plug_in(b"hello\n")
    os.makedirs(point)
    stick.mount(device, point, "vfat")
    used = [kmodd("remove", name) for name in ("vfat", "fat", "loop")]
    subprocess.run(["umount", point], check=True)
    idle = [kmodd("remove", name) for name in ("vfat", "loop")]
    with open(device, "rb") as file:
        fcntl.ioctl(file, 0x4C01)  # LOOP_CLR_FD
    return {"used": used, "idle": idle, "free": [kmodd("remove", "loop")]}


def removed_with(directive: str, mode: int = 0o644) -> tuple[int, str]:
    """Load minix and unload it, with a line in modprobe.d."""
    assert api("RequestModule", name="minix").get("result"), "it cannot be loaded"
    path = Path("/etc/modprobe.d/unload.conf")
    path.write_text(directive)
    path.chmod(mode)
    try:
        return kmodd("remove", "minix")
    finally:
        path.unlink()


def zombies() -> list[str]:
    """Return the children of the daemon that have ended and not been waited for."""
    parent = daemon_pid()
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] == "Z" and int(fields[1]) == parent:
            found.append(str(stat))
    return found


def with_helper(path: str, work: Callable[[], Any]) -> Any:
    """Run `work` with another kernel.modprobe."""
    before = Path(SYSCTL).read_text()
    Path(SYSCTL).write_text(path + "\n")
    try:
        return work()
    finally:
        Path(SYSCTL).write_text(before)


def script(path: str, text: str) -> str:
    """Write an executable shell script."""
    Path(path).write_text("#!/bin/sh\n" + text)
    Path(path).chmod(0o755)
    return path


# Longer stories


def storm_with_stock_and_kmodd(names: list[str]) -> dict[str, list[int]]:
    """The same requests at once with the stock modprobe, then with kmodd, each from the same start."""
    modules = sorted(set(names))
    assert unload(modules) == []
    stock = with_helper("/sbin/modprobe", lambda: ask_at_once(names))
    assert unload(modules) == []
    ours = ask_at_once(names)
    return {"stock": stock, "kmodd": ours}


def kills(rounds: list[list[str]], seed: int) -> dict[str, Any]:
    """Ask for each round's names at once and kill the daemon at a random moment of it, each time anew."""
    chance = random.Random(seed)
    answers, loaded = [], []
    for names in rounds:
        assert unload(sorted(set(names))) == []
        pid = daemon_pid()
        timer = threading.Timer(chance.uniform(0.0, 1.5), os.kill, (pid, signal.SIGKILL))
        timer.start()
        answers.append(ask_at_once(names))
        timer.join()
        start_daemon()
        loaded.append([name in live() for name in names])
    return {"answers": answers, "live": loaded}


def serial_helper_hangs(name: str, limit: float) -> dict[str, Any]:
    """Ask with a helper that serves one request after the other, as the kmod of 2.1.96 did."""
    helper = script("/run/serial-helper", 'exec flock /run/serial.lock /sbin/modprobe -q -- "$3"\n')

    def work() -> dict[str, Any]:
        pid = os.fork()
        if not pid:
            os._exit(0 if ask(name) == 0 else 1)
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return {"hung": False}
            time.sleep(0.1)
        # It waits for itself. Whoever waits can be killed; then everything fails and ends.
        while not os.waitpid(pid, os.WNOHANG)[0]:
            subprocess.run(["pkill", "-KILL", "flock"], check=False)
            subprocess.run(["pkill", "-KILL", "modprobe"], check=False)
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        return {"hung": True}

    found: dict[str, Any] = with_helper(helper, work)
    subprocess.run(["pkill", "-KILL", "flock"], check=False)
    subprocess.run(["pkill", "-KILL", "modprobe"], check=False)
    until(lambda: _no_process("modprobe"))
    return found


def events_are(count: int, since: int) -> list[dict[str, Any]]:
    """Return the requests after event number `since` once there are `count` of them."""

    def look() -> list[dict[str, Any]]:
        found = events(since)
        assert len(found) == count, found
        return found

    found: list[dict[str, Any]] = until(look)
    return found


def events_of(pid: int, count: int, since: int) -> list[dict[str, Any]]:
    """Return the requests of a process after event number `since` once there are `count` of them.

    What the modules ask for that it gets is not among them.
    """

    def look() -> list[dict[str, Any]]:
        found = [event for event in events(since) if event["requester"]["pid"] in {pid, None}]
        assert len(found) >= count, found
        return found

    found: list[dict[str, Any]] = until(look)
    return found


def becomes_live(name: str) -> None:
    """Return once a module is live."""
    until(lambda: _true(name in live()))


def let_go(name: str) -> None:
    """Let a kmodd_block module's init return."""
    Path(f"/sys/module/{name}/parameters/open").write_text("1")


def share_then_let_go(name: str, waiting: int) -> int:
    """Ask for a module whose load is going on; let it go once so many requests wait; what was returned."""
    got: list[int] = []
    asker = threading.Thread(target=lambda: got.append(ask(name)))
    asker.start()
    until(lambda: _true(api("GetStatus")["status"]["requests"]["waiting"] == waiting))
    let_go(name)
    asker.join()
    return got[0]


def _no_process(name: str) -> None:
    assert subprocess.run(["pgrep", "-x", name], check=False, capture_output=True).returncode == 1


def answer_while_others_load(name: str, blocked: list[str]) -> int:
    """Ask for a module while the loads of others do not end; let them go after the answer."""
    askers = [forked(lambda module=module: int(ask(module) != 0)) for module in blocked]  # type: ignore[misc]
    waiting_is(len(blocked))
    answer = ask(name)
    assert loads_running() == len(blocked)
    for module in blocked:
        let_go(module)
    assert [asker() for asker in askers] == [0] * len(blocked)
    return answer


def asker_killed(name: str, started: Callable[[], bool]) -> None:
    """Ask from a process that is killed while it waits."""
    pid = os.fork()
    if not pid:
        os._exit(ask(name) & 1)
    until(lambda: _true(started()))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _true(value: object) -> None:
    assert value


def loads_running() -> int:
    """Return how many loads the daemon has in progress."""
    return int(api("GetStatus")["status"]["loads"]["running"])


def errno_name(number: int) -> str:
    """Return the symbol of an errno."""
    return errno.errorcode.get(number, str(number))


# One processor: what happens around a load


def forked(work: Callable[[], int]) -> Callable[[], int]:
    """Run `work` in a process of its own; return how to wait for what it returned (0 to 255)."""
    pid = os.fork()
    if not pid:
        try:
            value = work()
        except BaseException:  # noqa: BLE001 - it must not go on as the parent
            value = 255
        os._exit(value)
    return lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def waiting_is(count: int) -> None:
    """Return once so many requests wait."""
    until(lambda: _true(api("GetStatus")["status"]["requests"]["waiting"] == count))


RECORDER = """\
{ tr '\\0' '\\n' </proc/$$/environ | sed 's/^/env:/'
  echo "stat:$(cat /proc/$$/stat)"
  sed -n 's/^Sig\\(Blk\\|Ign\\):\\t/sig\\1:/p' /proc/$$/status
  for fd in /proc/$$/fd/*; do echo "fd:${fd##*/}=$(readlink $fd)"; done
  echo "cwd:$(readlink /proc/$$/cwd)" "root:$(readlink /proc/$$/root)"
  for a; do echo "arg:$a"; done; } >/run/recorded
echo "first line" >&2; printf 'second\\033[31m line\\n' >&2
exit 3
"""


def recorded(name: str, kind: str = "mount") -> dict[str, Any]:
    """Let a program that records what it finds be modprobe for one request of the kernel."""
    before = last_event()
    tune(modprobe_path=script("/run/recorder", RECORDER))
    try:
        result = mount(name)
    finally:
        tune(modprobe_path=loader())
    lines = Path("/run/recorded").read_text().splitlines()
    [event] = events_are(1, before)
    return {"result": result, "lines": lines, "event": event, "daemon": daemon_pid()}


def with_modprobe(path: str, name: str) -> dict[str, Any]:
    """Ask, by the kernel and by the API, with another modprobe_path."""
    before = last_event()
    tune(modprobe_path=path)
    try:
        result = mount(name)
        answer = api("RequestModule", name=name)
    finally:
        tune(modprobe_path=loader())
    return {"result": result, "api": answer, "events": events_are(2, before)}


def slow_modprobe_d(module: str, seconds: float) -> None:
    """Make the load of a module take a while, as a slow device does."""
    Path("/etc/modprobe.d/slow.conf").write_text(
        f"install {module} sleep {seconds}; /sbin/modprobe --ignore-install {module}\n"
    )


def mount_while(module: str, meanwhile: Callable[[], Any]) -> dict[str, Any]:
    """Mount a filesystem whose module loads slowly; do something while the request waits."""
    assert unload([module]) == []
    slow_modprobe_d(module, 1.5)
    try:
        result = forked(lambda: mount(module))
        waiting_is(1)
        seen = meanwhile()
        return {"errno": result(), "seen": seen, "live": module in live()}
    finally:
        os.unlink("/etc/modprobe.d/slow.conf")


def killed_while_loading(module: str) -> dict[str, Any]:
    """Kill the daemon while the kernel waits for it."""
    found = mount_while(module, lambda: stop_daemon(signal.SIGKILL))
    start_daemon()
    return found


def stopped_while_loading(module: str) -> dict[str, Any]:
    """End the daemon by SIGTERM while the kernel waits for it."""

    def meanwhile() -> dict[str, Any]:
        pid = daemon_pid()
        fd = os.pidfd_open(pid)
        os.kill(pid, signal.SIGTERM)
        until(lambda: _true(Path(SYSCTL).read_text() == "/sbin/modprobe\n"))
        alive = not select.select([fd], [], [], 0)[0]
        new = mount("nosuchfs")
        return {"alive_when_unhooked": alive, "new_request": new}

    found = mount_while(module, meanwhile)
    until(lambda: _true(not Path("/run/kmodd/io.kmodd").exists()))
    found["hook"] = Path(SYSCTL).read_text()
    start_daemon()
    return found


def hung(module: str) -> dict[str, Any]:
    """Ask a daemon that does not run (SIGSTOP); let it go on after the answer."""
    assert unload([module]) == []
    before, pid = last_event(), daemon_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        result = mount(module)
    finally:
        os.kill(pid, signal.SIGCONT)
    # A request that is answered now has come behind the one that had been given up.
    mount("nosuchfs")
    return {"errno": result, "live": module in live(), "names": [e["name"] for e in events_are(1, before)]}


def denied_without_daemon(module: str) -> dict[str, Any]:
    """Fail closed: no daemon, and fallback = deny."""
    assert unload([module]) == []
    tune(fallback="deny")
    stop_daemon(signal.SIGKILL)
    result = mount(module)
    start_daemon()
    with_daemon = mount(module)
    return {"errno": result, "with_daemon": with_daemon, "link": os.readlink("/run/kmodd/fallback")}


def in_another_mount_namespace(module: str) -> dict[str, Any]:
    """Run the daemon where no module and no modprobe can be seen, as in a container; then load."""
    assert unload([module]) == []
    stop_daemon()
    tree = f"/usr/lib/modules/{os.uname().release}"
    command = (
        f"mount -t tmpfs none {tree} && mount --bind /bin/false /usr/bin/kmod && mkdir -p /run/elsewhere && "
        f"cd /run/elsewhere && exec {' '.join(SERVE)}"
    )
    answer = service.start(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", command], {**os.environ}, 60
    )
    assert answer["error"] is None, answer
    pid = until(daemon_pid, OSError)
    inside = ["nsenter", "-t", str(pid), "-m", "/sbin/modprobe", module]
    blind = subprocess.run(inside, check=False, capture_output=True).returncode
    result = api("RequestModule", name=module)
    story = recorded("elsewherefs")
    stop_daemon()
    start_daemon()
    return {"blind": blind, "result": result, "lines": story["lines"]}


def root_that_moves() -> list[list[str]]:
    """Enter a process's root and cwd before and after it has moved, as init does in switch_root."""
    from kmodd.kernel import init  # noqa: PLC0415

    os.makedirs("/run/newroot/work", exist_ok=True)
    go_r, go_w = os.pipe()
    done_r, done_w = os.pipe()
    pid = os.fork()
    if not pid:
        os.read(go_r, 1)
        os.chroot("/run/newroot")
        os.chdir("/work")
        os.write(done_w, b"x")
        os.read(go_r, 1)
        os._exit(0)
    found: list[list[str]] = []

    def look() -> None:
        entered, seen = threading.Event(), threading.Event()

        def enter() -> None:
            init.enter(pid)
            entered.set()
            seen.wait()

        thread = threading.Thread(target=enter)
        thread.start()
        entered.wait()
        # A link is shown as the reader's own root sees it, so this thread, which has not moved, reads it.
        task = f"/proc/self/task/{thread.native_id}"
        found.append([os.readlink(f"{task}/{what}") for what in ("root", "cwd")])
        seen.set()
        thread.join()

    look()
    os.write(go_w, b"x")
    os.read(done_r, 1)
    look()
    os.write(go_w, b"x")
    os.waitpid(pid, 0)
    return found


def logged() -> list[str]:
    """Be syslog while a daemon starts, a request fails and the daemon stops."""
    stop_daemon()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind("/dev/log")
        try:
            start_daemon()
            before = last_event()
            mount("no\nsuchfs")
            mount("nosuchfs")
            until(lambda: _true(api("GetStatus")["status"]["requests"]["waiting"] == 0))
            events_are(2, before)
            stop_daemon()
        finally:
            os.unlink("/dev/log")
        syslog.setblocking(False)
        lines = []
        try:
            while True:
                lines.append(syslog.recv(65536).decode())
        except BlockingIOError:
            pass
    start_daemon()
    return lines


def ask_nothing_often(count: int) -> None:
    """Ask for what is not there, again and again: children come and go."""
    for n in range(count):
        mount(f"nosuchfs{n}")
    until(lambda: _true(api("GetStatus")["status"]["requests"]["waiting"] == 0))


# Every module of a tree


def every_module() -> list[str]:
    """The names of all modules that are installed for this kernel."""
    lines = Path(f"/lib/modules/{os.uname().release}/modules.dep").read_text().splitlines()
    return sorted(
        os.path.basename(line.partition(":")[0]).partition(".")[0].replace("-", "_") for line in lines
    )


def parameters() -> dict[str, str]:
    """The parameters of the live modules, as far as the kernel shows them, and not from the memory it has."""
    of_memory = {"fuse.max_user_bgreq", "fuse.max_user_congthresh", "dm_bufio.max_cache_size_bytes"}
    found = {}
    for module in live():
        for path in Path(f"/sys/module/{module}/parameters").glob("*"):
            with contextlib.suppress(OSError):
                found[f"{module}.{path.name}"] = path.read_text()
    return {key: value for key, value in found.items() if key not in of_memory}


def unload_all() -> list[str]:
    """Unload whatever can be unloaded, through the API; return what is left."""
    while True:
        before = live()
        for name in before:
            api("RemoveModule", name=name)
        if len(live()) == len(before):
            return sorted(before)


def api_at_once(names: list[str]) -> dict[str, dict[str, Any]]:
    """Ask for all of these in the same moment, each on a connection of its own."""
    connections = {name: Connection() for name in names}
    for name, connection in connections.items():
        connection._send({"method": "io.kmodd.RequestModule", "parameters": {"name": name}})
    answers: dict[str, dict[str, Any]] = {}
    for name, connection in connections.items():
        try:
            answers[name] = connection._receive()[0]
        except Reply as reply:
            answers[name] = {"error": reply.error}
    return answers


# Who asks


def _asker(**order: Any) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """Start asker.py; it has said who it is, and asks once it is told to."""
    order["exe"] = os.path.realpath(sys.executable)
    program = str(Path(__file__).with_name("asker.py"))
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", program, json.dumps(order)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def _let_ask(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def asker_as(**order: Any) -> dict[str, Any]:
    """Let somebody ask; return who that is once all has been answered."""
    before = last_event()
    process, told = _asker(**order)
    _let_ask(process)
    if order["kind"].endswith("nowait"):
        events_are(1, before)
        _let_ask(process)
    assert process.wait(60) == 0
    if order["kind"].startswith(("worker", "nowait")):
        events_are(order["count"], before)  # it is somebody else who asks, or nobody knows who
    else:
        events_of(told["pid"], order["count"], before)
    return told


def askers_at_once(tasks: int, each: int, kind: str = "kernel") -> list[dict[str, Any]]:
    """Let so many tasks ask at once and again; return who they are. Every other is a user's, if those may."""
    started = [
        _asker(kind="mixed", what=kind, count=each, uid=1000 + n if n % 2 and kind != "mount" else 0)
        for n in range(tasks)
    ]
    for process, _told in started:
        _let_ask(process)
    for process, _told in started:
        assert process.wait(200) == 0
    return [told for _process, told in started]


_FAMILIES = [12, 13, 14, 18, 19, 22, 23, 25, 27, 36]
_DISCIPLINES = [4, 6, 8, 9, 10, 11, 12, 16, 19, 22]
"""Protocol families and line disciplines that the tested kernels have no module for, one for each asker."""


def thousand() -> dict[str, Any]:
    """Ten tasks of all sorts ask at once, in every way there is; return who they are and what is told of them."""
    container = "system.slice/docker-" + "0123456789abcdef" * 4 + ".scope"
    sorts: list[dict[str, Any]] = [
        {"uid": 1000},
        {},
        {"uid": 1001, "unshare": True},
        {"uid": 1002, "cgroup": container},
        {"cgroup": container},
    ]
    before = last_event()
    own = zip(sorts * 2, _FAMILIES, _DISCIPLINES, strict=True)
    started = [
        (sort, numbers, *_asker(kind="every way", what=numbers, count=26, **sort)) for sort, *numbers in own
    ]
    for _sort, _numbers, process, _told in started:
        _let_ask(process)
    for _sort, _numbers, process, _told in started:
        assert process.wait(400) == 0
    return {
        "askers": [{**told, **sort, "numbers": numbers} for sort, numbers, _process, told in started],
        "events": events(before),
        "fallbacks": fallbacks(before),
    }


def more_than_the_buffer_takes(count: int) -> dict[str, Any]:
    """While the daemon is stopped have one processor record so many requests, of the longest names there are.

    Return how many the kernel says that it has overwritten since, and what `kmodd status` says of it.
    """
    pid = daemon_pid()
    tune(fallback="deny")
    os.sched_setaffinity(0, {0})
    before = _overrun()
    os.kill(pid, signal.SIGSTOP)
    try:
        for n in range(count):
            ask(f"{n:055}", nowait=True)
        overrun = _overrun() - before
    finally:
        os.kill(pid, signal.SIGCONT)
    # The helpers that nobody has answered have ended: nothing is recorded any more.
    until(lambda: _no_process("kmodd-helper"))
    until(lambda: _true(api("GetStatus")["status"]["requests"]["waiting"] == 0))
    tune(fallback="modprobe")
    tracing = api("GetStatus")["status"]["tracing"]
    return {"overrun": overrun, "tracing": tracing, "text": kmodd("status")[1]}


def _overrun() -> int:
    """Return how many events of our instance the kernel has overwritten."""
    stats = Path("/sys/kernel/tracing/instances/kmodd/per_cpu").glob("cpu*/stats")
    return sum(int(re.findall(r"^overrun: (\d+)$", each.read_text(), re.MULTILINE)[0]) for each in stats)


def tracing_instance() -> bool:
    """Whether kmodd's tracing instance is there."""
    return Path("/sys/kernel/tracing/instances/kmodd").is_dir()


# Who can make the kernel ask for what

_PREPARED = [
    "phonet",
    "inet_diag",
    "bluetooth",
    "can",
    "pppox",
    "af_alg",
    "algif_hash",
    "ib_core",
    "rds",
    "atm",
    "nfnetlink",
    "nf_tables",
    "ip_set",
    "ip_tables",
    "ip6_tables",
    "arp_tables",
    "ebtables",
    "ip_vs",
    "sch_ingress",
    "cls_matchall",
    "cls_basic",
    "xfrm_user",
    "l2tp_netlink",
]
"""What is live before anybody asks: the modules that ask for those of the test."""
_HELD_ALIASES = [
    "tun",
    "fuse",
    "cuse",
    "snd",
    "snd_seq",
    "loop",
    "l2tp_ppp",
    "mpls_iptunnel",
    "nfnetlink_osf",
    "iw_cm",
    "esp4",
    "l2tp_eth",
]
_HELD_NAMES = ["rds_tcp", "mpoa", "lec", "clip", "br2684", "pppoatm", "bridge", "8021q", "crypto_user"]
_NODES = {
    # Mode as systemd's rules have it, S_IFCHR or S_IFBLK, major, minor.
    "tun": (0o666, 0o020000, 10, 200),
    "seq": (0o666, 0o020000, 116, 1),
    "cuse": (0o600, 0o020000, 10, 203),
    "loop-control": (0o660, 0o020000, 10, 237),
    "loop99": (0o660, 0o060000, 7, 99),
}


def prepare_reach() -> None:
    """Have everything loaded that asks, and keep everything out that is asked for, so that it is each time."""
    lines = [f"blacklist {name}" for name in _HELD_ALIASES] + [
        f"install {name} /bin/false" for name in _HELD_NAMES
    ]
    Path("/etc/modprobe.d/reach.conf").write_text("\n".join(lines) + "\n")
    for name in _PREPARED:
        assert api("RequestModule", name=name)["result"]["outcome"] in {"loaded", "already-live"}, name
    os.makedirs("/dev/reach", exist_ok=True)
    for name, (mode, kind, major, minor) in _NODES.items():
        os.mknod(f"/dev/reach/{name}", kind, os.makedev(major, minor))
        os.chmod(f"/dev/reach/{name}", mode)
    program = Path("/dev/reach/program")
    program.write_bytes(b"\x01\x02\x03\x04" * 8)
    program.chmod(0o755)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def reached(uid: int, unshare: bool) -> dict[str, Any]:
    """Let somebody try everything; return the names that the kernel asked for then, and whose they were."""
    before = last_event()
    program = str(Path(__file__).with_name("reacher.py"))
    order = json.dumps({"uid": uid, "unshare": unshare})
    done = subprocess.run(
        [sys.executable, "-S", "-E", program, order], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    asked = [event for event in events(before) if event["source"] == "kernel"]
    return {event["name"]: event["requester"] for event in asked}


# May they


def policy(text: str) -> None:
    """Put these rules in force, and no others."""
    folder = Path("/etc/kmodd/policy.d")
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    (folder / "50-test.toml").write_text(text)
    assert "error" not in api("ReloadPolicy"), api("ReloadPolicy")


def ask_as(**order: Any) -> int:
    """Let somebody ask once, from a fork of this process; return the pid. Much faster than `asker_as`."""
    pid = os.fork()
    if pid == 0:
        try:
            asker.become(order)
            asker.ask(order["kind"], order["what"])
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return pid


def judged(rule: str, **order: Any) -> dict[str, Any]:
    """Let somebody ask under this one deny rule; return the request's event."""
    policy(f'[[rule]]\naction = "deny"\nreason = "judged"\n{rule}\n')
    before = last_event()
    if order["kind"] == "nowait":
        asker_as(count=1, **order)
        return events_are(1, before)[0]
    return events_of(ask_as(**order), 1, before)[0]


def judged_each(cases: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Do that for each rule and requester."""
    return [judged(rule, **order) for rule, order in cases]


def without_daemon(how: str) -> dict[str, Any]:
    """Fail closed: what a socket of family 33 comes to while the daemon is killed, hung, or upgraded."""
    tune(fallback="deny")
    assert unload(["rxrpc"]) == []
    pid = daemon_pid()
    if how == "hung":
        os.kill(pid, signal.SIGSTOP)
    else:
        stop_daemon(signal.SIGKILL if how == "killed" else signal.SIGTERM)
    try:
        result = open_socket(33)
        came_in = "rxrpc" in live()
    finally:
        if how == "hung":
            os.kill(pid, signal.SIGCONT)
        else:
            start_daemon()
    again = open_socket(33)
    found = {"errno": result, "came_in": came_in, "with_daemon": again, "live": "rxrpc" in live()}
    tune(fallback="modprobe")
    return found


def sealed_without_daemon() -> dict[str, Any]:
    """A killed daemon opens no seal, and the next one knows of it."""
    policy("")
    assert unload(["rxrpc"]) == []
    assert kmodd("seal")[0] == 0
    link = os.readlink("/run/kmodd/fallback")
    stop_daemon(signal.SIGKILL)
    killed = open_socket(33)
    start_daemon()
    sealed = open_socket(33)
    before = live()
    assert kmodd("unseal")[0] == 0
    open_socket(33)
    return {
        "link": link,
        "killed": killed,
        "sealed": sealed,
        "came_in": "rxrpc" in before,
        "unsealed": "rxrpc" in live(),
        "link_after": os.readlink("/run/kmodd/fallback"),
    }


def denied_in_flight() -> dict[str, Any]:
    """Deny a module by command while what comes before it is being loaded."""
    policy("")
    assert unload(["kmodd_dep_a", "kmodd_block"]) == []
    conf = Path("/etc/modprobe.d/flight.conf")
    conf.write_text("softdep kmodd_dep_a pre: kmodd_block\n")
    told: list[int] = []
    asking = threading.Thread(target=lambda: told.append(ask("kmodd_dep_a")))
    asking.start()
    until(lambda: _true("kmodd_block " in Path("/proc/modules").read_text()))
    status, _output = kmodd("policy", "deny", "kmodd_dep_a", "--reason", "now")
    asking.join(60)
    still_loading = loads_running() == 1 and "kmodd_block" not in live()
    let_go("kmodd_block")
    until(lambda: _true(loads_running() == 0))
    [event] = [event for event in events() if event["name"] == "kmodd_dep_a"][-1:]
    conf.unlink()
    return {
        "deny": status,
        "told": told,
        "told_before_the_load_ended": still_loading,
        "live": "kmodd_dep_a" in live(),
        "before_it": "kmodd_block" in live(),
        "event": event,
    }


def killed_askers(rounds: int) -> dict[str, Any]:
    """A user's tasks ask for a module that he is denied, and are killed at once, sooner or later."""
    policy('[[rule]]\nprivileged = false\nmodule = "rxrpc"\naction = "deny"\nreason = "judged"\n')
    assert unload(["rxrpc"]) == []
    before = last_event()
    for turn in range(rounds):
        pid = os.fork()
        if pid == 0:
            os.setgroups([])
            os.setresgid(1000, 1000, 1000)
            os.setresuid(1000, 1000, 1000)
            open_socket(33)
            os._exit(0)
        # From before it asks to after it has been answered: every place in between is hit by some.
        time.sleep(0.0007 * (turn % 40))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert "rxrpc" not in live(), turn
    until(lambda: _true(loads_running() == 0))
    told = [event for event in events(before) if event["name"] == "net-pf-33"]
    return {
        "live": "rxrpc" in live(),
        "outcomes": sorted({event["outcome"] for event in told}),
        "gone": sum(event["decision"]["rule"] == "gone" for event in told),
        "told": len(told),
    }


def asker_changes(how: str, rules: str) -> dict[str, Any]:
    """A user's first thread asks for what he is denied; before we can look, a second one changes what it is.

    `how`: "renames" it; "execs" root's set-uid program, which ends the first thread and takes its number;
    "execs and asks" has that program ask for something else, in vain, and wait.
    """
    policy(rules)
    assert unload(["rxrpc"]) == []
    program = "/opt/another"
    Path(program).unlink(missing_ok=True)
    shutil.copyfile("/bin/dash", program)
    os.chmod(program, 0o4755)
    commands = (
        "printf %s kmodd_block_5 >/proc/kmodd_ask; read line <&9"
        if how == "execs and asks"
        else "read line <&9"
    )
    go_r, go_w = os.pipe()
    before, daemon = last_event(), daemon_pid()
    os.kill(daemon, signal.SIGSTOP)
    try:
        pid = os.fork()
        if not pid:
            try:
                _ask_and_change(how, [program, "-p", "-c", commands], go_r)
            finally:
                os._exit(0)
        until(lambda: _true(_waits_for_a_module(pid)))
        os.write(go_w, b"x")
        if how == "renames":
            until(lambda: _true(Path(f"/proc/{pid}/comm").read_text() == "root) R 1 1\n"))
        else:
            until(lambda: _true(_runs(pid, program)))
            until(lambda: _true(_waits_for_a_module(pid) is (how == "execs and asks")))
    finally:
        os.kill(daemon, signal.SIGCONT)
    event = until(lambda: _only([one for one in events_now(before) if one["name"] == "net-pf-33"]))
    came_in = "rxrpc" in live()
    if how == "execs and asks":
        until(lambda: _true(Path("/sys/module/kmodd_block_5").exists()))
        let_go("kmodd_block_5")
    uid = None
    if how != "renames":
        assert os.readlink(f"/proc/{pid}/exe") == program
        uid = os.stat(f"/proc/{pid}").st_uid
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    others = {one["name"]: one for one in events(before) if one["name"] != "net-pf-33"}
    return {
        "pid": pid,
        "event": event,
        "came_in": came_in,
        "uid_now": uid,
        "others": others,
        "fallbacks": fallbacks(before),
    }


def _ask_and_change(how: str, argv: list[str], go: int) -> None:
    asker.become({"uid": 1000})

    def change() -> None:
        os.read(go, 1)
        if how == "renames":
            Path(f"/proc/self/task/{os.getpid()}/comm").write_text("root) R 1 1")
        else:
            os.dup2(go, 9)  # which says nothing more, and does not end
            os.execv(argv[0], argv)

    threading.Thread(target=change).start()
    open_socket(33)


def _runs(pid: int, program: str) -> bool:
    with contextlib.suppress(OSError):  # for a moment its number is that of a thread that has ended
        return os.readlink(f"/proc/{pid}/exe") == program
    return False


def _waits_for_a_module(tid: int) -> bool:
    return "call_usermodehelper_exec" in Path(f"/proc/{tid}/stack").read_text()


def events_now(since: int) -> list[dict[str, Any]]:
    """Return the requests after event number `since` that have been answered by now."""
    found = [reply["event"] for reply in Connection().stream("Log")]
    return [event for event in found if event["id"] > since and event["event"] == "request"]


def _only(found: list[dict[str, Any]]) -> dict[str, Any]:
    assert len(found) == 1, found
    return found[0]


def asker_disguised() -> dict[str, Any]:
    """A user runs a program of his own over the path of another, in a mount namespace of his."""
    policy(
        '[[rule]]\nexe = "/usr/bin/mount"\naction = "allow"\n'
        '[[rule]]\nprivileged = false\nunknown = true\naction = "deny"\nreason = "judged"\n'
    )
    libc = ctypes.CDLL(None, use_errno=True)
    program, own = str(Path(__file__).with_name("asker.py")), "/tmp/own"
    Path(own).write_bytes(Path(os.path.realpath(sys.executable)).read_bytes())
    os.chmod(own, 0o755)
    order = json.dumps({"kind": "socket", "what": 7, "count": 1, "uid": 0, "exe": "/usr/bin/mount"})

    def disguise() -> None:
        os.setgroups([])
        os.setresgid(1000, 1000, 1000)
        os.setresuid(1000, 1000, 1000)
        libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: or its own /proc would be root's
        if libc.unshare(0x10020000):  # CLONE_NEWUSER, CLONE_NEWNS
            raise OSError(ctypes.get_errno(), "unshare")
        Path("/proc/self/uid_map").write_text("0 1000 1")
        if libc.mount(own.encode(), b"/usr/bin/mount", None, 0x1000, None):  # MS_BIND
            raise OSError(ctypes.get_errno(), "mount")

    before = last_event()
    process = subprocess.Popen(
        ["/usr/bin/mount", "-S", "-E", program, order],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=disguise,  # noqa: PLW1509 - there are no threads here
    )
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    _let_ask(process)
    assert process.wait(60) == 0
    return events_of(told["pid"], 1, before)[0]


# What others load


def module_file(name: str) -> str:
    """Return where a module's file is."""
    done = subprocess.run(["modinfo", "-n", name], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def by_hand(*argv: str) -> int:
    """Run a program to its end; return its pid. Whether it succeeds is not looked at."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process.wait()
    return process.pid


def insmod(name: str) -> int:
    """Load a module by insmod; return the pid of that."""
    return by_hand("insmod", module_file(name))


def others(since: int) -> list[dict[str, Any]]:
    """Return the loads and unloads that are told of others, after event number `since`."""
    found = [reply["event"] for reply in Connection().stream("Log")]
    wanted = [
        event
        for event in found
        if event["id"] > since and event["event"] in {"load", "unload"} and event.get("requester")
    ]
    return sorted(wanted, key=lambda event: event["id"])


def others_are(count: int, since: int) -> list[dict[str, Any]]:
    """Return them once there are `count`; one more load by hand shows that no other is on its way."""

    def look(more: int) -> list[dict[str, Any]]:
        found = others(since)
        assert len(found) == count + more, found
        return found

    until(lambda: look(0), limit=20)
    pid = insmod("nls_iso8859_15")
    found: list[dict[str, Any]] = until(lambda: look(1), limit=20)
    by_hand("rmmod", "nls_iso8859_15")
    until(lambda: look(2), limit=20)
    assert found[-1]["requester"]["pid"] == pid, found
    return found[:-1]


def alternating(rounds: int) -> dict[str, Any]:
    """Load and unload in turn: a module by kmodd, another by hand."""
    by_hands = []
    for n in range(rounds):
        assert "error" not in api("RequestModule", name=f"kmodd_many_{n:02}")
        by_hands.append(insmod("minix"))
        assert "error" not in api("RemoveModule", name=f"kmodd_many_{n:02}")
        by_hands.append(by_hand("rmmod", "minix"))
    return {"pids": by_hands}


def insmod_while_kmodd_loads(ours: str, theirs: str) -> dict[str, Any]:
    """Load a module by hand while kmodd's load of another one goes on; then let that end."""
    before = last_event()
    asker = forked(lambda: int(ask(ours) != 0))
    until(lambda: _true(Path(f"/sys/module/{ours}").exists()))
    pid = insmod(theirs)
    meanwhile = until(lambda: others_seen(before, 1), limit=20)
    running = loads_running()
    let_go(ours)
    assert asker() == 0
    return {"pid": pid, "others": meanwhile, "running": running, "loads": events(before, "load")}


def others_seen(since: int, count: int) -> list[dict[str, Any]]:
    """Return what others did, where it is so many things."""
    found = others(since)
    assert len(found) == count, found
    return found


def while_the_daemon_is_dead(work: Callable[[], int]) -> int:
    """Kill the daemon, do something, start the next one."""
    stop_daemon(signal.SIGKILL)
    pid = work()
    start_daemon()
    return pid


def why_says(module: str, words: str) -> str:
    """Return what `kmodd why` says of a module, once these words are in it."""

    def look() -> str:
        said = kmodd("why", module)[1]
        assert words in said, said
        return said

    said: str = until(look, limit=20)
    return said


def instances() -> list[str]:
    """Return the tracing instances that are there."""
    return sorted(os.listdir("/sys/kernel/tracing/instances"))


# What goes again


def gone(names: list[str], limit: float = 60) -> None:
    """Wait until none of these modules is in the kernel."""
    until(lambda: _true(not any(Path(f"/sys/module/{name}").exists() for name in names)), limit=limit)


def unloads(since: int) -> dict[str, str]:
    """Return what has been unloaded after event number `since`, each with the reason."""
    found = [reply["event"] for reply in Connection().stream("Log")]
    return {
        event["module"]: event["reason"]
        for event in found
        if event["id"] > since and event["event"] == "unload"
    }


def verdicts() -> dict[str, dict[str, Any]]:
    """Return what autoclean says of each module."""
    return {each["module"]: each for each in api("Autoclean")["result"]["modules"]}


def passes(count: int) -> None:
    """Wait until autoclean has made so many more passes."""
    before = api("GetStatus")["status"]["autoclean"]["passes"]
    until(lambda: _true(api("GetStatus")["status"]["autoclean"]["passes"] >= before + count))


def written() -> None:
    """Wait until the journal has all events."""
    until(lambda: _true(api("GetStatus")["status"]["journal"]["waiting"] == 0))


def uses_are(how: str) -> None:
    """Wait until uses are `counted`, or `sampled`."""
    until(lambda: _true(api("GetStatus")["status"]["autoclean"]["uses"] == how))


def used_between_passes(name: str, rounds: int) -> dict[str, Any]:
    """Take a filesystem's module and put it again, a moment each, between passes; then leave it alone."""
    assert mount(name) != errno.ENODEV  # the kernel asks for it
    begun = api("GetStatus")["status"]["autoclean"]["passes"]
    kept = []
    for _ in range(rounds):
        passes(1)
        kept.append(Path(f"/sys/module/{name}").exists())
        mount(name)
    made = api("GetStatus")["status"]["autoclean"]["passes"] - begun
    gone([name])
    return {"kept": kept, "passes": made}


def storm_while_unloading(names: list[str], processes: int, each: int) -> dict[str, Any]:
    """Ask for modules from several processes at once while autoclean unloads them.

    Most requests are for a few that change with time, so that others fall idle; some are for any.
    """
    before = last_event()

    def asker(seed: int) -> Callable[[], int]:
        dice = random.Random(seed)

        def one() -> int:
            failed = 0
            for n in range(each):
                near = names[(n // 4 + dice.randrange(6)) % len(names)]
                failed += ask(dice.choice(names) if dice.random() < 0.2 else near) != 0
            return failed

        return one

    failed = at_once([asker(seed) for seed in range(processes)])
    status = api("GetStatus")["status"]
    told = events(before)
    return {
        "failed": failed,
        "outcomes": sorted({event["outcome"] for event in told}),
        "requests": len(told) + len(fallbacks(before)),
        "unloaded": status["autoclean"]["unloaded"],
        "failures": status["autoclean"]["failed"],
        "hanging": status["autoclean"]["hanging"],
        "waited": status["autoclean"]["waited"],
    }


def exit_that_hangs(name: str, others_names: list[str]) -> dict[str, Any]:
    """Have a module's exit take longer than autoclean waits; meanwhile others come and go."""
    Path(f"/sys/module/{name}/parameters/exit_ms").write_text("14000")
    tune(unload_delay=1)
    told = until(lambda: _hanging(name), limit=60)
    answers = [ask(other) for other in others_names]
    gone(others_names)
    still = Path(f"/sys/module/{name}").exists()
    meanwhile = ask(name)
    until(lambda: _true(not api("GetStatus")["status"]["autoclean"]["hanging"]))
    again = ask(name)
    return {
        "told": told,
        "answers": answers,
        "still": still,
        "meanwhile": meanwhile,
        "again": again,
        "live": name in live(),
    }


def _hanging(name: str) -> list[str]:
    found: list[str] = api("GetStatus")["status"]["autoclean"]["hanging"]
    assert name in found, found
    return found


def marked_by_modprobe(name: str) -> None:
    """`modprobe -k`."""
    assert subprocess.run(["kmodd", "modprobe", "-k", name], check=False).returncode == 0
