"""Rollouts: answers that the policy drew, side by side, and what PPO learns about every token of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from raftdiff.errors import UserError
from raftdiff.llm.learning.steps import sampler_gap
from raftdiff.llm.model.loading import LM
from raftdiff.llm.model.rows import Batch, Row, collate, drawn_with, laid_out, row_of
from raftdiff.llm.ppo.losses import gae, token_rewards, whiten
from raftdiff.recipes.config import Config
from raftdiff.types import Item, Key, Prompt, Sample

Values = Float[Tensor, "rows targets"]


class GaeConfig(Config):
    """Generalised advantage estimation (arXiv:1506.02438) over the tokens of an answer."""

    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount a token."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """1 trusts the rewards that came, 0 the critic."""
    whiten: bool = True
    """Advantages of mean 0 and variance 1 over the tokens of an optimizer step."""
    clip: float | None = Field(default=None, gt=0)
    """Advantages beyond this are cut, after whitening. Not in PPO-max; conflicts with value_clip."""


@final
@dataclass(frozen=True)
class Rollouts:
    """A buffer of answers. Targets are the tokens that are predicted, as in ``tokens``: column t is the token at t + 1,
    and rows of the buffer and of a batch of it begin at the same column. Everything is float32 on the CPU."""

    rows: tuple[Row, ...]
    pad: int
    mask: Bool[Tensor, "rows targets"]
    old: Values
    """log p under the policy that drew the answer, before its first step."""
    reference: Values
    """log p under the base model."""
    reward: Float[Tensor, " rows"]
    """Total reward of the answer; higher is better."""
    sampler_gap: float = 0.0
    """How far the sampler's log p of a token are from ``old``, nats."""

    def batch(self, places: Sequence[int]) -> Batch:
        return collate([self.rows[place] for place in places], self.pad)

    def at(self, values: Tensor, places: Sequence[int], batch: Batch) -> Tensor:
        """The part of a buffer-wide table that belongs to a batch of it."""
        return values[list(places), : batch.mask.shape[1]]

    def tokens(self, places: Sequence[int]) -> int:
        """How many answer tokens they have together."""
        return sum(len(self.rows[place].answer) for place in places)


class Estimates(NamedTuple):
    """What a critic makes of a buffer."""

    values: Values
    """V before each token."""
    advantages: Values
    returns: Values
    """A + V: what the critic is to learn."""


def rollouts(
    rows: Sequence[Row],
    pad: int,
    items: Sequence[Item],
    samples: Mapping[Key, Sample[str]],
    *,
    old: Sequence[Tensor],
    reference: Sequence[Tensor],
) -> Rollouts:
    """The selected answers as a buffer; ``rows``, ``old`` and ``reference``, log p of their tokens under the policy
    before its steps and under the base model, go with the ``items``.

    Raises:
        UserError: an answer comes without its log-probabilities, was drawn after another prompt than the one that is
            learnt, or comes without its reward.
    """
    keys, mask = [item.keys[0] for item in items], collate(rows, pad).mask
    if lacking := [key for key, item in zip(keys, items, strict=True) if not item.scores]:
        raise UserError(f"{lacking[0]}: this answer was selected without its reward; use the selector 'all'.")
    drawn = [drawn_with(samples[key], row) for key, row in zip(keys, rows, strict=True)]
    reward = torch.tensor([item.scores[0] for item in items])
    gap = sampler_gap(drawn, old)
    return Rollouts(tuple(rows), pad, mask, laid_out(old, mask), laid_out(reference, mask), reward, gap)


def estimate(
    buffer: Rollouts, scaled: Float[Tensor, " rows"], values: Values, *, beta: float, gamma: float, lam: float
) -> Estimates:
    """Advantages and returns of the whole buffer. The KL penalty is in the reward of every token, the answer's
    (``scaled``) in that of its last."""
    rewards = token_rewards(buffer.old, buffer.reference, scaled, buffer.mask, beta)
    advantages, returns = gae(rewards, values, buffer.mask, gamma, lam)
    return Estimates(values, advantages, returns)


def step_advantages(
    advantages: Float[Tensor, "step targets"], mask: Bool[Tensor, "step targets"], config: GaeConfig
) -> Float[Tensor, "step targets"]:
    """Those of one optimizer step, as it learns from them: whitened over its tokens, then clipped."""
    found = whiten(advantages, mask) if config.whiten else advantages
    return found if config.clip is None else found.clamp(-config.clip, config.clip)


def figures(buffer: Rollouts, scaled: Float[Tensor, " rows"], known: Estimates) -> dict[str, float]:
    """How the buffer stands before it is learnt from; these, not the loss, show a collapse (arXiv:2307.04964, 5.2).

    ``kl`` and ``kl_token``: log p - log p0 of an answer and of a token, nats. ``reward_tail``: how much of the range
    of the rewards (1st to 99th percentile) lies above the median; 0.5 is symmetric, towards 1 few answers have much
    more than the rest. ``length`` in tokens; ``perplexity`` of the answers under the base model, a token.
    ``explained_variance`` of the returns by the critic: 1 is perfect, 0 no better than a constant.
    """
    mask, drift = buffer.mask, torch.where(buffer.mask, buffer.old - buffer.reference, 0.0)
    low, median, high = torch.quantile(buffer.reward, torch.tensor([0.01, 0.5, 0.99])).tolist()
    returns, values = known.returns[mask], known.values[mask]
    spread = float(returns.var(correction=0))
    left = float((returns - values).var(correction=0))
    return {
        "kl": float(drift.sum(dim=1).mean()),
        "kl_token": float(drift[mask].mean()),
        "sampler_gap": buffer.sampler_gap,
        "length": float(mask.sum(dim=1).float().mean()),
        "perplexity": float(buffer.reference[mask].mean().neg().exp()),
        "reward_mean": float(buffer.reward.mean()),
        "reward_std": float(buffer.reward.std(correction=0)),
        "reward_tail": (high - median) / (high - low) if high > low else 0.5,
        "scaled_mean": float(scaled.mean()),
        "scaled_std": float(scaled.std(correction=0)),
        "explained_variance": 1 - left / spread if spread > 0 else 0.0,
    }


def written_rows(lm: LM, prompts: Sequence[Prompt]) -> list[Row]:
    """The answers that data give to their prompts, of rated ones the best, tokenized, with their end
    where they were not cut.

    Raises:
        UserError: they give none, or one is longer than the model is made for.
    """
    found: list[Row] = []
    for prompt in prompts:
        answers = prompt.meta.get("answers") or []
        best = max((one["score"] for one in answers if one.get("score") is not None), default=None)
        for one in [one for one in answers if one.get("score") == best]:
            aux = {"cut": torch.tensor(True)} if one.get("cut") else {}
            sample = Sample(0, prompt, len(found), 0, "dataset", str(one["text"]), aux)
            found.append(row_of(lm, sample, learning=True))
    if not found:
        raise UserError("finetuner.ptx.data: no prompt comes with an answer to learn; use data with a response.")
    return found
