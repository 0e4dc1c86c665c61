"""What a full run leaves behind, from the same results: the table in RESULTS.md, and the picture."""

from __future__ import annotations

from collections.abc import Mapping

from bench import plot, table
from bench.host import ROOT
from bench.measured import Measured

PAGE = ROOT / "bench/RESULTS.md"
PICTURE = ROOT / "bench/results.svg"
BEGIN, END = "<!-- what `make bench` wrote -->\n", "<!-- until here -->\n"


def write(machine: Mapping[str, str], results: Mapping[str, Measured]) -> None:
    """Put the table between the two marks of RESULTS.md, and draw the picture."""
    PAGE.write_text(replaced(PAGE.read_text(), table.markdown(machine, results)))
    PICTURE.write_text(plot.svg(results))


def replaced(page: str, part: str) -> str:
    """Return a page with another part between its marks.

    Raises:
        ValueError: it has no such marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _old, end, behind = rest.partition(END)
    if not begin or not end:
        raise ValueError("RESULTS.md has no marks to write between")
    return f"{before}{BEGIN}\n{part.rstrip()}\n\n{END}{behind}"
