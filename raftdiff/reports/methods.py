"""Methods side by side, of either medium: a line a method, its figures as means over training seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from raftdiff.measures import statistics


class Measured(NamedTuple):
    """What one training came to."""

    method: str
    seed: int
    figures: Mapping[str, float]
    """By column; one that is missing or NaN is not known of this method."""
    halves: Mapping[str, float] = {}
    """Half the 95% interval of a figure over its prompts, which speaks where there is one seed alone."""


class Column(NamedTuple):
    label: str
    how: str
    """As ``str.format`` takes it, such as ``{:.3f}``."""


def table(found: Sequence[Measured], columns: Mapping[str, Column]) -> str:
    """Markdown, a line a method in the order given: mean over seeds, and half the 95% interval (Student's t over seeds;
    with a single one, over its prompts, where that is known). Empty where a figure is not known."""
    lines = ["| method | " + " | ".join(column.label for column in columns.values()) + " |"]
    lines.append("|---|" + "--:|" * len(columns))
    for method in dict.fromkeys(one.method for one in found):
        cells = [_cell(*over_seeds(found, method, key), column.how) for key, column in columns.items()]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def over_seeds(found: Sequence[Measured], method: str, key: str) -> tuple[float, float]:
    """A method's mean, NaN where a seed's figure is not known, and half the interval, 0 where there is none."""
    held = list({one.seed: one for one in found if one.method == method}.values())
    values = np.array([one.figures.get(key, math.nan) for one in held], dtype=np.float64)
    low, high = statistics.t_interval(values)
    return float(values.mean()), (high - low) / 2 if len(values) > 1 else held[0].halves.get(key, 0.0)


def _cell(mean: float, half: float, how: str) -> str:
    if math.isnan(mean):
        return ""
    return how.format(mean) + (f" ± {how.format(half).removeprefix('+')}" if half > 0 else "")
