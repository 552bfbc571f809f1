"""Selectors: pure functions of a (prompts, candidates) score table. numpy only.

NaN means discarded, ties go to the lowest index, and a prompt without a valid candidate is named and left out.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field

from raftdiff.recipes.config import Config
from raftdiff.seeds import fold
from raftdiff.types import Item, Key, Scores, Selection, SelectionKind, Selector

Table = Float[np.ndarray, "prompts candidates"]
Mask = Bool[np.ndarray, "prompts candidates"]
Compares = Literal["prompt", "batch", "nothing"]
"""What a selector needs told apart: the candidates of each prompt, which is so for one without a word of it, those of
all prompts, or none."""


class BestOfKConfig(Config):
    """The best candidates of each prompt: the paper's local ranking (RAFT, Algorithm 1, K candidates, 1/K accepted)."""

    type: Literal["best_of_k"] = "best_of_k"
    keep: int = Field(default=1, ge=1)
    """How many candidates of each prompt are learnt from."""

    def count(self, prompts: int, candidates: int) -> int:
        """How many it selects at most."""
        return prompts * min(self.keep, candidates)

    def build(self, *, seed: int) -> Selector:
        del seed
        return BestOfK(self.keep)


class TopFractionConfig(Config):
    """The best candidates of the whole batch: the paper's global ranking. Easy prompts may starve hard ones."""

    type: Literal["top_fraction"] = "top_fraction"
    fraction: float = Field(default=0.05, gt=0, le=1)
    """How much of the batch is learnt from; the paper's 1/K."""
    floor: int = Field(default=0, ge=0)
    """The best so many of each prompt are among them, so that easy prompts starve no hard ones."""

    def count(self, prompts: int, candidates: int) -> int:
        """How many it selects at most."""
        return max(1, round(self.fraction * prompts * candidates), prompts * min(self.floor, candidates))

    def build(self, *, seed: int) -> Selector:
        del seed
        return TopFraction(self.fraction, self.floor)


class RandomConfig(Config):
    """Random candidates of each prompt: the control that shows what ranking adds at the same budget."""

    type: Literal["random"] = "random"
    keep: int = Field(default=1, ge=1)
    """How many candidates of each prompt are learnt from."""

    def count(self, prompts: int, candidates: int) -> int:
        """How many it selects at most."""
        return prompts * min(self.keep, candidates)

    def build(self, *, seed: int) -> Selector:
        return Random(self.keep, seed)


@final
@dataclass(frozen=True, slots=True)
class BestOfK:
    keep: int = 1
    kind: SelectionKind = "weighted"

    def select(self, scores: Scores) -> Selection:
        return _chosen(scores, best_of_k(scores.total, self.keep))


@final
@dataclass(frozen=True, slots=True)
class TopFraction:
    fraction: float
    floor: int = 0
    kind: SelectionKind = "weighted"
    compares: ClassVar[Compares] = "batch"

    def select(self, scores: Scores) -> Selection:
        return _chosen(scores, top_fraction(scores.total, self.fraction, self.floor))


@final
@dataclass(frozen=True, slots=True)
class Random:
    keep: int
    seed: int
    kind: SelectionKind = "weighted"
    compares: ClassVar[Compares] = "nothing"

    def select(self, scores: Scores) -> Selection:
        """Best of K on a table of noise: each valid candidate of a prompt is as likely as any other."""
        rows = [np.random.default_rng(fold(self.seed, scores.round, "select", prompt)) for prompt in scores.prompts]
        noise = np.stack([row.random(scores.total.shape[1]) for row in rows])
        return _chosen(scores, best_of_k(np.where(np.isnan(scores.total), np.nan, noise), self.keep))


def best_of_k(total: Table, keep: int = 1) -> Mask:
    """The ``keep`` highest of each row.

    >>> best_of_k(np.array([[1.0, 3.0, 3.0], [np.nan, np.nan, 0.0]]), keep=1).astype(int).tolist()
    [[0, 1, 0], [0, 0, 1]]
    """
    order = np.argsort(-total, axis=1, kind="stable")  # NaN sorts last; stable: ties to the lowest index
    chosen = np.zeros(total.shape, dtype=bool)
    np.put_along_axis(chosen, order[:, :keep], True, axis=1)
    chosen &= ~np.isnan(total)
    return chosen


