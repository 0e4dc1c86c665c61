"""From the journal to a policy: what was used is allowed, to whom it was of use, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kmodd.model import Decision, Requester, Source
from kmodd.policy.learn import Observed, learn, observed, simulate
from kmodd.policy.rules import Facts, Rule, Wanted
from support.policies import (
    MODULES,
    NOW,
    allowed,
    asks,
    judged,
    plans,
    policies,
    requesters,
    rules,
    taken,
    wants,
)

TIME = "2026-11-23T08:00:00.000000Z"
USER: dict[str, Any] = {"uid": 1000, "gid": 1000, "exe": "/usr/bin/a", "privileged": False}


def saw(
    wanted: Wanted | None,
    name: str = "m_0",
    outcome: str = "loaded",
    source: Source = Source.KERNEL,
    **who: Any,
) -> Observed:
    return Observed(TIME, asks(name, source, **(who or USER)), outcome, wanted)


def learned(*requests: Observed, live: tuple[str, ...] = ()) -> tuple[Rule, ...]:
    file = taken(learn(requests, live, "today"), "50-learned.toml")
    assert not file.doubts
    return file.rules


def test_a_module_is_allowed_to_whom_it_was_of_use_and_to_nobody_else() -> None:
    policy = learned(saw(wants({"sctp": ["crc"]}), "net-pf-2-proto-132"))
    plan = wants({"sctp": ["crc"]})
    assert allowed(policy, asks("net-pf-2-proto-132", **USER), plan)
    for other in ({"uid": 1001}, {"exe": "/usr/bin/b"}, {"container": "c"}, {"uid": None}, {"exe": None}):
        assert not allowed(policy, asks("net-pf-2-proto-132", **{**USER, **other}), plan), other
    assert not allowed(policy, asks("dccp", **USER), wants({"dccp": []}))
    assert allowed(policy, asks("crc", **USER), wants({"crc": []}, new=[])) is False


def test_a_name_that_nothing_is_installed_for_is_not_found_as_ever() -> None:
    nothing = Wanted((), {}, frozenset())
    assert allowed(learned(), asks("net-pf-99", **USER), nothing)
    assert allowed(learned(saw(nothing, "net-pf-99", "not-found")), asks("net-pf-99", **USER), nothing)


def test_where_nobody_can_say_what_is_installed_the_names_that_were_asked_for_are_allowed() -> None:
    policy = learned(saw(None, "old-*name", "loaded"))
    assert allowed(policy, asks("old-*name", **USER), None)
    assert not allowed(policy, asks("old-xname", **USER), None)
    assert not allowed(policy, asks("other", **USER), None)


def test_what_was_denied_teaches_nothing() -> None:
    plan = wants({"dccp": []})
    assert not allowed(learned(saw(plan, outcome="denied")), asks(**USER), plan)


def test_what_is_live_may_be_asked_for_by_privileged_tasks() -> None:
    policy = learned(live=("ext4", "we[ird"))
    assert allowed(policy, asks(privileged=True, uid=0), wants({"ext4": []}))
    assert allowed(policy, asks(privileged=True, uid=0), wants({"we[ird": []}))
    assert not allowed(policy, asks(**USER), wants({"ext4": []}))
    assert len(learned(saw(wants({"ext4": []})), live=("ext4",))) == 2


def test_peers_of_the_api_are_known_by_their_user_alone() -> None:
    policy = learned(saw(wants({"m_0": []}), source=Source.API, **USER))
    assert allowed(policy, asks(source=Source.API, stranger=True, uid=1000, exe="/tmp/z"), wants({"m_0": []}))
    assert not allowed(policy, asks(source=Source.KERNEL, **USER), wants({"m_0": []}))


def test_a_stranger_that_has_got_nothing_is_given_nothing() -> None:
    plan = wants({"dccp": []})
    who = asks(source=Source.API, stranger=True, **USER)
    for outcome in ("timed-out", "deadlock", "failed", "denied", "not-found"):
        assert not allowed(learned(saw(plan, outcome=outcome, source=Source.API)), who, plan), outcome
    for outcome in ("loaded", "already-live", "built-in"):
        assert allowed(learned(saw(plan, outcome=outcome, source=Source.API)), who, plan), outcome
    assert allowed(learned(saw(plan, outcome="timed-out")), asks(**USER), plan)


def test_programs_with_any_path_are_learned() -> None:
    for exe in ("/tmp/[x]*?", "/tmp/\\ \"'#é", "/" + "[*]" * 1365, "/a\x7f".replace("\x7f", "\\x7f")):
        who = {**USER, "exe": exe}
        policy = learned(saw(wants({"m_0": []}), **who))
        assert allowed(policy, asks(**who), wants({"m_0": []}))
        assert not allowed(policy, asks(**{**who, "exe": exe + "x"}), wants({"m_0": []}))


def test_it_is_for_people_to_read() -> None:
    many = [saw(wants({"m_0": []}), f"alias-{number}") for number in range(8)]
    text = learn(many, (), "2026-11-23, from 8 requests")
    assert text.startswith("# Learned by `kmodd policy learn`, 2026-11-23, from 8 requests.\n")
    assert (
        "# 8 requests until 2026-11-23: alias-0, alias-1, alias-2, alias-3, alias-4, alias-5, ...\n" in text
    )
    assert 'mode = "enforce"' in text
    wide = learn([saw(wants({f"module_{number}": []})) for number in range(500)], (), "today")
    assert max(map(len, wide.splitlines())) < 130


def test_the_same_journal_makes_the_same_policy() -> None:
    requests = [saw(wants({name: []}), name) for name in ("b", "a", "c")]
    assert learn(requests, ["y", "x"], "t") == learn(requests, ["x", "y", "x"], "t")


# Simulation


def test_a_simulation_tells_what_would_be_denied_and_what_only_be_told() -> None:
    requests = [saw(wants({name: []}), name) for name in ("a", "b", "c")]
    policy = rules('[[rule]]\nmodule="a"\naction="deny"\n[[rule]]\nmode="audit"\nmodule="b"\naction="deny"\n')
    found = simulate(policy, requests, NOW)
    assert [(request.facts.name, said.allowed) for request, said in found] == [("a", False), ("b", True)]
    assert found[1][1].decision == Decision("deny", "50-test.toml:4", "audit")


def test_no_rate_is_ever_exceeded_there() -> None:
    assert simulate(rules('[[rule]]\nrate="1/day"\naction="deny"'), [saw(wants({"a": []}))] * 5, NOW) == []


# The journal


def test_an_event_of_the_journal_is_read() -> None:
    event: dict[str, object] = {
        "id": 1,
        "time": TIME,
        "source": "kernel",
        "name": "fs-xfs",
        "outcome": "loaded",
        "requester": {**Requester(uid=0, exe="/bin/mount", privileged=True).as_json(), "later": 1},
    }
    found = observed(event, None)
    assert found == Observed(
        TIME,
        Facts("fs-xfs", Source.KERNEL, Requester(uid=0, exe="/bin/mount", privileged=True)),
        "loaded",
        None,
    )
    assert observed({**event, "requester": None}, None).facts.requester == Requester()


# Whatever the journal holds

TEXT = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=10)
WHO = st.builds(
    replace,
    requesters(),
    exe=st.one_of(st.none(), st.text(max_size=8).filter(str.isprintable).map("/".__add__)),
)


@st.composite
def journals(draw: st.DrawFn) -> list[Observed]:
    requests = []
    for _ in range(draw(st.integers(0, 5))):
        wanted = draw(plans())
        outcome = draw(st.sampled_from(["loaded", "already-live", "failed", "denied", "timed-out"]))
        if wanted is not None and not wanted.targets:
            outcome = "not-found"
        source = draw(st.sampled_from(Source))
        if source in {Source.API, Source.CLI} and outcome != "denied":
            outcome = "loaded"
        requests.append(Observed(TIME, Facts(draw(TEXT), source, draw(WHO)), outcome, wanted))
    return requests


@given(journals(), st.lists(st.sampled_from(MODULES)))
def test_all_that_was_used_is_allowed_by_what_is_learned(journal: list[Observed], live: list[str]) -> None:
    policy = learned(*journal, live=tuple(live))
    for request in journal:
        if request.outcome != "denied":
            assert allowed(policy, request.facts, request.wanted), request
    denied = simulate(policy, journal, NOW)
    assert all(request.outcome == "denied" for request, _said in denied)


@given(journals())
def test_sealed_it_lets_the_same_in(journal: list[Observed]) -> None:
    policy = learned(*journal)
    for request in journal:
        if request.outcome != "denied":
            assert allowed(policy, request.facts, request.wanted, sealed=True), request


@given(journals(), plans(), WHO)
def test_a_module_that_nobody_has_used_is_allowed_to_nobody(
    journal: list[Observed], wanted: Wanted | None, who: Requester
) -> None:
    used = {module for request in journal if request.wanted is not None for module in request.wanted.modules}
    if (
        wanted is None
        or not wanted.targets
        or used & wanted.modules
        or any(r.wanted is None for r in journal)
    ):
        return
    assert not allowed(learned(*journal), Facts("other", Source.KERNEL, who), wanted)


@given(policies(), journals())
def test_a_simulation_says_what_would_be_said(policy: tuple[Rule, ...], journal: list[Observed]) -> None:
    unrated = tuple(replace(rule, line=2 * number) for number, rule in enumerate(policy))
    found = {id(request): said for request, said in simulate(unrated, journal, NOW)}
    for request in journal:
        said = judged(unrated, request.facts, request.wanted)
        assert found.get(id(request)) == (said if said.decision.action == "deny" else None)


def test_what_is_said_of_a_requester_is_what_is_known_of_it_the_next_time() -> None:
    """A program with mounts of its own has a path that counts for nothing: its unit or container is said."""
    plan = wants({"sctp": []})
    service = {**USER, "unit": "web.service", "exe": "/usr/sbin/web"}
    policy = learned(saw(plan, "x", **service))
    doubtful = {**service, "exe_doubtful": True}
    assert allowed(policy, asks("x", **doubtful), plan)
    assert not allowed(policy, asks("x", **{**doubtful, "unit": "other.service"}), plan)
    contained = {**USER, "container": "c1", "exe": "/app/run"}
    policy = learned(saw(plan, "x", **contained))
    assert allowed(policy, asks("x", **{**contained, "container": "c2", "exe_doubtful": True}), plan)
    assert not allowed(policy, asks("x", **USER), plan)
    nobodys = learn([saw(plan, "x", **USER)], (), "now", lambda _exe: False)
    assert "exe" not in nobodys
