"""How much could be had by whom: properties of the counting, and a real tree."""

from __future__ import annotations

import functools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.policy import groups
from kmodd.policy.exposure import Exposure, Reachable, exposure, reachable
from kmodd.policy.reach import Reach
from kmodd.tree import modprobed
from kmodd.tree.modprobed import Config
from kmodd.tree.plan import resolve
from support.shipped import indexes

MODULES = [f"m{n}" for n in range(6)]
NAMES = [f"n{n}" for n in range(6)]

some_modules = st.frozensets(st.sampled_from(MODULES))
trees = st.fixed_dictionaries(
    {module: st.dictionaries(st.sampled_from(NAMES), st.none()) for module in MODULES}
)
whos = st.fixed_dictionaries({name: st.sampled_from(Reach) for name in NAMES})
closures = st.fixed_dictionaries(dict.fromkeys(NAMES, some_modules))
denials = st.frozensets(st.tuples(st.sampled_from(Reach), st.sampled_from(NAMES)))

Tree = dict[str, dict[str, None]]
Whos = dict[str, Reach]
Closures = dict[str, frozenset[str]]
Denials = frozenset[tuple[Reach, str]]
Sets = frozenset[str]


def counted(
    tree: Tree,
    who: Whos,
    closure: Closures,
    denied: Denials,
    live: Sets = frozenset(),
    used: Sets = frozenset(),
) -> Exposure:
    modules = [
        Reachable(module, tuple((name, who[name]) for name in names)) for module, names in tree.items()
    ]
    return exposure(
        modules, lambda who, name, _modules: (who, name) not in denied, closure.__getitem__, live, used
    )


@given(trees, whos, closures, denials, denials)
def test_denying_more_never_exposes_more(
    tree: Tree, who: Whos, closure: Closures, denied: Denials, more: Denials
) -> None:
    before, after = counted(tree, who, closure, denied), counted(tree, who, closure, denied | more)
    for each in Reach:
        assert set(after.of(each)) <= set(before.of(each))


@given(trees, whos, closures, denials)
def test_who_may_do_more_has_no_less(tree: Tree, who: Whos, closure: Closures, denied: Denials) -> None:
    found = counted(tree, who, closure, denied)
    assert set(found.anyone) <= set(found.user_namespace) <= set(found.privileged)
    assert len(found.privileged) <= found.installed == len(MODULES)


@given(trees, whos, closures, denials)
def test_what_is_had_is_in_the_closure_of_a_name_that_may_be_asked_for(
    tree: Tree, who: Whos, closure: Closures, denied: Denials
) -> None:
    found = counted(tree, who, closure, denied)
    asked = {name for names in tree.values() for name in names}
    for each in Reach:
        for module in MODULES:
            by = [
                name
                for name in asked
                for role in Reach
                if module in closure[name]
                and each.covers(role)
                and role.covers(who[name])
                and (role, name) not in denied
            ]
            assert (module in found.of(each)) is bool(by)


@given(
    trees,
    st.frozensets(st.text(max_size=3)) | some_modules,
    st.frozensets(st.text(max_size=3)) | some_modules,
)
def test_live_and_used_are_of_what_is_installed(tree: Tree, live: Sets, used: Sets) -> None:
    found = counted(
        tree, dict.fromkeys(NAMES, Reach.ANYONE), dict.fromkeys(NAMES, frozenset()), frozenset(), live, used
    )
    assert max(found.live, found.used) <= found.live_or_used <= min(found.installed, found.live + found.used)
    assert found.live == len(live & set(MODULES))


def test_a_module_that_comes_along_is_had_as_well_and_what_is_not_installed_is_not() -> None:
    tree = [Reachable("dccp_ipv4", (("net_pf_2_proto_33", Reach.ANYONE),)), Reachable("dccp", ())]
    found = exposure(
        tree,
        lambda *_: True,
        lambda _name: ("dccp", "dccp_ipv4", "builtin"),
        {"dccp", "other"},
        {"dccp_ipv4"},
    )
    assert found == Exposure(
        anyone=("dccp", "dccp_ipv4"),
        user_namespace=("dccp", "dccp_ipv4"),
        privileged=("dccp", "dccp_ipv4"),
        installed=2,
        live=1,
        used=1,
        live_or_used=2,
    )
    assert tree[0].least is Reach.ANYONE
    assert tree[1].least is None


