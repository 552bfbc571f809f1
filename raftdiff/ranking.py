"""The ranker: rewards with weights, and a selector. Every raw score is kept beside the total."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, final

import numpy as np
import torch
from jaxtyping import Float

from raftdiff.errors import UserError
from raftdiff.scoring import called, demand_reward, numbers, sees_prompts
from raftdiff.types import Key, Media, Reward, Sample, Scores, Selection, Selector

Features = Callable[[Sequence[Sample[Any]]], Float[torch.Tensor, "samples features"]]
"""Unit-length features of samples, for diversity."""
Similarity = Callable[[Iterable[Sequence[Sample[Any]]], Scores], Float[np.ndarray, "prompts candidates candidates"]]
"""``Scores.similarity`` of a round's candidates, those that are scored."""
Describe = Callable[[Iterable[Sequence[Sample[Any]]], Set[Key]], Mapping[str, Any]]


class AllUnfitError(UserError):
    """Nothing that was drawn is fit to be scored."""


@final
@dataclass(frozen=True)
class Unfit(Generic[Media]):
    """Candidates that nothing can be learnt from. No reward sees them; each is NaN for all of them."""

    finds: Callable[[Sample[Media]], bool]
    """Whether a sample is one."""
    name: Literal["blank", "too_long"]
    """Under which the round's figures count them."""
    all_are: str
    """What to say where all samples are, after "All 4 "."""


