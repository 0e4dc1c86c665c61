"""From what was used to a policy that allows that and nothing else, and what it would have denied. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kmodd.model import Outcome, Requester, Source
from kmodd.policy.decide import Judgement, RuleSet, decide
from kmodd.policy.parse import quoted
from kmodd.policy.rules import Facts, Mode, Rule, Wanted

_NAMES_SHOWN = 6
_NO_RULES = frozenset({"cgroup", "namespaces"})
"""What is told of a requester that no rule asks for."""
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


def learn(
    observed: Sequence[Observed], live: Collection[str], made: str, own: Own = lambda _exe: True
) -> str:
    """Return the text of a policy file that allows what was used, by whom, and denies everything else.

    A request that was denied teaches nothing, and neither does a stranger's of the API that came to nothing:
    whoever gives up at once is not judged, and would be given a right by it. `live`: modules that are in the
    kernel whoever brought them in; privileged tasks may have them. `made`: when and from what, for its first
    line.
    """
    used: dict[_Who, list[Observed]] = {}
    for request in observed:
        if _teaches(request):
            used.setdefault(_who(request.facts, own), []).append(request)
    lines = [
        f"# Learned by `kmodd policy learn`, {made}.",
        "# What was used is allowed, to whom it was of use; everything else is denied. Read it before it",
        "# counts: what a machine needs once a year is not in it. In mode audit it only tells.",
        'mode = "enforce"',
    ]
    listed: set[str] = set()
    for who in sorted(used):
        lines += _rules(who, used[who], listed)
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


def _rules(who: _Who, requests: Sequence[Observed], listed: set[str]) -> list[str]:
    clear = [request for request in requests if request.wanted is not None and request.wanted.targets]
    # What these stand for nobody can say: the names themselves, but those that nothing was found for.
    unclear = [request for request in requests if request.wanted is None and request.outcome != "not-found"]
    modules = {module for request in clear if request.wanted is not None for module in request.wanted.targets}
    names = {request.facts.name for request in unclear}
    listed.update(*(request.wanted.modules for request in clear if request.wanted is not None))
    lines: list[str] = []
    for key, items, by in (("module", modules, clear), ("name", names, unclear)):
        if not items:
            continue
        asked = list(dict.fromkeys(request.facts.name for request in by))
        some = ", ".join(asked[:_NAMES_SHOWN]) + (", ..." if len(asked) > _NAMES_SHOWN else "")
        lines += ["", f"# {len(by)} requests until {by[-1].time[:10]}: {some}", "[[rule]]"]
        lines += [*_conditions(who), _list(key, sorted(map(_literal, items)))]
        lines += ['action = "allow"', 'reason = "learned"']
    return lines


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


def simulate(
    rules: Iterable[Rule], observed: Iterable[Observed], now: datetime
) -> list[tuple[Observed, Judgement]]:
    """Return the requests that these rules would deny, or tell of in audit mode. No rate is ever exceeded."""
    chosen = RuleSet.of(rules, Mode.ENFORCE)
    found = []
    for request in observed:
        judgement = decide(chosen, request.facts, request.wanted, now, lambda _rule, _facts: False)
        if judgement.decision.action == "deny":
            found.append((request, judgement))
    return found


def observed(event: dict[str, object], wanted: Wanted | None) -> Observed:
    """Return a `request` event of the journal, as its JSON is, as something to learn from."""
    requester = event.get("requester")
    told = requester if isinstance(requester, dict) else {}
    known: dict[str, Any] = {key: told.get(key) for key in Requester().as_json() if key not in _NO_RULES}
    return Observed(
        str(event["time"]),
        Facts(str(event["name"]), Source(event["source"]), Requester(**known)),
        str(event["outcome"]),
        wanted,
    )