def test_the_decision_hears_of_every_module() -> None:
    heard = []

    def may(who: Reach, name: str, modules: frozenset[str]) -> bool:
        heard.append((who, name, modules))
        return False

    tree = [Reachable("tcp_bbr", (("tcp_bbr", Reach.PRIVILEGED),)), Reachable("lib", ())]
    assert exposure(tree, may, lambda _name: ("lib", "tcp_bbr"), frozenset(), frozenset()).privileged == ()
    assert heard == [(Reach.PRIVILEGED, "tcp_bbr", frozenset({"lib", "tcp_bbr"}))]


def test_as_json() -> None:
    found = Exposure(("a",), ("a", "b"), ("a", "b", "c"), 9, 3, 4, 5)
    assert json.loads(json.dumps(found.as_json())) == {
        "installed": 9,
        "live": 3,
        "used": 4,
        "live_or_used": 5,
        "reachable": {
            "anyone": {"count": 1, "modules": ["a"]},
            "user_namespace": {"count": 2, "modules": ["a", "b"]},
            "privileged": {"count": 3, "modules": ["a", "b", "c"]},
        },
    }


# A distribution's tree


@functools.cache
def closure(name: str) -> tuple[str, ...]:
    return tuple(resolve(indexes()[0], Config(), frozenset(), name).loads())


def debian(denied: tuple[str, ...] = ()) -> Exposure:
    held = [groups.load()[group] for group in denied]

    def may(who: Reach, _name: str, modules: frozenset[str]) -> bool:
        return who is Reach.PRIVILEGED or not any(group.holds(module) for group in held for module in modules)

    return exposure(reachable(indexes()[0], Config()), may, closure, frozenset({"nf_tables"}), frozenset())


def test_debian_lets_anybody_load_hundreds_of_modules() -> None:
    found = debian()
    assert found.installed == len(list(indexes()[0].modules()))
    assert len(found.anyone) > 200
    assert len(found.user_namespace) > 700
    assert len(found.privileged) > 3000
    assert found.live == 1
    # By what they need: nobody asks for it.
    assert "libcrc32c" in found.user_namespace
    assert {"vsock", "tipc", "n_hdlc", "crypto_user"} <= set(found.anyone)
    assert {"nf_tables", "cifs", "esp4"} <= set(found.user_namespace) - set(found.anyone)


def test_groups_take_away_what_they_hold() -> None:
    before, after = debian(), debian(("net-protocols", "crypto-user-api", "netfilter", "filesystems"))
    assert len(after.anyone) < len(before.anyone) * 2 / 3
    assert len(after.user_namespace) < len(before.user_namespace) / 2
    assert after.privileged == before.privileged
    assert not {"vsock", "tipc", "crypto_user", "nf_tables", "cifs"} & set(after.user_namespace)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("alias net-pf-99 e1000e", ("net_pf_99", Reach.ANYONE)),
        ("alias fs-mine e1000e", ("fs_mine", Reach.USER_NAMESPACE)),
        ("alias net-pf-9* e1000e", None),
        ("alias a-name-that-nobody-can-ask-for e1000e", None),
        ("alias net-pf-99 nosuchmodule", None),
    ],
)
def test_names_that_modprobe_d_gives(line: str, expected: tuple[str, Reach] | None) -> None:
    config = Config()
    modprobed.parse(config, f"{line}\n", "a.conf")
    [module] = [each for each in reachable(indexes()[0], config) if each.module == "e1000e"]
    own = ("e1000e", Reach.PRIVILEGED)
    assert module.names == ((own,) if expected is None else (own, expected))
