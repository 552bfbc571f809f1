"""A selector that sees how alike candidates are, beside their scores. numpy only.

As in ``best``: NaN means discarded, ties go to the lowest index, and a prompt without a valid candidate is named and
left out.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field

from raftdiff.errors import UserError
from raftdiff.recipes.config import Config
from raftdiff.selection.advantages import dr_grpo
from raftdiff.selection.best import Mask, Table, best_of_k, weighted
from raftdiff.types import Scores, Selection, SelectionKind, Selector

Pairs = Float[np.ndarray, "prompts candidates candidates"]
FARTHEST = 2.0
"""1 - cos of vectors that point away from each other."""


class DiverseConfig(Config):
    """Candidates of each prompt that are good and differ: the best, then one by one the best of the others, each less a
    penalty for being like one that is taken already (maximal marginal relevance)."""

    type: Literal["diverse"] = "diverse"
    keep: int = Field(default=4, ge=2)
    """How many candidates of each prompt are learnt from."""
    penalty: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """What an equal of one that is taken already loses against one that is as unlike it as two candidates of a prompt
    are on average; in standard deviations of the total reward within a prompt. With 0 this is best_of_k."""

    def count(self, prompts: int, candidates: int) -> int:
        """How many it selects at most."""
        return prompts * min(self.keep, candidates)

    def build(self, *, seed: int) -> Selector:
        del seed
        return Diverse(self.keep, self.penalty)


@final
@dataclass(frozen=True, slots=True)
class Diverse:
    keep: int
    penalty: float
    kind: SelectionKind = "weighted"
    sees_similarity: ClassVar[bool] = True

    def select(self, scores: Scores) -> Selection:
        """
        Raises:
            UserError: the scores come without the similarity of the candidates.
        """
        if scores.similarity is None:
            raise UserError(
                "ranker.selector: 'diverse' needs to know how alike candidates are, and these scores do not say it; "
                "give the Ranker a 'similarity'."
            )
        chosen = diverse(scores.total, scores.similarity, self.keep, self.penalty)
        return weighted("weighted", scores, np.where(chosen, 1.0, np.nan))


def diverse(total: Table, similarity: Pairs, keep: int, penalty: float) -> Mask:
    """``keep`` of each row, greedily: the highest, then of the others the highest in total - penalty s (1 - d / m).
    There d is its distance, 1 - similarity, to the nearest that is taken already; m the mean distance of two candidates
    of a row, and s the standard deviation of the totals within a row, both over all rows. So ``penalty`` means the same
    for every reward and every measure of similarity; with a large one each next is the farthest from those before it.

    Source: maximal marginal relevance, Carbonell & Goldstein 1998, with both terms in units of the table's own. Greedy
    MAP of a k-DPP (Chen et al. 2018, arXiv:1709.05135) is the other known form. It sees whole sets, but there an equal
    costs infinitely much at any weight, and the cost of one nearly equal is the logarithm of what features leave of it;
    here the worst that similarity can do is a number that a person can set.

    >>> alike = np.array([[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    >>> [diverse(np.array([[3.0, 2.0, 1.0]]), alike, 2, penalty).astype(int).tolist() for penalty in (0.5, 1.0)]
    [[[1, 1, 0]], [[1, 0, 1]]]
    """
    pairs = _pairs(total)
    distance = np.where(pairs, 1 - similarity, FARTHEST)
    mean = float(distance[pairs].mean()) if pairs.any() else 0.0
    cost = penalty * _spread(total)
    chosen = best_of_k(total, 1)
    for _ in range(1, min(keep, total.shape[1])):
        nearest = np.where(chosen[:, None, :], distance, FARTHEST).min(axis=2)
        worth = total - cost * (1 - nearest / (mean or 1.0))
        chosen |= best_of_k(np.where(chosen, np.nan, worth), 1)
    return chosen


def _pairs(total: Table) -> Bool[np.ndarray, "prompts candidates candidates"]:
    """Where two different valid candidates meet."""
    valid = ~np.isnan(total)
    met: np.ndarray = valid[:, :, None] & valid[:, None, :] & ~np.eye(total.shape[1], dtype=bool)
    return met


def _spread(total: Table) -> float:
    """Standard deviation within rows, pooled over them, n - 1 of each in the denominator. 1 where no totals differ: the
    distances decide alone then, in whatever unit."""
    squares = np.square(dr_grpo(total))
    degrees = np.maximum((~np.isnan(total)).sum(axis=1) - 1, 0).sum()
    return float(np.sqrt(np.nansum(squares) / max(degrees, 1))) or 1.0
