"""Results as a picture (SVG): a line for each ratio that has a goal, beside that goal; logarithmic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from bench.measured import Measured, Ratio

_LEFT, _RIGHT, _WIDTH, _LINE, _HEAD, _FOOT = 400, 90, 960, 20, 46, 34
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.faint { fill: #656d76 }
.title { font-weight: 600; font-size: 14px }
.grid { stroke: #d0d7de; stroke-width: 1 }
.met { stroke: #1a7f37; fill: #1a7f37 }
.missed { stroke: #bc4c00; fill: #bc4c00 }
.goal { stroke: #1f2328; stroke-width: 2 }
.spread { stroke-width: 5; stroke-opacity: .4; stroke-linecap: round }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .faint { fill: #8d96a0 }
  .grid { stroke: #3d444d }
  .met { stroke: #3fb950; fill: #3fb950 }
  .missed { stroke: #f0883e; fill: #f0883e }
  .goal { stroke: #e6edf3 }
}
"""


def svg(results: Mapping[str, Measured]) -> str:
    """Return the picture: a dot for the median of the rounds, a bar where half of them lie, the goal.

    What has missed its goal is a ring, and of another colour.
    """
    lines = [
        (name, ratio)
        for name, measured in results.items()
        for ratio in measured.ratios
        if ratio.limit is not None
    ]
    height = _HEAD + _LINE * len(lines) + _FOOT
    low, high = _range([ratio for _name, ratio in lines])
    label = "kmodd beside what it replaces: ratios and their goals"
    view = f"0 0 {_WIDTH} {height}"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}" role="img" aria-label="{label}">',
        f"<style>{_STYLE}</style>",
        _text(12, 20, "kmodd beside what it replaces and what is possible", "title"),
        _text(
            12, 37, "ratios of medians, half of the rounds in the bar; left is faster; | the goal", "faint"
        ),
    ]
    for power in range(low, high + 1):
        x = _place(10.0**power, low, high)
        out.append(f'<path class="grid" d="M{x:.1f} {_HEAD}V{height - _FOOT + 4}"/>')
        out.append(_text(x, height - 12, f"{10.0**power:g}", "faint", anchor="middle"))
    for number, (name, ratio) in enumerate(lines):
        out += _line(name, ratio, _HEAD + _LINE * number + _LINE / 2, low, high)
    return "\n".join([*out, "</svg>", ""])


def _line(name: str, ratio: Ratio, y: float, low: int, high: int) -> list[str]:
    kind = "met" if ratio.met else "missed"
    assert ratio.limit is not None
    at, goal = (_place(value, low, high) for value in (ratio.value, ratio.limit))
    begin, end = (_place(value, low, high) for value in ratio.spread)
    ring = "" if ratio.met else ' fill-opacity="0" stroke-width="2"'
    return [
        _text(12, y + 4, f"{name}: {ratio.case}", ""),
        _text(_LEFT - 12, y + 4, ratio.what, "faint", anchor="end"),
        f'<path class="spread {kind}" d="M{begin:.1f} {y:.1f}H{end:.1f}"/>',
        f'<path class="goal" d="M{goal:.1f} {y - 7:.1f}v14"/>',
        f'<circle class="{kind}"{ring} cx="{at:.1f}" cy="{y:.1f}" r="4"/>',
        _text(_WIDTH - 12, y + 4, f"{ratio.value:.3g} of {ratio.limit:g}", "faint", anchor="end"),
    ]


def _range(ratios: list[Ratio]) -> tuple[int, int]:
    """Return the powers of ten between which all of it lies."""
    values = [value for ratio in ratios for value in (*ratio.spread, ratio.value, ratio.limit or 1.0)]
    return math.floor(math.log10(min(values, default=0.1))), math.ceil(math.log10(max(values, default=1.0)))


def _place(value: float, low: int, high: int) -> float:
    share = (math.log10(value) - low) / max(high - low, 1)
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    at = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}"{named}{at}>{escape(words)}</text>'
