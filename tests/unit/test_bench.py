"""The bench's arithmetic and its table; what it measures is tested in tests/real/test_bench.py."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench import plot, table, written
from bench.inguest.counting import table as counted
from bench.measured import Check, Figure, Measured, Ratio, p99, ratio
from bench.modaliases import modaliases
from bench.synthetic import write
from bench.workloads import REGISTRY
from kmodd.tree import binary
from kmodd.tree.index import Index

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


def test_a_figure_is_compared_with_its_limit_alone() -> None:
    memory = Figure("1,000", "memory for each", 3.5, "KiB", 4.0)
    woken = Figure("60 s", "wake-ups", 1, "", 0)
    assert (memory.met, woken.met, Figure("60 s", "of another", 7).met) == (True, False, None)
    rows = table.rows({"pending": Measured((), figures=(memory, woken))})
    assert rows[0] == ("pending", "1,000", "memory for each", "3.50 KiB", "", "4: met", "")
    assert rows[1] == ("pending", "60 s", "wake-ups", "1.00", "", "0: NOT MET", "")


def test_the_picture_has_a_line_for_each_ratio_with_a_goal() -> None:
    missed = Ratio("a < b", "kmodd / it", (3.0, 4.0, 5.0), 4.0, 1.0, limit=2.0)
    picture = plot.svg({**results(1.3, holds=True), "more": Measured((missed,))})
    root = ET.fromstring(picture)  # which is well formed, whatever stands in the names
    kinds = Counter(item.get("class") for item in root.iter("{http://www.w3.org/2000/svg}circle"))
    assert kinds == {"met": 1, "missed": 1}
    words = [item.text for item in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"cost: a case", "1.3 of 1.4", "more: a < b", "4 of 2"} <= set(words)
    dots = {
        item.get("class"): float(item.get("cx", 0))
        for item in root.iter("{http://www.w3.org/2000/svg}circle")
    }
    goals = [float(found) for found in re.findall(r'class="goal" d="M([0-9.]+) ', picture)]
    assert dots["met"] < goals[0]
    assert dots["missed"] > goals[1] > goals[0]
    assert "prefers-color-scheme: dark" in picture


def test_nothing_to_draw_is_a_picture_too() -> None:
    ET.fromstring(plot.svg({}))


def test_a_run_replaces_what_the_last_one_wrote_and_no_more() -> None:
    page = f"# Results\n\nwords\n\n{written.BEGIN}\nold\n\n{written.END}\nmore\n"
    assert (
        written.replaced(page, "new")
        == f"# Results\n\nwords\n\n{written.BEGIN}\nnew\n\n{written.END}\nmore\n"
    )
    with pytest.raises(ValueError, match="no marks"):
        written.replaced("# Results\n", "new")


def test_the_page_of_results_has_its_marks_and_the_picture_is_there() -> None:
    written.replaced(written.PAGE.read_text(), "")
    ET.fromstring(written.PICTURE.read_text())


def test_a_synthetic_tree_is_the_same_as_text_and_as_binary(tmp_path: Path) -> None:
    size = write(tmp_path / "tree", 50)
    texts = ["modules.dep", "modules.alias", "modules.symbols", "modules.softdep", "modules.builtin"]
    assert size == sum((tmp_path / "tree" / name).stat().st_size for name in texts)
    text = Index(str(tmp_path / "tree"))
    text.load_all()
    assert len(list(text.modules())) == 50
    needed = {module: text.dependencies(module) for module in text.modules()}
    assert any(needed.values())
    aliases, symbols = set(text.aliases()), set(text.symbols())
    for name in texts:
        (tmp_path / "tree" / name).unlink()
    other = Index(str(tmp_path / "tree"))
    other.load_all()
    assert other.source == "bin"
    assert (set(other.aliases()), set(other.symbols())) == (aliases, symbols)
    assert {module: other.dependencies(module) for module in other.modules()} == needed
    assert len(aliases) == 7 * 50
    data = (tmp_path / "tree/modules.symbols.bin").read_bytes()
    assert len(list(binary.entries(data))) == 4 * 50


def test_modaliases_are_distinct_the_same_in_each_run_and_stand_for_modules(tmp_path: Path) -> None:
    write(tmp_path / "tree", 200)
    index = Index(str(tmp_path / "tree"))
    names = modaliases(index, 300, seed=1)
    assert len(set(names)) == 300
    assert names == modaliases(index, 300, seed=1) != modaliases(index, 300, seed=2)
    assert {name.partition(":")[0] for name in names} == {"pci", "usb", "of", "platform"}
    assert all(index.alias(name) for name in names)


def test_what_strace_counted() -> None:
    text = """% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 42.13    0.000150           7        20           recvmsg
 10.00    0.000010           1       200         3 openat
------ ----------- ----------- --------- --------- ----------------
100.00    0.000356           4       220         3 total
"""
    assert counted(text) == {"recvmsg": 20, "openat": 200}


def test_every_workload_is_explained() -> None:
    page = (ROOT / "bench/README.md").read_text()
    assert set(re.findall(r"(?m)^\| `(\w+)` \|", page)) == set(REGISTRY)


def test_every_workload_has_a_module_and_is_registered() -> None:
    modules = {path.stem for path in (ROOT / "bench/workloads").glob("*.py")} - {"__init__"}
    assert set(REGISTRY) == modules
    assert all(name == workload.name for name, workload in REGISTRY.items())


def test_the_policy_is_as_large_as_a_servers() -> None:
    policy = tomllib.loads((ROOT / "bench/policy.toml").read_text())
    assert 35 <= len(policy["rule"]) <= 45
    assert {rule["action"] for rule in policy["rule"]} == {"allow", "deny"}
