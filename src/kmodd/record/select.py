"""Which events somebody wants to see: the filters of `kmodd log`, pure."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from kmodd.model import Event


@dataclass(frozen=True, slots=True)
class Selection:
    """All given fields must match; `module` and `name` are globs.

    A module is one that was loaded or unloaded, or that a request was denied for. `event`: which kind.
    `denied`: whether requests that were denied are wanted, too.
    """

    since: datetime | None = None
    module: str | None = None
    name: str | None = None
    outcome: str | None = None
    uid: int | None = None
    event: str | None = None
    denied: bool = True

    def matches(self, event: Event) -> bool:
        """Return whether an event is wanted."""
        fields = event.fields
        if self.since is not None and event.time < self.since:
            return False
        if self.outcome is not None and fields.get("outcome") != self.outcome:
            return False
        if self.name is not None and not fnmatch.fnmatchcase(str(fields.get("name", "")), self.name):
            return False
        if self.event is not None and event.event != self.event:
            return False
        if not self.denied and event.event == "request" and fields.get("outcome") == "denied":
            return False
        if self.module is not None:
            modules = [*(fields.get("modules") or ()), *(fields.get("denied_modules") or ())]
            if "module" in fields:
                modules.append(fields["module"])
            if not any(fnmatch.fnmatchcase(module, self.module) for module in modules):
                return False
        return self.uid is None or (fields.get("requester") or {}).get("uid") == self.uid


def newest(events: Iterable[Event], selection: Selection, count: int | None) -> list[Event]:
    """Return the events that match, the newest `count` of them (all, where None), oldest first."""
    found = [event for event in events if selection.matches(event)]
    return found if count is None else found[max(0, len(found) - count) :]
