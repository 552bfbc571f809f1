"""Small plots as SVG, for pages and documents: drawn here, so that a page needs no script, font or network.

Every plot says its axes and units, has a ``<title>`` that tells its figures in words, and follows the reader's light or
dark mode. The first group of a plot is blue-green, the second ochre, which people who see colours differently tell
apart too.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

import numpy as np
from jaxtyping import Float

from raftdiff.measures.calibration import Bin
from raftdiff.reports.curve import apart, round_ticks

WIDTH, HEIGHT = 460.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 448.0, 30.0, 246.0
BINS = 28
TAIL = 0.005
"""The share of values at either end that does not stretch a histogram: they are counted into its outermost bars."""
WIDE, TALL, STRIP, STRIP_END = 800.0, 348.0, 424.0, 672.0
"""A plot of courses: its width and height, where the ends stand side by side, and beyond them the levels' names."""
MOST_POINTS = 600
"""Points of a scatter drawn per group; more would only cover each other."""

STYLE = """
.plot{--ink:#57534c;--grid:#e4e0d8;--a:#0b6e69;--b:#b08a3e;font:13px system-ui,sans-serif;max-width:100%;height:auto}
@media(prefers-color-scheme:dark){.plot{--ink:#aaa59b;--grid:#33312d;--a:#5cc9bf;--b:#d9b465}}
.plot text{fill:var(--ink);font-variant-numeric:tabular-nums}.plot .grid{stroke:var(--grid)}
.plot .mark{stroke:var(--ink);stroke-dasharray:4 4;fill:none}.plot .small{font-size:11px}
.plot .a{fill:var(--a)}.plot .b{fill:var(--b)}.plot text.a,.plot text.b{font-weight:600}
.plot .area{fill-opacity:.3;stroke-width:1.75}.plot .area.a{stroke:var(--a)}.plot .area.b{stroke:var(--b)}
.plot circle{fill-opacity:.55}.plot rect{fill-opacity:.6}.plot .line{fill:none;stroke-width:2.25;stroke-linejoin:round}
.plot .line.a{stroke:var(--a)}.plot .line.b{stroke:var(--b)}.plot .whisker{stroke:var(--ink)}
"""
COLOURS = ("#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#c79a00", "#1f78b4", "#a6761d")
"""Of methods: read on white and on black; those beyond are dashed."""

Values = Float[np.ndarray, " values"]
Points = Float[np.ndarray, "points 2"]


class Bar(NamedTuple):
    """One bar, or one point of a line: its name under the axis, its height, and its interval where it has one."""

    label: str
    height: float
    low: float | None = None
    high: float | None = None


class Course(NamedTuple):
    """A method: (cost, value) from where it began to where it ended, and half the interval of the last value."""

    points: Sequence[tuple[float, float]]
    half: float = 0.0


class Frame(NamedTuple):
    """Where values of both axes stand on the paper."""

    x: tuple[float, float]
    y: tuple[float, float]
    right: float = RIGHT

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + (self.right - LEFT) * across, BOTTOM - (BOTTOM - TOP) * up


def histogram(groups: Mapping[str, Values], *, x: str, count: str = "pairs", zero: str = "") -> str:
    """How values spread: one outline a group, as the share of the group in each bin.

    ``x`` names the axis with its unit, ``count`` what is counted; ``zero`` says what the line at zero means, which is
    drawn where it is given. Empty without a finite value.
    """
    finite = {name: values[np.isfinite(values)] for name, values in groups.items()}
    finite = {name: values for name, values in finite.items() if len(values)}
    if not finite:
        return ""
    edges = _edges(np.concatenate(list(finite.values())), with_zero=bool(zero))
    low, high = float(edges[0]), float(edges[-1])
    shares = {name: np.histogram(np.clip(values, low, high), edges)[0] / len(values) for name, values in finite.items()}
    ticks, decimals = round_ticks(0.0, 100 * max(map(np.max, shares.values())))
    frame = Frame((low, high), (0.0, ticks[-1]))
    body = [_grid(frame, ticks, decimals, "%"), _across(frame, x), _side(f"share of {count}")]
    for place, (name, share) in enumerate(shares.items()):
        body += [_outline(frame, edges, 100 * share, "ab"[place]), _legend(place, len(shares), name)]
    if zero:
        body.append(_mark(frame, 0.0, zero))
    told = "; ".join(f"{name}: mean {values.mean():.3g}, {len(values)} {count}" for name, values in finite.items())
    return _svg(f"{x}. {told}.", body)


