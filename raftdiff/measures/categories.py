"""Figures by category: a benchmark's scores over its kinds of prompts, before and after, and over all of them.

Pure functions of tables (prompts, samples), in which NaN is a sample that is missing or has no score.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

import numpy as np
from jaxtyping import Float

from raftdiff.measures import statistics
from raftdiff.measures.evaluation import Figure
from raftdiff.measures.statistics import Estimate
from raftdiff.seeds import fold

MOST, FEWEST = 40, 2
"""Categories that a column may have, to be one of categories."""
OFTEN = 3.0
"""How often a category stands in such a column, in the mean, at least."""

Table = Float[np.ndarray, "prompts samples"]


class Line(TypedDict):
    """One category, or all of them. In the unit of the score; higher is better."""

    prompts: int
    """With a score on some side."""
    scores: dict[str, Figure | None]
    """By side: ``before`` and ``after``, or the one that there is; None where no sample has a score."""
    difference: Figure | None
    """After less before, paired by prompt and seed; None with one side, or without a pair."""
    win_rate: float | None
    """Share of pairs in which after scores higher; a tie counts half."""


class Grouping(TypedDict):
    """What one column of the prompts comes to."""

    categories: dict[str, Line]
    """In the order of the prompts."""
    mean: Line | None
    """Of the categories, each with the same weight; None where there is none to be made."""


def members(categories: Sequence[str]) -> dict[str, list[int]]:
    """The places of each category's prompts, categories in the order in which they come.

    >>> members(["b", "a", "b"])
    {'b': [0, 2], 'a': [1]}
    """
    found: dict[str, list[int]] = {}
    for place, name in enumerate(categories):
        found.setdefault(name, []).append(place)
    return found


def grouped(sides: Mapping[str, Table], categories: Sequence[str], seed: int = 0) -> Grouping:
    """The lines of one column's categories, and their mean; ``categories`` names that of each prompt.

    A category in which a side has no score leaves the mean of that side out: it would be one of other categories.
    """
    places = members(categories)
    lines = {name: line({side: table[rows] for side, table in sides.items()}, seed) for name, rows in places.items()}
    return Grouping(categories=lines, mean=_mean(sides, list(places.values()), seed))


def line(sides: Mapping[str, Table], seed: int = 0) -> Line:
    """The figures of some prompts. Scores of nothing but 0 and 1 have Wilson's interval (``statistics.share``), which
    holds for a share near either end; others, and all differences, that of the bootstrap over prompts."""
    every = np.concatenate([table.ravel() for table in sides.values()])
    estimate = statistics.share if set(np.unique(every[~np.isnan(every)])) <= {0.0, 1.0} else statistics.mean_std_ci
    told = [(~np.isnan(table)).any(axis=1) for table in sides.values()]
    found = {side: _figure(estimate(table)) for side, table in sides.items()}
    pair = tuple(sides.values())
    before, after = pair if len(pair) == 2 else (None, None)
    return Line(
        prompts=int(np.any(told, axis=0).sum()),
        scores=found,
        difference=None
        if before is None or after is None
        else _figure(statistics.paired_difference(before, after, seed)),
        win_rate=None if before is None or after is None else _number(statistics.win_rate(before, after)),
    )


def _mean(sides: Mapping[str, Table], places: Sequence[Sequence[int]], seed: int) -> Line | None:
    pair = list(sides.values())
    found = {side: _figure(balanced([table[rows] for rows in places], seed)) for side, table in sides.items()}
    if not any(found.values()):
        return None
    change = balanced([(pair[1] - pair[0])[rows] for rows in places], seed) if len(pair) == 2 else None
    won = [_number(statistics.win_rate(*(table[rows] for table in pair))) for rows in places] if len(pair) == 2 else []
    return Line(
        prompts=sum(
            int(np.any([(~np.isnan(table)).any(axis=1) for table in pair], axis=0)[rows].sum()) for rows in places
        ),
        scores=found,
        difference=None if change is None else _figure(change),
        win_rate=float(np.mean([it for it in won if it is not None])) if won and None not in won else None,
    )


def balanced(
    tables: Sequence[Float[np.ndarray, "_ samples"]], seed: int = 0, *, resamples: int = statistics.RESAMPLES
) -> Estimate:
    """The mean over some tables of each one's mean, whatever their sizes, with a bootstrap interval: the prompts of
    each table are resampled among themselves (a stratified cluster bootstrap, percentile method).

    NaNs where a table has no value: a mean over fewer would be another one. No interval where one has a single prompt.
    """
    sums, counts = zip(*(_rows(table) for table in tables), strict=True)
    values, prompts = sum(int(count.sum()) for count in counts), sum(map(len, counts))
    if not tables or not all(map(len, counts)):
        return Estimate(np.nan, np.nan, (np.nan, np.nan), 0, 0)
    mean = float(np.mean([one.sum() / count.sum() for one, count in zip(sums, counts, strict=True)]))
    std = float(np.nanstd(np.concatenate([table.ravel() for table in tables]), ddof=1)) if values > 1 else 0.0
    low = high = np.nan
    if min(map(len, counts)) > 1:
        random = np.random.default_rng(fold(seed, "bootstrap"))
        means = np.zeros(resamples)
        for one, count in zip(sums, counts, strict=True):
            draws = random.integers(len(one), size=(resamples, len(one)))
            means += one[draws].sum(axis=1) / count[draws].sum(axis=1) / len(sums)
        low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(mean, std, (float(low), float(high)), values, prompts)


def _rows(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Sum and count of the values of each prompt that has one."""
    valid = ~np.isnan(table)
    some = valid.any(axis=1)
    return np.where(valid, table, 0.0).sum(axis=1)[some], valid.sum(axis=1)[some]


def _figure(estimate: Estimate) -> Figure | None:
    if not estimate.n:
        return None
    alone = estimate.prompts < 2  # what the samples of one prompt tell of others is nothing
    ends = None if alone or np.isnan(estimate.ci95).any() else list(estimate.ci95)
    return Figure(mean=estimate.mean, std=estimate.std, ci95=ends, n=estimate.n, prompts=estimate.prompts)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def columns(rows: Iterable[Mapping[str, object]]) -> dict[str, dict[str, int]]:
    """The columns of some prompts that sort them into categories, and how many prompts are of each: a few texts that
    every prompt has one of, each several times.

    >>> columns([{"tag": "counting", "note": "a"}] * 4 + [{"tag": "colors", "note": "b"}] * 4)
    {'tag': {'counting': 4, 'colors': 4}, 'note': {'a': 4, 'b': 4}}
    >>> columns([{"caption": "a cat"}, {"caption": "a dog"}])
    {}
    """
    held = list(rows)
    found = {}
    for name in held[0] if held else ():
        values = [row.get(name) for row in held]
        if all(isinstance(value, str) and value.strip() for value in values):
            counts = dict(Counter(map(str, values)))
            if FEWEST <= len(counts) <= MOST and len(values) >= OFTEN * len(counts):
                found[name] = counts
    return found
