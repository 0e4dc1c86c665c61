"""Results as people read them: one table of ratios, as text or as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bench.measured import Check, Figure, Measured, Ratio

HEAD = ("Workload", "Case", "Ratio of", "Ratio", "Half of the rounds", "At most", "Medians, ms")


def rows(results: Mapping[str, Measured]) -> list[tuple[str, ...]]:
    """Return a row for each ratio, and behind those of a workload one for each figure."""
    return [
        row
        for name, measured in results.items()
        for row in (
            *(_row(name, ratio) for ratio in measured.ratios),
            *(_figure_row(name, figure) for figure in measured.figures),
        )
    ]


def _row(workload: str, ratio: Ratio) -> tuple[str, ...]:
    low, high = ratio.spread
    return (
        workload,
        ratio.case,
        ratio.what,
        _number(ratio.value),
        f"{_number(low)} to {_number(high)}",
        _limit(ratio),
        f"{_milliseconds(ratio.ours_ms)} / {_milliseconds(ratio.peers_ms)}",
    )


def _figure_row(workload: str, figure: Figure) -> tuple[str, ...]:
    value = f"{_number(figure.value)} {figure.unit}".rstrip()
    return (workload, figure.case, figure.what, value, "", _limit(figure), "")


def _limit(of: Ratio | Figure) -> str:
    return "" if of.limit is None else f"{of.limit:g}: {'met' if of.met else 'NOT MET'}"


def _milliseconds(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _number(value: float) -> str:
    return f"{value:.3f}" if 0 < value < 1 else f"{value:.2f}"


def text(machine: Mapping[str, str], results: Mapping[str, Measured]) -> str:
    """Return it for a terminal."""
    lines = [f"{key}: {value}" for key, value in machine.items()]
    return "\n".join([*lines, "", *_aligned([HEAD, *rows(results)]), *_rest(results, "")])


def markdown(machine: Mapping[str, str], results: Mapping[str, Measured]) -> str:
    """Return it for RESULTS.md."""
    lines = [f"- {key}: {value}" for key, value in machine.items()]
    table = [f"| {' | '.join(row)} |" for row in [HEAD, ("---",) * len(HEAD), *rows(results)]]
    return "\n".join([*lines, "", *table, *_rest(results, "- ")])


def _aligned(table: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _rest(results: Mapping[str, Measured], bullet: str) -> list[str]:
    lines = [
        f"{bullet}{name}: {_check(check)}" for name, measured in results.items() for check in measured.checks
    ]
    notes = dict.fromkeys(note for measured in results.values() for note in measured.notes)
    lines += [f"{bullet}{note}" for note in notes]
    return ["", *lines] if lines else []


def _check(check: Check) -> str:
    figures = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in check.figures.items())
    return f"{check.what}: {'yes' if check.holds else 'NO'} ({figures})"
