"""An aesthetic head of one's own: learnt from pictures that people rated, and looked at on others of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from PIL import Image

from raftdiff.diffusion.found.ranked import ahead
from raftdiff.diffusion.sampling.pictures import Found
from raftdiff.errors import UserError, counted
from raftdiff.measures.regression import STRENGTHS, Correlation, Linear, least_clear, pearson, ridge, spearman
from raftdiff.measures.statistics import Estimate, t_interval
from raftdiff.rewards.aesthetic import Origin, save_head
from raftdiff.rewards.tower import Tower, pixel_digest
from raftdiff.seeds import fold
from raftdiff.types import Report, silent

LEAST, LEAST_LEARNT, LEAST_HELD = 20, 10, 4
"""Pictures without which there is no head; of them to learn from, and held out: of fewer no interval is known."""
WIDE = 0.4
"""From end to end of an interval: from here on a correlation is hardly known, and more ratings are asked for."""


class Rated(NamedTuple):
    """Different pictures, each once, in an order that is their own, whatever their files are called."""

    features: Float32[torch.Tensor, "pictures width"]
    """The tower's embeddings, at unit length."""
    ratings: Float[np.ndarray, " pictures"]
    """Of each the mean of all that were given to it."""
    given: tuple[float, ...]
    """All ratings."""


class Outcome(NamedTuple):
    """How predictions go with the ratings of pictures that nothing was learnt from."""

    spearman: Correlation
    pearson: Correlation
    error: Estimate
    """Mean absolute error, in the unit of the ratings."""


class Trained(NamedTuple):
    """A head, and how it does."""

    head: Linear
    learnt: int
    """Pictures that it was learnt from."""
    head_outcome: Outcome
    constant: float
    """The median rating of those pictures: of all constants the one with the smallest mean absolute error there."""
    constant_outcome: Outcome
    gain: Estimate
    """How much smaller the absolute error is with the head than with the constant, picture by picture."""


def embedded(found: Sequence[Found], tower: Tower, *, report: Report = silent) -> tuple[Rated, list[str]]:
    """The pictures through a CLIP model's image tower, those that are equal in every pixel once, with the mean of their
    ratings; and what could not be opened, a sentence each. ``report`` hears how many were looked at.

    Raises:
        UserError: not one can be opened.
    """
    given: dict[bytes, list[float]] = {}
    rows: list[torch.Tensor] = []
    waiting: list[Image.Image] = []
    damaged: list[str] = []
    for place, (one, opening) in enumerate(zip(found, ahead(found), strict=True), 1):
        if isinstance(opening, UserError):
            damaged.append(str(opening))
        elif one.score is not None:
            mark = pixel_digest(opening.picture)
            if mark not in given:
                waiting.append(opening.picture)
            given.setdefault(mark, []).append(one.score)
        if len(waiting) == tower.batch_size or (waiting and place == len(found)):
            rows.append(tower.image_features(waiting))
            waiting = []
        report(place, len(found))
    if not rows:
        raise UserError(f"Not one of {counted(len(found), 'picture')} can be opened: {damaged[0]}")
    features, marks = torch.cat(rows), list(given)
    order = sorted(range(len(marks)), key=marks.__getitem__)
    ratings = np.array([np.mean(given[marks[place]]) for place in order])
    return Rated(features[order], ratings, tuple(one for held in given.values() for one in held)), damaged


def split(
    pictures: int, *, held_out: float, seed: int
) -> tuple[Int[np.ndarray, " learnt"], Int[np.ndarray, " held_out"]]:
    """Which pictures are learnt from, and which are held out, drawn at random: the share ``held_out`` of them.

    Raises:
        UserError: there are too few pictures, or too few on one side.
    """
    if pictures < LEAST:
        raise UserError(
            f"{counted(pictures, 'rated picture')} can be read here, and a head needs {LEAST} different ones at least; "
            "some hundreds make a good one."
        )
    count = round(held_out * pictures)
    if count < LEAST_HELD or pictures - count < LEAST_LEARNT:
        raise UserError(
            f"--held-out {held_out:g}: of {pictures} pictures this leaves {pictures - count} to learn from and {count} "
            f"held out, where {LEAST_LEARNT} and {LEAST_HELD} are the least."
        )
    order = np.random.default_rng(fold(seed, "held-out ratings")).permutation(pictures)
    return np.sort(order[count:]), np.sort(order[:count])


