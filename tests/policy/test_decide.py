"""The first rule that matches decides, of all that a request would load; and nobody widens that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.model import Decision, Requester, Source
from kmodd.policy.decide import ALLOWED, NO_RIGHT, RuleSet
from kmodd.policy.files import Policy
from kmodd.policy.inforce import PolicyInForce
from kmodd.policy.parse import PolicyFile
from kmodd.policy.rules import REMOVE, Action, Facts, Mode, Rule, Wanted
from support.policies import (
    NOW,
    allowed,
    as_toml,
    asks,
    judged,
    plans,
    policies,
    requests,
    rules,
    tables,
    taken,
    wants,
)

NOTHING = Wanted((), {}, frozenset())
TREE = {"xfs": ["crc", "lib"], "lib": ["base"], "crc": [], "base": []}
XFS = wants(TREE, "xfs")
ALICE: dict[str, Any] = {"uid": 1000, "gid": 1000}


def in_force(*files: PolicyFile) -> PolicyInForce:
    policy = PolicyInForce(now=lambda: NOW)
    policy.replace(Policy(files))
    return policy


# The first that matches


def test_without_rules_everything_is_allowed_and_no_rule_is_named() -> None:
    assert judged("", asks(), XFS) is ALLOWED
    assert ALLOWED.decision == Decision("allow", None, None)


def test_the_first_of_two_rules_decides_and_is_named_with_its_line() -> None:
    text = '[[rule]]\nmodule = "xfs"\naction = "deny"\nreason = "first"\n[[rule]]\naction = "allow"\n'
    said = judged(text, asks(), XFS)
    assert not said.allowed
    assert said.decision == Decision("deny", "50-test.toml:1", "enforce")
    assert said.why == "50-test.toml:1: first"
    other = judged(text, asks(), wants({"ext4": []}))
    assert other.allowed
    assert other.decision == Decision("allow", "50-test.toml:5", "enforce")


def test_a_denial_without_a_reason_is_told_by_its_place() -> None:
    assert judged('[[rule]]\naction = "deny"', asks(), XFS).why == "50-test.toml:1"


# All that a plan has


def test_a_denied_dependency_denies_the_request() -> None:
    assert not judged('[[rule]]\nmodule = "base"\naction = "deny"', asks(), XFS).allowed


def test_who_may_have_a_module_may_have_what_it_needs() -> None:
    listed = '[[rule]]\nmodule = "xfs"\naction = "allow"\n[[rule]]\nmodule = "*"\naction = "deny"\n'
    assert judged(listed, asks(), XFS).decision.rule == "50-test.toml:1"
    for module in ("crc", "lib", "base"):
        assert not judged(listed, asks(), wants(TREE, module)).allowed


@pytest.mark.parametrize("general", ["", 'module = "*"', 'module = "**"', "privileged = false", "uid = 1000"])
def test_a_rule_about_everything_does_not_mean_what_an_allowed_module_needs(general: str) -> None:
    text = f'[[rule]]\nmodule = "xfs"\naction = "allow"\n[[rule]]\n{general}\naction = "deny"\n'
    who = asks(privileged=False, **ALICE)
    assert judged(text, who, XFS).allowed
    assert not judged(text, who, wants({"xfs": [], "other": []}, "xfs", "other")).allowed


@pytest.mark.parametrize("naming", ['"base"', '"ba*"', '["*", "base"]', '["x", "?ase"]'])
def test_a_rule_that_names_what_an_allowed_module_needs_denies_it(naming: str) -> None:
    text = f'[[rule]]\nmodule = "xfs"\naction = "allow"\n[[rule]]\nmodule = {naming}\naction = "deny"\n'
    said = judged(text, asks(), XFS)
    assert said.decision == Decision("deny", "50-test.toml:4", "enforce")


def test_a_dependency_that_is_allowed_does_not_allow_what_needs_it() -> None:
    text = '[[rule]]\nmodule = "base"\naction = "allow"\n[[rule]]\nmodule = "*"\naction = "deny"\n'
    assert not judged(text, asks(), XFS).allowed


def test_each_of_several_modules_that_a_name_stands_for_has_to_be_allowed() -> None:
    text = '[[rule]]\nmodule = "a"\naction = "allow"\n[[rule]]\nmodule = "*"\naction = "deny"\n'
    assert not judged(text, asks(), wants({"a": [], "b": []}, "a", "b")).allowed


def test_a_star_means_what_is_installed_and_no_module_means_the_request() -> None:
    assert judged('[[rule]]\nmodule = "*"\naction = "deny"', asks(), NOTHING) is ALLOWED
    assert not judged('[[rule]]\naction = "deny"', asks(), NOTHING).allowed


def test_where_nobody_can_say_what_is_installed_a_rule_on_modules_needs_unknown() -> None:
    assert judged('[[rule]]\nmodule = ["*", "m"]\naction = "deny"', asks(), None) is ALLOWED
    assert not judged('[[rule]]\nmodule = "m"\nunknown = true\naction = "deny"', asks(), None).allowed
    assert not judged('[[rule]]\naction = "deny"', asks(), None).allowed


# What a module asks for as it loads


def test_what_an_allowed_module_asks_for_is_denied_by_its_name_only() -> None:
    inside = replace(asks("crc", **ALICE), nested=True)
    plan = wants({"crc": []})
    for general in ("", 'module = "*"', "uid = 1000"):
        assert judged(f'[[rule]]\n{general}\naction = "deny"', inside, plan).allowed, general
    assert not judged('[[rule]]\nmodule = "crc"\naction = "deny"', inside, plan).allowed
    assert not judged('[[rule]]\nname = "crc"\naction = "deny"', inside, plan).allowed
    assert judged("", inside, plan, sealed=True).allowed


# Audit


def test_what_a_rule_in_audit_mode_would_do_is_recorded_and_not_done() -> None:
    text = '[[rule]]\nmode = "audit"\nmodule = "xfs"\naction = "deny"\nreason = "old"\n'
    said = judged(text, asks(), XFS)
    assert said.allowed
    assert said.decision == Decision("deny", "50-test.toml:1", "audit")
    assert said.why == "50-test.toml:1: old"
    assert judged(text + '[[rule]]\naction = "deny"', asks(), XFS).decision.rule == "50-test.toml:6"


def test_the_weaker_of_a_rules_mode_and_the_policys_counts() -> None:
    text = '[[rule]]\naction = "deny"\n'
    assert not judged(text, asks(), XFS).allowed
    assert judged(text, asks(), XFS, mode=Mode.AUDIT).decision == Decision("deny", "50-test.toml:1", "audit")
    assert judged(text, asks(), XFS, mode=Mode.OFF) is ALLOWED
    assert judged('mode = "off"\n' + text, asks(), XFS) is ALLOWED


# The seal


def test_the_seal_lets_in_what_a_rule_lists_whatever_its_mode() -> None:
    audit = '[[rule]]\nmode = "audit"\nmodule = "xfs"\naction = "allow"\n'
    assert judged(audit, asks(), XFS, sealed=True).allowed
    said = judged(audit, asks(), wants({"ext4": []}), sealed=True)
    assert said.decision == Decision("deny", "seal", "enforce")
    assert said.why == "the seal: no rule of the policy lists it"


def test_the_seal_refuses_nothing_that_brings_nothing_in() -> None:
    live = wants(TREE, "xfs", new=[])
    assert judged("", asks(), live, sealed=True).allowed
    assert judged("", asks(), NOTHING, sealed=True).allowed
    assert judged("", replace(asks(), operation=REMOVE), XFS, sealed=True).allowed
    assert not judged("", asks(), wants(TREE, "xfs", new=["base"]), sealed=True).allowed


def test_the_seal_refuses_what_nobody_can_say_the_meaning_of() -> None:
    assert not judged("", asks(), None, sealed=True).allowed
    assert judged('[[rule]]\nuid = 0\naction = "allow"', asks(uid=0), None, sealed=True).allowed


def test_a_denial_in_audit_mode_takes_nothing_off_the_seals_list() -> None:
    listed = '[[rule]]\nmodule = "xfs"\naction = "allow"\n'
    would = '[[rule]]\nmode = "audit"\nmodule = "xfs"\naction = "deny"\n'
    said = judged(would + listed, asks(), XFS, sealed=True)
    assert said.allowed
    assert said.decision.mode == "audit"


# Strangers of the API


@pytest.mark.parametrize(
    "naming", ["uid = 1000", "gid = 1000", 'user = "ann"', 'group = "lab"', 'source = "api"']
)
def test_a_stranger_has_what_a_rule_gives_that_names_peers(naming: str) -> None:
    text = f'[[rule]]\nmodule = "xfs"\n{naming}\naction = "allow"\n'
    who = asks("xfs", Source.API, stranger=True, uid=1000, gid=1000, groups=(2000,))
    assert allowed(text, who, XFS)
    assert in_force(taken(text)).judge(who, lambda: XFS).allowed


@pytest.mark.parametrize(
    "other", ["", 'module = "xfs"', 'source = "kernel"', "privileged = false", "uid = 1001"]
)
def test_no_other_rule_gives_a_stranger_anything(other: str) -> None:
    text = f'[[rule]]\n{other}\naction = "allow"\n'
    who = asks("xfs", Source.API, stranger=True, privileged=False, **ALICE)
    assert not allowed(text, who, XFS)
    assert in_force(taken(text)).judge(who, lambda: XFS) is NO_RIGHT


def test_a_stranger_with_a_right_to_a_module_has_none_to_what_needs_it() -> None:
    policy = in_force(taken('[[rule]]\nmodule = "base"\nuid = 1000\naction = "allow"\n'))
    who = asks("xfs", Source.API, stranger=True, **ALICE)
    assert policy.judge(who, lambda: wants(TREE, "base")).allowed
    assert policy.judge(who, lambda: XFS) is NO_RIGHT
    assert policy.judge(who, lambda: wants({"base": [], "more": []}, "base", "more")) is NO_RIGHT


def test_a_rule_for_everybody_takes_no_right_from_a_stranger() -> None:
    policy = in_force(
        taken(
            '[[rule]]\nmodule = ["xfs", "base"]\naction = "allow"\n'
            '[[rule]]\nmodule = "xfs"\nuid = 1000\naction = "allow"\n'
        )
    )
    assert policy.judge(asks("xfs", Source.API, stranger=True, **ALICE), lambda: XFS).allowed


def test_a_module_that_a_stranger_has_loaded_may_ask_for_more() -> None:
    policy = in_force(taken('[[rule]]\nmodule = "xfs"\nuid = 1000\naction = "allow"\n'))
    inside = replace(asks("crc32c", Source.API, stranger=True, **ALICE), nested=True)
    assert policy.judge(inside, lambda: wants({"crc32c": []})).allowed


def test_a_stranger_is_let_in_audit_mode_and_without_rules_as_little_as_ever() -> None:
    policy = in_force(taken("[[rule]]\nuid = 1000\naction = 'allow'\n"))
    who = asks("xfs", Source.CLI, stranger=True, **ALICE)
    assert policy.lets_peers
    assert policy.judge(who, lambda: XFS).allowed
    policy.set_mode(Mode.AUDIT)
    assert not policy.lets_peers
    assert policy.judge(who, lambda: XFS) is NO_RIGHT
    policy.replace(Policy())
    assert policy.judge(who, lambda: XFS) is NO_RIGHT


# Whatever rules, requests and plans there are

Policies = tuple[Rule, ...]
Table = dict[str, Any]
SETS = policies()
ENFORCED = policies(modes=("enforce",))


@given(SETS, requests(), st.sampled_from(Mode))
def test_no_rule_is_left_out_that_asks_for_such_a_request(policy: Policies, facts: Facts, mode: Mode) -> None:
    whole = RuleSet.of(policy, mode)
    for all_of_them, left in zip(
        (whole.enforced, whole.considered), whole.asking_for(facts.name), strict=True
    ):
        assert [rule for rule in left if rule.asks_for(facts)] == [
            rule for rule in all_of_them if rule.asks_for(facts)
        ]


@given(SETS, requests(), plans(), st.booleans(), st.sampled_from(Mode))
def test_the_same_is_said_twice(
    policy: Policies, facts: Facts, wanted: Wanted | None, sealed: bool, mode: Mode
) -> None:
    first = judged(policy, facts, wanted, sealed=sealed, mode=mode)
    assert judged(policy, facts, wanted, sealed=sealed, mode=mode) == first


@given(ENFORCED, st.lists(tables(), max_size=4), requests(), plans())
def test_what_comes_behind_the_rule_that_decides_changes_nothing(
    policy: Policies, more: list[Table], facts: Facts, wanted: Wanted | None
) -> None:
    """A denial, and a rule without `module` that allows: those decide on all that is left."""
    said = judged(policy, facts, wanted)
    if said.rule is None or (said.allowed and said.rule.module is not None):
        return
    place = policy.index(said.rule)
    for behind in (policy[place + 1 :] + rules(as_toml(more)), rules(as_toml(more)), ()):
        assert judged(policy[: place + 1] + behind, facts, wanted) == said


@given(SETS, tables(actions=("deny",)), st.integers(0, 6), requests(), plans(), st.booleans())
def test_one_more_denial_never_allows_more(
    policy: Policies, table: Table, place: int, facts: Facts, wanted: Wanted | None, sealed: bool
) -> None:
    more = policy[:place] + rules(as_toml([table])) + policy[place:]
    assert allowed(policy, facts, wanted, sealed=sealed) or not allowed(more, facts, wanted, sealed=sealed)


@given(SETS, tables(actions=("allow",)), st.integers(0, 6), requests(), plans(), st.booleans())
def test_one_allowance_less_never_allows_more(
    policy: Policies, table: Table, place: int, facts: Facts, wanted: Wanted | None, sealed: bool
) -> None:
    more = policy[:place] + rules(as_toml([table])) + policy[place:]
    assert allowed(more, facts, wanted, sealed=sealed) or not allowed(policy, facts, wanted, sealed=sealed)


@given(SETS, tables(modes=("audit",)), st.integers(0, 6), requests(), plans(), st.booleans())
def test_a_rule_in_audit_mode_denies_nothing_and_allows_no_more_than_the_seals_list(
    policy: Policies, table: Table, place: int, facts: Facts, wanted: Wanted | None, sealed: bool
) -> None:
    more = policy[:place] + rules(as_toml([table])) + policy[place:]
    before, after = allowed(policy, facts, wanted, sealed=sealed), allowed(more, facts, wanted, sealed=sealed)
    assert after or not before
    if not sealed or table["action"] == "deny":
        assert before == after


@given(SETS, st.integers(0, 5), requests(), plans(), st.booleans())
def test_a_denial_turned_to_audit_denies_no_more(
    policy: Policies, place: int, facts: Facts, wanted: Wanted | None, sealed: bool
) -> None:
    turned = tuple(
        replace(rule, mode=Mode.AUDIT)
        if number == place and rule.action is Action.DENY and rule.mode is Mode.ENFORCE
        else rule
        for number, rule in enumerate(policy)
    )
    assert allowed(turned, facts, wanted, sealed=sealed) or not allowed(policy, facts, wanted, sealed=sealed)


@given(SETS, requests(), plans())
def test_in_audit_mode_only_the_seal_denies_and_off_is_silent(
    policy: Policies, facts: Facts, wanted: Wanted | None
) -> None:
    assert judged(policy, facts, wanted, mode=Mode.AUDIT).allowed
    assert judged(policy, facts, wanted, mode=Mode.OFF) is ALLOWED
    assert RuleSet.of(policy, Mode.OFF) == RuleSet()


@given(SETS, requests(nested=False), plans())
def test_a_stranger_has_nothing_that_root_is_not_given_by_rules_that_name_peers(
    policy: Policies, facts: Facts, wanted: Wanted | None
) -> None:
    if not facts.stranger or not allowed(policy, facts, wanted):
        return
    naming = [rule for rule in policy if rule.action is Action.ALLOW and rule.names_peers]
    assert (
        judged(policy, facts, wanted).rule in naming or judged(policy, facts, wanted).decision.mode == "audit"
    )
    # With these rules alone, and the seal, he has it too: each module is listed by one of them, or needed.
    assert allowed(naming, facts, wanted, sealed=True)


@given(SETS, requests(), plans())
def test_the_seal_only_takes_away(policy: Policies, facts: Facts, wanted: Wanted | None) -> None:
    assert allowed(policy, facts, wanted) or not allowed(policy, facts, wanted, sealed=True)


@given(SETS, requests(), plans())
def test_knowing_less_of_a_requester_never_allows_what_unknown_denies(
    policy: Policies, facts: Facts, wanted: Wanted | None
) -> None:
    """Where each denial counts for who is not known, nobody gains by hiding."""
    closed = tuple(replace(rule, unknown=True) if rule.action is Action.DENY else rule for rule in policy)
    if facts.stranger or facts.source is not Source.KERNEL:
        return
    hidden = replace(facts, requester=Requester())
    assert allowed(closed, facts, wanted) or not allowed(closed, hidden, wanted)
