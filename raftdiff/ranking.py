"""The ranker: rewards with weights and roles, how they are mixed, and a selector. Every raw score is kept beside the
total."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float

from raftdiff.errors import UserError
from raftdiff.recipes.checks import weight_of
from raftdiff.recipes.config import Role
from raftdiff.scoring import called, demand_reward, numbers, sees_prompts
from raftdiff.selection.mixes import MIXES, Mix, holds, last
from raftdiff.types import Key, Media, Reward, Sample, Scores, Selection, Selector

Features = Callable[[Sequence[Sample[Any]]], Float[torch.Tensor, "samples features"]]
"""Unit-length features of samples, for diversity."""
Similarity = Callable[[Iterable[Sequence[Sample[Any]]], Scores], Float[np.ndarray, "prompts candidates candidates"]]
"""``Scores.similarity`` of a round's candidates, those that are scored."""
Describe = Callable[[Iterable[Sequence[Sample[Any]]], Set[Key]], Mapping[str, Any]]


Raw = Mapping[str, Float[np.ndarray, "prompts candidates"]]
"""The scores of a round's candidates by reward."""


class Bound(NamedTuple):
    """The lowest score that is good enough."""

    role: Literal["veto", "constraint"]
    """Below it a candidate is not chosen, or comes after all others."""
    at_least: float | Literal["median"]
    """A score, or the median of the prompt's candidates."""


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


Turn = Callable[[object], AbstractContextManager[None]]
"""Within which something with networks is asked."""


def at_hand(part: object) -> AbstractContextManager[None]:
    """Its networks always lie where they are asked."""
    del part
    return nullcontext()


