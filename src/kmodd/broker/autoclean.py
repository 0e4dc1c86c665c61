"""Which modules are marked for autoclean: unloading them once nobody uses them is a later version's."""

from __future__ import annotations

from collections.abc import Iterable

from kmodd.broker.threads import in_own_thread
from kmodd.errors import InvalidName
from kmodd.kernel.interface import Kernel
from kmodd.names import check, normalise
from kmodd.record.recorder import Recorder

MARKS_MAX = 20_000
"""More names than any kernel has modules; who marks is root, whose scripts may loop all the same."""


class Autoclean:
    """Marked modules, each as the one that was in the kernel then: one that comes again is another."""

    def __init__(self, kernel: Kernel, recorder: Recorder) -> None:
        self._kernel = kernel
        self._recorder = recorder
        self._marked: dict[str, str] = {}

    async def mark(self, names: Iterable[str]) -> list[str]:
        """Mark those of these modules that are in the kernel, as `modprobe -k` did in 1998; return them.

        Raises:
            InvalidName: one of them is no module's name; nothing is marked then.
        """
        wanted = [normalise(check(name.encode("utf-8", errors="surrogatepass"))) for name in names]
        if len(wanted) > MARKS_MAX:
            raise InvalidName(f"{len(wanted)} names in one call; at most {MARKS_MAX} are taken")
        identities = await self._identities(wanted)
        found = {name: identity for name, identity in identities.items() if identity is not None}
        if found:
            self._marked.update(found)
            self._recorder.add("autoclean", {"action": "mark", "modules": list(found)})
        return list(found)

    async def marked(self) -> frozenset[str]:
        """Return the modules in the kernel that are marked; one unloaded and loaded again is not."""
        noted = dict(self._marked)
        now = await self._identities(noted)
        for name, identity in noted.items():
            if now[name] != identity and self._marked.get(name) == identity:
                del self._marked[name]
        return frozenset(self._marked)

    async def _identities(self, names: Iterable[str]) -> dict[str, str | None]:
        wanted = list(names)
        if not wanted:
            return {}
        return await in_own_thread(
            "kmod_list", lambda: {name: self._kernel.identity(name) for name in wanted}
        )
