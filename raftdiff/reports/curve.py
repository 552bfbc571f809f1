"""The reward over the rounds as one SVG: for the report, and for documents that show a picture file."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from raftdiff.records.changes import alike

WIDTH, HEIGHT = 460.0, 264.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 346.0, 14.0, 224.0
LABEL_GAP = 17.0

STYLE = """
.curve{--ink:#57534c;--grid:#e4e0d8;--held:#0b6e69;--all:#57534c;--best:#b08a3e;font:13px system-ui,sans-serif}
@media(prefers-color-scheme:dark){.curve{--ink:#aaa59b;--grid:#33312d;--held:#5cc9bf;--all:#aaa59b;--best:#d9b465}}
.curve text{fill:var(--ink);font-variant-numeric:tabular-nums}.curve .grid{stroke:var(--grid)}
.curve path{fill:none;stroke-width:2.25;stroke-linejoin:round;stroke-linecap:round}
.curve .held path{stroke:var(--held)}.curve .held circle,.curve .held text{fill:var(--held)}
.curve .all path{stroke:var(--all)}.curve .all circle,.curve .all text{fill:var(--all)}
.curve .best path{stroke:var(--best);stroke-dasharray:1 5}.curve .best circle,.curve .best text{fill:var(--best)}
.curve .held text,.curve .best text,.curve .all text{font-weight:600}
"""


class Line(NamedTuple):
    """One curve: ``points`` are (rounds of fine-tuning so far, reward)."""

    kind: str
    label: str
    points: list[tuple[int, float]]


def lines(rounds: Sequence[Mapping[str, Any]]) -> list[Line]:
    """The curves that the rounds' metrics hold.

    Candidates of round t come from the model after t fine-tunings; the held-out prompts are looked at once before the
    first (``held_out_base``) and after each, so they are at t + 1. Rounds that other rewards scored are left out.
    """
    rounds = alike(rounds)
    at = [it.get("round", t) for t, it in enumerate(rounds)]
    held = [(0, rounds[0].get("held_out_base"))] if rounds else []
    held += [(t + 1, it.get("held_out")) for t, it in zip(at, rounds, strict=True)]
    curves = [
        Line("best", "selected", _valid([(t, it.get("selected_mean")) for t, it in zip(at, rounds, strict=True)])),
        Line("all", "all candidates", _valid([(t, it.get("mean")) for t, it in zip(at, rounds, strict=True)])),
        Line("held", "held-out", _valid(held)),
    ]
    return [line for line in curves if line.points]


def curve_svg(rounds: Sequence[Mapping[str, Any]], label: str = "reward") -> str:
    """Mean reward of all candidates, of the selected ones and on held-out prompts, against rounds of fine-tuning.

    ``rounds`` are the rounds' ``metrics.json``; ``label`` names the reward. Empty when no round has a figure. Needs no
    font, script or style from outside; follows the reader's light or dark mode.
    """
    curves = lines(rounds)
    if not curves:
        return ""
    values = [value for line in curves for _, value in line.points]
    ticks, decimals = round_ticks(min(values), max(values))
    last = max(1, *(t for line in curves for t, _ in line.points))

    def at(t: int, value: float) -> tuple[float, float]:
        height = (value - ticks[0]) / (ticks[-1] - ticks[0])
        return LEFT + (RIGHT - LEFT) * t / last, BOTTOM - (BOTTOM - TOP) * height

    said = "; ".join(f"{line.label} {line.points[0][1]:.4g} to {line.points[-1][1]:.4g}" for line in curves)
    title = escape(f"{label.capitalize()} over {len(rounds)} rounds: {said}.")
    body = [_grid(tick, at(0, tick)[1], decimals) for tick in ticks]
    body += [_text(at(t, ticks[0])[0], BOTTOM + 19, str(t), "middle") for t in range(0, last + 1, math.ceil(last / 8))]
    body.append(_text((LEFT + RIGHT) / 2, HEIGHT - 4, f"{label} by rounds of fine-tuning", "middle"))
    heights = apart([at(*line.points[-1])[1] for line in curves])
    body += [_curve(line, [at(*point) for point in line.points], y) for line, y in zip(curves, heights, strict=True)]
    return (
        f'<svg class="curve" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img">'
        f"<title>{title}</title><style>{STYLE}</style>{''.join(body)}</svg>"
    )


def _valid(points: Sequence[tuple[int, Any]]) -> list[tuple[int, float]]:
    return [(t, float(value)) for t, value in points if isinstance(value, int | float) and math.isfinite(value)]


def round_ticks(low: float, high: float) -> tuple[list[float], int]:
    """Round values around the range, three to seven of them, and the decimals that they need."""
    span = high - low or abs(high) * 0.1 or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if span / (power * factor) <= 5)
    first, final = math.floor(low / step), math.ceil(high / step)
    decimals = max(0, -math.floor(math.log10(step)) + (step / power == 2.5))
    return [step * index for index in range(first, max(final, first + 1) + 1)], decimals


def apart(heights: Sequence[float]) -> list[float]:
    """Label heights moved down until none covers another, then up together if the last one left the plot."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    moved = list(heights)
    for above, below in pairwise(order):
        moved[below] = max(moved[below], moved[above] + LABEL_GAP)
    excess = max(0.0, max(moved, default=0.0) - BOTTOM)
    return [height - excess for height in moved]


def _grid(tick: float, y: float, decimals: int) -> str:
    line = f'<line class="grid" x1="{LEFT:g}" x2="{RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _text(LEFT - 8, y + 4.5, f"{tick:.{decimals}f}", "end")


def _curve(line: Line, points: Sequence[tuple[float, float]], label_y: float) -> str:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    x, y = points[-1]
    label = _text(RIGHT + 12, label_y + 4.5, line.label, "start")
    return f'<g class="{line.kind}"><path d="{path}"/><circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>{label}</g>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
