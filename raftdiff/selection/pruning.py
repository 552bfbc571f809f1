"""Best of K for less, by successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943): candidates are compared at a
few early steps, by the pictures that the predictions then mean, and the worst are drawn no further. numpy only.

When to look, and who goes on; ``diffusion.sampling.pruned`` draws them.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import gcd
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field, model_validator

from raftdiff.errors import UserError
from raftdiff.recipes.config import Config
from raftdiff.selection.best import best_of_k


class Look(NamedTuple):
    """When candidates are compared before they are drawn, and how many go on."""

    steps: int
    """Denoising steps that lie behind."""
    kept: int
    """Of a prompt's candidates."""


class PruneConfig(Config):
    """Best of K for less: after some of the steps the picture that the prediction means is decoded and rewarded, and a
    prompt's worst candidates are drawn no further."""

    at: list[float] = Field(min_length=1)
    """After which shares of the steps, rising: [0.3, 0.6]."""
    keep: list[float] = Field(min_length=1)
    """The share of a prompt's candidates that goes on after each, falling: [0.5, 0.25]."""
    rewards: list[str] | None = None
    """Which of the ranker's rewards look, by their names; None takes all that rank, veto or constrain."""

    @model_validator(mode="after")
    def _in_order(self) -> "PruneConfig":
        if len(self.at) != len(self.keep):
            raise ValueError(f"'at' names {len(self.at)} looks and 'keep' {len(self.keep)}; give both as many numbers")
        if sorted(set(self.at)) != self.at or not 0 < self.at[0] <= self.at[-1] < 1:
            raise ValueError(f"'at' are shares of the steps between 0 and 1, each above the one before, not {self.at}")
        if sorted(set(self.keep), reverse=True) != self.keep or not 1 > self.keep[0] >= self.keep[-1] > 0:
            told = "shares of the candidates between 1 and 0, each below the one before"
            raise ValueError(f"'keep' are {told}, not {self.keep}")
        return self

    def looks(self, steps: int, candidates: int) -> list[Look]:
        """Rounded; at least one step lies behind each, and one candidate is always left.

        >>> PruneConfig(at=[0.3, 0.6], keep=[0.5, 0.25]).looks(10, 8)
        [Look(steps=3, kept=4), Look(steps=6, kept=2)]
        """
        at, keep = (
            np.maximum(1, np.floor(np.array(shares) * whole + 0.5)).astype(int).tolist()
            for shares, whole in ((self.at, steps), (self.keep, candidates))
        )
        return [Look(*one) for one in zip(at, keep, strict=True)]

    def check(self, steps: int, candidates: int) -> None:
        """
        Raises:
            UserError: with so many steps and candidates of a prompt one of the looks saves nothing.
        """
        looks = self.looks(steps, candidates)
        around = [Look(0, candidates), *looks, Look(steps, 0)]
        if any(it.steps <= one.steps or it.kept >= one.kept for one, it in pairwise(around)):
            after, left = (", ".join(map(str, column)) for column in zip(*looks, strict=True))
            raise UserError(
                f"sampler.prune: by 'at' candidates are seen after {after} of {steps} steps, and by 'keep' {left} of "
                f"{candidates} go on. Each look must be later than the one before, none after the last step, and each "
                "must leave fewer; take other shares, or fewer of them."
            )

    def steps(self, steps: int, candidates: int) -> int:
        """Denoising steps of all of a prompt's candidates together.

        >>> PruneConfig(at=[0.3, 0.6], keep=[0.5, 0.25]).steps(10, 8)
        44
        """
        looks = [Look(0, candidates), *self.looks(steps, candidates), Look(steps, 0)]
        return sum(one.kept * (other.steps - one.steps) for one, other in pairwise(looks))


def fitting(width: int, counts: Sequence[int]) -> int:
    """How many prompts together fill batches of ``width`` whole, whichever of these counts each has of candidates.

    >>> fitting(16, [8, 4, 2]), fitting(16, [10, 3])
    (8, 16)
    """
    return width // gcd(width, *counts)


def going_on(
    totals: Float[np.ndarray, "prompts candidates"], there: Bool[np.ndarray, "prompts candidates"], count: int
) -> Bool[np.ndarray, "prompts candidates"]:
    """The ``count`` best of each prompt; ties to the lowest index. One that was discarded (NaN) comes behind the others
    that are ``there``, and goes on where there are no better: a preview is no picture yet.

    >>> going_on(np.array([[1.0, np.nan, 3.0, np.nan]]), np.array([[True, True, True, False]]), 3).astype(int).tolist()
    [[1, 1, 1, 0]]
    """
    return best_of_k(np.where(there, np.nan_to_num(totals, nan=-np.inf), np.nan), count)