def bars(found: Sequence[Bar], *, x: str, y: str, level: float | None = None, top: float | None = None) -> str:
    """One bar for each place along an axis, from 0; whiskers are 95% intervals; ``level`` is a dashed line, as of
    chance. Empty without a bar."""
    known = [bar for bar in found if math.isfinite(bar.height)]
    if not known:
        return ""
    ticks, decimals = round_ticks(0.0, top or max(bar.high or bar.height for bar in known))
    frame = Frame((0.0, float(len(found))), (0.0, ticks[-1]))
    body = [_grid(frame, ticks, decimals), _side(y), _text((LEFT + RIGHT) / 2, HEIGHT - 6, x, "middle")]
    for place, bar in enumerate(found):
        middle, _ = frame.at(place + 0.5, 0.0)
        for row, word in enumerate(bar.label.split("\n")):
            body.append(_text(middle, BOTTOM + 15 + 12 * row, word, "middle", "small"))
        if math.isfinite(bar.height):
            body.append(_bar(frame, place, bar))
    if level is not None:
        left, y_level = frame.at(0.0, level)
        body.append(f'<path class="mark" d="M{left:.1f} {y_level:.1f}H{RIGHT:.1f}"/>')
    told = "; ".join(f"{' '.join(bar.label.split())}: {bar.height:.3g}" for bar in known)
    return _svg(f"{y} by {x}. {told}.", body)


def over(groups: Mapping[str, Sequence[tuple[float, float]]], *, x: str, y: str) -> str:
    """A line a group through its points, of which each says its value. Empty without a point."""
    every = [point for points in groups.values() for point in points]
    if not every:
        return ""
    across, up = zip(*every, strict=True)
    ticks, decimals = round_ticks(min(up), max(up))
    room = 0.05 * (max(across) - min(across)) or 0.5
    frame = Frame((min(across) - room, max(across) + room), (ticks[0], ticks[-1]))
    body = [_grid(frame, ticks, decimals), _side(y), _text((LEFT + RIGHT) / 2, HEIGHT - 10, x, "middle")]
    for place in sorted(set(across)):
        body.append(_text(frame.at(place, ticks[0])[0], BOTTOM + 17, f"{place:g}", "middle"))
    for number, (name, points) in enumerate(groups.items()):
        kind, places = "ab"[number], [frame.at(*point) for point in points]
        body.append(f'<path class="line {kind}" d="M' + "L".join(f"{a:.1f} {b:.1f}" for a, b in places) + '"/>')
        for (a, b), (place, height) in zip(places, points, strict=True):
            told = f"<title>{name} at {place:g}: {height:.3g}</title>"
            body.append(f'<circle class="{kind}" cx="{a:.1f}" cy="{b:.1f}" r="4">{told}</circle>')
        body.append(_legend(number, len(groups), name))
    told = "; ".join(f"{name}: " + ", ".join(f"{h:.3g} at {a:g}" for a, h in points) for name, points in groups.items())
    return _svg(f"{y} over {x}. {told}.", body)


