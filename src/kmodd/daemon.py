"""The composition root: puts the rooms together, starts them in order, and ends them in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from asyncvarlink import VarlinkInterfaceRegistry
from asyncvarlink.serviceinterface import VarlinkServiceInterface

from kmodd import __version__, servicemanager, settings
from kmodd.broker.autoclean import Autoclean
from kmodd.broker.broker import Broker
from kmodd.broker.enforcement import Enforcement
from kmodd.broker.inprocess import ChosenLoader, InProcessLoader
from kmodd.broker.installed import Installed
from kmodd.broker.loader import Loader
from kmodd.broker.look import Around
from kmodd.broker.modprobe import ModprobeLoader
from kmodd.broker.modules import ModuleLoads
from kmodd.broker.others import Others
from kmodd.broker.own import Own
from kmodd.broker.removal import Remover
from kmodd.broker.simulated import SimulatedLoader
from kmodd.broker.threads import in_own_thread
from kmodd.broker.unloads import Unloads
from kmodd.broker.watch import ASLEEP
from kmodd.errors import KmoddError, SettingsError
from kmodd.kernel import init, refusal
from kmodd.kernel.boot import boot_id
from kmodd.kernel.comings import Comings
from kmodd.kernel.hook import HELPER, Hook
from kmodd.kernel.interface import BlockedTask, Kernel
from kmodd.kernel.linux import LinuxKernel
from kmodd.kernel.simulated import SimulatedKernel, installed_below
from kmodd.kernel.tracing import Tracing, pids_are_the_kernels
from kmodd.kernel.usecounts import UseCounts
from kmodd.model import Source
from kmodd.policy.inforce import PolicyInForce
from kmodd.policy.parse import PolicyError
from kmodd.record.journal import Journal, seconds
from kmodd.record.recorder import Recorder
from kmodd.record.systemlog import EventLog
from kmodd.sources import connections, helper, peer
from kmodd.sources.connections import ApiSource
from kmodd.sources.helper import HelperSource
from kmodd.sources.listen import Listener, bind
from kmodd.sources.policymethods import FindPlan
from kmodd.sources.strangers import take_no_descriptors
from kmodd.sources.tracer import Tracer
from kmodd.sources.varlink import KmoddInterface, Parts
from kmodd.sources.whoasked import WhoAsked
from kmodd.tree import keep

log = logging.getLogger("kmodd")

_STACK = 512 * 1024
_GROUP_PATIENCE = 1.0
"""Seconds that a start waits for a directory service to tell the group; later its answer still counts."""
_PATIENCE = 2.0
"""Seconds that a pass of autoclean, and the end of tracing, get when the daemon stops."""
_JOURNAL_PATIENCE = 1.0
"""Seconds that a start waits for the journal: whoever else has it open keeps no machine from loading."""
_URL = "https://kmodd.invalid/"


@dataclass(frozen=True, slots=True)
class Options:
    """What `kmodd serve` was told."""

    hook: bool = False
    kernel: str = "linux"
    root: str = "/"
    helper: str = HELPER


class Daemon:
    """One kmodd. `run` returns when it has been told to stop and everything has been put back."""

    def __init__(self, options: Options) -> None:
        """Read the settings and put the rooms together; nothing on the machine is changed yet.

        Raises:
            KmoddError: the settings are not as they should be, or the options do not go together.
        """
        if options.hook and (options.kernel != "linux" or options.root != "/"):
            raise KmoddError(
                "cannot hook the kernel to a simulated one or below another root: its helper knows only "
                "/run/kmodd; leave out --hook"
            )
        self._options = options
        self._settings = settings.Settings(settings.load(options.root))
        self._recorder = Recorder()
        self._journal = Journal(
            os.path.join(options.root, "var/lib/kmodd/journal.db"),
            lambda: seconds(self._settings.journal_keep),
            in_own_thread,
            lambda: self._settings.journal,
        )
        self._run_dir = os.path.join(options.root, "run/kmodd")
        self._hook = Hook(self._run_dir, options.helper)
        self._hooked = False
        tracing = Tracing()
        # The helpers of another kernel, or below another root, are not those of this kernel's requests.
        real = options.kernel == "linux" and options.root == "/" and pids_are_the_kernels()
        who = WhoAsked(
            tracing,
            check_exe=lambda: self._enforcement.policy.asks_for_exe,
            wanted=lambda: self._settings.tracing,
        )
        self._who = who if real else None
        own = Own()
        unloads = Unloads()
        self._started = time.monotonic()
        self._stop = asyncio.Event()
        self._listeners: dict[str, Listener] = {}
        self._kernel: Kernel
        self._installed: Installed | None = None
        loader: Loader
        if options.kernel == "simulated":
            simulated = SimulatedKernel(installed_below(options.root))
            self._kernel = simulated
            loader = simulated_loader = SimulatedLoader(simulated, unloads)
            simulated_loader.request_module = self._request_module
            find_plan: FindPlan = simulated_loader.find_plan
        else:
            self._kernel = LinuxKernel()
            self._installed = Installed(lambda: self._kernel.release, init.enter)
            loads = ModuleLoads(self._kernel, init.enter, self._recorder.next_id, own, self._by_others)
            in_process = InProcessLoader(self._settings, self._kernel, self._installed, loads, unloads)
            find_plan = in_process.plan
            loader = ChosenLoader(
                self._settings,
                in_process,
                ModprobeLoader(self._settings, self._kernel, init.enter, own, self._by_others),
            )
        self._enforcement = Enforcement(PolicyInForce(), self._recorder, options.root, self._run_dir)
        self._enforcement.set_mode(self._settings.policy_mode)
        self._enforcement.policy.subscribe(self._policy_changed)
        self._broker = Broker(
            loader,
            self._settings,
            self._recorder,
            self._find_blocked,
            # In the simulated kernel whoever asks is blocked at once.
            asleep=0.0 if options.kernel == "simulated" else ASLEEP,
            identity=self._kernel.identity,
            policy=self._enforcement.policy,
        )
        self._remover = Remover(self._kernel, self._recorder, self._installed, init.enter, own, unloads)
        self._autoclean = Autoclean(
            self._kernel,
            self._recorder,
            self._settings,
            self._remover,
            unloads,
            Around(
                use_counts=UseCounts() if real else None,
                installed=self._installed,
                sealed=lambda: self._enforcement.policy.sealed,
                enter_root=init.enter,
                directory=self._run_dir if self._kernel.name == "linux" else None,
            ),
        )
        self._broker.on_by_hand = self._autoclean.claim
        self._others = Others(Comings(), own, self._kernel, self._recorder, self._broker.loads_began)
        self._tracer = Tracer(
            tracing, self._others, self._who, lambda: self._settings.tracing, self._take_helpers
        )
        self._interface = KmoddInterface(
            Parts(
                broker=self._broker,
                remover=self._remover,
                autoclean=self._autoclean,
                plan=find_plan,
                enforcement=self._enforcement,
                settings=self._settings,
                recorder=self._recorder,
                journal=self._journal,
                status=self.status,
                settled=self._settled,
            )
        )
        self._group_lookup: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._first_look: asyncio.Task[None] | None = None
        self._taking_over: asyncio.Task[None] | None = None
        self._reloading: asyncio.Task[None] | None = None

    # Running

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            KmoddError: it cannot start; nothing has been changed then.
        """
        self._make_run_dir()
        loop = asyncio.get_running_loop()
        self._recorder.subscribe(EventLog(loop.time))
        self._recorder.subscribe(self._journal.note)
        self._settings.subscribe(self._setting_changed)
        opening = loop.create_task(self._journal.open())
        await asyncio.wait([opening], timeout=_JOURNAL_PATIENCE)
        if opening.done():
            self._recorder.go_on_from(opening.result())
        await self._enforcement.start()
        api = ApiSource(self._registry())
        self._look_up_group()
        assert self._group_lookup is not None
        await asyncio.wait([self._group_lookup], timeout=_GROUP_PATIENCE)
        try:
            self._listen(api)
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stop.set)
            loop.add_signal_handler(signal.SIGHUP, self._begin_reload)
            # Once it is known that no other daemon is there, and before anybody is served.
            await self._tracer.switch()
            for listener in self._listeners.values():
                listener.start()
            if self._options.hook:
                self._hook.on(self._fallback())
                self._hooked = True
            elif self._is_hooked():
                self._hook.set_fallback(self._fallback())
            self._keep_watchdog()
            self._keep_tree()
            self._first_look = loop.create_task(self._look_at_tree())
            self._taking_over = loop.create_task(self._autoclean.start())
            self._recorder.add("daemon", {"action": "start", "version": __version__, "pid": os.getpid()})
            log.info(
                "kmodd %s started: kernel %s %s, hook %s",
                __version__,
                self._kernel.name,
                self._kernel.release,
                "on" if self._hooked else "off",
            )
            servicemanager.notify(f"READY=1\nSTATUS=serving\nMAINPID={os.getpid()}")
            await self._stop.wait()
        except BaseException:
            # Nothing was begun that a start could not take back.
            self._close_listeners()
            if self._hooked:
                self._hook.off()
            self._tracer.stop_at_once()
            raise
        await self._shut_down(api)

    async def _shut_down(self, api: ApiSource) -> None:
        """Unhook first, so that the kernel asks the real modprobe; then finish what has been taken on."""
        servicemanager.notify("STOPPING=1")
        self._autoclean.pause()
        if self._hooked and self._fallback() == "deny":
            # Or an upgrade would open for a moment what the administrator has closed.
            log.warning(
                "the hook stays on, and nothing is loaded on demand (fallback): kmodd hook off ends that"
            )
        elif self._hooked:
            self._unhook()
        self._hooked = False
        self._broker.stopping = True
        self._close_listeners()
        await self._broker.stop(self._settings.stop_timeout)
        await self._autoclean.stop(_PATIENCE)
        await self._tracer.stop(_PATIENCE)
        # The loop's end puts the signals' default actions back: another one must not kill what ends in order.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
        self._recorder.add("daemon", {"action": "stop", "version": __version__, "pid": os.getpid()})
        await self._journal.close(_JOURNAL_PATIENCE)
        await asyncio.sleep(0)  # the answers that have just been given go out
        api.close()
        await asyncio.sleep(0)
        log.info(
            "kmodd stopped: %d requests, %d loads", self._broker.requests_total, self._broker.loads_total
        )

    def _unhook(self) -> None:
        """Put `kernel.modprobe` back."""
        try:
            before = self._hook.before()
            if not self._hook.off() and self._hook.current() != before:
                log.warning("kernel.modprobe was changed by somebody else and is left as it is")
        except KmoddError as err:
            log.error("%s", err)

    def _close_listeners(self) -> None:
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()

    def _make_run_dir(self) -> None:
        try:
            os.makedirs(self._run_dir, mode=0o755, exist_ok=True)
            info = os.stat(self._run_dir)
        except OSError as err:
            raise KmoddError(f"cannot make {self._run_dir}: {err.strerror}; be root, or give --root") from err
        if info.st_uid != os.geteuid() or info.st_mode & 0o022:
            raise KmoddError(
                f"cannot serve: {self._run_dir} can be changed by others; it must be yours, mode 0755"
            )

    def _registry(self) -> VarlinkInterfaceRegistry:
        registry = VarlinkInterfaceRegistry()
        registry.register_interface(VarlinkServiceInterface("kmodd", "kmodd", __version__, _URL, registry))
        registry.register_interface(self._interface)
        return registry

    def _listen(self, api: ApiSource) -> None:
        passed = servicemanager.passed_sockets()
        helpers = HelperSource(self._broker, self._recorder, self._who)
        for name, kind, mode, connected in (
            (helper.SOCKET, socket.SOCK_SEQPACKET, 0o600, helpers.connected),
            (connections.SOCKET, socket.SOCK_STREAM, 0o666, api.connected),
        ):
            path = os.path.join(self._run_dir, name)
            sock = passed.pop(name, None)
            if sock is not None:
                if sock.family != socket.AF_UNIX or sock.type != kind:
                    raise KmoddError(
                        f"the service manager's socket {name} is of the wrong kind: see kmodd(8)"
                    )
                self._listeners[name] = Listener(sock, None, connected)
            else:
                sock = bind(path, kind, mode)
                self._listeners[name] = Listener(sock, path, connected)
            if name == connections.SOCKET:
                take_no_descriptors(sock)
        for sock in passed.values():
            log.warning("the service manager passed a socket that is not ours; it is closed")
            sock.close()

    def _take_helpers(self) -> None:
        if helper.SOCKET in self._listeners:
            self._listeners[helper.SOCKET].accept()

    # Things that happen while it runs

    def _look_up_group(self) -> None:
        """Find out which group may see requesters; until that is known it is nobody's."""

        async def look() -> None:
            self._interface.readers = await in_own_thread("kmod_group", peer.group_id)

        self._group_lookup = asyncio.get_running_loop().create_task(look())

    def _begin_reload(self) -> None:
        self._reloading = asyncio.get_running_loop().create_task(self._reload(self._reloading))

    async def _reload(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            # What was read first must not be what holds in the end.
            await asyncio.wait([before])
        self._look_up_group()
        if self._installed is not None:
            self._installed.forget()
        servicemanager.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            begun = self._settings.moment
            found = await in_own_thread("kmod_settings", partial(settings.load, self._options.root))
            # What somebody has set meanwhile is later than what the files said.
            changed = self._settings.replace(found, but_since=begun)
        except SettingsError as err:
            log.error("settings are left as they are: %s", err)
            self._recorder.add("daemon", {"action": "reload", "error": str(err), "changed": []})
        except (KmoddError, OSError) as err:
            log.error("settings are left as they are: %s", err)
        else:
            log.info("settings read again; changed: %s", ", ".join(changed) or "nothing")
            self._recorder.add("daemon", {"action": "reload", "error": None, "changed": changed})
        try:
            await self._enforcement.reload()
        except (PolicyError, OSError) as err:
            log.error("the policy is left as it is: %s", err)
        servicemanager.notify("READY=1")

    def _fallback(self) -> str:
        """Return what the helper does without us: while the seal is closed there is no way around it."""
        return "deny" if self._enforcement.policy.sealed else self._settings.fallback

    def _policy_changed(self) -> None:
        if self._is_hooked():
            try:
                self._hook.set_fallback(self._fallback())
            except KmoddError as err:
                log.error("%s", err)

    def _setting_changed(self, key: str, _old: settings.Value, new: settings.Value) -> None:
        if key == "fallback" and self._is_hooked():
            self._hook.set_fallback(self._fallback())
        if key == "policy.mode":
            self._enforcement.set_mode(str(new))
        if key == "kernel.keep_tree":
            self._keep_tree()
        if key == "tracing":
            self._tracer.changed()

    async def _settled(self, key: str) -> None:
        """Wait until the kernel is as a setting says."""
        if key == "tracing":
            await self._tracer.settled()
            await self._autoclean.settled()

    def _keep_tree(self) -> None:
        """Keep the running kernel's modules, or let go of what was kept; in a thread: it is many files.

        What was kept in an earlier boot is dropped at each start.
        """
        if self._options.kernel != "linux":
            return
        wanted, release = self._settings.keep_tree, self._kernel.release

        def work() -> None:
            init.enter()
            keep.drop(but=boot_id() if wanted else None)
            if wanted:
                log.info("kept %d files of the modules of %s", keep.keep(release), release)

        async def run() -> None:
            try:
                await in_own_thread("kmod_keep", work)
            except (KmoddError, OSError) as err:
                log.error("cannot keep the modules of %s: %s", release, err)

        self._keeping = asyncio.get_running_loop().create_task(run())

    async def _look_at_tree(self) -> None:
        """Read what is installed before the first request needs it."""
        if self._installed is not None and not self._settings.modprobe_path:
            with contextlib.suppress(KmoddError):
                await self._installed.current()

    def _is_hooked(self) -> bool:
        """Whether the kernel's helper is ours: by --hook, or by `kmodd hook on`."""
        if self._options.kernel != "linux" or self._options.root != "/":
            return False
        try:
            return self._hooked or self._hook.is_on()
        except KmoddError:
            return False

    def _by_others(self, since: int) -> Collection[str]:
        return self._others.since(since)

    def _keep_watchdog(self) -> None:
        """Tell the service manager that the event loop turns; only where it asked for that."""
        interval = servicemanager.watchdog_interval()
        if interval is None:
            return

        def tell() -> None:
            servicemanager.notify("WATCHDOG=1")
            asyncio.get_running_loop().call_later(interval, tell)

        tell()

    async def _find_blocked(self, sessions: Collection[int], threads: Collection[int]) -> list[BlockedTask]:
        if self._kernel.name == "simulated":
            return self._kernel.blocked_tasks(sessions, threads)
        return await in_own_thread("kmod_watch", lambda: self._kernel.blocked_tasks(sessions, threads))

    async def _request_module(self, name: str) -> int:
        """The simulated kernel's request_module()."""
        told: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def tell(status: int) -> None:
            if not told.done():
                told.set_result(status)

        self._broker.submit(name.encode(), Source.KERNEL, on_status=tell)
        return await told

    # What there is to see

    def status(self) -> dict[str, Any]:
        """Return what `kmodd status` shows."""
        broker = self._broker
        return {
            "version": __version__,
            "pid": os.getpid(),
            "state": "stopping" if broker.stopping else "running",
            "uptime_s": round(time.monotonic() - self._started, 3),
            "kernel": {
                "type": self._kernel.name,
                "release": self._kernel.release,
                "modules_disabled": self._kernel.name == "linux" and refusal.modules_disabled(),
            },
            "hook": self._hook_status(),
            "tree": self._tree_status(),
            "tracing": self._tracer.as_json(),
            "policy": self._enforcement.status(),
            "requests": {
                "total": broker.requests_total,
                "waiting": broker.waiting_total,
                "outcomes": dict(sorted(broker.outcomes.items())),
            },
            "loads": {"total": broker.loads_total, "running": broker.loads_running},
            "events": self._recorder.recorded,
            "autoclean": self._autoclean.as_json(),
            "journal": {
                "on": self._journal.on,
                "path": self._journal.path,
                "problem": self._journal.problem,
                "waiting": self._journal.waiting,
                "lost": self._journal.lost,
            },
            "threads": len(os.listdir("/proc/self/task")),
            "settings": self._settings.as_dict(),
        }

    def _tree_status(self) -> dict[str, Any] | None:
        """What is installed, as it was last looked at; None in a simulated kernel."""
        if self._installed is None:
            return None
        known = self._installed.known
        return {
            "directory": None if known is None else known.index.directory,
            "modules": None if known is None else sum(1 for _ in known.index.modules()),
            "from": None if known is None else known.index.source,
            "problem": self._installed.problem,
            "skipped": [] if known is None else known.problems()[:20],
        }

    def _hook_status(self) -> dict[str, Any]:
        try:
            current = self._hook.current()
        except KmoddError as err:
            return {"on": False, "modprobe": None, "helper": self._hook.helper, "error": str(err)}
        return {
            "on": current == self._hook.helper,
            "modprobe": current,
            "helper": self._hook.helper,
            "error": None,
        }


def _prepare_process() -> None:
    """Clean what the daemon got from whoever started it, as its children get it from the daemon (S5)."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2):
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_IGN if number == signal.SIGPIPE else signal.SIG_DFL)
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    threading.stack_size(_STACK)


def _prepare_files() -> None:
    """Have descriptors 0 to 2, before anything else takes their numbers; pass no other on to children."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):  # the one that has just listed them
                os.set_inheritable(int(name), False)


def serve(options: Options, log_handler: Callable[[], logging.Handler]) -> None:
    """Run a daemon in the foreground.

    Raises:
        KmoddError: it cannot start.
    """
    _prepare_files()
    _prepare_process()
    # It would make an object of threading's for each loader that logs, and keep it.
    logging.logThreads = False
    root_log = logging.getLogger()
    root_log.setLevel(logging.INFO)
    root_log.addHandler(log_handler())
    if sys.stderr is not None and sys.stderr.isatty():
        root_log.addHandler(logging.StreamHandler(sys.stderr))
    asyncio.run(_run(options))


async def _run(options: Options) -> None:
    await Daemon(options).run()
