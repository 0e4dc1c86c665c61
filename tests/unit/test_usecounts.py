"""Counts of gets, read from hist files as the kernel writes them: all of it is right, or nothing is told."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.kernel import usecounts
from kmodd.kernel.usecounts import SIZE, UseCounts, parse

SHOWN = f"hist:keys=name:vals=hitcount:sort=hitcount:size={SIZE} [active]\n"


def hist(counts: Mapping[str, int], dropped: int = 0, shown: str = SHOWN) -> str:
    """Return what hist_show() of Linux 6.1 prints."""
    lines = "".join(f"{{ name: {name:<50} }} hitcount: {count:>10}\n" for name, count in counts.items())
    return (
        f"# event histogram\n#\n# trigger info: {shown}#\n\n{lines}\nTotals:\n    Hits: {sum(counts.values())}\n"
        f"    Entries: {len(counts)}\n    Dropped: {dropped}\n"
    )


def test_the_text_of_a_kernel() -> None:
    # Linux 6.1.192
    text = """\
# event histogram
#
# trigger info: hist:keys=name:vals=hitcount:sort=hitcount:size=1024 [active]
#

{ name: dm_zero                                            } hitcount:          1
{ name: loop                                               } hitcount:     200000

Totals:
    Hits: 200001
    Entries: 2
    Dropped: 0
"""
    assert parse(text) == {"dm_zero": 1, "loop": 200000}
    assert hist({"dm_zero": 1, "loop": 200000}) == text


def test_nothing_got_yet() -> None:
    assert parse(hist({})) == {}


@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S")), min_size=1, max_size=55),
        st.integers(1, 2**64 - 1),
        max_size=8,
    )
)
def test_any_name_without_spaces_is_told_with_its_count(counts: dict[str, int]) -> None:
    assert parse(hist(counts)) == counts


ODD = st.one_of(
    st.text(max_size=55),
    st.builds(
        "".join,
        st.lists(
            st.sampled_from(
                [
                    "a",
                    " ",
                    "\n",
                    "}",
                    "{ name: ",
                    " } hitcount: ",
                    "9",
                    "\nTotals:\n",
                    "    Hits: 9\n",
                    "\r",
                    "\x85",
                    "    Entries: 1\n",
                    "    Dropped: 0\n",
                    "b" + " " * 49,
                    "# event histogram\n#\n",
                ]
            ),
            max_size=12,
        ),
    ),
)


@given(st.dictionaries(ODD, st.integers(1, 10**12), min_size=1, max_size=4))
def test_no_name_forges_anothers_count(counts: dict[str, int]) -> None:
    # At its end a space is not to be told from the padding: such a name is told without.
    assert parse(hist(counts)) in (None, {name.rstrip(" "): count for name, count in counts.items()})


def test_a_name_that_makes_two_lines_is_found_out() -> None:
    forging = "x } hitcount: 1\n{ name: loop"
    assert parse(hist({forging: 5})) is None
    assert parse(hist({forging: 5, "loop": 3})) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        hist({"loop": 1}, dropped=1),
        hist({"loop": 1}, shown=SHOWN.replace("active", "paused")),
        hist({"loop": 1}, shown=SHOWN.replace("name:vals", "ip:vals")),
        hist({"loop": 1})[:-30],
        hist({"loop": 1}) + "\n",
        hist({"loop": 1}) * 2,
        hist({"loop": 1}).replace("Entries: 1", "Entries: 2"),
        hist({"loop": 1}).replace("{ name", "{ common_pid"),
    ],
    ids=["empty", "overflow", "paused", "other key", "cut", "longer", "two", "entries", "key"],
)
def test_what_is_not_wholly_ours_tells_nothing(text: str) -> None:
    assert parse(text) is None


class Tracefs:
    """A made-up tracefs; what the kernel shows is what is written to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.instance = root / "instances/kmodd-uses"
        self.event = self.instance / "events/module/module_get"
        self.event.mkdir(parents=True)
        (root / "events/module/module_get").mkdir(parents=True)
        (root / "events/module/module_get/hist").write_text("")
        (self.instance / "buffer_size_kb").write_text("1408\n")
        self.trigger = self.event / "trigger"
        self.trigger.write_text("# Available triggers:\n# traceon hist\n")
        self.hist = self.event / "hist"

    def counting(self) -> UseCounts:
        counts = UseCounts((str(self.root / "nowhere"), str(self.root)))
        counts.start()
        return counts


