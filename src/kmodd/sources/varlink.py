"""The varlink API `io.kmodd`: its methods, types and errors. asyncvarlink derives the interface from them.

No `from __future__ import annotations` here: asyncvarlink reads the annotations as types.
"""

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypedDict

from asyncvarlink import LastResult, VarlinkInterface, varlinkmethod

from kmodd.broker.autoclean import Autoclean
from kmodd.broker.broker import Broker
from kmodd.broker.enforcement import Enforcement
from kmodd.broker.removal import Remover
from kmodd.broker.tickets import Asker
from kmodd.errors import InvalidName as InvalidNameError
from kmodd.errors import KernelError, KmoddError, SettingsError
from kmodd.model import Event, Outcome, Result, Source, timestamp
from kmodd.names import API_MAX, check, escape, normalise
from kmodd.policy.rules import REMOVE, SET
from kmodd.record.journal import Journal
from kmodd.record.origin import origin
from kmodd.record.recorder import Recorder
from kmodd.record.select import Selection
from kmodd.settings import SETTINGS, Settings
from kmodd.sources import peer
from kmodd.sources.policymethods import STRANGERS_NAME, FindPlan, PolicyMethods
from kmodd.sources.replies import (
    Deadlock,
    Denied,
    InvalidName,
    InvalidPolicy,
    InvalidSetting,
    JournalUnreadable,
    LoadFailed,
    NotFound,
    NotPermitted,
    RemoveFailed,
    TimedOut,
    current_peer,
    need_right,
    need_root,
    raise_for,
)

_ROOTS_OWN = frozenset({"modprobe_path", "modprobe_args", "policy.mode"})
"""Settings that no rule lets anybody change: with them he would be root, or his own policy."""
_FOLLOW_MAX = 10_000
WHY_MAX, DENIALS_MAX = 1000, 100
"""Events that are looked through: the newest ones that name the module, and of those that were denied."""


class ModuleInfo(TypedDict):
    """A module in the kernel. `size` in bytes; `refcount` null where modules cannot be unloaded.

    `autoclean`: whether that may unload it; then `uses` says whether the kernel counts what takes it
    (`counted`), or it is `sampled`, and `idle_since` when it was last touched, where nothing holds it.
    """

    name: str
    size: int
    refcount: int | None
    holders: list[str]
    state: str
    permanent: bool
    brought_in_by: int | None
    autoclean: bool
    idle_since: str | None
    uses: str | None


class SettingInfo(TypedDict):
    """A setting: its value, what it would be by default, and what it means."""

    key: str
    value: Any
    default: Any
    meaning: str


@dataclass(frozen=True, slots=True)
class Parts:
    """What the API reaches."""

    broker: Broker
    remover: Remover
    autoclean: Autoclean
    plan: FindPlan
    enforcement: Enforcement
    settings: Settings
    recorder: Recorder
    journal: Journal
    status: Callable[[], dict[str, Any]]
    settled: Callable[[str], Awaitable[None]]
    """Waits until all is as a setting says, by its key."""