def path(points: Sequence[tuple[str, float, float]], *, x: str, y: str) -> str:
    """A line through (name, x, y) in their order, each point with its name; a round's is its number. Empty for fewer
    than two points."""
    known = [point for point in points if math.isfinite(point[1]) and math.isfinite(point[2])]
    if len(known) < 2:
        return ""
    across, up = [point[1] for point in known], [point[2] for point in known]
    ticks, decimals = round_ticks(min(up), max(up))
    room = 0.06 * (max(across) - min(across)) or 0.5
    frame = Frame((min(across) - room, max(across) + room), (ticks[0], ticks[-1]))
    places = [frame.at(a, b) for a, b in zip(across, up, strict=True)]
    body = [_grid(frame, ticks, decimals), _side(y), _across(frame, x)]
    body.append('<path class="line a" d="M' + "L".join(f"{a:.1f} {b:.1f}" for a, b in places) + '"/>')
    for (a, b), (name, at, height) in zip(places, known, strict=True):
        told = f"<title>{escape(_called(name))}: {height:.3g} at {at:.3g}</title>"
        body.append(f'<circle class="a" cx="{a:.1f}" cy="{b:.1f}" r="4">{told}</circle>')
        body.append(_text(a, b - 8 if b > TOP + 12 else b + 17, name, "middle", "small"))  # not over the axis's name
    told = "; ".join(f"{_called(name)}: {height:.3g} at {at:.3g}" for name, at, height in known)
    return _svg(f"{y} against {x}. {told}.", body)


def _called(name: str) -> str:
    """A point's name to be read aloud; a number alone is a round's."""
    return f"round {name}" if name.isdecimal() else name


def courses(groups: Mapping[str, Course], levels: Mapping[str, float], *, x: str, y: str) -> str:
    """A line a method over what it cost, and its end beside those of the others with its interval; ``levels`` are
    dashed lines across both, as of what costs nothing. Empty without a method."""
    if not groups:
        return ""
    ends = {name: course.points[-1] for name, course in groups.items()}
    heights = [height for course in groups.values() for _, height in course.points] + list(levels.values())
    heights += [ends[name][1] + sign * course.half for name, course in groups.items() for sign in (-1, 1)]
    ticks, decimals = round_ticks(min(heights), max(heights))
    most = max(across for course in groups.values() for across, _ in course.points) or 1.0
    frame = Frame((0.0, most), (ticks[0], ticks[-1]), right=STRIP - 32)
    body = [_grid(frame, ticks, decimals, right=STRIP_END), _side(y)]
    body += _costs(frame, x) + _levels(frame, levels)
    for place, (name, course) in enumerate(groups.items()):
        drawn = f'stroke="{COLOURS[place % len(COLOURS)]}"' + (
            ' stroke-dasharray="7 4"' if place >= len(COLOURS) else ""
        )
        places = [frame.at(*point) for point in course.points]
        body.append(f'<path class="line" {drawn} d="M' + "L".join(f"{a:.1f} {b:.1f}" for a, b in places) + '"/>')
        fill = f'r="2.5" fill="{COLOURS[place % len(COLOURS)]}"'
        body += [f'<circle cx="{a:.1f}" cy="{b:.1f}" {fill}/>' for a, b in places[1:]]
        column = STRIP + (STRIP_END - STRIP) * (place + 0.5) / len(groups)
        body.append(_end(frame, column, name, course, COLOURS[place % len(COLOURS)]))
    told = "; ".join(
        f"{name}: {end:.3g}" + (f" ± {groups[name].half:.2g}" if groups[name].half else "") + f" at {cost:,.0f}"
        for name, (cost, end) in ends.items()
    )
    beside = "; ".join(f"{name}: {level:.3g}" for name, level in levels.items())
    return _svg(" ".join(f"{part}." for part in (y, told, beside) if part), body, WIDE, TALL)