@final
@dataclass(frozen=True)
class Ranker(Generic[Media]):
    rewards: Sequence[tuple[Reward[Media], float]]
    """Each with its weight in the total; of weight 0 are those that only look on, and those of ``bounds``."""
    selector: Selector
    describe: Describe | None = None
    """Further figures of a round's candidates, given which of them were selected."""
    unfit: Unfit[Media] | None = None
    similarity: Similarity | None = None
    """How alike the candidates of a prompt are, for a selector that sees it; nobody else asks."""
    mix: Mix = MIXES["weighted_sum"]
    bounds: Mapping[str, Bound] = field(default_factory=dict)
    """By the name of the reward; constraints in the order in which they matter."""
    turn: Turn = at_hand
    """Within which a reward is asked: where it lies on a device only meanwhile."""

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
            with self.turn(reward):
                found[reward.name][seen] = scores(reward, [samples[place] for place in seen])
        return found, len(samples) - len(seen)

    def measuring(
        self, rewards: Sequence[tuple[Reward[Media], float]], unfit: Unfit[Media] | None = None
    ) -> "Ranker[Media]":
        """A ranker of samples that are looked at, with other rewards, mixed as here; what is not among them bounds
        nothing. Those that count come first: the first is what an evaluation without a judge goes by."""
        rewards = sorted(rewards, key=lambda pair: not pair[1])
        known = {reward.name for reward, _ in rewards}
        bounds = {name: bound for name, bound in self.bounds.items() if name in known}
        return replace(self, rewards=rewards, describe=None, unfit=unfit, similarity=None, bounds=bounds)

    def role(self, name: str) -> Role:
        """What a reward is for. One of weight 0 looks on."""
        if name in self.bounds:
            return self.bounds[name].role
        return "train" if any(weight for reward, weight in self.rewards if reward.name == name) else "hold_out"

    def total(self, raw: Raw) -> Float[np.ndarray, "prompts candidates"]:
        """What candidates are ranked by, higher first; NaN where one is discarded, by a NaN or by a veto.

        Raises:
            UserError: it is infinite.
        """
        parts = self.parts(raw)
        return np.sum([*parts.values()], axis=0) if parts else np.where(self._kept(raw, []), 0.0, np.nan)

    def parts(self, raw: Raw) -> dict[str, Float[np.ndarray, "prompts candidates"]]:
        """What each reward that ranks or constrains adds to the total.

        Raises:
            UserError: the total is infinite.
        """
        weights = {reward.name: weight for reward, weight in self.rewards if weight}
        if not weights:
            return {}
        kept = self._kept(raw, [*weights])
        tables = {name: np.where(kept, table, np.nan) for name, table in raw.items()}
        weighted = [(weight, tables[name]) for name, weight in weights.items()]
        _refuse_infinite(weighted)
        parts = dict(zip(weights, self.mix.parts(weighted), strict=True))
        total = np.sum([*parts.values()], axis=0)
        for name in reversed([name for name, bound in self.bounds.items() if bound.role == "constraint"]):
            parts[name] = last(total, ~holds(tables[name], self.bounds[name].at_least))
            total = total + parts[name]
        return parts

    def _kept(self, raw: Raw, ranking: Sequence[str]) -> Bool[np.ndarray, "prompts candidates"]:
        """Where no reward that ranks or bounds is NaN, and no veto speaks."""
        kept = np.full(next(iter(raw.values())).shape, True)
        for name in (*ranking, *self.bounds):
            kept &= ~np.isnan(raw[name])
        for name, bound in self.bounds.items():
            if bound.role == "veto":
                kept &= holds(np.where(kept, raw[name], np.nan), bound.at_least)
        return kept

    def level(
        self, raw: Mapping[str, Float[np.ndarray, "..."]], units: Mapping[str, float]
    ) -> Float[np.ndarray, "..."]:
        """How good each sample is by itself, for curves over the rounds: see ``Mix.level``. Neither vetoes nor
        constraints have a part in it; NaN where a reward that ranks is.

        Raises:
            UserError: it is infinite.
        """
        weighted = [(weight, raw[reward.name]) for reward, weight in self.rewards if weight]
        if not weighted:
            return np.zeros_like(next(iter(raw.values())))
        _refuse_infinite(weighted)
        return self.mix.level(weighted, [units.get(reward.name, 1.0) for reward, weight in self.rewards if weight])

    def units(self, raw: Mapping[str, Float[np.ndarray, "..."]]) -> dict[str, float]:
        """What ``level`` divides scores by where weights count a reward's own spread: its standard deviation among
        these, 1 where it has none."""
        names = [reward.name for reward, weight in self.rewards if weight and not np.isnan(raw[reward.name]).all()]
        return {name: float(np.nanstd(raw[name])) or 1.0 for name in names}

    def vetoed(self, raw: Raw) -> dict[str, int]:
        """How many candidates each veto turned down, NaN left out."""
        vetoes = {name: bound for name, bound in self.bounds.items() if bound.role == "veto"}
        return {
            name: int((~holds(raw[name], bound.at_least) & ~np.isnan(raw[name])).sum())
            for name, bound in vetoes.items()
        }

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
            turned_down = [f"'{name}' {count}" for name, count in self.vetoed(raw).items() if count]
            vetoes = f"Vetoes turned down: {', '.join(turned_down)}; look at its scores, and lower at_least. "
            raise UserError(
                "Every candidate is discarded by one reward or another (NaN, or a veto), so none is better "
                f"than another. {vetoes if turned_down else ''}A reward that should discard nothing has role: hold_out."
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


def _refuse_infinite(weighted: Sequence[tuple[float, Float[np.ndarray, "..."]]]) -> None:
    """
    Raises:
        UserError: a weighted score is infinite, or the sum is: of two that are too large with opposite signs it would
            be NaN, which would pass for a discard.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        products = [weight * values for weight, values in weighted]
        found = [*products, np.sum(products, axis=0)]
    if count := int(np.isinf(found).any(axis=0).sum()):
        raise UserError(f"The total reward of {count} candidates is infinite: the rewards' weights are too large.")


def assigned(
    configs: Sequence[Any], rewards: Sequence[Reward[Media]]
) -> tuple[list[tuple[Reward[Media], float]], dict[str, Bound]]:
    """The ``rewards`` and the ``bounds`` of a Ranker, from a recipe's configs and what was built of them."""
    pairs, bounds = [], dict[str, Bound]()
    for config, reward in zip(configs, rewards, strict=True):
        pairs.append((reward, weight_of(config)))
        role: Any = getattr(config, "role", "train")
        if role in ("veto", "constraint"):
            bounds[reward.name] = Bound(role, config.at_least)
    return pairs, bounds


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
