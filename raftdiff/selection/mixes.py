"""How several rewards become one ranking: pure functions of (prompts, candidates) tables. numpy only.

Each gives, of every reward, the part that it has in the total: the parts add up to it, so that it can be told what each
contributed to a choice. NaN means discarded, and is so in all of the tables of a call.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import numpy as np
from jaxtyping import Bool, Float

from raftdiff.selection import advantages

Table = Float[np.ndarray, "prompts candidates"]
Mask = Bool[np.ndarray, "prompts candidates"]
Values = Float[np.ndarray, "..."]
Weighted: TypeAlias = Sequence[tuple[float, Table]]
"""Rewards that rank, each with its weight."""
MixName = Literal["weighted_sum", "grpo", "gdpo", "rank_sum", "minimum"]
EPSILON = 1e-4
"""Beside a standard deviation in a denominator; as TRL and the authors of GDPO have it."""


@final
@dataclass(frozen=True, slots=True)
class Mix:
    name: MixName
    parts: Callable[[Weighted], list[Table]]
    unitless: bool = False
    """Whether a weight counts a reward's own spread, and not its unit."""

    def level(self, weighted: Sequence[tuple[float, Values]], units: Sequence[float]) -> Values:
        """How good each sample is by itself, in a unit that is the same in every round, for curves over the rounds:
        the weighted sum, or the minimum where the mix is that. ``units`` are what the scores are divided by where it is
        ``unitless``."""
        told = [
            weight * values / (unit if self.unitless else 1.0)
            for (weight, values), unit in zip(weighted, units, strict=True)
        ]
        level: Values = np.min(told, axis=0) if self.name == "minimum" else np.sum(told, axis=0)
        return level


def weighted_sum(rewards: Weighted) -> list[Table]:
    """w r of each: the total is their sum, in the rewards' own units.

    >>> weighted_sum([(1.0, np.array([[1.0, 2.0]])), (-0.5, np.array([[4.0, 0.0]]))])
    [array([[1., 2.]]), array([[-2., -0.]])]
    """
    return [weight * table for weight, table in rewards]


def grpo(rewards: Weighted) -> list[Table]:
    """The total is the weighted sum's z-score within its prompt, (s - mean) / (std + 1e-4), std with n - 1.

    The order within a prompt is that of the weighted sum; between prompts, hard ones count as much as easy ones.
    Source: Shao et al. 2024, arXiv:2402.03300; epsilon as in TRL.

    >>> sum(grpo([(1.0, np.array([[0.0, 4.0]])), (2.0, np.array([[1.0, 1.0]]))])).round(3).tolist()
    [[-0.707, 0.707]]
    """
    summed = weighted_sum(rewards)
    spread = _std(np.sum(summed, axis=0)) + EPSILON
    return [advantages.dr_grpo(part) / spread for part in summed]


def gdpo(rewards: Weighted) -> list[Table]:
    """The total is the weighted sum of each reward's own z-score within its prompt, divided by its standard deviation
    over the round (n - 1): a weight says how much a reward matters, whatever its unit and spread.

    Source: Liu et al. 2026, GDPO, arXiv:2601.05242, with the authors' 1e-4 beside both deviations. They subtract the
    mean over the batch as well, which is 0 here, as it is within every prompt; and where they count a missing score as
    0, it discards a candidate here.

    >>> first, second = np.array([[0.0, 1.0]]), np.array([[0.0, 100.0]])
    >>> [part.round(3).tolist() for part in gdpo([(1.0, first), (1.0, second)])]  # 100 counts as much as 1
    [[[-0.354, 0.354]], [[-0.354, 0.354]]]
    """
    parts = [weight * advantages.grpo(table, EPSILON) for weight, table in rewards]
    kept = np.sum(parts, axis=0)
    kept = kept[~np.isnan(kept)]
    spread = float(kept.std(ddof=1)) if kept.size > 1 else 0.0
    return [part / (spread + EPSILON) for part in parts]