def reliability(bins: Sequence[Bin]) -> str:
    """What a model says against what is so: on the dashed line both are alike, below it the model is too sure.

    The area of a point is the number of its pairs. Empty without a bin.
    """
    if not bins:
        return ""
    frame, most = Frame((0.5, 1.0), (0.0, 1.0)), max(one.n for one in bins)
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    body = [_grid(frame, ticks, 2), _side("how often it was the chosen one")]
    for tick in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        body.append(_text(frame.at(tick, 0.0)[0], BOTTOM + 17, f"{tick:.1f}", "middle"))
    body.append(_text((LEFT + RIGHT) / 2, HEIGHT - 10, "probability of the answer with the higher reward", "middle"))
    (x0, y0), (x1, y1) = frame.at(0.5, 0.5), frame.at(1.0, 1.0)
    body.append(f'<path class="mark" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}"/>')
    places = [frame.at(one.confidence, one.accuracy) for one in bins]
    body.append('<path class="line a" d="M' + "L".join(f"{x:.1f} {y:.1f}" for x, y in places) + '"/>')
    for (x, y), one in zip(places, bins, strict=True):
        told = f"<title>{one.n} pairs: says {one.confidence:.2f}, is {one.accuracy:.2f}</title>"
        radius = 3 + 7 * math.sqrt(one.n / most)
        body.append(f'<circle class="a" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">{told}</circle>')
    told = "; ".join(f"{one.confidence:.2f} said, {one.accuracy:.2f} so, {one.n} pairs" for one in bins)
    return _svg(f"Calibration. {told}.", body)


def scatter(groups: Mapping[str, Points], *, x: str, y: str) -> str:
    """Points of several groups in one plane; at most ``MOST_POINTS`` of each are drawn. Empty without a point."""
    every = np.concatenate([points for points in groups.values() if len(points)] or [np.empty((0, 2))])
    if not len(every):
        return ""
    low, high = np.quantile(every, [TAIL, 1 - TAIL], axis=0)
    room = np.maximum(0.05 * (high - low), 1e-6)
    low, high = low - room, high + room
    frame = Frame((float(low[0]), float(high[0])), (float(low[1]), float(high[1])))
    box = f'<path class="grid" fill="none" d="M{LEFT:g} {TOP:g}H{RIGHT:g}V{BOTTOM:g}H{LEFT:g}Z"/>'
    body = [box, _side(y), _text((LEFT + RIGHT) / 2, HEIGHT - 24, x, "middle")]
    for place, (name, points) in enumerate(groups.items()):
        shown = np.clip(points[:: max(1, math.ceil(len(points) / MOST_POINTS))], low, high)
        for a, b in (frame.at(*point) for point in shown.tolist()):
            body.append(f'<circle class="{"ab"[place]}" cx="{a:.1f}" cy="{b:.1f}" r="2.6"/>')
        body.append(_legend(place, len(groups), name))
    told = "; ".join(f"{name}: {len(points)} points" for name, points in groups.items())
    return _svg(f"{x} and {y}. {told}.", body)


def _edges(values: Values, *, with_zero: bool) -> Float[np.ndarray, " edges"]:
    """Where bins begin and end: about ``BINS`` of one width, the outermost holding the tails. Whole numbers have bins
    of whole numbers, or every other bin would be empty."""
    low, high = np.quantile(values, [TAIL, 1 - TAIL])
    if with_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if (values == np.round(values)).all():
        width = max(1.0, np.ceil((high - low + 1) / BINS))
        return np.arange(np.floor(low) - 0.5, high + width, width)
    room = 0.0 if high > low else 0.5
    return np.linspace(low - room, high + room, BINS + 1)


def _outline(frame: Frame, edges: Float[np.ndarray, " edges"], heights: Float[np.ndarray, " bins"], kind: str) -> str:
    """A histogram's steps as one closed shape."""
    points = [frame.at(float(edges[0]), 0.0)]
    for place, height in enumerate(heights.tolist()):
        points += [frame.at(float(edges[place]), height), frame.at(float(edges[place + 1]), height)]
    points.append(frame.at(float(edges[-1]), 0.0))
    return f'<path class="area {kind}" d="M' + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + 'Z"/>'


def _bar(frame: Frame, place: int, bar: Bar) -> str:
    (left, top), (right, base) = frame.at(place + 0.16, bar.height), frame.at(place + 0.84, 0.0)
    drawn = f'<rect class="a" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{base - top:.1f}"/>'
    if bar.low is not None and bar.high is not None:
        x, y_low = frame.at(place + 0.5, bar.low)
        drawn += f'<path class="whisker" d="M{x:.1f} {y_low:.1f}V{frame.at(0.0, bar.high)[1]:.1f}"/>'
    return drawn


