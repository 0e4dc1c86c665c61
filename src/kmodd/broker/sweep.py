"""One pass of autoclean: look, decide, unload one module after the other, each in a thread of its own.

A module whose exit function takes long is left to its thread, and the pass goes on with the next one; what
was seen too long ago is looked at anew.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kmodd.autoclean.limits import Limits
from kmodd.autoclean.rule import Verdict, decide
from kmodd.broker.look import OLD, Look, Looking
from kmodd.broker.ours import Ours, Owned
from kmodd.broker.removal import Remover
from kmodd.errors import KernelError

PATIENCE = 1.0
"""Seconds that a pass waits for a module's exit function before it goes on with the next module."""
_LOOKS = 100
"""How often one pass looks; each time something has gone."""
_DISTURBED = frozenset({errno.EAGAIN, errno.EBUSY, errno.ENOENT, errno.EPERM, errno.EALREADY})


def is_failure(err: BaseException) -> bool:
    """Whether an unload has gone wrong, and not merely found a user, or nothing there any more, in between.

    EPERM is what delete_module(2) says of all modules where kernel.modules_disabled is set.
    """
    return not isinstance(err, KernelError) or err.errno not in _DISTURBED


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass: the verdicts, what went, and what could not. `sizes`: bytes of each module."""

    verdicts: tuple[Verdict, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    unloaded: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many bytes were given back."""
        return sum(self.sizes[module] for module in self.unloaded)

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "modules": [
                {
                    "module": verdict.module,
                    "goes": verdict.goes,
                    "reason": verdict.reason,
                    "in_seconds": None if verdict.left is None else round(verdict.left, 1),
                    "size": self.sizes[verdict.module],
                }
                for verdict in self.verdicts
            ],
            "unloaded": [{"module": module, "size": self.sizes[module]} for module in self.unloaded],
            "failed": [{"module": module, "error": error} for module, error in self.failed.items()],
            "size": self.size,
        }


class _Sofar:
    """What a pass has come to until now."""

    def __init__(self) -> None:
        self.gone: dict[str, Verdict] = {}
        self.stays: dict[str, Verdict] = {}
        self.failed: dict[str, str] = {}
        self.sizes: dict[str, int] = {}

    def made(self) -> Pass:
        stays = [verdict for name, verdict in self.stays.items() if name not in self.gone]
        return Pass((*self.gone.values(), *stays), self.sizes, tuple(self.gone), self.failed)


Late = Callable[[str, int, "asyncio.Task[None]"], None]
"""Told of a module, its size in bytes, and the work that unloads it, which goes on."""


class Sweep:
    """Makes passes. `late` is told of what takes longer than `PATIENCE` to unload."""

    def __init__(self, looking: Looking, ours: Ours, remover: Remover, late: Late) -> None:
        self._looking = looking
        self._ours = ours
        self._remover = remover
        self._late = late
        self.stopping = False
        """Unload nothing more."""

    async def judge(self, limits: Limits, *, dry: bool) -> tuple[Look, list[Verdict], dict[str, int]]:
        """Look; return what was seen, the verdicts, and the size of each module."""
        look = await self._looking.look()
        commanded = await self._remover.commanded(look.owned)
        candidates = self._looking.candidates(look, limits, commanded, dry=dry)
        sizes = {candidate.module: candidate.size for candidate in candidates}
        return look, decide(candidates, look.began), sizes

    async def run(self, limits: Callable[[], Limits]) -> Pass:
        """Make a pass, and return what became of each module of ours; `limits` are those of the moment."""
        sofar = _Sofar()
        for _ in range(_LOOKS):
            look, verdicts, sizes = await self.judge(limits(), dry=False)
            before = len(sofar.gone)
            sofar.sizes.update(sizes)
            all_seen = await self._unload(look, verdicts, limits, sofar)
            if all_seen or len(sofar.gone) == before:
                break
        return sofar.made()

    async def _unload(
        self, look: Look, verdicts: list[Verdict], limits: Callable[[], Limits], sofar: _Sofar
    ) -> bool:
        """Unload those that go; False where the look has become too old before all were tried."""
        sofar.stays = {verdict.module: verdict for verdict in verdicts if not verdict.goes}
        for verdict in verdicts:
            module = verdict.module
            if not verdict.goes or module in sofar.failed:
                continue
            if self._looking.clock() - look.ended > OLD:
                sofar.stays[module] = Verdict(module, False, "it is looked at again", 0)
                return False
            owned = self._ours.get(module)
            # Since the verdict somebody may have changed a setting, or claimed it.
            if owned is None or self.stopping or not limits().may_go(module):
                sofar.stays[module] = Verdict(module, False, "that it goes has just been taken back")
                continue
            try:
                gone = await self._one(module, sofar.sizes[module], owned, verdict.reason, look)
            except Exception as err:  # noqa: BLE001 - one module's failure is not the others'
                if is_failure(err):
                    sofar.failed[module] = str(err)
                    # Not each time anew, if it is its own nature.
                    owned.touched = max(owned.touched, look.began)
                sofar.stays[module] = Verdict(module, False, str(err))
            else:
                if gone:
                    sofar.gone[module] = verdict
                else:
                    sofar.stays[module] = Verdict(module, False, "it is being unloaded")
        return True

    async def _one(self, module: str, size: int, owned: Owned, reason: str, look: Look) -> bool:
        """Unload one module; False where that takes long: the pass goes on meanwhile.

        Raises:
            KernelError: it stays: it has found a user, or the kernel has refused.
        """
        work = asyncio.get_running_loop().create_task(
            self._remover.remove_idle(
                module,
                reason,
                lambda: self._looking.in_use(module, owned, look),
                lambda: self._looking.gone(module),
            )
        )
        done, _pending = await asyncio.wait([work], timeout=PATIENCE)
        if done:
            work.result()
            return True
        self._late(module, size, work)
        return False
