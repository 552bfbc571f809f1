"""A linear fit with a penalty whose strength the data choose, and how predictions go with what came true. numpy only.

Everything is computed in double precision.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from raftdiff.measures.statistics import TINY, Z

STRENGTHS = np.logspace(-8, 2, 41)
"""Penalties that ``ridge`` chooses among, in units of the features' total variation; the last leaves about the mean."""

Features = Float[np.ndarray, "samples features"]
Values = Float[np.ndarray, " samples"]


class Linear(NamedTuple):
    """A prediction: ``features @ weights + intercept``."""

    weights: Float[np.ndarray, " features"]
    intercept: float
    strength: float
    """Of the penalty; one of ``STRENGTHS``."""

    def __call__(self, features: Features) -> Values:
        told: np.ndarray = features.astype(np.float64) @ self.weights + self.intercept
        return told


class Correlation(NamedTuple):
    """From -1 to 1, with its 95% interval; NaN, and an interval from -1 to 1, where a side has one value alone."""

    value: float
    ci95: tuple[float, float]


def ridge(features: Features, targets: Values, strengths: Float[np.ndarray, " strengths"] = STRENGTHS) -> Linear:
    """The weights w and the intercept b that minimise |y - Xw - b|^2 + P |w|^2 (Hoerl & Kennard 1970); b is free.

    P is one of ``strengths`` times the sum of the squared features about their mean, so features in another unit give
    the same predictions. Chosen is the one whose leave-one-out errors have the smallest mean square. They are exact and
    need one fit alone: the error of a sample that was left out is its error in the fit to all, over 1 - h, where h is
    its leverage (Allen's PRESS, 1974).

    Raises:
        ValueError: fewer than three samples, or features that are all alike.
    """
    x, y = features.astype(np.float64), targets.astype(np.float64)
    middle, mean = x.mean(axis=0), y.mean()
    variances, axes = np.linalg.eigh((x - middle).T @ (x - middle))
    total = variances.sum()
    if len(x) < 3 or total < TINY * max(1.0, float(np.square(x).sum())):
        raise ValueError("a fit needs three samples or more, and features that differ")
    variances = np.maximum(variances, 0.0)
    along = (x - middle) @ axes
    pull = along.T @ (y - mean)
    shrunk = 1 / (variances[:, None] + strengths * total)
    leverage = 1 / len(x) + np.square(along) @ shrunk
    errors = (y - mean)[:, None] - along @ (pull[:, None] * shrunk)
    best = int(np.square(errors / np.maximum(1 - leverage, TINY)).mean(axis=0).argmin())
    weights = axes @ (pull * shrunk[:, best])
    return Linear(weights, float(mean - middle @ weights), float(strengths[best]))


def pearson(one: Values, other: Values) -> Correlation:
    """The linear correlation; its interval by Fisher's z (1915), with 1 / (n - 3) for the variance."""
    return _with_interval(_correlation(one, other), len(one), spread=1.0)


def spearman(one: Values, other: Values) -> Correlation:
    """The correlation of the ranks; its interval by z with (1 + r^2 / 2) / (n - 3) (Bonett & Wright 2000)."""
    value = _correlation(ranks(one), ranks(other))
    return _with_interval(value, len(one), spread=1 + value**2 / 2)


def ranks(values: Values) -> Values:
    """From 1 for the lowest; equal values share the mean of their places.

    >>> ranks(np.array([10.0, 30.0, 10.0, 20.0])).tolist()
    [1.5, 4.0, 1.5, 3.0]
    """
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    found: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return found


def least_clear(n: int) -> float:
    """The smallest correlation of ``n`` samples whose interval by Fisher's z leaves zero out; 1 for fewer than four.

    >>> round(least_clear(60), 2), least_clear(3)
    (0.25, 1.0)
    """
    return float(np.tanh(Z / np.sqrt(n - 3))) if n > 3 else 1.0


def _correlation(one: Values, other: Values) -> float:
    a, b = (side.astype(np.float64) - side.mean(dtype=np.float64) for side in (one, other))
    size = float(np.sqrt((a @ a) * (b @ b)))
    if min(np.ptp(one), np.ptp(other)) == 0 or size == 0:
        return float("nan")
    return float(np.clip(a @ b / size, -1, 1))


def _with_interval(value: float, n: int, *, spread: float) -> Correlation:
    if np.isnan(value) or n < 4:
        return Correlation(value, (-1.0, 1.0))
    middle = np.arctanh(np.clip(value, -1 + TINY, 1 - TINY))
    half = Z * np.sqrt(spread / (n - 3))
    return Correlation(value, (float(np.tanh(middle - half)), float(np.tanh(middle + half))))