def rank_sum(rewards: Weighted) -> list[Table]:
    """The total is the weighted sum of the share of the prompt's other candidates that each beats by a reward, 0 to 1,
    where a tie counts half: ranks alone count, so that no outlier of one reward outweighs another reward.

    It is Borda's count, divided by the number of the others, so that prompts with discarded candidates are not below
    those with all of them; one alone has 0.5.

    >>> rank_sum([(1.0, np.array([[5.0, 7.0, 7.0, np.nan]]))])
    [array([[0.  , 0.75, 0.75,  nan]])]
    """
    return [weight * beaten(table) for weight, table in rewards]


def minimum(rewards: Weighted) -> list[Table]:
    """The total is the least of the w r: a candidate is as good as what is worst about it. Its part has the reward that
    is the least, the first of equals; those of the others are 0. Weights have to bring the rewards to one scale, or it
    is always the same one that decides.

    Source: worst-case optimisation over several reward models, Coste et al. 2023, arXiv:2310.02743.

    >>> minimum([(1.0, np.array([[1.0, 3.0]])), (0.5, np.array([[8.0, 2.0]]))])
    [array([[1., 0.]]), array([[0., 1.]])]
    """
    stacked = np.stack(weighted_sum(rewards))
    missing = np.isnan(stacked).any(axis=0)
    least = np.where(missing, 0, stacked).argmin(axis=0)
    return [np.where(missing, np.nan, np.where(least == place, part, 0.0)) for place, part in enumerate(stacked)]


MIXES: Mapping[MixName, Mix] = {
    mix.name: mix
    for mix in (
        Mix("weighted_sum", weighted_sum),
        Mix("grpo", grpo),
        Mix("gdpo", gdpo, unitless=True),
        Mix("rank_sum", rank_sum, unitless=True),
        Mix("minimum", minimum),
    )
}


def beaten(table: Table) -> Table:
    """Of each candidate the share of the others of its row that have less, ties counted half; 0.5 of one alone."""
    valid = ~np.isnan(table)
    others = np.maximum(valid.sum(axis=1, keepdims=True) - 1, 1)
    found = np.full(table.shape, np.nan)
    for row, values in enumerate(table):
        kept = np.sort(values[valid[row]])
        less, up_to = (np.searchsorted(kept, values[valid[row]], side=side) for side in ("left", "right"))
        found[row, valid[row]] = (less + (up_to - less - 1) / 2) / others[row] if kept.size > 1 else 0.5
    return found


def holds(table: Table, at_least: float | Literal["median"]) -> Mask:
    """Where a score is at least a number, or the median of its row's; not where it is NaN.

    >>> holds(np.array([[1.0, 2.0, 3.0, np.nan]]), "median").tolist()
    [[False, True, True, False]]
    """
    if at_least != "median":
        return table >= at_least
    middle = [np.median(row[~np.isnan(row)]) if not np.isnan(row).all() else np.nan for row in table]
    return table >= np.array(middle)[:, None]


def last(total: Table, fails: Mask) -> Table:
    """What to add to a total so that all candidates that fail come after all that do not, of the whole table: minus
    twice its range (minus 1 where it has none) for those that fail, else 0. The order among them stays.

    >>> total = np.array([[1.0, 5.0], [2.0, 3.0]])
    >>> total + last(total, total == 5.0)
    array([[ 1., -3.],
           [ 2.,  3.]])
    """
    kept = total[~np.isnan(total)]
    span = float(np.ptp(kept)) if kept.size else 0.0
    return np.where(np.isnan(total), np.nan, np.where(fails, -2 * span if span > 0 else -1.0, 0.0))


def _std(table: Table) -> Float[np.ndarray, "prompts 1"]:
    """Of each row, with n - 1; 0 of fewer than two."""
    centred = advantages.dr_grpo(table)
    count = (~np.isnan(centred)).sum(axis=1, keepdims=True)
    spread: Float[np.ndarray, "prompts 1"] = np.sqrt(
        np.nansum(centred**2, axis=1, keepdims=True) / np.maximum(count - 1, 1)
    )
    return spread
