"""Preference strength: how far an ensemble of reward models agrees with each label, and what to do about those it
doubts. numpy only.

    d_im = r_m(chosen_i) - r_m(rejected_i)        a pair's difference under model m
    mu_i, sigma_i = mean, std of d_im over m      its strength, and how much the models differ about it

mu < 0 says that the ensemble would have chosen the other answer: the label is probably wrong. What each method says of
a pair is an ``Annotation``, which the loss takes up, ``raftdiff.llm.reward_models.losses.bradley_terry``.

Source: Wang et al. 2024, "Secrets of RLHF in Large Language Models Part II", arXiv:2401.06080. Departure: the paper
prints the margin outside the sigmoid, where it would have no gradient; here it is inside.
"""

from typing import Annotated, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field

from raftdiff.errors import UserError
from raftdiff.recipes.config import Config

Pairs = Float[np.ndarray, " pairs"]
Points = Float[np.ndarray, " points"]


class Strength(NamedTuple):
    """In the unit of the reward."""

    mu: Pairs
    """Mean difference; above 0 the ensemble agrees with the label."""
    sigma: Pairs
    """Population standard deviation (divided by the number of models, not one less)."""


class Annotation(NamedTuple):
    """What the loss is told of each pair. ``margin`` and ``smoothing`` belong to the pair as trained, after a flip."""

    flipped: Bool[np.ndarray, " pairs"]
    """The answers change places: the rejected one is trained as the chosen one."""
    margin: Pairs
    """By how much the better answer's reward should exceed the other's, in the unit of the reward."""
    smoothing: Pairs
    """The probability given to the label's being wrong, from 0 to below 0.5."""


class Decile(NamedTuple):
    """A tenth of the pairs, by their strength."""

    low: float
    """The lowest mu in it."""
    high: float
    """The highest."""
    mean: float
    """Of the values, NaN left out."""
    n: int
    """How many pairs it holds."""


class Roc(NamedTuple):
    """How well a score finds the positives: one point for each threshold, from (0, 0) to (1, 1)."""

    fpr: Points
    """Share of the negatives at or above the threshold."""
    tpr: Points
    """Share of the positives at or above it."""
    auc: float
    """Probability that a positive scores above a negative, ties half: 0.5 is chance, 1 is perfect."""


class NoDenoiseConfig(Config):
    """Every label is believed: plain Bradley-Terry."""

    type: Literal["none"] = "none"

    @property
    def needs_strength(self) -> bool:
        return False

    def annotate(self, mu: Pairs | None, count: int) -> Annotation:
        del mu
        return plain(count)


class FlipConfig(Config):
    """The pairs of lowest strength are turned round."""

    type: Literal["flip"] = "flip"
    share: float = Field(default=0.2, ge=0, le=1)
    """How many of the pairs, from the lowest mu up; the paper found the bottom 20% harmful."""

    @property
    def needs_strength(self) -> bool:
        return True

    def annotate(self, mu: Pairs | None, count: int) -> Annotation:
        return flip(_known(mu, count), self.share)


class MarginConfig(Config):
    """Every pair has to be told apart by its strength: strong ones by more, doubted ones by less than nothing."""

    type: Literal["margin"] = "margin"
    scale: float = Field(default=1.0, ge=0)
    """What mu is multiplied by; the authors advise small margins."""

    @property
    def needs_strength(self) -> bool:
        return True

    def annotate(self, mu: Pairs | None, count: int) -> Annotation:
        return margin(_known(mu, count), self.scale)


class FlipMarginConfig(Config):
    """The pairs of lowest strength are turned round, and so are their margins."""

    type: Literal["flip_margin"] = "flip_margin"
    share: float = Field(default=0.2, ge=0, le=1)
    """How many of the pairs are flipped, from the lowest mu up."""
    scale: float = Field(default=1.0, ge=0)
    """What mu is multiplied by; the authors advise small margins."""

    @property
    def needs_strength(self) -> bool:
        return True

    def annotate(self, mu: Pairs | None, count: int) -> Annotation:
        return flip_margin(_known(mu, count), self.share, self.scale)


class SoftMarginConfig(Config):
    """Labels are smoothed where the ensemble disagrees with them, and every pair has its margin."""

    type: Literal["soft_margin"] = "soft_margin"
    smoothing: float = Field(default=0.1, ge=0, lt=0.5)
    """The probability given to the label's being wrong, where mu < 0."""
    scale: float = Field(default=1.0, ge=0)
    """What mu is multiplied by; the authors advise small margins."""

    @property
    def needs_strength(self) -> bool:
        return True

    def annotate(self, mu: Pairs | None, count: int) -> Annotation:
        return soft_margin(_known(mu, count), self.smoothing, self.scale)


