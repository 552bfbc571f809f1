"""Figures of an evaluation: means with intervals, win rates, diversity. Pure functions of numpy arrays.

Everywhere: NaN is a missing value and is left out of sums and counts; a table is (prompts, samples); intervals are 95%.
"""

from collections.abc import Hashable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from raftdiff.seeds import fold

RESAMPLES = 4000
Z = 1.959964
"""Of the normal distribution, for 95%."""
TINY = 1e-12
FARTHEST = 2.0
"""1 - cos of vectors that point away from each other."""

Table = Float[np.ndarray, "prompts samples"]
Values = Float[np.ndarray, " samples"]
Features = Float[np.ndarray, "samples features"]


class Estimate(NamedTuple):
    """A mean and how sure it is. Everything is in the unit of the values.

    Example: ``Estimate(mean=27.3, std=1.4, ci95=(26.9, 27.7), n=96, prompts=24)``.
    """

    mean: float
    """Over all valid values; NaN where there is none."""
    std: float
    """Of the single values about their mean (n - 1 in the denominator), 0 for one value."""
    ci95: tuple[float, float]
    """The interval for the mean, lower end first; NaNs where there is none."""
    n: int
    """How many values were valid."""
    prompts: int
    """How many prompts had one; of a vector, whose values are independent, as ``n``."""


def mean_std_ci(values: Table | Values, seed: int = 0, *, resamples: int = RESAMPLES) -> Estimate:
    """Mean, standard deviation and bootstrap interval (percentile method; Efron & Tibshirani 1993, chapter 13).

    Samples of one prompt resemble each other, so a (prompts, samples) table is resampled by whole prompts: a cluster
    bootstrap. A vector is resampled by its values, and so is a table of one prompt, whose interval then speaks of that
    prompt alone. Prompts without a valid value are no part of it; where one is left of several, or one value, there is
    no interval, for every resample would be alike. With few prompts (under ten or so) the percentile interval is
    somewhat too narrow. The same ``seed`` draws the same prompts, so that figures from tables that have values of the
    same prompts can be compared.
    """
    table = values[:, None] if values.ndim == 1 else values
    prompts = int((~np.isnan(table)).any(axis=1).sum())
    rows = table.T if table.shape[0] == 1 else table
    rows = rows[~np.isnan(rows).all(axis=1)]
    if not len(rows):
        return Estimate(np.nan, np.nan, (np.nan, np.nan), 0, 0)
    valid = ~np.isnan(rows)
    sums, counts = np.where(valid, rows, 0.0).sum(axis=1, dtype=np.float64), valid.sum(axis=1)
    mean = sums.sum() / counts.sum()
    squares = np.where(valid, rows - mean, 0.0) ** 2
    std = np.sqrt(squares.sum() / max(1, counts.sum() - 1))
    low, high = np.nan, np.nan
    if len(rows) > 1:
        draws = np.random.default_rng(fold(seed, "bootstrap")).integers(len(rows), size=(resamples, len(rows)))
        low, high = np.percentile(sums[draws].sum(axis=1) / counts[draws].sum(axis=1), [2.5, 97.5])
    return Estimate(float(mean), float(std), (float(low), float(high)), int(counts.sum()), prompts)


def share(values: Table) -> Estimate:
    """How often answers of 1 (yes), 0 (no) and 0.5 (a tie) say yes, with an interval that holds for few answers too.

    Wilson's (1927), so that one answer leaves nearly all open, and many that are alike still some: resampling them
    would leave nothing. Answers to one prompt resemble each other, so it is taken for as many independent answers as
    the spread from prompt to prompt tells (the effective sample size of Korn & Graubard 1998), but no fewer than if
    those to a prompt were copies of one, so one answer a prompt has Wilson's interval itself. It is as many as there
    are prompts where the spread tells nothing, because all answers are alike or one prompt was asked about. Ties make
    the interval somewhat too wide.
    """
    valid = ~np.isnan(values)
    sums, counts = np.where(valid, values, 0.0).sum(axis=1, dtype=np.float64), valid.sum(axis=1)
    n, prompts = int(counts.sum()), int((counts > 0).sum())
    if not n:
        return Estimate(np.nan, np.nan, (np.nan, np.nan), 0, 0)
    p = float(sums.sum() / n)
    variance = prompts / max(1, prompts - 1) * float(np.square(sums - p * counts).sum()) / n**2
    alike = n**2 / float(np.square(counts).sum())  # where those to a prompt are copies; with one a prompt this is n
    unknown = prompts == 1 or p in (0.0, 1.0)
    effective = float(prompts) if unknown else float(np.clip(p * (1 - p) / max(variance, TINY), alike, n))
    std = float(np.sqrt(np.square(np.where(valid, values - p, 0.0)).sum() / max(1, n - 1)))
    return Estimate(p, std, wilson(p, effective), n, prompts)


def wilson(p: float, n: float) -> tuple[float, float]:
    """Wilson's interval (1927) for a share ``p`` of ``n`` independent answers.

    >>> [round(end, 2) for end in (*wilson(1.0, 1.0), *wilson(0.5, 100.0))]
    [0.21, 1.0, 0.4, 0.6]
    """
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def paired_difference(before: Table, after: Table, seed: int = 0, *, resamples: int = RESAMPLES) -> Estimate:
    """``after - before`` at the same prompt and seed, with its interval. A pair with a NaN on either side is left out.

    Pairing removes what the prompt and the starting noise do to both sides, so this interval is much narrower than the
    gap between two separate ones suggests.
    """
    return mean_std_ci(after - before, seed, resamples=resamples)


