"""What is written for modprobe.d is denied to everybody, and no line of it is lost or says too much."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.policy.export import modprobe_d
from kmodd.policy.rules import REQUEST, Facts, Rule
from kmodd.tree import modprobed
from support.policies import MODULES, NOW, allowed, policies, requests, rules, wants

TREE = {"xfs": ["lib"], "lib": ["base"], "base": [], "dccp": [], "sctp": ["base"]}


def exported(policy: tuple[Rule, ...], needs: Mapping[str, list[str]] | None = None) -> str:
    tree = TREE if needs is None else needs
    return modprobe_d(policy, tree, lambda module: wants(tree, module).modules, NOW, "today")


def denied(text: str) -> list[str]:
    return [line.split()[1] for line in text.splitlines() if not line.startswith("#")]


def deny(fields: str, before: str = "") -> list[str]:
    return denied(exported(rules(f"{before}[[rule]]\n{fields}\naction = 'deny'\n")))


def test_each_module_that_everybody_is_denied_has_a_line_and_says_why() -> None:
    policy = rules(
        "[[rule]]\nmodule = '@net'\naction = 'deny'\nreason = 'CVE-1'\nuntil = 2027-01-31\n"
        "[[rule]]\nmodule = 'xfs'\naction = 'deny'\n"
    )
    assert exported(policy).splitlines() == [
        "# Made by `kmodd policy export --modprobe-d`, today.",
        "# 50-test.toml:1: CVE-1, until 2027-01-31",
        "install dccp /bin/false",
        "# 50-test.toml:1: CVE-1, until 2027-01-31",
        "install sctp /bin/false",
        "# 50-test.toml:6: no reason given",
        "install xfs /bin/false",
    ]


@pytest.mark.parametrize(
    "condition",
    [
        "name = 'x'", "source = 'kernel'", "privileged = false", "uid = 1", "gid = 1", "user = 'ann'",
        "group = 'lab'", "exe = '/x'", "unit = 'x'", "container = false", "call_site = 'x'", "rate = '1/s'",
    ],
)  # fmt: skip
def test_a_denial_that_is_not_for_everybody_is_left_out_and_told(condition: str) -> None:
    text = exported(rules(f"[[rule]]\nmodule = 'dccp'\n{condition}\naction = 'deny'\n"))
    field = condition.partition(" ")[0]
    assert denied(text) == []
    assert f"# 50-test.toml:1 is left out: it asks for {field}\n" in text


@pytest.mark.parametrize(
    "off", ["mode = 'audit'", "mode = 'off'", "until = 2026-01-01", "operation = 'remove'"]
)
def test_what_denies_no_request_now_is_left_out(off: str) -> None:
    assert deny(f"module = 'dccp'\n{off}") == []
    # And an allowance of that kind keeps nothing.
    assert deny("module = 'dccp'", f"[[rule]]\nmodule = 'dccp'\naction = 'allow'\n{off}\n") == ["dccp"]


def test_what_somebody_may_have_is_left_out() -> None:
    assert deny("module = '@net'", "[[rule]]\nmodule = 'dccp'\nuid = 0\naction = 'allow'\n") == ["sctp"]
    assert deny("", "[[rule]]\nname = 'x'\naction = 'allow'\n") == []
    assert deny("", "[[rule]]\nmodule = '*'\nuid = 0\naction = 'allow'\n") == []


def test_what_comes_behind_a_denial_changes_nothing() -> None:
    behind = "[[rule]]\nmodule = 'dccp'\naction = 'deny'\n[[rule]]\nmodule = '*'\naction = 'allow'\n"
    assert denied(exported(rules(behind))) == ["dccp"]


@pytest.mark.parametrize("general", ["", "module = '*'", "module = ['*', 'dccp']"])
def test_what_an_allowed_module_needs_is_left_out_as_it_is_loaded_with_it(general: str) -> None:
    assert deny(general) == sorted(TREE)
    assert deny(general, "[[rule]]\nmodule = 'xfs'\naction = 'allow'\n") == ["dccp", "sctp"]


def test_unless_a_rule_names_it() -> None:
    allow = "[[rule]]\nmodule = 'xfs'\naction = 'allow'\n"
    assert deny("module = 'base'", allow) == ["base"]
    assert deny("module = ['*', 'base']", allow) == ["base", "dccp", "sctp"]
    assert deny("module = 'base'", allow + "[[rule]]\nmodule = '*'\naction = 'deny'\n") == [
        "base",
        "dccp",
        "sctp",
    ]


@pytest.mark.parametrize("reason", ["C:\\", "\\\\", "a \\"])
def test_a_backslash_at_the_end_of_a_reason_does_not_swallow_the_line(reason: str, tmp_path: Path) -> None:
    text = exported(rules(f"[[rule]]\nmodule = 'dccp'\nreason = '{reason}'\naction = 'deny'\n"))
    (tmp_path / "kmodd.conf").write_text(text)
    config = modprobed.load([str(tmp_path)])
    assert [line.command for line in config.install.find(("dccp",))] == ["/bin/false"]


def test_modprobe_d_is_read_as_it_is_meant(tmp_path: Path) -> None:
    (tmp_path / "kmodd.conf").write_text(exported(rules("[[rule]]\nmodule = '*'\naction = 'deny'\n")))
    config = modprobed.load([str(tmp_path)])
    for module in TREE:
        assert [line.command for line in config.install.find((module,))] == ["/bin/false"]


@st.composite
def trees(draw: st.DrawFn) -> dict[str, list[str]]:
    return {
        name: draw(st.lists(st.sampled_from(MODULES[:number]), max_size=2)) if number else []
        for number, name in enumerate(MODULES)
    }


@given(
    policies(modes=("enforce", "audit")),
    trees(),
    st.lists(st.sampled_from(MODULES), min_size=1, max_size=2, unique=True),
    requests(nested=False),
)
def test_what_is_written_is_denied_to_everybody(
    policy: tuple[Rule, ...], tree: dict[str, list[str]], targets: list[str], facts: Facts
) -> None:
    plan = wants(tree, *targets)
    if facts.operation == REQUEST and plan.modules & set(denied(exported(policy, tree))):
        assert not allowed(policy, facts, plan)


@given(
    policies(modes=("enforce",), actions=("deny",)), trees(), st.sampled_from(MODULES), requests(nested=False)
)
def test_and_what_no_condition_is_on_is_written(
    policy: tuple[Rule, ...], tree: dict[str, list[str]], module: str, facts: Facts
) -> None:
    told = {"module", "action", "mode", "unknown", "operation", "until"}
    if any(set(rule.text) - told for rule in policy) or facts.operation != REQUEST:
        return
    alone = {name: [] for name in tree}
    assert allowed(policy, facts, wants(alone, module)) == (
        module not in denied(exported(policy, alone))
    ) or (facts.stranger)
