"""The policy's files put in force, or as a last resort the last good ones; and the seal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import Any

from kmodd.broker.threads import in_own_thread
from kmodd.errors import KmoddError
from kmodd.kernel import refusal
from kmodd.policy import files
from kmodd.policy.files import LastGood, Policy
from kmodd.policy.inforce import PolicyInForce
from kmodd.policy.parse import PolicyError
from kmodd.policy.rules import Mode
from kmodd.record.recorder import Recorder

log = logging.getLogger(__name__)

_PATIENCE = 5.0
"""Seconds that a start waits for a directory service to tell who the users are that rules name."""
SEALED = "sealed"
"""A file in the run directory: the seal outlives a daemon, not a boot."""


class Enforcement:
    """Reads policy files in a thread. A broken one never replaces the good one in force."""

    def __init__(self, policy: PolicyInForce, recorder: Recorder, root: str, run_dir: str) -> None:
        self.policy = policy
        self.root = root
        self._recorder = recorder
        self._sealed = os.path.join(run_dir, SEALED)
        self._last_good = LastGood(os.path.join(root, "var/lib/kmodd/policy.json"))
        self._reading = asyncio.Lock()
        self._taken = 0
        self._background: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Put in force what there is, before the first request.

        Raises:
            PolicyError: a file is broken, and nothing is kept from before.
        """
        self.policy.seal(self._was_sealed())
        reading = asyncio.get_running_loop().create_task(self._read())
        await asyncio.wait([reading], timeout=_PATIENCE)
        late = not reading.done()
        try:
            if late:
                # Whom a rule names by a name that only a directory service knows is not known yet.
                self._take(await in_own_thread("kmod_policy", lambda: files.load(self.root, ask=False)))
                self.policy.problem = (
                    "names of users and groups are still looked up: rules for them match nobody"
                )
                log.warning("policy: %s", self.policy.problem)
                self._background.append(asyncio.get_running_loop().create_task(self._take_late(reading)))
            else:
                self._take(reading.result())
                self._background.append(asyncio.get_running_loop().create_task(self._save_in_turn()))
        except PolicyError as err:
            kept = await in_own_thread("kmod_policy", self._last_good.load)
            if kept is None:
                raise
            self._take(kept)
            self.policy.problem = f"{err}; the last good policy is in force"
            log.error("policy: %s", self.policy.problem)
        if self.policy.policy.rules or self.policy.problem or self.policy.sealed:
            self._record("load", error=self.policy.problem)

    def _was_sealed(self) -> bool:
        return os.path.lexists(self._sealed)  # in /run, which is memory

    async def reload(self, requester: dict[str, Any] | None = None) -> None:
        """Read the files again and put them in force.

        Raises:
            PolicyError: one cannot be taken; what was in force stays so.
        """
        async with self._reading:
            try:
                policy = await self._read()
            except PolicyError as err:
                self.policy.problem = f"{err}; what was in force before stays so"
                log.error("policy: %s", self.policy.problem)
                self._record("reload", error=str(err), requester=requester)
                raise
            self._take(policy)
            await self._save()
            log.info("policy read again: %d rules", len(policy.rules))
            self._record("reload", error=None, requester=requester)

    def seal(self, sealed: bool, requester: dict[str, Any] | None) -> None:
        """Close the seal or open it, for this boot.

        Raises:
            KmoddError: that cannot be written down; the seal is as it was.
        """
        try:
            if sealed:
                os.close(os.open(self._sealed, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._sealed)
        except OSError as err:
            raise KmoddError(f"cannot write {self._sealed}: {err.strerror}") from err
        self.policy.seal(sealed)
        log.warning("sealed: only what the policy lists" if sealed else "the seal is open")
        self._record("seal" if sealed else "unseal", error=None, requester=requester)

    def sealed_by_the_kernel(self, sealed: bool, requester: dict[str, Any] | None) -> None:
        """Record that somebody has closed the kernel to modules.

        Raises:
            KmoddError: it is not so; nobody can open it.
        """
        if not sealed:
            raise KmoddError("cannot unset kernel.modules_disabled: the next boot does")
        if not refusal.modules_disabled():
            raise KmoddError("kernel.modules_disabled is not set: kmodd seal --hard sets it")
        log.warning("sealed by the kernel: no module is loaded or unloaded until the next boot")
        self._record("seal --hard", error=None, requester=requester)

    def set_mode(self, mode: str) -> None:
        """Change how much the policy counts."""
        self.policy.set_mode(Mode(mode))

    def status(self) -> dict[str, Any]:
        """Return what `kmodd status` shows."""
        policy = self.policy
        return {
            "mode": policy.mode.value,
            "sealed": policy.sealed,
            "files": len(policy.policy.files),
            "rules": len(policy.policy.rules),
            "problem": policy.problem,
        }

    async def _read(self) -> Policy:
        return await in_own_thread("kmod_policy", lambda: files.load(self.root))

    async def _take_late(self, reading: asyncio.Task[Policy]) -> None:
        """Put in force what a start has not waited for, if nothing newer has been put in force since."""
        taken = self._taken
        try:
            policy = await reading
        except PolicyError as err:
            log.error("policy: %s", err)
            return
        async with self._reading:
            if self._taken == taken:
                self._take(policy)
                await self._save()

    def _take(self, policy: Policy) -> None:
        self._taken += 1
        self.policy.problem = None
        self.policy.replace(policy)
        for file in policy.files:
            for line, doubt in file.doubts:
                log.warning("policy: %s:%d: %s", file.name, line, doubt)

    async def _save_in_turn(self) -> None:
        async with self._reading:
            await self._save()

    async def _save(self) -> None:
        """Keep a copy of what is in force, for a start at which the files are broken."""
        policy = self.policy.policy
        if self.policy.problem is not None:
            return

        def save() -> None:
            if policy.files or os.path.exists(self._last_good.path):
                self._last_good.save(policy)

        try:
            await in_own_thread("kmod_policy", save)
        except OSError as err:
            log.warning("policy: cannot keep a copy for a start with broken files: %s", err)

    def _record(self, action: str, *, error: str | None, requester: dict[str, Any] | None = None) -> None:
        policy = self.policy
        self._recorder.add(
            "policy",
            {
                "action": action,
                "rules": len(policy.policy.rules),
                "mode": policy.mode.value,
                "sealed": policy.sealed,
                "error": error,
                "requester": requester,
            },
        )