@final
@dataclass(frozen=True)
class Ranker(Generic[Media]):
    rewards: Sequence[tuple[Reward[Media], float]]
    """Each with its weight; the total is the weighted sum, NaN where any reward of non-zero weight is NaN."""
    selector: Selector
    describe: Describe | None = None
    """Further figures of a round's candidates, given which of them were selected."""
    unfit: Unfit[Media] | None = None
    similarity: Similarity | None = None
    """How alike the candidates of a prompt are, for a selector that sees it; nobody else asks."""

    def __post_init__(self) -> None:
        for reward, _ in self.rewards:
            demand_reward(reward)

    def raw(self, samples: Sequence[Sample[Media]]) -> dict[str, Float[np.ndarray, " samples"]]:
        """Every reward's scores of a batch, checked.

        Raises:
            UserError: a reward returns another shape than one number a sample, or infinity.
        """
        return self._seen(samples)[0]

    def _seen(self, samples: Sequence[Sample[Media]]) -> tuple[dict[str, Float[np.ndarray, " samples"]], int]:
        """Every reward's scores of a batch, and how many of its samples are unfit."""
        seen = [place for place, sample in enumerate(samples) if not (self.unfit and self.unfit.finds(sample))]
        found = {reward.name: np.full(len(samples), np.nan) for reward, _ in self.rewards}
        for reward, _ in self.rewards if seen else ():
            found[reward.name][seen] = scores(reward, [samples[place] for place in seen])
        return found, len(samples) - len(seen)

    def total(self, raw: dict[str, Float[np.ndarray, "..."]]) -> Float[np.ndarray, "..."]:
        """The weighted sum; NaN where a reward of it is.

        Raises:
            UserError: it is infinite.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            weighted = [weight * raw[reward.name] for reward, weight in self.rewards if weight]
            total = np.sum(weighted, axis=0) if weighted else np.zeros_like(next(iter(raw.values())))
        # of two that are too large with opposite signs the sum is NaN, which would pass for a discard
        if count := int(np.isinf([*weighted, total]).any(axis=0).sum()):
            raise UserError(f"The total reward of {count} candidates is infinite: the rewards' weights are too large.")
        return total

    def score(self, batches: Iterator[Sequence[Sample[Media]]], prompts: Sequence[str], per_prompt: int) -> Scores:
        """The score table of a round, batch after batch; cells without a sample are NaN.

        Raises:
            UserError: as ``raw``, and when all samples are unfit, or a reward is NaN for every one, so that nothing
                could be selected; a reward wants whole prompts, and the batches bring parts of one.
        """
        row = {prompt: index for index, prompt in enumerate(prompts)}
        raw = {reward.name: np.full((len(prompts), per_prompt), np.nan) for reward, _ in self.rewards}
        index, unfit, there = 0, 0, 0
        for samples in self._whole(batches):
            found, more = self._seen(samples)
            there, unfit = there + len(samples), unfit + more
            for name, values in found.items():
                for sample, value in zip(samples, values, strict=True):
                    raw[name][row[sample.prompt.id], sample.index] = value
                    index = sample.round
        self._refuse(there, unfit)
        for reward, _ in self.rewards:
            if np.isnan(raw[reward.name]).all():
                raise UserError(
                    f"{called(reward)} is NaN (discard) for all {there - unfit} candidates, so none is "
                    f"better than another. Try it on candidates that you know, with: raftdiff check-reward."
                )
        total = self.total(raw)
        if np.isnan(total).all():
            raise UserError(
                "Every candidate is discarded by one reward or another (NaN), so none is better than another. "
                "Give a reward that should not discard the weight 0."
            )
        return Scores(index, tuple(prompts), total, raw, unfit)

    def _whole(self, batches: Iterator[Sequence[Sample[Media]]]) -> Iterator[Sequence[Sample[Media]]]:
        """The batches, each prompt's candidates in one of them where a reward compares them."""
        comparing = [reward.name for reward, _ in self.rewards if sees_prompts(reward)]
        known: set[str] = set()
        for samples in batches:
            asked = {sample.prompt.id for sample in samples}
            if comparing and (again := known & asked):
                raise UserError(
                    f"The reward '{comparing[0]}' compares the candidates of a prompt, and those of '{min(again)}' "
                    "came in two batches. Give the ranker whole prompts at a time, as RoundFolder.batches does."
                )
            known |= asked
            yield samples

    def select(self, scores: Scores, batches: Iterable[Sequence[Sample[Media]]]) -> Selection:
        """What the selector takes. The samples are looked at only for one that sees how alike they are.

        Raises:
            UserError: it does, and of a candidate that may be selected the features are no numbers.
        """
        if self.similarity and getattr(self.selector, "sees_similarity", False):
            table = self.similarity(batches, scores)
            own = np.diagonal(table, axis1=1, axis2=2)
            if count := int((~np.isnan(scores.total) & np.isnan(own)).sum()):
                raise UserError(
                    f"The features of {count} candidates are no numbers, so it cannot be told how alike they are. "
                    "Look at the first reward with a CLIP tower, or take another selector than diverse."
                )
            scores = replace(scores, similarity=table)
        return self.selector.select(scores)

    def refuse_unfit(self, samples: Sequence[Sample[Media]]) -> None:
        """
        Raises:
            AllUnfitError: every sample that is there is unfit.
        """
        self._refuse(len(samples), sum(map(self.unfit.finds, samples)) if self.unfit else 0)

    def _refuse(self, there: int, unfit: int) -> None:
        if self.unfit and there and unfit == there:
            raise AllUnfitError(f"All {there} {self.unfit.all_are}")


def measured_by(
    rewards: Sequence[tuple[Reward[Media], float]], onlookers: Sequence[tuple[Reward[Media], float]]
) -> list[tuple[Reward[Media], float]]:
    """Rewards that an evaluation looks at, with their weights in the held-out curve: those of the training, and those
    that only look on, which count where none of the others does."""
    counts = not any(weight for _, weight in rewards)
    return [*rewards, *((reward, weight if counts else 0.0) for reward, weight in onlookers)]


def scores(reward: Reward[Media], samples: Sequence[Sample[Media]]) -> Float[np.ndarray, " samples"]:
    """What a reward says of a batch.

    Raises:
        UserError: it says something else than one number a sample, or infinity.
    """
    return numbers(reward.score(samples), len(samples), called(reward).rstrip(","))