def _end(frame: Frame, column: float, name: str, course: Course, colour: str) -> str:
    """Where a method ended, with its interval and its name below."""
    height, half = course.points[-1][1], course.half
    y, low, high = (frame.at(0.0, value)[1] for value in (height, height - half, height + half))
    told = f"<title>{escape(name)}: {height:.3g}{f' ± {half:.2g}' if half else ''}</title>"
    drawn = f'<path class="whisker" d="M{column:.1f} {low:.1f}V{high:.1f}"/>' if half else ""
    drawn += f'<circle cx="{column:.1f}" cy="{y:.1f}" r="5" fill="{colour}" style="fill-opacity:1">{told}</circle>'
    turned = f'transform="rotate(-40 {column:.1f} {BOTTOM + 16:.1f})"'
    return drawn + f'<text x="{column + 4:.1f}" y="{BOTTOM + 16:.1f}" text-anchor="end" {turned}>{escape(name)}</text>'


def _costs(frame: Frame, label: str) -> list[str]:
    """The lower axis of courses: round numbers from 0."""
    ticks, _ = round_ticks(*frame.x)
    drawn = [
        _text(frame.at(tick, frame.y[0])[0], BOTTOM + 17, f"{tick:,.0f}", "middle")
        for tick in ticks
        if tick <= frame.x[1]
    ]
    return [*drawn, _text((LEFT + frame.right) / 2, BOTTOM + 38, label, "middle")]


def _levels(frame: Frame, levels: Mapping[str, float]) -> list[str]:
    places = [frame.at(0.0, level)[1] for level in levels.values()]
    lines = [f'<path class="mark" d="M{LEFT:g} {y:.1f}H{STRIP_END:g}"/>' for y in places]
    names = zip(levels, apart(places), strict=True)
    return lines + [_text(STRIP_END + 8, y + 4.5, name, "start", "small") for name, y in names]


def _grid(frame: Frame, ticks: Sequence[float], decimals: int, unit: str = "", right: float = RIGHT) -> str:
    drawn = ""
    for tick in ticks:
        _, y = frame.at(frame.x[0], tick)
        drawn += f'<line class="grid" x1="{LEFT:g}" x2="{right:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
        drawn += _text(LEFT - 7, y + 4.5, f"{tick:.{decimals}f}{unit}".replace("-", "−"), "end")
    return drawn


def _across(frame: Frame, label: str) -> str:
    """The lower axis, with round numbers within its range."""
    ticks, decimals = round_ticks(*frame.x)
    inside = [tick for tick in ticks if frame.x[0] <= tick + 1e-9 and tick - 1e-9 <= frame.x[1]]
    drawn = "".join(
        _text(frame.at(tick, 0.0)[0], BOTTOM + 17, f"{tick + 0.0:.{decimals}f}".replace("-", "−"), "middle")
        for tick in inside
    )
    return drawn + _text((LEFT + RIGHT) / 2, HEIGHT - 10, label, "middle")


def _side(label: str) -> str:
    """What the left axis counts, above it, where it is read without turning the head."""
    return _text(4.0, TOP - 14, label, "start")


def _legend(place: int, of: int, name: str) -> str:
    """The names of the groups above the plot, where they cover nothing."""
    return _text(RIGHT - 78 * (of - 1 - place), TOP - 14, name, "end", "ab"[place]) if of > 1 else ""


def _mark(frame: Frame, x: float, label: str) -> str:
    """An upright line, with its meaning beside it where there is more room."""
    place, _ = frame.at(x, frame.y[0])
    left = place < (LEFT + RIGHT) / 2
    line = f'<path class="mark" d="M{place:.1f} {TOP:g}V{BOTTOM:g}"/>'
    return line + _text(place + (6 if left else -6), TOP + 12, label, "start" if left else "end", "small")


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    styled = f' class="{kind}"' if kind else ""
    return f'<text{styled} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, body: Sequence[str], width: float = WIDTH, height: float = HEIGHT) -> str:
    return (
        f'<svg class="plot" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>{''.join(body)}</svg>"
    )