class SmoothConfig(Config):
    """Label smoothing: every label may be wrong, and is so with the same probability. Needs no ensemble."""

    type: Literal["smooth"] = "smooth"
    smoothing: float = Field(default=0.1, ge=0, lt=0.5)
    """The probability given to the label's being wrong."""

    @property
    def needs_strength(self) -> bool:
        return False

    def annotate(self, mu: Pairs | None, count: int) -> Annotation:
        del mu
        return smooth(count, self.smoothing)


DenoiseConfig: TypeAlias = Annotated[
    NoDenoiseConfig | FlipConfig | MarginConfig | FlipMarginConfig | SoftMarginConfig | SmoothConfig,
    Field(discriminator="type"),
]


def strength(d: Float[np.ndarray, "pairs models"]) -> Strength:
    """mu and sigma of each pair, from the differences under each model.

    >>> [part.round(6).tolist() for part in strength(np.array([[0.6, 0.4, 0.5], [-1.0, -0.4, -0.7]]))]
    [[0.5, -0.7], [0.08165, 0.244949]]

    Raises:
        UserError: there is no model.
    """
    if not d.shape[1]:
        raise UserError("Preference strength is a mean over reward models, and there is none; train at least one.")
    wide = d.astype(np.float64)
    return Strength(wide.mean(axis=1), wide.std(axis=1))


def plain(count: int) -> Annotation:
    return Annotation(np.zeros(count, dtype=bool), np.zeros(count), np.zeros(count))


def flip(mu: Pairs, share: float) -> Annotation:
    """The ``share`` of lowest mu, rounded to whole pairs, is turned round; of equal mu the first ones."""
    flipped = np.zeros(len(mu), dtype=bool)
    flipped[np.argsort(mu, kind="stable")[: round(share * len(mu))]] = True
    return plain(len(mu))._replace(flipped=flipped)


def margin(mu: Pairs, scale: float) -> Annotation:
    return plain(len(mu))._replace(margin=scale * mu.astype(np.float64))


def flip_margin(mu: Pairs, share: float, scale: float) -> Annotation:
    """Both. A flipped pair's strength is -mu, which is \\|mu\\| where the ensemble wanted the flip. Left at mu, its
    margin would let the flipped pair be as wrong as before."""
    flipped = flip(mu, share)
    signed = np.where(flipped.flipped, -mu, mu).astype(np.float64)
    return flipped._replace(margin=scale * signed)


def soft_margin(mu: Pairs, smoothing: float, scale: float) -> Annotation:
    """Margin on all pairs, smoothing only where mu < 0."""
    return margin(mu, scale)._replace(smoothing=np.where(mu < 0, smoothing, 0.0))


def smooth(count: int, smoothing: float) -> Annotation:
    return plain(count)._replace(smoothing=np.full(count, float(smoothing)))


def by_decile(mu: Pairs, values: Pairs) -> list[Decile]:
    """The mean of ``values`` in each tenth of the pairs, lowest mu first: tenths of the count, not of the range.

    With fewer than ten pairs there are as many groups as pairs. Tenths differ in size by one at most.
    """
    tenths = [at for at in np.array_split(np.argsort(mu, kind="stable"), 10) if len(at)]
    return [Decile(float(mu[at[0]]), float(mu[at[-1]]), _mean(values[at]), len(at)) for at in tenths]


def roc(scores: Pairs, positive: Bool[np.ndarray, " pairs"]) -> Roc:
    """The curve of ``scores``, higher meaning more likely ``positive``; equal scores share one threshold, so that their
    order has no influence. To find wrong labels by strength, the score is -mu. NaN where all are of one kind.

    >>> roc(np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False])).auc
    0.875
    """
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=np.nan))  # of each run of equal scores; NaN != 0 ends the last
    hits, misses = np.cumsum(positive[order])[last], np.cumsum(~positive[order])[last]
    if not positive.any() or positive.all():
        return Roc(np.full(len(last) + 1, np.nan), np.full(len(last) + 1, np.nan), float("nan"))
    tpr, fpr = np.append(0.0, hits / hits[-1]), np.append(0.0, misses / misses[-1])
    return Roc(fpr, tpr, float(np.trapezoid(tpr, fpr)))


def _known(mu: Pairs | None, count: int) -> Pairs:
    """The strengths, if there is one for each pair.

    Raises:
        UserError: some or all are missing.
    """
    missing = count if mu is None else int(np.isnan(mu).sum())
    if mu is None or missing:
        raise UserError(
            f"{missing} of {count} pairs have no strength (mu), which this way of denoising needs. Measure it with: "
            "raftdiff llm rm strength RECIPE --out FILE.jsonl, and train on that file; or set denoise.type to none or "
            "smooth."
        )
    return mu


def _mean(values: Pairs) -> float:
    valid = values[~np.isnan(values)]
    return float(valid.mean()) if len(valid) else float("nan")
