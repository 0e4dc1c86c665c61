"""The bench's arithmetic and its table; what it measures is tested in tests/real/test_bench.py."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from bench import table
from bench.measured import Check, Measured, Ratio, p99, ratio
from bench.workloads import REGISTRY

MS = 1_000_000
ROOT = Path(__file__).resolve().parents[2]


def test_what_is_compared_was_measured_in_one_round() -> None:
    # The machine was three times as slow in the second round: the ratio is the same.
    found = ratio("c", "a / b", [[2 * MS] * 3, [6 * MS] * 3], [[4 * MS] * 3, [12 * MS] * 3])
    assert (found.value, found.rounds, found.spread) == (0.5, (0.5, 0.5), (0.5, 0.5))
    assert (found.ours_ms, found.peers_ms) == (4.0, 8.0)


def test_one_slow_request_and_one_slow_round_are_not_the_result() -> None:
    ours = [[1.0, 1.0, 100.0], [1.0, 1.0, 1.0], [50.0, 50.0, 50.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    found = ratio("c", "a / b", ours, [[2.0] * 3] * 5)
    assert found.rounds == (0.5, 0.5, 25.0, 0.5, 0.5)
    assert (found.value, found.spread) == (0.5, (0.5, 0.5))


def test_the_spread_is_what_half_of_the_rounds_lie_between() -> None:
    found = Ratio("c", "a / b", (1.0, 2.0, 3.0, 4.0, 5.0), 1.0, 1.0)
    assert (found.value, found.spread) == (3.0, (2.0, 4.0))
    assert Ratio("c", "a / b", (2.0,), 1.0, 1.0).spread == (2.0, 2.0)


def test_rounds_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="2 rounds against 1"):
        ratio("c", "a / b", [[1.0], [1.0]], [[1.0]])
    with pytest.raises(ValueError, match="0 rounds"):
        ratio("c", "a / b", [], [])


def test_p99_is_a_value_that_one_in_a_hundred_is_above() -> None:
    assert p99([float(n) for n in range(1, 101)]) == 99.0
    assert p99([float(n) for n in range(1000, 0, -1)]) == 990.0
    assert p99([7.0]) == 7.0


def results(value: float, *, holds: bool) -> dict[str, Measured]:
    one = Ratio("a case", "a / b", (value,), 1.5, 3.0, limit=1.4)
    check = Check("every request was answered", holds, {"asked": 3, "fell_back": 0})
    return {"cost": Measured((one, Ratio("other", "a / c", (0.1234,), 1.0, 2.0)), (check,), ("a note",))}


def test_the_table() -> None:
    assert table.text({"kmodd": "0"}, results(1.5, holds=True)).splitlines() == [
        "kmodd: 0",
        "",
        "Workload  Case    Ratio of  Ratio  Half of the rounds  At most       Medians, ms",
        "cost      a case  a / b     1.50   1.50 to 1.50        1.4: NOT MET  1.50 / 3.00",
        "cost      other   a / c     0.123  0.123 to 0.123                    1.00 / 2.00",
        "",
        "cost: every request was answered: yes (asked 3, fell back 0)",
        "a note",
    ]
    page = table.markdown({"kmodd": "0"}, results(1.4, holds=False))
    assert "| cost | a case | a / b | 1.40 | 1.40 to 1.40 | 1.4: met | 1.50 / 3.00 |" in page
    assert "- cost: every request was answered: NO (asked 3, fell back 0)" in page


def test_what_a_machine_reads() -> None:
    found = json.loads(json.dumps(results(1.5, holds=True)["cost"].as_json()))
    assert found["ratios"][0] == {
        "case": "a case",
        "what": "a / b",
        "ratio": 1.5,
        "spread": [1.5, 1.5],
        "rounds": [1.5],
        "ours_ms": 1.5,
        "peers_ms": 3.0,
        "limit": 1.4,
        "met": False,
    }
    assert found["checks"] == [
        {"what": "every request was answered", "holds": True, "figures": {"asked": 3, "fell_back": 0}}
    ]


def test_every_workload_has_a_module_and_is_registered() -> None:
    modules = {path.stem for path in (ROOT / "bench/workloads").glob("*.py")} - {"__init__"}
    assert set(REGISTRY) == modules
    assert all(name == workload.name for name, workload in REGISTRY.items())


def test_the_policy_is_as_large_as_a_servers() -> None:
    policy = tomllib.loads((ROOT / "bench/policy.toml").read_text())
    assert 35 <= len(policy["rule"]) <= 45
    assert {rule["action"] for rule in policy["rule"]} == {"allow", "deny"}
