"""From the journal to a policy: what was used is allowed, to whom it was of use, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kmodd.model import Requester, Source
from kmodd.policy.files import Policy, assemble, with_file
from kmodd.policy.learn import Denied, Observed, learn, observed, simulate
from kmodd.policy.parse import PolicyFile
from kmodd.policy.rules import Facts, Rule, Wanted
from support.policies import (
    MODULES,
    NAMES,
    NOW,
    allowed,
    asks,
    plans,
    policies,
    requesters,
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
    text = learn(iter(many), (), "2026-11-23")
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


def policy_of(*texts: str) -> Policy:
    """Return a policy of files 10-test.toml, 20-test.toml and so on."""
    return assemble({f"{number}0-test.toml": text for number, text in enumerate(texts, 1)}, NAMES)


def deny(fields: str) -> str:
    return f'[[rule]]\naction = "deny"\n{fields}\n'


def test_a_simulation_tells_what_would_be_denied_and_what_is_denied_already() -> None:
    requests = [saw(wants({name: []}), name) for name in ("a", "b", "c", "a", "d")]
    policy = policy_of(deny('module = ["a", "b"]') + 'reason = "x"\n' + deny('mode = "audit"\nmodule = "c"'))
    found = simulate(policy, policy_of(deny('module = ["b", "d"]')), iter(requests), NOW)
    assert (found.requests, found.denied, found.already) == (5, 3, 1)
    assert found.kinds == {
        Denied(False, "a", 1000, "/usr/bin/a", "10-test.toml:1: x"): 2,
        Denied(True, "b", 1000, "/usr/bin/a", "10-test.toml:1: x"): 1,
    }


def test_all_files_count_there_in_the_order_in_which_they_are_read() -> None:
    allow = '[[rule]]\naction = "allow"\nmodule = "a"\n'
    texts = {"00-commands.toml": deny('module = "b"'), "50-learned.toml": "", "60-x.toml": allow}
    assert list(with_file(texts, "55-y.toml", "")) == [
        "00-commands.toml",
        "50-learned.toml",
        "55-y.toml",
        "60-x.toml",
    ]
    requests = [saw(wants({name: []}), name) for name in "abc"]
    for name, denied in (("50-learned.toml", ["a", "b"]), ("70-later.toml", ["b"])):
        policy = assemble(with_file(texts, name, deny('module = "a"')), NAMES)
        found = simulate(policy, Policy(), requests, NOW)
        assert [kind.name for kind in found.kinds] == denied, name


def test_no_rate_is_ever_exceeded_there() -> None:
    found = simulate(policy_of(deny('rate = "1/day"')), Policy(), [saw(wants({"a": []}))] * 5, NOW)
    assert (found.requests, found.denied) == (5, 0)


def test_a_stranger_is_denied_there_what_no_rule_lets_him_have() -> None:
    event = {"time": TIME, "source": "api", "name": "a", "outcome": "denied", "requester": {"uid": 1000}}
    requests = [observed(event, wants({"a": []})), observed({**event, "requester": {"uid": 0}}, None)]
    found = simulate(policy_of(deny('module = "x"')), Policy(), requests, NOW)
    assert [kind.why for kind in found.kinds] == ["the policy: no rule lets this user"]
    assert found.denied == 1


def test_of_a_journal_with_very_many_kinds_all_are_counted_and_what_is_new_has_its_place() -> None:
    many = (saw(wants({"a": []}), f"old-{number}") for number in range(3000))
    new = (saw(wants({"b": []}), "new") for _ in range(3))
    policy, in_force = policy_of(deny('module = "*"')), policy_of(deny('module = "a"'))
    found = simulate(policy, in_force, chain(many, new), NOW)
    assert (found.requests, found.denied, found.already) == (3003, 3003, 3000)
    assert len(found.kinds) == 1001
    assert {kind.name: count for kind, count in found.kinds.items() if not kind.already} == {"new": 3}


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
    found = simulate(files_of(policy), Policy(), journal, NOW)
    assert found.requests == len(journal)
    assert found.denied <= sum(request.outcome == "denied" for request in journal)


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


@given(policies(), policies(), journals())
def test_a_simulation_says_what_would_be_said(
    policy: tuple[Rule, ...], in_force: tuple[Rule, ...], journal: list[Observed]
) -> None:
    policy, in_force = unrated(policy), unrated(in_force)
    for request in journal:
        found = simulate(files_of(policy), files_of(in_force), [request], NOW)
        denied = not allowed(policy, request.facts, request.wanted)
        already = denied and not allowed(in_force, request.facts, request.wanted)
        assert (found.denied, found.already) == (denied, already)
        assert [kind.already for kind in found.kinds] == [already] * denied


def unrated(policy: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """Return rules in even lines: `judged` exceeds the rate of no other."""
    return tuple(replace(rule, line=2 * number) for number, rule in enumerate(policy))


def files_of(policy: tuple[Rule, ...]) -> Policy:
    return Policy((PolicyFile("50-test.toml", policy),))


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
