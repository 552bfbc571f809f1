"""What is said of answers beside their rewards: diversity, length, perplexity, distance from the base model."""

import math
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from raftdiff.llm.model.loading import LM
from raftdiff.llm.model.rows import Row, row_of, score
from raftdiff.measures.texts import alike, distinct, mean_length, msttr, unique
from raftdiff.types import Key, Sample, Scores

Base = Callable[[], AbstractContextManager[None]]
ORDERS = (1, 2)


def diversity(texts: Sequence[str]) -> dict[str, float | None]:
    """The RAFT paper's figures of a set of answers; None where there is too little text for one.

    distinct-n, the share of n-grams that differ, falls with the amount of text: compare sets of one size.
    """
    found: dict[str, float] = {f"distinct_{n}": distinct(texts, n) for n in ORDERS}
    found |= {f"unique_{n}": float(unique(texts, n)) for n in ORDERS}
    found |= {"msttr_100": msttr(texts), "length": mean_length(texts)}
    return {name: None if math.isnan(value) else value for name, value in found.items()}


def describe(batches: Iterable[Sequence[Sample[str]]], selected: AbstractSet[Key]) -> dict[str, Any]:
    """Diversity and length of all candidates of a round, and of the selected: hacking shows in these first."""
    everything = [(sample.key in selected, sample.media) for batch in batches for sample in batch]
    return {
        "diversity_all": diversity([text for _, text in everything]),
        "diversity_selected": diversity([text for chosen, text in everything if chosen]),
    }


def similarity(
    batches: Iterable[Sequence[Sample[str]]], scores: Scores
) -> Float[np.ndarray, "prompts candidates candidates"]:
    """How alike any two answers to a prompt are, by the words that they share."""
    answers: dict[str, dict[int, str]] = {prompt: {} for prompt in scores.prompts}
    for batch in batches:
        for sample in batch:
            answers[sample.prompt.id][sample.index] = sample.media
    table = np.full((*scores.total.shape, scores.total.shape[1]), np.nan)
    for row, held in zip(table, answers.values(), strict=True):
        row[np.ix_(list(held), list(held))] = alike(list(held.values()))
    return table


@final
@dataclass(frozen=True, slots=True)
class Distances:
    """How far the policy is from the base, on answers that the policy drew."""

    lm: LM
    base: Base
    batch_size: int

    def __call__(self, samples: Sequence[Sample[str]]) -> dict[str, float]:
        """``kl``: mean of log p - log p0 of an answer, nats, an estimate of KL(policy || base), and so after the
        prompt that it was drawn after; ``perplexity``: of the answers under the base model, a token; ``length``: in
        words; ``distinct_2``."""
        rows = [row_of(self.lm, sample, learning=False) for sample in samples if len(sample.aux.get("tokens", "?"))]
        now, before = self.log_probabilities(rows)
        texts = [sample.media for sample in samples]
        return {
            "kl": float(torch.stack([(p - q).sum() for p, q in zip(now, before, strict=True)]).mean()),
            "perplexity": perplexity(before),
            "length": mean_length(texts),
            "distinct_2": distinct(texts, 2),
        }

    def log_probabilities(self, rows: Sequence[Row]) -> tuple[list[Tensor], list[Tensor]]:
        """log p of every answer token under the policy and under the base."""
        now = score(self.lm, rows, batch_size=self.batch_size)
        with self.base():
            return now, score(self.lm, rows, batch_size=self.batch_size)


def perplexity(logprobs: Sequence[Tensor]) -> float:
    """exp of the mean negative log p of all tokens together; lower is likelier."""
    return float(torch.cat(list(logprobs)).mean().neg().exp())
