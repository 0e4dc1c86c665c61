"""The methods of the API about the policy: asked, shown, read again, sealed.

No `from __future__ import annotations` here: asyncvarlink reads the annotations as types.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from asyncvarlink import varlinkmethod

from kmodd.broker.broker import Broker
from kmodd.broker.enforcement import Enforcement
from kmodd.errors import InvalidName as InvalidNameError
from kmodd.errors import KmoddError
from kmodd.names import API_MAX, check, escape
from kmodd.policy.parse import PolicyError
from kmodd.policy.plans import wanted
from kmodd.policy.shown import as_json, checked, supposed
from kmodd.sources import peer
from kmodd.sources.peer import Peer
from kmodd.sources.replies import InvalidName, InvalidPolicy, InvalidSetting, current_peer, need_root
from kmodd.tree.plan import Plan

FindPlan = Callable[[str], Awaitable[tuple[Plan, str]]]
"""From a name to what a request for it would load, and the release; or KmoddError, where nobody can say."""


_GROUPS_MAX = 256
STRANGERS_NAME = 512
"""Bytes of a name that others than root may have resolved: no device's modalias is longer."""


class PolicyMethods:
    """A part of `io.kmodd`."""

    _broker: Broker
    _enforcement: Enforcement
    _plan: FindPlan
    _strangers_turn: asyncio.Lock

    async def _plan_for(self, caller: Peer, name: str) -> tuple[Plan, str]:
        """Return what a name stands for; for others than root one at a time, with others' turn between.

        A plan is made on the event loop, and the kernel's helpers must not be kept waiting.

        Raises:
            KmoddError: nobody can say.
        """
        if caller.is_root:
            return await self._plan(name)
        async with self._strangers_turn:
            await asyncio.sleep(0)
            return await self._plan(name)

    def _need_reader(self) -> None:
        raise NotImplementedError

    @varlinkmethod(return_parameter="checked", allow_foreign=True)
    async def CheckPolicy(  # noqa: N802, PLR0913 - varlink's spelling; a fact for each field of a rule
        self,
        *,
        name: str,
        source: Literal["kernel", "api", "cli", "uevent", "boot"] | None = None,
        uid: int | None = None,
        gid: int | None = None,
        groups: list[int] | None = None,
        exe: str | None = None,
        unit: str | None = None,
        container: str | None = None,
        privileged: bool | None = None,
        call_site: str | None = None,
    ) -> Any:
        """Return what the policy would say now of such a request; nothing is loaded or counted.

        What is not given is not known; but who has uid 0 is taken to be privileged, and others not to be.
        `groups_unknown`: rules ask for groups, and not all of the requester's, `gid` and `groups`, are known.
        Others than root and the group kmodd may ask of themselves only.
        """
        caller = current_peer.get()
        if uid != caller.uid:
            self._need_reader()
        if groups is not None and len(groups) > _GROUPS_MAX:
            raise InvalidSetting(key="groups", error=f"{len(groups)} groups; at most {_GROUPS_MAX} are taken")
        try:
            plain = check(
                name.encode("utf-8", errors="surrogatepass"), API_MAX if caller.is_root else STRANGERS_NAME
            )
        except InvalidNameError as err:
            raise InvalidName(
                name=escape(name.encode("utf-8", "replace")), error=str(err), result=None
            ) from err
        plan: Plan | None = None
        problem: str | None = None
        try:
            plan, _release = await self._plan_for(caller, plain)
        except KmoddError as err:
            problem = str(err)
        facts = supposed(
            plain,
            source,
            uid=uid,
            gid=gid,
            groups=groups,
            exe=exe,
            unit=unit,
            container=container,
            privileged=privileged,
            call_site=call_site,
        )
        return checked(self._broker.policy, facts, None if plan is None else wanted(plan), problem)

    @varlinkmethod(return_parameter="policy", allow_foreign=True)
    async def GetPolicy(self) -> Any:  # noqa: N802 - varlink's spelling
        """Return the policy in force: mode, seal, rules in order, the files' texts, and where they belong.

        `directory` is where files of commands go, `runtime_directory` where those that a boot ends.
        """
        self._need_reader()
        return as_json(self._broker.policy, self._enforcement.root)

    @varlinkmethod(return_parameter="rules")
    async def ReloadPolicy(self) -> int:  # noqa: N802 - varlink's spelling
        """Read the policy's files again and put them in force; return the number of rules."""
        caller = need_root("change the policy")
        try:
            await self._enforcement.reload(peer.requester(caller).as_json())
        except PolicyError as err:
            raise InvalidPolicy(file=err.file, line=err.line or 0, error=str(err)) from err
        return len(self._broker.policy.policy.rules)

    @varlinkmethod
    def Seal(self, *, sealed: bool, hard: bool | None = None) -> None:  # noqa: N802 - varlink's spelling
        """Let nothing new in but what a rule allows, until the next boot; or end that.

        `hard`: the caller has set kernel.modules_disabled; that is recorded, and no more done.
        """
        caller = need_root("seal" if sealed else "unseal")
        requester = peer.requester(caller).as_json()
        try:
            if hard:
                self._enforcement.sealed_by_the_kernel(sealed, requester)
            else:
                self._enforcement.seal(sealed, requester)
        except KmoddError as err:
            raise InvalidSetting(key="hard" if hard else "sealed", error=str(err)) from err