class KmoddInterface(PolicyMethods, VarlinkInterface, name="io.kmodd"):
    """On-demand loading of kernel modules.

    Anyone may read lists, status and settings. Who asked for what is for root and the group kmodd.
    Requesting, removing and changing need uid 0, or a rule of the policy that lets the peer.
    """

    errors = (
        NotFound,
        Denied,
        LoadFailed,
        RemoveFailed,
        TimedOut,
        Deadlock,
        InvalidName,
        InvalidPolicy,
        InvalidSetting,
        JournalUnreadable,
        NotPermitted,
    )

    def __init__(self, parts: Parts) -> None:
        self._broker = parts.broker
        self._remover = parts.remover
        self._autoclean = parts.autoclean
        self._plan = parts.plan
        self._strangers_turn = asyncio.Lock()
        self._enforcement = parts.enforcement
        self._settings = parts.settings
        self._recorder = parts.recorder
        self._journal = parts.journal
        self._status = parts.status
        self._settled = parts.settled
        self.readers: int | None = None
        """The group whose members may see who asked for what, as root may; None for no group."""

    @varlinkmethod(return_parameter="result", allow_foreign=True)
    async def RequestModule(  # noqa: N802 - varlink's spelling
        self,
        *,
        name: str,
        source: Literal["api", "cli"] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the API's, and the broker's to keep
        wait: bool | None = None,
    ) -> Any:
        """request_module(): load what a name or alias stands for and tell how it went.

        `timeout`: seconds to wait at the most. `wait`: false returns at once, with the request's id and
        an outcome of null. The result is the object that Log shows.
        """
        caller = current_peer.get()
        if not caller.is_root and not self._broker.policy.lets_peers:
            raise NotPermitted(error=f"uid {caller.uid} may not request modules; be root")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Result] = loop.create_future()

        def told(result: Result) -> None:
            if not done.done():
                done.set_result(result)

        ticket = self._broker.submit(
            name.encode("utf-8", errors="surrogatepass"),
            Source(source or "api"),
            asker=Asker(peer.requester(caller), peer.session(caller), stranger=not caller.is_root),
            timeout=None if timeout is None else max(0.0, timeout),
            on_result=told,
        )
        if wait is False and not done.done():
            self._broker.leave(ticket)
            request = ticket.request
            return {"id": request.id, "time": timestamp(request.time), "name": request.name, "outcome": None}
        try:
            result = await done
        except asyncio.CancelledError:
            self._broker.leave(ticket)
            raise
        assert ticket.event is not None
        shown = ticket.event.as_json()
        del shown["event"]
        raise_for(ticket, result, shown)
        return shown

    @varlinkmethod(return_parameter="removed")
    async def RemoveModule(  # noqa: N802 - varlink's spelling
        self, *, name: str, holders: bool | None = None
    ) -> list[str]:
        """Unload a module, with `holders` those first that use it; return what was unloaded, in order."""
        caller = current_peer.get()
        policy = self._broker.policy
        if not caller.is_root and not policy.lets_peers:
            raise NotPermitted(error=f"uid {caller.uid} may not remove modules; be root")
        try:
            plain = normalise(check(name.encode("utf-8", errors="surrogatepass")))
            need_right(policy, REMOVE, plain, plain)
            return await self._remover.remove(
                name, holders=bool(holders), may=lambda module: need_right(policy, REMOVE, module, module)
            )
        except InvalidNameError as err:
            raise InvalidName(name=name, error=str(err), result=None) from err
        except KernelError as err:
            if err.errno == errno.ENOENT:
                raise NotFound(name=name, error=str(err), result=None) from err
            raise RemoveFailed(name=name, status=err.status, error=str(err)) from err

    @varlinkmethod(return_parameter="modules")
    async def ListModules(self) -> list[ModuleInfo]:  # noqa: N802 - varlink's spelling
        """Return the modules in the kernel, the one that came first first."""
        live, brought_in_by = await self._remover.live()
        owned = await self._autoclean.owned()
        uses = self._autoclean.uses
        return [
            {
                "name": module.name,
                "size": module.size,
                "refcount": module.refcount,
                "holders": list(module.holders),
                "state": module.state.value,
                "permanent": module.permanent,
                "brought_in_by": brought_in_by.get(module.name),
                "autoclean": module.name in owned,
                "idle_since": self._autoclean.idle_since(module),
                "uses": uses if module.name in owned else None,
            }
            for module in live.values()
        ]

    @varlinkmethod(return_parameter="marked")
    async def MarkAutoclean(self, *, names: list[str]) -> list[str]:  # noqa: N802 - varlink's spelling
        """Mark modules for autoclean, as `modprobe -k` does; return those that are in the kernel."""
        need_root("mark modules")
        try:
            return await self._autoclean.mark(names)
        except InvalidNameError as err:
            raise InvalidName(name="", error=str(err), result=None) from err

    @varlinkmethod(return_parameter="result", allow_foreign=True)
    async def Autoclean(self, *, now: bool | None = None) -> Any:  # noqa: N802 - varlink's spelling
        """Return what autoclean would unload, what stays and why; with `now` make a pass, and tell what went.

        `delay`: seconds between passes; `uses`: whether the kernel counts what takes a module, or it is
        sampled; `modules`: those that came by themselves or are marked; `size`: bytes that were given back.
        """
        if now:
            need_root("run autoclean")
        else:
            self._need_reader()  # it names mounts and interfaces, of others' namespaces too
        try:
            made = await (self._autoclean.run() if now else self._autoclean.look())
        except KmoddError as err:
            raise LoadFailed(name="", status=-errno.ETIMEDOUT, error=str(err), result=None) from err
        state = self._autoclean.as_json()
        return {"delay": state["delay"], "uses": state["uses"], **made.as_json()}

    @varlinkmethod(return_parameter="plan", allow_foreign=True)
    async def Resolve(self, *, name: str) -> Any:  # noqa: N802 - varlink's spelling
        """Return what a request for a name would load, in order, and why; nothing is loaded.

        Parameters and commands of modprobe.d are shown to root only, and null for others.
        """
        caller = current_peer.get()
        try:
            plain = check(
                name.encode("utf-8", errors="surrogatepass"), API_MAX if caller.is_root else STRANGERS_NAME
            )
            found, release = await self._plan_for(caller, plain)
            plan = {"release": release, **found.as_json()}
        except InvalidNameError as err:
            raise InvalidName(
                name=escape(name.encode("utf-8", "replace")), error=str(err), result=None
            ) from err
        except KmoddError as err:
            raise LoadFailed(name=name, status=-errno.ENOENT, error=str(err), result=None) from err
        if not caller.is_root:
            # The files that these are from may be root's alone.
            for step in (step for target in plan["targets"] for step in target["steps"]):
                step["parameters"] = step["command"] = None
        if not plan["targets"]:
            error = f"no module of the name or alias {plain} is installed for {plan['release']}"
            raise NotFound(name=plain, error=error, result=None)
        return plan

    @varlinkmethod(return_parameter="status", allow_foreign=True)
    def GetStatus(self) -> Any:  # noqa: N802 - varlink's spelling
        """Return the state of the daemon, the hook and the kernel, counts, and the settings."""
        return self._status()

    @varlinkmethod(return_parameter="settings", allow_foreign=True)
    def GetSettings(self) -> list[SettingInfo]:  # noqa: N802 - varlink's spelling
        """Return every setting."""
        values = self._settings.as_dict()
        return [
            {"key": key, "value": values[key], "default": setting.default, "meaning": setting.meaning}
            for key, setting in SETTINGS.items()
        ]

    @varlinkmethod(allow_foreign=True)
    async def SetSetting(self, *, key: str, value: Any) -> None:  # noqa: N802 - varlink's spelling
        """Change a setting at once, until the daemon stops or reads its files again.

        Of `tracing` it returns once the kernel has it as it says, too.
        """
        caller = current_peer.get()
        if not caller.is_root and not self._broker.policy.lets_peers:
            raise NotPermitted(error=f"uid {caller.uid} may not change settings; be root")
        if key in _ROOTS_OWN:
            need_root(f"change {key}")
        need_right(self._broker.policy, SET, key)
        old = self._settings.as_dict().get(key)
        try:
            changed = self._settings.set(key, value)
        except SettingsError as err:
            raise InvalidSetting(key=key, error=str(err)) from err
        except KmoddError as err:
            raise InvalidSetting(key=key, error=f"{key} is left as it is: {err}") from err
        if changed:
            who = peer.requester(caller).as_json()
            fields = {"key": key, "old": old, "new": self._settings.as_dict()[key], "requester": who}
            self._recorder.add("setting", fields)
        await self._settled(key)

    @varlinkmethod(return_parameter="origin", allow_foreign=True)
    async def Why(self, *, module: str) -> Any:  # noqa: N802 - varlink's spelling
        """Return how a module came in: the events `load`, `request` and `unload`, each or null.

        `live`: whether it is in the kernel; `ours`: whether that is the one which `load` tells of;
        `brought_in_by`: as ListModules tells, whatever the journal still has. `denied`: the last request for
        it since then that was denied, or null; `denials`: how many, of the last 100. `problem`: why the
        journal cannot be read, or null; the events are those then that are not in its file yet.
        """
        self._need_reader()
        try:
            plain = normalise(check(module.encode("utf-8", errors="surrogatepass")))
        except InvalidNameError as err:
            raise InvalidName(
                name=escape(module.encode("utf-8", "replace")), error=str(err), result=None
            ) from err
        live, brought_in_by = await self._remover.live()
        identity = self._remover.identity(plain)
        glob = _literal(plain)
        # Looked for by themselves: who asks for what he may not have, in a loop, hides no load.
        history = self._journal.history(Selection(module=glob, denied=False), WHY_MAX)
        denials = Selection(module=glob, event="request", outcome=Outcome.DENIED.value)
        refused = self._journal.history(denials, DENIALS_MAX)
        found = origin(await history.whole(), plain, await refused.whole())
        load = found["load"]
        ours = load is not None and identity is not None and load["identities"].get(plain) == identity
        return {
            "module": plain,
            "live": plain in live,
            "ours": ours,
            "brought_in_by": brought_in_by.get(plain),
            "problem": history.problem or refused.problem,
            **found,
        }

    def _need_reader(self) -> None:
        """Refuse those who may not know who asked for what."""
        caller = current_peer.get()
        if not caller.is_root and not caller.is_in(self.readers):
            error = f"uid {caller.uid} may not see who asked; be root or of group {peer.GROUP}"
            raise NotPermitted(error=error)

    @varlinkmethod(return_parameter="event", delay_generator=False, allow_foreign=True)
    async def Log(  # noqa: N802 - varlink's spelling
        self,
        *,
        follow: bool | None = None,
        since: str | None = None,
        module: str | None = None,
        name: str | None = None,
        outcome: str | None = None,
        uid: int | None = None,
        count: int | None = None,
    ) -> AsyncIterator[Any]:
        """Return events, oldest first; with `follow` go on with each new one. The last reply is null.

        `since`: a time as events show it, or seconds before now with an `s` behind. `module` and `name`
        are globs. `count`: the newest so many. Where the journal cannot be read it ends with an error behind
        those that are not in its file yet, with `follow`, too; a `count` of 0 follows all the same.
        """
        self._need_reader()
        selection = Selection(_since(since), module, name, outcome, uid)
        queue: asyncio.Queue[Event] = asyncio.Queue(_FOLLOW_MAX)

        def tell(event: Event) -> None:
            # One that reads too slowly loses the newest; the numbers show the gap.
            if selection.matches(event) and not queue.full():
                queue.put_nowait(event)

        # Both at once: no event is in neither, or in both.
        history = self._journal.history(selection, None if count is None else max(0, count))
        stop = self._recorder.subscribe(tell) if follow else None
        try:
            async for data in history.events():
                yield data
            if history.problem is not None:
                raise JournalUnreadable(error=f"{history.problem}; what is in it is not told")
            while follow:
                yield (await queue.get()).as_json()
        finally:
            if stop is not None:
                stop()
        raise LastResult(None)


def _literal(name: str) -> str:
    """Return a name as a glob that matches nothing else."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _since(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        if text.endswith("s"):
            return datetime.now(UTC) - timedelta(seconds=float(text[:-1]))
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise InvalidSetting(
            key="since", error=f"{text[:64]!r} is no time: 2026-11-23T08:00:00Z or 90s"
        ) from None
    try:
        return (moment if moment.tzinfo is not None else moment.astimezone()).astimezone(UTC)
    except (OverflowError, ValueError, OSError):
        return datetime.min.replace(tzinfo=UTC) if moment.year < 1970 else datetime.max.replace(tzinfo=UTC)
