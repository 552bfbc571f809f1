"""How good a reward model is on labelled pairs, and how it sees them: accuracy, calibration, overlap. numpy only.

``d`` is r(chosen) - r(rejected) of each pair, in the unit of the reward; by the Bradley-Terry model sigmoid(d) is the
probability that the chosen answer is the better one. NaN is a missing value and is left out.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from raftdiff.measures.statistics import Estimate, share, unit_length

ROWS = 1024
"""Of the similarity matrix at once."""

Pairs = Float[np.ndarray, " pairs"]
Features = Float[np.ndarray, "rows width"]


class Bin(NamedTuple):
    """The pairs whose favoured answer is given about the same probability; each share is from 0 to 1."""

    low: float
    high: float
    confidence: float
    """Mean probability that the favoured answer is the chosen one."""
    accuracy: float
    """How often it is; equal to the confidence where the model is calibrated, below it where it is overconfident."""
    n: int


class Principal(NamedTuple):
    projection: Features
    """Each row along the directions of largest variance, about the mean."""
    share: Float[np.ndarray, " directions"]
    """How much of the variance lies along each, 0 to 1, largest first."""


def accuracy(d: Pairs) -> Estimate:
    """How often the chosen answer has the higher reward, 0 to 1; a tie counts half, 0.5 is chance.

    The interval is Wilson's (1927), which stays an interval where every pair, of few, is right. It takes pairs for
    independent: with several of one prompt it is somewhat too narrow.
    """
    return share(_right(d[~np.isnan(d)])[:, None])


def reliability(d: Pairs, bins: int = 10) -> list[Bin]:
    """Confidence against accuracy in ``bins`` equal parts of 0.5 to 1, those without pairs left out.

    The label says nothing of which answer stands first, so the favoured answer's probability, sigmoid(|d|), is set
    against how often it is the chosen one; at d = 0 neither is favoured, and it counts half.
    """
    known = d[~np.isnan(d)].astype(np.float64)
    confidence, right = 1 / (1 + np.exp(-np.abs(known))), _right(known)
    edges = np.linspace(0.5, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1)
    members = [(at, place == at) for at in range(bins)]
    return [
        Bin(float(edges[at]), float(edges[at + 1]), float(confidence[m].mean()), float(right[m].mean()), int(m.sum()))
        for at, m in members
        if m.any()
    ]


def ece(d: Pairs, bins: int = 10) -> float:
    """Expected calibration error: mean distance of accuracy from confidence, over pairs. 0 is calibrated, lower is
    better. NaN for no pairs.

    Source: Naeini et al. 2015, with equal bins of ``reliability``. With few pairs chance alone makes it positive.
    """
    found = reliability(d, bins)
    total = sum(one.n for one in found)
    return sum(one.n * abs(one.accuracy - one.confidence) for one in found) / total if total else float("nan")


def mixing(
    chosen: Float[np.ndarray, "chosen width"], rejected: Float[np.ndarray, "rejected width"], k: int = 10
) -> float:
    """How far two sets of features overlap: 1 is fully mixed, 0 is apart.

    The share of each row's k nearest neighbours (by cosine) that belong to the other set, averaged, over what chance
    gives. It may exceed 1 a little: a chosen answer's neighbour is often the rejected answer to the same prompt. NaN
    where a set is empty.
    """
    if not len(chosen) or not len(rejected):
        return float("nan")
    features = unit_length(np.concatenate([chosen, rejected]))
    other = np.arange(len(features)) < len(chosen)
    count, nearest = len(features), min(k, len(features) - 1)
    foreign = 0
    for start in range(0, count, ROWS):
        rows = np.arange(start, min(start + ROWS, count))
        cosine = features[rows] @ features.T
        cosine[np.arange(len(rows)), rows] = -np.inf  # nobody is their own neighbour
        neighbours = np.argsort(-cosine, axis=1, kind="stable")[:, :nearest]
        foreign += int((other[neighbours] != other[rows, None]).sum())
    chance = 2 * len(chosen) * len(rejected) / (count * (count - 1))
    return float(foreign / (count * nearest) / chance)


def principal(features: Features, directions: int = 2) -> Principal:
    """Principal components: the projection that shows most of the variance, and how much it shows.

    Each direction's sign is such that its largest weight is positive, so that one set of features gives one picture.
    There are at most as many directions as rows or columns. Features that are all alike have shares of 0.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    _, singular, weights = np.linalg.svd(centred, full_matrices=False)
    kept = weights[:directions]
    kept = kept * np.where(kept[np.arange(len(kept)), np.abs(kept).argmax(axis=1)] < 0, -1.0, 1.0)[:, None]
    variance = singular**2
    total = variance.sum()
    return Principal(centred @ kept.T, variance[:directions] / (total if total > 0 else 1.0))


def _right(d: Pairs) -> Pairs:
    return np.where(d == 0, 0.5, d > 0)
