"""Policies, requests and plans to try rules with: written down, or drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from kmodd.model import Requester, Source
from kmodd.policy.decide import Judgement, RuleSet, decide
from kmodd.policy.parse import Names, PolicyFile, parse, quoted
from kmodd.policy.rules import OPERATIONS, Facts, Mode, Rule, Wanted

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
NAMES = Names(
    user={"root": 0, "ann": 1000}.get,
    group={"wheel": 10, "lab": 2000}.get,
    groups={"net": ("dccp*", "sctp"), "one": ("m_1",)},
)


def taken(text: str, file: str = "50-test.toml") -> PolicyFile:
    return parse(text, file, NAMES)


def rules(text: str) -> tuple[Rule, ...]:
    return taken(text).rules


def rule(fields: str, action: str = "deny") -> Rule:
    """Return one rule of these lines."""
    [only] = rules(f'[[rule]]\naction = "{action}"\n{fields}\n')
    return only


def wants(needs: Mapping[str, Iterable[str]], *targets: str, new: Iterable[str] | None = None) -> Wanted:
    """Return the plan for some modules, by default for the first; `needs`: of any of them what each needs."""
    asked = targets or tuple(needs)[:1]
    found: dict[str, frozenset[str]] = {}
    left = list(asked)
    while left:
        name = left.pop()
        found[name] = frozenset(needs.get(name, ()))
        left += found[name]
    return Wanted(asked, found, frozenset(found if new is None else new))


def asks(name: str = "m_0", source: Source = Source.KERNEL, *, stranger: bool = False, **who: Any) -> Facts:
    return Facts(name, source, Requester(**who), stranger=stranger)


def never(_rule: Rule, _facts: Facts) -> bool:
    return False


def judged(
    policy: str | Iterable[Rule],
    facts: Facts,
    wanted: Wanted | None,
    *,
    mode: Mode = Mode.ENFORCE,
    sealed: bool = False,
) -> Judgement:
    """Return what a policy says; every rate is exceeded of the rules in odd lines."""
    given = rules(policy) if isinstance(policy, str) else policy
    return decide(
        RuleSet.of(given, mode), facts, wanted, NOW, lambda rule, _facts: rule.line % 2 == 1, sealed=sealed
    )


def allowed(policy: str | Iterable[Rule], facts: Facts, wanted: Wanted | None, **more: Any) -> bool:
    """Return whether such a request goes on: a stranger's only where rules let that very peer."""
    judgement = judged(policy, facts, wanted, **more)
    return judgement.allowed and (not facts.stranger or facts.nested or judgement.lets_peer)


# Drawn

MODULES = [f"m_{number}" for number in range(6)]
_NAMES = st.sampled_from(["m-0", "m_1", "m_5", "alias:x", "net-pf-1", "net_pf_2", "nothing"])
_NAME_GLOBS = st.sampled_from(["m-0", "m_*", "net-pf-*", "alias:?", "*", "nothing"])
_MODULE_GLOBS = st.sampled_from([*MODULES, "m-3", "m_[12]", "m_?", "*", "@one", "x*"])
_EXES = st.sampled_from(["/usr/bin/a", "/usr/bin/b", "/tmp/x"])
_EXE_GLOBS = st.sampled_from(["/usr/bin/*", "/usr/bin/a", "*"])
_LABELS = st.sampled_from(["a.service", "b.service"])
_LABEL_GLOBS = st.one_of(st.booleans(), st.sampled_from(["a.service", "*.service", ["a.service", "x"]]))
_IDS = st.sampled_from([0, 10, 1000, 2000])
_ID_FIELDS = st.sampled_from([0, 1000, "0-1000", [10, 2000], "0-4294967295"])


def _lists(values: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(values, min_size=1, max_size=2, unique=True)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), strategy)


