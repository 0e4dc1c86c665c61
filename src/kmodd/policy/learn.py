"""From what was used to a policy that allows that and nothing else, and what it would have denied. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kmodd.model import Outcome, Requester, Source
from kmodd.policy.decide import Judgement
from kmodd.policy.files import Policy
from kmodd.policy.inforce import PolicyInForce
from kmodd.policy.parse import quoted
from kmodd.policy.rules import Facts, Wanted

_NAMES_SHOWN = 6
_NO_RULES = frozenset({"cgroup", "namespaces"})
"""What is told of a requester that no rule asks for."""
_KINDS_MAX = 1000
_GOT = frozenset(outcome.value for outcome in (Outcome.LOADED, Outcome.ALREADY_LIVE, Outcome.BUILT_IN))


@dataclass(frozen=True, slots=True)
class Observed:
    """A request of the journal. `wanted`: what it stands for, None where that cannot be said any more."""

    time: str
    facts: Facts
    outcome: str
    wanted: Wanted | None


@dataclass(frozen=True, slots=True, order=True)
class _Who:
    """What a learned rule says of the requester; None for what it does not say."""

    source: str
    uid: int = -1
    exe: str = ""
    unit: str = ""
    container: str = ""


Own = Callable[[str], bool]
"""Whether the path of a program means the same to everybody: it is one of the machine's own."""


def _who(facts: Facts, own: Own) -> _Who:
    """Return what a rule says of a requester: what will be known of it the next time, too.

    The path of a program in a container, or in a service, which may have mounts of its own, is not.
    """
    requester = facts.requester
    if requester.uid is None:
        return _Who(facts.source.value)
    if not facts.observed:
        return _Who(facts.source.value, requester.uid)
    if requester.container is not None:
        return _Who(facts.source.value, requester.uid, container="true")
    if requester.unit is not None and requester.unit.endswith(".service") and "@" not in requester.unit:
        return _Who(facts.source.value, requester.uid, unit=requester.unit, container="false")
    exe = requester.exe if requester.exe is not None and own(requester.exe) else ""
    return _Who(facts.source.value, requester.uid, exe, container="false")


@dataclass(slots=True)
class _Used:
    """What one requester has used: how often and until when, by which names, and what a rule lists of it."""

    count: int = 0
    until: str = ""
    names: dict[str, None] = field(default_factory=dict)
    """The first few, and one more where there are more."""
    items: set[str] = field(default_factory=set)

    def add(self, request: Observed, items: Iterable[str]) -> None:
        """Count a request."""
        self.count += 1
        self.until = request.time[:10]
        if len(self.names) <= _NAMES_SHOWN:
            self.names[request.facts.name] = None
        self.items.update(items)


def learn(
    observed: Iterable[Observed], live: Collection[str], made: str, own: Own = lambda _exe: True
) -> str:
    """Return the text of a policy file that allows what was used, by whom, and denies everything else.

    A request that was denied teaches nothing, and neither does a stranger's of the API that came to nothing:
    whoever gives up at once is not judged, and would be given a right by it. `live`: modules that are in the
    kernel whoever brought them in; privileged tasks may have them. `made`: when, for its first line.
    """
    used: dict[tuple[_Who, str], _Used] = {}
    listed: set[str] = set()
    total = 0
    for request in observed:
        total += 1
        if not _teaches(request):
            continue
        key, items = "module", () if request.wanted is None else request.wanted.targets
        if request.wanted is not None:
            listed |= request.wanted.modules
        elif request.outcome != "not-found":
            # What it stands for nobody can say: the name itself, but one that nothing was found for.
            key, items = "name", (request.facts.name,)
        if items:
            used.setdefault((_who(request.facts, own), key), _Used()).add(request, items)
    lines = [
        f"# Learned by `kmodd policy learn`, {made}, from {total} requests.",
        "# What was used is allowed, to whom it was of use; everything else is denied. Read it before it",
        "# counts: what a machine needs once a year is not in it. In mode audit it only tells.",
        'mode = "enforce"',
    ]
    for (who, key), what in sorted(used.items(), key=lambda item: item[0]):
        lines += _rule(who, key, what)
    if others := sorted(set(live) - listed):
        lines += [
            "",
            "# In the kernel now, and not asked for through kmodd: for privileged tasks.",
            "[[rule]]",
        ]
        lines += [
            _list("module", list(map(_literal, others))),
            "privileged = true",
            'action = "allow"',
            'reason = "live"',
        ]
    lines += ["", "# Whatever else is installed. A name that nothing is installed for is not found, as ever."]
    lines += ["# unknown = true: and everything, while nobody can say what is installed."]
    lines += ["[[rule]]", 'module = "*"', "unknown = true", 'action = "deny"']
    lines += ['reason = "not used as far as was learned"', ""]
    return "\n".join(lines)


