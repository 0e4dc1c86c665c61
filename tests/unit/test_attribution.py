"""Which load brought in which module: never two for one module, never one that cannot have been."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kmodd.broker.attribution import Attribution


def alone(*names: str) -> dict[str, tuple[str, ...]]:
    """Modules that nobody uses."""
    return dict.fromkeys(names, ())


def test_alone_everything_that_came_is_its_own() -> None:
    attribution = Attribution()
    window = attribution.begin("alias")
    window.before = frozenset({"old"})
    assert attribution.end(window, alone("old", "dep", "new")) == []
    assert attribution.settle(window, [], ()) == ["dep", "new"]


def test_nested_loads_are_told_apart_by_what_the_names_stand_for() -> None:
    attribution = Attribution()
    outer = attribution.begin("dm-crypt")
    outer.before = frozenset()
    inner = attribution.begin("crypto-cbc(aes)")
    inner.before = frozenset({"dm_mod"})
    doubtful = attribution.end(inner, alone("dm_mod", "cbc"))
    assert doubtful == ["cbc"]
    assert attribution.settle(inner, doubtful, ["cbc"]) == ["cbc"]
    doubtful = attribution.end(outer, alone("dm_mod", "cbc", "dm_crypt"))
    assert doubtful == []
    assert attribution.settle(outer, doubtful, ()) == ["dm_mod", "dm_crypt"]


def test_names_of_modules_and_what_they_use_are_told_apart_without_asking() -> None:
    attribution = Attribution()
    windows = [attribution.begin(name) for name in ("dccp-ipv4", "sctp")]
    for window in windows:
        window.before = frozenset()
    live = {"dccp": ("dccp_ipv4",), "libcrc32c": ("sctp",), "sctp": (), "dccp_ipv4": ()}
    assert attribution.end(windows[0], live) == []
    assert attribution.settle(windows[0], [], ()) == ["dccp", "dccp_ipv4"]
    assert attribution.end(windows[1], live) == []
    assert attribution.settle(windows[1], [], ()) == ["libcrc32c", "sctp"]


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["begin", "load", "end"])), max_size=40))
def test_no_module_is_told_of_two_loads(steps: list[tuple[int, str]]) -> None:
    attribution = Attribution()
    live: list[str] = []
    windows = {}
    truth: dict[int, list[str]] = {}
    told: list[str] = []
    count = 0
    for which, action in [*steps, *((n, "end") for n in range(5))]:
        if action == "begin" and which not in windows:
            windows[which] = attribution.begin(f"alias-{which}")
            windows[which].before = frozenset(live)
            truth[which] = []
        elif action == "load" and which in windows:
            count += 1
            live.append(f"m{count}")
            truth[which].append(f"m{count}")
        elif action == "end" and which in windows:
            window = windows.pop(which)
            doubtful = attribution.end(window, alone(*live))
            mine = attribution.settle(window, doubtful, truth[which])
            assert set(truth[which]) <= set(mine)
            told += mine
    assert len(told) == len(set(told))
