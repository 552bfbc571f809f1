"""Selectors that learn from more than the best: rankings, pairs, labels, advantages, everything. numpy only.

As in ``best``: NaN means discarded, ties go to the lowest index, and a prompt without a valid candidate is named
and left out. The formulas are in ``advantages``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import numpy as np
from jaxtyping import Float
from pydantic import Field

from raftdiff.recipes.config import Config
from raftdiff.selection import advantages
from raftdiff.selection.best import Compares, selection, weighted
from raftdiff.types import Item, Key, Scores, Selection, SelectionKind, Selector

Table = Float[np.ndarray, "prompts candidates"]
Method = Literal["grpo", "dr_grpo", "rloo", "reinforce_plus_plus_baseline", "raft_plus_plus", "reinforce_rej"]
METHODS: Mapping[str, Callable[[Table], Table]] = {
    "grpo": advantages.grpo,
    "dr_grpo": advantages.dr_grpo,
    "rloo": advantages.rloo,
    "reinforce_plus_plus_baseline": advantages.reinforce_plus_plus_baseline,
    "raft_plus_plus": advantages.raft_plus_plus,
    "reinforce_rej": advantages.reinforce_rej,
}


class RankedConfig(Config):
    """All valid candidates of a prompt, best first: what RRHF learns from."""

    type: Literal["ranked"] = "ranked"

    def count(self, prompts: int, candidates: int) -> int:
        """How many it selects at most."""
        del candidates
        return prompts

    def build(self, *, seed: int) -> Selector:
        del seed
        return Ranked()


class BestWorstConfig(Config):
    """The best candidate of each prompt and its worst, as a pair; none where all are equally good."""

    type: Literal["best_worst"] = "best_worst"
    min_gap: float = Field(default=0.0, ge=0)
    """Pairs that lie closer in reward are left out."""

    def count(self, prompts: int, candidates: int) -> int:
        """How many it selects at most."""
        del candidates
        return prompts

    def build(self, *, seed: int) -> Selector:
        del seed
        return BestWorst(self.min_gap)


class ThresholdConfig(Config):
    """Every candidate, labelled good or bad: what KTO learns from."""

    type: Literal["threshold"] = "threshold"
    threshold: float | None = None
    """From this total reward on a candidate is good; by default from the mean of its prompt's candidates."""

    def count(self, prompts: int, candidates: int) -> int:
        """How many it selects at most."""
        return prompts * candidates

    def build(self, *, seed: int) -> Selector:
        del seed
        return Threshold(self.threshold)


class SoftmaxConfig(Config):
    """Every candidate, weighted by softmax(r / temperature) within its prompt: reward-weighted regression."""

    type: Literal["softmax"] = "softmax"
    temperature: float = Field(default=1.0, gt=0)
    """In units of the total reward; towards 0 the best alone is left."""

    def count(self, prompts: int, candidates: int) -> int:
        """How many it selects at most."""
        return prompts * candidates

    def build(self, *, seed: int) -> Selector:
        del seed
        return Softmax(self.temperature)


class AdvantageConfig(Config):
    """Every candidate with its advantage over the others of its prompt: what policy gradients learn from."""

    type: Literal["advantage"] = "advantage"
    method: Method = "grpo"
    """grpo, dr_grpo, rloo, reinforce_plus_plus_baseline; raft_plus_plus and reinforce_rej take rewards of -1 and +1."""

    def count(self, prompts: int, candidates: int) -> int:
        """How many it selects at most."""
        return prompts * candidates

    def build(self, *, seed: int) -> Selector:
        del seed
        return Advantage(self.method)


class AllConfig(Config):
    """Every valid candidate with its total reward: what PPO learns from."""

    type: Literal["all"] = "all"

    def count(self, prompts: int, candidates: int) -> int:
        """How many it selects at most."""
        return prompts * candidates

    def build(self, *, seed: int) -> Selector:
        del seed
        return All()


@final
@dataclass(frozen=True, slots=True)
class Ranked:
    kind: SelectionKind = "ranked"

    def select(self, scores: Scores) -> Selection:
        items = []
        for row, prompt in enumerate(scores.prompts):
            totals = scores.total[row]
            order = [int(k) for k in np.argsort(-totals, kind="stable") if not np.isnan(totals[k])]
            if order:
                keys = tuple(Key(scores.round, prompt, k) for k in order)
                items.append(Item(keys, scores=tuple(float(totals[k]) for k in order)))
        return selection(self.kind, items, scores)


@final
@dataclass(frozen=True, slots=True)
class BestWorst:
    min_gap: float = 0.0
    kind: SelectionKind = "pairs"

    def select(self, scores: Scores) -> Selection:
        items = []
        for row, best, worst in advantages.max_min_pairs(scores.total):
            pair = (float(scores.total[row, best]), float(scores.total[row, worst]))
            if pair[0] - pair[1] >= self.min_gap:
                prompt = scores.prompts[row]
                keys = (Key(scores.round, prompt, best), Key(scores.round, prompt, worst))
                items.append(Item(keys, scores=pair))
        return selection(self.kind, items, scores)


@final
@dataclass(frozen=True, slots=True)
class Threshold:
    threshold: float | None = None
    kind: SelectionKind = "labelled"

    @property
    def compares(self) -> Compares:
        return "prompt" if self.threshold is None else "nothing"

    def select(self, scores: Scores) -> Selection:
        """Weight 1 for the good, -1 for the bad. A prompt whose candidates are all equal has neither, by the mean."""
        valid = ~np.isnan(scores.total)
        if self.threshold is not None:
            return weighted(self.kind, scores, np.where(scores.total >= self.threshold, 1.0, -1.0))
        above = advantages.dr_grpo(scores.total)  # the mean, exactly 0 where all are equal
        spread = np.where(valid, np.abs(above), 0.0).max(axis=1, keepdims=True, initial=0.0)
        labels = np.where(above >= -1e-9 * spread, 1.0, -1.0)  # what is the mean but for rounding is good
        return weighted(self.kind, scores, np.where(spread > 0, labels, np.nan))


@final
@dataclass(frozen=True, slots=True)
class Softmax:
    temperature: float
    kind: SelectionKind = "weighted"

    def select(self, scores: Scores) -> Selection:
        return weighted(self.kind, scores, advantages.rwr(scores.total, self.temperature))


@final
@dataclass(frozen=True, slots=True)
class Advantage:
    method: Method
    kind: SelectionKind = "advantages"

    @property
    def compares(self) -> Compares:
        return "nothing" if self.method == "raft_plus_plus" else "prompt"

    def select(self, scores: Scores) -> Selection:
        """Candidates of no advantage are kept: they count where losses are averaged."""
        return weighted(self.kind, scores, METHODS[self.method](scores.total))


@final
@dataclass(frozen=True, slots=True)
class All:
    kind: SelectionKind = "all"
    compares: ClassVar[Compares] = "nothing"

    def select(self, scores: Scores) -> Selection:
        items = [
            Item((Key(scores.round, prompt, int(k)),), scores=(float(scores.total[row, k]),))
            for row, prompt in enumerate(scores.prompts)
            for k in np.flatnonzero(~np.isnan(scores.total[row]))
        ]
        return selection(self.kind, items, scores)