def _teaches(request: Observed) -> bool:
    if request.facts.source in {Source.API, Source.CLI} and request.facts.requester.uid != 0:
        return request.outcome in _GOT
    return request.outcome != "denied"


def _rule(who: _Who, key: str, used: _Used) -> list[str]:
    some = ", ".join([*used.names][:_NAMES_SHOWN]) + (", ..." if len(used.names) > _NAMES_SHOWN else "")
    return [
        "",
        f"# {used.count} requests until {used.until}: {some}",
        "[[rule]]",
        *_conditions(who),
        _list(key, sorted(map(_literal, used.items))),
        'action = "allow"',
        'reason = "learned"',
    ]


def _conditions(who: _Who) -> list[str]:
    lines = [f"source = {quoted(who.source)}"]
    if who.uid >= 0:
        lines.append(f"uid = {who.uid}")
    if who.exe:
        lines.append(f"exe = {quoted(_literal(who.exe))}")
    if who.unit:
        lines.append(f"unit = {quoted(_literal(who.unit))}")
    if who.container:
        lines.append(f"container = {who.container}")
    return lines


def _literal(text: str) -> str:
    """Return a glob that matches this text and no other."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in text)


def _list(key: str, items: Sequence[str]) -> str:
    lines, line = [f"{key} = ["], "   "
    for item in items:
        if len(line) + len(item) > 100:
            lines.append(line)
            line = "   "
        line += f" {quoted(item)},"
    return "\n".join([*lines, line, "]"])


@dataclass(frozen=True, slots=True)
class Denied:
    """Requests that would be denied, and that look alike. `already`: the policy in force denies them, too."""

    already: bool
    name: str
    uid: int | None
    exe: str | None
    why: str


@dataclass(slots=True)
class Simulated:
    """What a policy would have said of a journal: how many requests it would have denied, and which.

    `already`: how many of those the policy in force denies, too. `kinds`: how often what was denied, of a
    journal with very many kinds those that came first.
    """

    requests: int = 0
    denied: int = 0
    already: int = 0
    kinds: dict[Denied, int] = field(default_factory=dict)


def simulate(policy: Policy, in_force: Policy, observed: Iterable[Observed], now: datetime) -> Simulated:
    """Return what a policy would deny, both as if their mode were enforce and nothing were sealed.

    No rate is ever exceeded. Of the requests none is kept.
    """
    then, today = PolicyInForce(now=lambda: now), PolicyInForce(now=lambda: now)
    then.replace(policy)
    today.replace(in_force)
    found = Simulated()
    room = {False: _KINDS_MAX, True: _KINDS_MAX}  # what is denied already leaves room for what is new
    for request in observed:
        found.requests += 1
        judgement = _said(then, request)
        if judgement.allowed:
            continue
        already = not _said(today, request).allowed
        found.denied += 1
        found.already += already
        who = request.facts.requester
        kind = Denied(already, request.facts.name, who.uid, who.exe, judgement.why)
        if kind not in found.kinds and room[already]:
            room[already] -= 1
            found.kinds[kind] = 0
        if kind in found.kinds:
            found.kinds[kind] += 1
    return found


def _said(policy: PolicyInForce, request: Observed) -> Judgement:
    return policy.check(request.facts, lambda: request.wanted)


def observed(event: dict[str, object], wanted: Wanted | None) -> Observed:
    """Return a `request` event of the journal, as its JSON is, as something to learn from."""
    requester = event.get("requester")
    told = requester if isinstance(requester, dict) else {}
    known: dict[str, Any] = {key: told.get(key) for key in Requester().as_json() if key not in _NO_RULES}
    source = Source(event["source"])
    stranger = source in {Source.API, Source.CLI} and known["uid"] != 0
    return Observed(
        str(event["time"]),
        Facts(str(event["name"]), source, Requester(**known), stranger=stranger),
        str(event["outcome"]),
        wanted,
    )
