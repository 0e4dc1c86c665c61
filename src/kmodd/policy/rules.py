"""A rule of the policy: what it asks of a request, and whether a request has that. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from kmodd.model import Requester, Source
from kmodd.policy.patterns import Globs, Numbers, plain

REQUEST, REMOVE, SET = "request", "remove", "set"
OPERATIONS = (REQUEST, REMOVE, SET)
"""What a peer of the API may want: a module, its removal, a change of a setting."""


class Action(enum.Enum):
    """What a rule says."""

    ALLOW = "allow"
    """The requester may have it."""
    DENY = "deny"
    """The requester may not have it."""


class Mode(enum.Enum):
    """How much a rule counts."""

    ENFORCE = "enforce"
    """It decides."""
    AUDIT = "audit"
    """What it would decide is recorded and logged, and what the other rules say is done."""
    OFF = "off"
    """It is not looked at."""

    @property
    def strength(self) -> int:
        """A number: the weaker of two modes counts."""
        return {"off": 0, "audit": 1, "enforce": 2}[self.value]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request would load. `targets` are the modules that its name stands for.

    `needs`: for each module of the plan those that it needs itself. `new`: the modules that are neither live
    nor part of the kernel image.
    """

    targets: tuple[str, ...]
    needs: Mapping[str, frozenset[str]]
    new: frozenset[str]

    @property
    def modules(self) -> frozenset[str]:
        """Every module of the plan."""
        return frozenset(self.needs)

    def needed_by(self, modules: frozenset[str]) -> frozenset[str]:
        """Return what these need, themselves or through others."""
        found: set[str] = set()
        left = list(modules)
        while left:
            more = self.needs.get(left.pop(), frozenset()) - found
            found |= more
            left += more
        return frozenset(found)


@dataclass(frozen=True, slots=True)
class Facts:
    """A request as the policy sees it. `nested`: made by a module, on behalf of `requester`, as it loads.

    `stranger`: a peer of the API that may have nothing but what a rule gives it. `gone`: whoever asked has
    ended before anybody could look at him.
    """

    name: str
    source: Source
    requester: Requester
    operation: str = REQUEST
    nested: bool = False
    stranger: bool = False
    gone: bool = False

    @property
    def known(self) -> bool:
        """Whether it is known who asked."""
        return self.requester.uid is not None

    @property
    def observed(self) -> bool:
        """Whether program, unit and container are the requester's for sure.

        A task that the kernel holds cannot change them. A peer of the API can, and has its rights by its
        user id alone; root's are what root says.
        """
        return self.known and (self.source is Source.KERNEL or self.requester.uid == 0)


@dataclass(frozen=True, slots=True)
class Rate:
    """So many requests in so many seconds."""

    count: int
    seconds: float
    text: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. A field that is None was not given. `line`: that of its `[[rule]]`."""

    file: str
    line: int
    action: Action
    mode: Mode
    reason: str | None = None
    name: Globs | None = None
    module: Globs | None = None
    source: frozenset[str] | None = None
    operation: frozenset[str] = frozenset({REQUEST})
    privileged: bool | None = None
    uid: Numbers | None = None
    gid: Numbers | None = None
    user: Numbers | None = None
    group: Numbers | None = None
    exe: Globs | None = None
    unit: Globs | bool | None = None
    container: Globs | bool | None = None
    call_site: Globs | None = None
    until: datetime | None = None
    rate: Rate | None = None
    unknown: bool = False
    text: Mapping[str, object] = field(default_factory=dict, compare=False)
    """Its keys as they are written."""

    @property
    def place(self) -> str:
        """Where it stands, as decisions name it: `30-desktop.toml:2`."""
        return f"{self.file}:{self.line}"

    @property
    def any_module(self) -> bool:
        """Whether its field `module` takes whatever is installed."""
        return self.module is not None and self.module.any

    @property
    def names_peers(self) -> bool:
        """Whether it says who may ask through the API: no other rule gives strangers a right there."""
        api = self.source is not None and bool(self.source & {Source.API.value, Source.CLI.value})
        return api or any(field is not None for field in (self.uid, self.gid, self.user, self.group))

    def ended(self, now: datetime) -> bool:
        """Whether its time is over."""
        return self.until is not None and now >= self.until

    def asks_for(self, facts: Facts) -> bool:
        """Return whether all of its fields match but `module` and `rate`; a fact that is unknown does not.

        In a rule with `unknown` it does.
        """
        if facts.operation not in self.operation:
            return False
        if self.source is not None and facts.source.value not in self.source:
            return False
        if self.name is not None and not self.name.matches(plain(facts.name)):
            return False
        who = facts.requester
        if self.privileged is not None and who.privileged is not self.privileged:
            return self.unknown and who.privileged is None and self._others(facts)
        return self._others(facts)

    def _others(self, facts: Facts) -> bool:
        who = facts.requester
        for wanted in (self.uid, self.user):
            if wanted is not None and not self._number(wanted, who.uid):
                return False
        for wanted in (self.gid, self.group):
            if wanted is not None and not self._groups(wanted, who):
                return False
        return self._program(facts)

    def _number(self, wanted: Numbers, number: int | None) -> bool:
        return self.unknown if number is None else wanted.matches(number)

    def _groups(self, wanted: Numbers, who: Requester) -> bool:
        if (who.gid is not None and wanted.matches(who.gid)) or wanted.match_any(who.groups or ()):
            return True
        # Of whom not all groups are known, he may be in this one too.
        return self.unknown and (who.gid is None or who.groups is None)

    def _program(self, facts: Facts) -> bool:
        who = facts.requester
        if self.exe is not None:
            doubtful = who.exe_doubtful or (who.exe is None and who.kernel_thread is not True)
            if doubtful or not facts.observed:
                if not self.unknown:
                    return False
            elif who.exe is None or not self.exe.matches(who.exe):
                return False  # a kernel thread runs no program
        for wanted, value in ((self.unit, who.unit), (self.container, who.container)):
            if wanted is not None and not self._belongs(wanted, value, facts):
                return False
        return self.call_site is None or self._site(self.call_site, facts)

    def _belongs(self, wanted: Globs | bool, value: str | None, facts: Facts) -> bool:
        if not facts.observed:
            return self.unknown
        if isinstance(wanted, bool):
            return (value is not None) is wanted
        return value is not None and wanted.matches(value)

    def _site(self, wanted: Globs, facts: Facts) -> bool:
        site = facts.requester.call_site
        if site is None:
            # Nobody calls request_module() where a program asks through the API.
            return self.unknown and facts.source is Source.KERNEL
        return wanted.matches(site)