def requesters() -> st.SearchStrategy[Requester]:
    """Whoever may ask, and what may not be known of him."""
    return st.builds(
        Requester,
        uid=maybe(_IDS),
        gid=maybe(_IDS),
        exe=maybe(_EXES),
        unit=maybe(_LABELS),
        container=maybe(_LABELS),
        privileged=maybe(st.booleans()),
        call_site=maybe(st.sampled_from(["inet_create", "get_fs_type"])),
        kernel_thread=maybe(st.booleans()),
        groups=maybe(st.lists(_IDS, max_size=2).map(tuple)),
    )


@st.composite
def requests(draw: st.DrawFn, *, nested: bool = True) -> Facts:
    """A request as the daemon would have it: who is not root, and not known to be, is a stranger of the API."""
    source = draw(st.sampled_from([*Source, Source.KERNEL, Source.KERNEL]))
    who = draw(requesters())
    stranger = source in {Source.API, Source.CLI} and who.uid != 0
    operation = draw(st.sampled_from([OPERATIONS[0], *OPERATIONS])) if source is Source.API else OPERATIONS[0]
    inside = nested and operation == OPERATIONS[0] and draw(st.sampled_from([False, False, True]))
    if source is not Source.KERNEL and not inside:
        who = replace(who, call_site=None)
    return Facts(draw(_NAMES), source, who, operation, inside, stranger)


@st.composite
def plans(draw: st.DrawFn) -> Wanted | None:
    """What a name stands for: modules that need modules below them; nothing; or nobody can say."""
    if draw(st.integers(0, 9)) == 0:
        return None
    targets = draw(st.lists(st.sampled_from(MODULES), max_size=2, unique=True))
    depends = {
        name: frozenset(draw(st.lists(st.sampled_from(MODULES[:number]), max_size=2)))
        if number
        else frozenset()
        for number, name in enumerate(MODULES)
    }
    needs: dict[str, frozenset[str]] = {}
    left = list(targets)
    while left:
        name = left.pop()
        needs[name] = depends[name]
        left += depends[name]
    new = draw(st.sets(st.sampled_from(sorted(needs)))) if needs else set()
    return Wanted(tuple(targets), needs, frozenset(new))


@st.composite
def tables(
    draw: st.DrawFn,
    *,
    actions: tuple[str, ...] = ("allow", "deny"),
    modes: tuple[str, ...] = ("enforce", "audit", "off"),
) -> dict[str, Any]:
    """The keys of one rule; most ask for little, so that they meet requests, and each other."""
    action = draw(st.sampled_from(actions))
    mode = draw(st.sampled_from([modes[0], *modes]))
    found: dict[str, Any] = {"action": action, "mode": mode}
    choices: dict[str, st.SearchStrategy[Any]] = {
        "module": _lists(_MODULE_GLOBS),
        "name": _lists(_NAME_GLOBS),
        "source": _lists(st.sampled_from([item.value for item in Source])),
        "operation": _lists(st.sampled_from(OPERATIONS)),
        "privileged": st.booleans(),
        "uid": _ID_FIELDS,
        "gid": _ID_FIELDS,
        "user": st.sampled_from(["root", "ann", "nobody-knows"]),
        "group": st.sampled_from(["wheel", "lab"]),
        "exe": _lists(_EXE_GLOBS),
        "unit": _LABEL_GLOBS,
        "container": _LABEL_GLOBS,
        "call_site": st.sampled_from(["inet_*", "get_fs_type"]),
        "until": st.sampled_from([datetime(2026, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC)]),
        "rate": st.just("1/min"),
    }
    keys = draw(st.lists(st.sampled_from(["module", "module", *choices]), max_size=3, unique=True))
    for key in keys:
        found[key] = draw(choices[key])
    if action == "deny" and draw(st.booleans()):
        found["unknown"] = True
    return found


def as_toml(items: Iterable[Mapping[str, Any]]) -> str:
    """Return a policy file of rules."""
    lines = []
    for table in items:
        lines += ["[[rule]]", *(f"{key} = {_value(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, int) else quoted(value)


def policies(*, most: int = 6, **more: Any) -> st.SearchStrategy[tuple[Rule, ...]]:
    """The rules of a file as they are read from its text."""
    return st.lists(tables(**more), max_size=most).map(lambda items: rules(as_toml(items)))
