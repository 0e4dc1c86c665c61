"""What `CheckPolicy` says is what is done: the API's own method, and a broker that enforces, side by side."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmodd.broker.simulated import SimulatedLoader
from kmodd.broker.tickets import Asker
from kmodd.kernel.simulated import Installed
from kmodd.model import Outcome, Requester, Source
from kmodd.policy.files import Policy
from kmodd.policy.rules import REQUEST, Facts, Mode
from kmodd.sources.peer import Peer
from kmodd.sources.policymethods import PolicyMethods
from kmodd.sources.replies import current_peer
from support.bench import Bench
from support.policies import MODULES, as_toml, maybe, requests, tables, taken
from support.virtual import run

ALIASES = ["alias:x", "net-pf-1", "net_pf_2"]
USER = Requester(uid=1000, gid=1000, groups=(), privileged=False)


class Methods(PolicyMethods):
    """The API's methods about the policy of a bench's broker, with root as the caller."""

    def __init__(self, bench: Bench) -> None:
        assert isinstance(bench.loader, SimulatedLoader)
        self._broker = bench.broker
        self._plan = bench.loader.find_plan
        self._strangers_turn = asyncio.Lock()
        current_peer.set(Peer(1, 0, 0))

    def _need_reader(self) -> None:
        pass

    async def check(self, facts: Facts) -> dict[str, Any]:
        """Ask what would be said of a request, with all that the API takes of it."""
        who = facts.requester
        answer = await self.CheckPolicy(
            name=facts.name,
            source=facts.source.value,
            uid=who.uid,
            gid=who.gid,
            groups=None if who.groups is None else list(who.groups),
            exe=who.exe,
            unit=who.unit,
            container=who.container,
            privileged=who.privileged,
            call_site=who.call_site,
        )
        told: dict[str, Any] = answer.parameters["checked"]
        return told


async def both(bench: Bench, facts: Facts) -> tuple[dict[str, Any], bool, dict[str, Any]]:
    """Return what is said of a request; then whether it is allowed, and by what decision, once it is made."""
    told = await Methods(bench).check(facts)
    before = set(bench.kernel.modules())
    asker = Asker(facts.requester, stranger=facts.stranger)
    result = await bench.ask(facts.name, source=facts.source, asker=asker)
    denied = result.outcome is Outcome.DENIED
    if denied:
        assert set(bench.kernel.modules()) == before, "what is denied loads nothing"
    return told, not denied, bench.events("request")[-1]["decision"]


# Whatever the rules, and whoever asks


@st.composite
def installed(draw: st.DrawFn) -> list[Installed]:
    """Modules that need some of those before them; aliases of one, of several or of none."""
    found = []
    for number, name in enumerate(MODULES):
        depends = draw(st.lists(st.sampled_from(MODULES[:number]), max_size=2, unique=True)) if number else []
        aliases = draw(st.lists(st.sampled_from(ALIASES), max_size=1))
        builtin = draw(st.sampled_from([False, False, False, True]))
        found.append(Installed(name, tuple(depends), tuple(aliases), builtin=builtin))
    return found


def askable(facts: Facts) -> Facts:
    """Return a request without what the API cannot be told of, or takes to be so where it is not told."""
    who = replace(facts.requester, kernel_thread=None)
    if who.uid is not None and who.privileged is None:
        who = replace(who, privileged=who.uid == 0)
    return replace(facts, requester=who, operation=REQUEST)


def fitting(facts: Facts) -> dict[str, Any]:
    """Return what a rule may ask for that this request has."""
    who = facts.requester
    groups = [
        {10: "wheel", 2000: "lab"}.get(gid) for gid in (who.gid, *(who.groups or ())) if gid is not None
    ]
    found = {
        "name": facts.name,
        "source": facts.source.value,
        "user": {0: "root", 1000: "ann"}.get(-1 if who.uid is None else who.uid),
        "group": next(filter(None, groups), None),
        **{key: getattr(who, key) for key in FACTS},
    }
    return {key: value for key, value in found.items() if value is not None}


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[Facts]]:
    """Rules, and requests: at least one of these is what some rule means, as far as its facts go."""
    asked = draw(st.lists(requests(nested=False).map(askable), min_size=1, max_size=5))
    items = draw(st.lists(tables(), max_size=4))
    fits = fitting(draw(st.sampled_from(asked)))
    keys = draw(st.lists(st.sampled_from(sorted(fits)), min_size=1, max_size=2, unique=True))
    also = {
        key: value for key, value in draw(tables()).items() if key in {"action", "mode", "module", "unknown"}
    }
    items.insert(draw(st.integers(0, len(items))), also | {key: fits[key] for key in keys})
    return items, asked


FACTS = ("uid", "gid", "exe", "unit", "container", "privileged", "call_site")
FIELDS = ("name", "module", "source", "user", "group", *FACTS)
SEEN: Counter[tuple[str, bool]] = Counter()
"""By which fields rules have decided, and what."""


@settings(max_examples=300, deadline=None)
@given(
    case=cases(),
    modules=installed(),
    mode=maybe(st.sampled_from(Mode)),
    sealed=st.sampled_from([False, False, False, True]),
)
def whatever(
    case: tuple[list[dict[str, Any]], list[Facts]],
    modules: list[Installed],
    mode: Mode | None,
    sealed: bool,
) -> None:
    items, asked = case

    async def main() -> None:
        bench = Bench(modules)
        policy = bench.broker.policy
        policy.replace(Policy((taken(as_toml(items)),)))
        policy.set_mode(mode or Mode.ENFORCE)
        policy.seal(sealed)
        texts = {rule.place: rule.text for rule in policy.policy.rules}
        for facts in asked:
            told, allowed, decision = await both(bench, facts)
            assert (told["allowed"], told["decision"]) == (allowed, decision), facts
            for field in texts.get(decision["rule"], {}):
                SEEN[field, allowed] += 1
            SEEN["mode " + str(decision["mode"]), allowed] += 1
        bench.assert_all_answered_once()

    run(main())


def test_what_check_says_is_what_is_done() -> None:
    SEEN.clear()
    whatever()
    for field in (*FIELDS, "mode enforce"):
        for allowed in (False, True):
            assert SEEN[field, allowed], f"no rule with {field} has made this difference: {allowed=}"
    assert SEEN["mode audit", True], "no rule has only told"


# Each fact by itself

WHO = Facts("a", Source.KERNEL, USER)


def by(**facts: Any) -> Facts:
    """Return a request by a user, of whom some facts are others."""
    return replace(WHO, requester=replace(USER, **facts))


@pytest.mark.parametrize(
    ("rule", "denied", "allowed"),
    [
        ('name = "a"', WHO, replace(WHO, name="b")),
        ('module = "dep"', WHO, replace(WHO, name="b")),
        ('source = "kernel"', WHO, replace(WHO, source=Source.UEVENT)),
        ("uid = 1000", WHO, by(uid=1001)),
        ("gid = 1000", WHO, by(gid=100)),
        ('group = "wheel"', by(groups=(9, 10)), by(groups=(9,))),
        ('group = "wheel"', by(gid=10), by(groups=None)),
        ('group = "wheel"\nunknown = true', by(groups=None), by(groups=())),
        ('exe = "/usr/*"', by(exe="/usr/a"), by(exe="/tmp/a")),
        ('unit = "x.service"', by(unit="x.service"), by(unit=None)),
        ("container = true", by(container="c"), by(container=None)),
        ("privileged = false", by(uid=0, privileged=False), by(privileged=True)),
        ('call_site = "f*"', by(call_site="f"), by(call_site="g")),
        ('name = "b"', replace(WHO, source=Source.API, stranger=True), by(uid=0, privileged=True)),
    ],
)
def test_each_fact_decides(rule: str, denied: Facts, allowed: Facts) -> None:
    """A request that a rule denies, and one of which one fact is another."""

    async def main() -> None:
        for facts, may in ((denied, False), (allowed, True)):
            bench = Bench([Installed("dep"), Installed("a", depends=("dep",)), Installed("b")])
            bench.broker.policy.replace(Policy((taken(f'[[rule]]\naction = "deny"\n{rule}\n'),)))
            told, done, decision = await both(bench, facts)
            assert (told["allowed"], done) == (may, may), facts
            assert told["decision"] == decision

    run(main())


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("whole", Mode)
def test_each_mode_decides(mode: Mode, whole: Mode) -> None:
    async def main() -> None:
        bench = Bench([Installed("a")])
        text = f'mode = "{mode.value}"\n[[rule]]\naction = "deny"\n'
        bench.broker.policy.replace(Policy((taken(text),)))
        bench.broker.policy.set_mode(whole)
        told, done, decision = await both(bench, WHO)
        may = (mode, whole) != (Mode.ENFORCE, Mode.ENFORCE)
        assert (told["allowed"], done) == (may, may)
        assert told["decision"] == decision
        assert (decision["action"] == "deny") is (Mode.OFF not in {mode, whole})

    run(main())


def test_a_rate_is_looked_at_and_not_counted() -> None:
    async def main() -> None:
        bench = Bench([Installed("a")])
        bench.broker.policy.replace(Policy((taken('[[rule]]\nrate = "2/day"\naction = "deny"\n'),)))
        for _ in range(3):
            assert (await Methods(bench).check(WHO))["allowed"] is True
        said = [await both(bench, WHO) for _ in range(4)]
        assert [told["allowed"] for told, _done, _decision in said] == [True, True, False, False]
        assert all((told["allowed"], told["decision"]) == (done, decision) for told, done, decision in said)

    run(main())