def win_rate(before: Table, after: Table) -> float:
    """How often ``after`` beats ``before`` at the same prompt and seed, in 0..1; a tie counts half.

    A pair with a NaN on either side is left out; NaN where no pair is left.
    """
    valid = ~np.isnan(before) & ~np.isnan(after)
    if not valid.any():
        return float("nan")
    return float(((after > before) + 0.5 * (after == before))[valid].mean())


def vendi(features: Features) -> float:
    """The Vendi score (Friedman & Dieng 2022, arXiv:2210.02410): the effective number of different samples.

    exp of the Shannon entropy of the eigenvalues of K/n, where K is the cosine similarity of the n samples. From 1 (all
    alike) to n (all orthogonal); higher is more diverse. It grows with n: compare sets of one size. Duplicating every
    sample changes nothing. NaN for no samples.
    """
    if not len(features):
        return float("nan")
    unit = unit_length(features)
    # X X' and X' X have the same eigenvalues but for zeros; the smaller of the two is the cheaper.
    gram = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit
    eigenvalues = np.linalg.eigvalsh(gram / len(unit))
    positive = eigenvalues[eigenvalues > TINY]
    return float(np.exp(-(positive * np.log(positive)).sum()))


def mean_pairwise_distance(features: Features, prompts: Sequence[Hashable]) -> float:
    """1 - cos between two samples of one prompt: mean over the pairs of a prompt, then over prompts.

    ``prompts`` names the prompt of each sample. From 0 (each prompt gives one picture) to 2; higher is more diverse.
    Prompts with a single sample are left out; NaN where there is no other.
    """
    members: dict[Hashable, list[int]] = {}
    for position, prompt in enumerate(prompts):
        members.setdefault(prompt, []).append(position)
    unit = unit_length(features)
    # The squared length of the sum holds every cosine: n on the diagonal, each pair twice.
    cosines = [
        (np.sum(unit[at].sum(axis=0) ** 2) - np.sum(unit[at] ** 2)) / (len(at) * (len(at) - 1))
        for at in members.values()
        if len(at) > 1
    ]
    return float(max(0.0, 1 - np.mean(cosines))) if cosines else float("nan")


def mean_distance(before: Features, after: Features) -> float:
    """1 - cos between sample i of ``before`` and sample i of ``after``, averaged: how far the pictures moved.

    From 0 (unmoved) to 2.
    """
    return float(max(0.0, np.mean(1 - (unit_length(before) * unit_length(after)).sum(axis=-1))))


def t_interval(values: Values) -> tuple[float, float]:
    """The interval for the mean of independent runs by Student's t. Needs two values or more; NaNs otherwise."""
    if len(values) < 2:
        return (float("nan"), float("nan"))
    half = t_quantile(len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return (float(values.mean() - half), float(values.mean() + half))


@cache
def t_quantile(degrees: int, probability: float = 0.975) -> float:
    """The quantile of Student's t with ``degrees`` of freedom, for ``probability`` in [0.5, 1); 1e-4 of the true value.

    With t = sqrt(degrees) tan(a), the density in a is proportional to cos(a)^(degrees - 1): smooth on a bounded range,
    so the trapezoid rule is enough.

    >>> round(t_quantile(2), 3)
    4.303
    """
    angle = np.linspace(0, np.pi / 2, 200_001)
    density = np.cos(angle) ** (degrees - 1)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(degrees) * np.tan(np.interp(2 * probability - 1, mass / mass[-1], angle)))


def nearest(similarity: Float[np.ndarray, "samples samples"]) -> Float[np.ndarray, " samples"]:
    """The distance, 1 - cos, of each sample to the nearest other one, 0 (there is an equal) to 2; 2 of one alone.

    >>> nearest(np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])).tolist()
    [0.0, 0.0, 1.0]
    """
    apart = np.where(np.eye(len(similarity), dtype=bool), FARTHEST, 1 - similarity)
    found: np.ndarray = np.clip(apart.min(axis=1, initial=FARTHEST), 0, FARTHEST)
    return found


def originals(similarity: Float[np.ndarray, "samples samples"], within: float) -> Bool[np.ndarray, " samples"]:
    """Which samples are kept where of those nearer to each other than ``within`` only the first is: one after another,
    each that is at least so far from all that are kept. The share of the others is that of near-duplicates.

    >>> originals(np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]]), 0.2).tolist()
    [True, False, True]
    """
    kept = np.zeros(len(similarity), dtype=bool)
    for place, row in enumerate(similarity):
        kept[place] = not (kept & (1 - row < within)).any()
    return kept


def cosines(unit: Float[np.ndarray, "*batch samples features"]) -> Float[np.ndarray, "*batch samples samples"]:
    """Cosine of any two of the unit vectors, to six decimals: float32 knows no more, and what is equal stays so."""
    found: np.ndarray = np.round(unit @ np.swapaxes(unit, -1, -2), 6)
    return found


def unit_length(features: Float[np.ndarray, "*batch features"]) -> Float[np.ndarray, "*batch features"]:
    """Each feature vector at length one, in double precision; a zero vector stays zero."""
    wide = features.astype(np.float64)
    unit: np.ndarray = wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), TINY)
    return unit