@pytest.fixture
def tracefs(tmp_path: Path) -> Tracefs:
    return Tracefs(tmp_path)


def test_what_is_set(tracefs: Tracefs) -> None:
    counts = tracefs.counting()
    assert (counts.on, counts.problem) == (True, None)
    assert tracefs.trigger.read_text() == f"hist:keys=name:size={SIZE}"
    assert (tracefs.instance / "buffer_size_kb").read_text().startswith("1")
    tracefs.hist.write_text(hist({"loop": 7}))
    assert counts.counts() == {"loop": 7}


def test_what_a_dead_daemon_began_goes_on(tracefs: Tracefs) -> None:
    tracefs.trigger.write_text(SHOWN)
    tracefs.hist.write_text(hist({"loop": 7}))
    assert tracefs.counting().counts() == {"loop": 7}
    assert tracefs.trigger.read_text() == SHOWN


def test_what_another_version_began_is_begun_anew(tracefs: Tracefs) -> None:
    tracefs.trigger.write_text(SHOWN.replace("size=", "size=9"))
    tracefs.counting()
    assert tracefs.trigger.read_text() == f"hist:keys=name:size={SIZE}"


def test_a_table_that_overflows_begins_anew(tracefs: Tracefs) -> None:
    counts = tracefs.counting()
    tracefs.trigger.write_text(SHOWN)
    tracefs.hist.write_text(hist({"loop": 7}, dropped=3))
    assert counts.counts() is None
    assert counts.on
    assert tracefs.trigger.read_text() == f"hist:keys=name:size={SIZE}"
    tracefs.hist.write_text(hist({}))
    assert counts.counts() == {}


def test_a_full_table_is_read_whole(tracefs: Tracefs) -> None:
    full = {f"{number:054}": 2**64 - 1 for number in range(SIZE)}
    counts = tracefs.counting()
    tracefs.hist.write_text(hist(full))
    assert counts.counts() == full


def test_an_instance_that_somebody_removes(tracefs: Tracefs, caplog: pytest.LogCaptureFixture) -> None:
    counts = tracefs.counting()
    assert counts.counts() is None  # no such file
    assert not counts.on
    assert counts.problem == f"{tracefs.hist}: No such file or directory"
    assert counts.counts() is None
    counts.stop()
    assert not caplog.text


def test_stop(tracefs: Tracefs, caplog: pytest.LogCaptureFixture) -> None:
    counts = tracefs.counting()
    counts.stop()
    assert (counts.on, counts.problem, counts.counts()) == (False, "stopped", None)
    assert "cannot remove" in caplog.text  # a made-up instance has files in it
    counts.stop()


def test_no_tracefs(tmp_path: Path) -> None:
    counts = UseCounts((str(tmp_path),))
    counts.start()
    assert (counts.on, counts.problem) == (False, f"tracefs is not mounted at {tmp_path}")


def test_a_kernel_without_the_event(tracefs: Tracefs) -> None:
    (tracefs.root / "events/module/module_get").rename(tracefs.root / "events/other")
    assert tracefs.counting().problem == "this kernel does not have the trace event module:module_get"


def test_a_kernel_without_hist_triggers(tracefs: Tracefs) -> None:
    (tracefs.root / "events/module/module_get/hist").unlink()
    assert tracefs.counting().problem == "this kernel does not have hist triggers"


def test_no_right(tracefs: Tracefs, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, value: str, flags: int = 0) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), path)

    monkeypatch.setattr(usecounts, "write", refuse)
    counts = tracefs.counting()
    assert not counts.on
    assert "locked down" in str(counts.problem)