def train(rated: Rated, *, held_out: float, seed: int) -> Trained:
    """A linear head by ridge regression on a part of the pictures, and its figures on the others. How strong the
    penalty is, is chosen by leave-one-out within the first part; the head that is measured is the one that is returned.

    Raises:
        UserError: as ``split``, or in ratings or embeddings that are learnt from there is nothing to tell apart.
    """
    learnt, held = split(len(rated.ratings), held_out=held_out, seed=seed)
    features, ratings = rated.features.numpy(), rated.ratings
    if np.ptp(ratings) == 0 or np.ptp(ratings[learnt]) == 0:
        which = "all" if np.ptp(ratings) == 0 else "those to learn from"
        raise UserError(
            f"{counted(len(ratings), 'picture')}, and {which} are rated {ratings[learnt[0]]:g}: ratings that differ "
            "are needed to learn from."
        )
    try:
        head = ridge(features[learnt], ratings[learnt])
    except ValueError:
        raise UserError("The CLIP model's embeddings of all these pictures are alike, so none can be told.") from None
    told, constant = head(features[held]), float(np.median(ratings[learnt]))
    true, flat = ratings[held], np.full(len(held), constant)
    return Trained(
        head,
        len(learnt),
        _outcome(told, true),
        constant,
        _outcome(flat, true),
        _mean(np.abs(flat - true) - np.abs(told - true)),
    )


def _outcome(told: Float[np.ndarray, " pictures"], true: Float[np.ndarray, " pictures"]) -> Outcome:
    return Outcome(spearman(told, true), pearson(told, true), _mean(np.abs(told - true)))


def _mean(values: Float[np.ndarray, " pictures"]) -> Estimate:
    """With Student's interval: pictures are independent of each other."""
    return Estimate(float(values.mean()), float(values.std(ddof=1)), t_interval(values), len(values), len(values))


def doubts(trained: Trained) -> list[str]:
    """What is to be known before the head is trusted, a sentence each; nothing where all is well."""
    outcome, held = trained.head_outcome, trained.head_outcome.error.n
    low, high = outcome.spearman.ci95
    said = []
    if np.isnan(outcome.spearman.value):
        said.append("the ratings held out, or the predictions of them, are all alike, so no correlation is known.")
    elif low <= 0:
        side = "lies below zero" if high < 0 else "is not clear of zero"
        said.append(
            f"the held-out correlation {side} ({outcome.spearman.value:.2f}, {low:.2f} to {high:.2f}): nothing shows "
            f"that this head knows what you like. With {held} pictures held out, one of about {least_clear(held):.2f} "
            "is clear. Rate more pictures, or take another --tower."
        )
    elif high - low > WIDE:
        said.append(
            f"{held} held-out pictures tell the correlation only to within {low:.2f} to {high:.2f}; rate more pictures "
            "to know it better."
        )
    if trained.head.strength == STRENGTHS[-1]:
        said.append("within the part to learn from, the strongest penalty was the best: a head that says the mean.")
    return said


def write(path: Path, trained: Trained, rated: Rated, origin: Origin, *, seed: int, held_out: float) -> None:
    """The head as a file that the reward ``aesthetic`` reads, with how it came to be and how it does in its metadata.

    Raises:
        OSError: the disk refuses.
    """
    outcome = trained.head_outcome
    about = {
        "ratings": len(rated.given),
        "pictures": len(rated.ratings),
        "learnt_from": trained.learnt,
        "held_out": outcome.error.n,
        "held_out_share": held_out,
        "seed": seed,
        "rating_min": min(rated.given),
        "rating_max": max(rated.given),
        "strength": trained.head.strength,
        "spearman": outcome.spearman.value,
        "spearman_ci95": list(outcome.spearman.ci95),
        "pearson": outcome.pearson.value,
        "pearson_ci95": list(outcome.pearson.ci95),
        "mean_absolute_error": outcome.error.mean,
        "mean_absolute_error_of_a_constant": trained.constant_outcome.error.mean,
    }
    weights = torch.from_numpy(trained.head.weights.astype(np.float32))
    save_head(path, weights, trained.head.intercept, origin, {name: str(value) for name, value in about.items()})