def top_fraction(total: Table, fraction: float, floor: int = 0) -> Mask:
    """The highest of the whole table, ``fraction`` of its cells and at least one; ties to the lowest row, then column.
    Among them are the ``floor`` highest of each row, though these be more.

    >>> top_fraction(np.array([[1.0, 3.0], [3.0, np.nan]]), 0.25).astype(int).tolist()
    [[0, 1], [0, 0]]
    >>> top_fraction(np.array([[1.0, 2.0], [5.0, 9.0]]), 0.5, floor=1).astype(int).tolist()
    [[0, 1], [0, 1]]
    """
    count = max(1, round(fraction * total.size))
    chosen = best_of_k(total, floor)
    order = np.argsort(np.where(chosen, -np.inf, -total), axis=None, kind="stable")  # what is chosen already first
    chosen.ravel()[order[:count]] = True  # a view
    chosen &= ~np.isnan(total)
    return chosen


def figures(scores: Scores, selection: Selection, drawn: int | None = None) -> dict[str, float | None]:
    """What every round reports of its scores, all in units of the total reward; ``None`` where nothing was valid.
    ``drawn``: how many candidates there are, where not one for each cell of the table.

    ``first_sample_mean`` is the policy as a user meets it (one sample a prompt), ``mean`` all candidates,
    ``selected_mean`` what is learnt from, ``random_mean`` what a random selection of the same size from the same
    prompts has on average, ``best_of_k`` the mean over prompts of the best candidate.
    """
    total, valid = scores.total, ~np.isnan(scores.total)
    at = {(prompt, k): total[row, k] for row, prompt in enumerate(scores.prompts) for k in range(total.shape[1])}
    row_mean = {
        prompt: float(total[row][valid[row]].mean()) for row, prompt in enumerate(scores.prompts) if valid[row].any()
    }
    keys = [key for item in selection.items for key in item.keys[:1] if key.round == scores.round]
    return {
        "first_sample_mean": _mean(total[:, 0]),
        "mean": _mean(total),
        "selected_mean": _mean(np.array([at[key.prompt, key.index] for key in keys])),
        "random_mean": _mean(np.array([row_mean[key.prompt] for key in keys])),
        "best_of_k": _mean(np.array([total[row][valid[row]].max() for row in range(len(total)) if valid[row].any()])),
        "discard_rate": float(1 - valid.sum() / (drawn or total.size)),
    }


def undecided(total: Table, compares: Compares = "prompt") -> int:
    """Prompts of which all candidates scored the same, or that have only one, so that no reward could choose. A discard
    is told from the rest.

    >>> undecided(np.array([[1.0, 1.0], [0.0, 2.0], [np.nan, 1.0]]))
    1
    >>> undecided(np.array([[1.0], [2.0]])), undecided(np.array([[1.0], [2.0]]), "batch")
    (2, 0)
    """
    if compares == "nothing" or (compares == "batch" and not constant(total)):
        return 0
    return sum(constant(row) for row in total)


def constant(values: Float[np.ndarray, "..."]) -> bool:
    """Whether all are one number; NaN is none."""
    return bool((values == values.flat[0]).all())


def _mean(values: Float[np.ndarray, "..."]) -> float | None:
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else None


def selection(kind: SelectionKind, items: Iterable[Item], scores: Scores) -> Selection:
    """The items, and the prompts without one valid candidate."""
    empty = np.isnan(scores.total).all(axis=1)
    left_out = tuple(prompt for row, prompt in enumerate(scores.prompts) if empty[row])
    return Selection(kind, tuple(items), left_out)


def weighted(kind: SelectionKind, scores: Scores, weights: Table) -> Selection:
    """An item for every candidate that is valid and has a weight."""
    there = ~np.isnan(scores.total) & ~np.isnan(weights)
    items = [
        Item((Key(scores.round, prompt, int(k)),), weight=float(weights[row, k]))
        for row, prompt in enumerate(scores.prompts)
        for k in np.flatnonzero(there[row])
    ]
    return selection(kind, items, scores)


def _chosen(scores: Scores, chosen: Mask) -> Selection:
    return weighted("weighted", scores, np.where(chosen, 1.0, np.nan))
