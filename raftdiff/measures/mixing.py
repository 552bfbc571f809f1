"""How several rewards went together in a round: pure functions of its score table and selection. numpy only.

NaN means discarded. Rewards are compared within a prompt, as they rank there.
"""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
from jaxtyping import Float

from raftdiff.selection.advantages import dr_grpo
from raftdiff.types import Scores, Selection

Table = Float[np.ndarray, "prompts candidates"]


def agreement(one: Table, other: Table) -> float | None:
    """Of the pairs of candidates of a prompt that both rewards tell apart, the share that both order alike, 0 to 1: 0.5
    is chance, 1 the same order, 0 the opposite one. None where there is no such pair.

    It is (gamma + 1) / 2 with Goodman and Kruskal's gamma, over the pairs of all prompts together.

    >>> agreement(np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 3.0, 2.0]]))  # two of three pairs
    0.6666666666666666
    """
    alike = apart = 0
    for first, second in zip(one, other, strict=True):
        signs = np.sign(first[:, None] - first) * np.sign(second[:, None] - second)
        alike, apart = alike + int((signs > 0).sum()), apart + int((signs < 0).sum())
    return alike / (alike + apart) if alike + apart else None


def agreements(tables: Mapping[str, Table]) -> dict[str, dict[str, float | None]]:
    """``agreement`` of every two rewards, once each: of the first with those behind it."""
    found: dict[str, dict[str, float | None]] = {}
    for one, other in combinations(tables, 2):
        found.setdefault(one, {})[other] = agreement(tables[one], tables[other])
    return found


def told_nothing(table: Table) -> float:
    """The share of prompts of which a reward gave all candidates one score, or has a score of one alone or none.

    >>> told_nothing(np.array([[1.0, 1.0, np.nan], [0.0, 2.0, 1.0]]))
    0.5
    """
    return float(np.mean([len(np.unique(row[~np.isnan(row)])) < 2 for row in table]))


def signed(scores: Scores, selection: Selection) -> Table:
    """What is learnt of each candidate, as a weight: above 0 for more of it, below 0 for less, 0 for what is left out.

    Of pairs and rankings the first has 1 and the last -1; else it is the item's weight.
    """
    row = {prompt: place for place, prompt in enumerate(scores.prompts)}
    found = np.zeros(scores.total.shape)
    for item in selection.items:
        first, *others = item.keys
        found[row[first.prompt], first.index] += 1.0 if others else item.weight
        if others:
            found[row[others[-1].prompt], others[-1].index] -= 1.0
    return found


def contributions(parts: Mapping[str, Table], learnt: Table) -> dict[str, float | None]:
    """Of what the choice is above its prompts' mean in the total, the share that each reward's part has; they add up to
    1, and below 0 is one that spoke against it. None where the choice is not above the mean.

    Args:
        parts: those of the total, which they add up to.
        learnt: as ``signed`` gives it.

    >>> parts = {"a": np.array([[0.0, 3.0]]), "b": np.array([[1.0, 0.0]])}
    >>> contributions(parts, np.array([[0.0, 1.0]]))
    {'a': 1.5, 'b': -0.5}
    """
    told = {name: float(np.nansum(learnt * dr_grpo(part))) for name, part in parts.items()}
    whole = sum(told.values())
    scale = max(map(abs, told.values()), default=0.0)
    return {name: value / whole if whole > 1e-9 * scale else None for name, value in told.items()}


def chosen_above(table: Table, learnt: Table) -> float | None:
    """How far the choice is above its prompts' mean in a reward, in standard deviations within a prompt (n - 1, over
    all prompts together); below 0 where it is under it. None where the reward has no spread, or nothing is chosen.

    >>> round(chosen_above(np.array([[0.0, 2.0]]), np.array([[0.0, 1.0]])), 3)  # 1 / sqrt(2)
    0.707
    """
    centred = dr_grpo(table)
    known = ~np.isnan(centred)
    spread = np.sqrt(np.nansum(centred**2) / max(1, np.maximum(known.sum(axis=1) - 1, 0).sum()))
    weight = np.abs(learnt[known]).sum()
    return float(np.nansum(learnt * centred) / weight / spread) if spread > 0 and weight > 0 else None
