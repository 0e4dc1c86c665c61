"""Who asked, found out while the kernel still starts the helper: with a second processor that costs no time.

A task that waits for its helper does not change, so an earlier look is as good as one when the helper has
come, if the task has not run in between. What tells that stays open: its number cannot become that of another
task.
"""

from __future__ import annotations

from collections.abc import Collection

from kmodd.kernel import requester
from kmodd.kernel.requester import Look
from kmodd.kernel.tracing import Asked
from kmodd.model import Requester

AT_ONCE = 64
"""Looks that are kept; the kernel has 50 requests at once at most."""


class Ahead:
    """The looks at tasks whose helpers have not come yet."""

    def __init__(self, proc: str) -> None:
        self._proc = proc
        self._looks: dict[Asked, tuple[Look, bool]] = {}

    def look(self, asked: Asked, *, check_exe: bool) -> None:
        """Look at the task of a record; one that does not wait yet is looked at when its helper has come."""
        if not asked.wait or asked in self._looks or len(self._looks) >= AT_ONCE:
            return
        found = requester.look(asked.tid, self._proc, check_exe=check_exe)
        if found is not None:
            self._looks[asked] = found, check_exe

    def who(self, asked: Asked, *, check_exe: bool) -> Requester | None:
        """Return who the task of a record is, where it was looked at and has not run since; else None.

        `check_exe`: a look that left this out, before a policy that needs it was in force, is not enough.
        """
        look, checked = self._looks.get(asked, (None, False))
        if look is None or (check_exe and not checked) or not look.holds():
            return None
        return look.requester

    def has(self, asked: Asked) -> bool:
        """Whether there is a look at the task of a record that may still hold."""
        return asked in self._looks

    def forget(self, asked: Asked) -> None:
        """Forget the look at the task of a record, where there is one."""
        self._looks.pop(asked, None)

    def keep(self, records: Collection[Asked]) -> None:
        """Forget all but the looks at these."""
        if self._looks:
            for asked in self._looks.keys() - set(records):
                del self._looks[asked]
