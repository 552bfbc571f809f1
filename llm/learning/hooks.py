"""What supervised fine-tuning may do to its inputs and to its tokens' weights: NEFTune, scheduled sampling and IFT."""

from typing import Annotated, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from raftdiff.llm.learning.embeddings import Schedule, keep_gold, neftune, scheduled, teacher_forcing_probability
from raftdiff.llm.learning.ift import Variant, mix_hard, mix_soft, mixing_weight, relation_loss
from raftdiff.llm.model.network import Moment, Network
from raftdiff.llm.model.rows import Batch
from raftdiff.recipes.config import Config


class NoEmbedding(Config):
    """The inputs are the gold tokens."""

    type: Literal["none"] = "none"


class NeftuneConfig(Config):
    """Uniform noise on the input embeddings (arXiv:2310.05914)."""

    type: Literal["neftune"] = "neftune"
    alpha: float = Field(default=5.0, ge=0)
    """5, 10 or 15 in the paper."""


class ScheduledConfig(Config):
    """Scheduled sampling (arXiv:1506.03099), in two passes: some inputs are the model's own tokens."""

    type: Literal["scheduled"] = "scheduled"
    schedule: Schedule = "linear"
    """How the share of gold inputs falls with the step i: max(epsilon, k - c i), k^i, or k / (k + e^(i/k))."""
    k: float = 1.0
    c: float = Field(default=0.0, ge=0)
    epsilon: float = Field(default=0.0, ge=0, le=1)


class TrcConfig(Config):
    """IFT's temporal residual connection: each input embedding moves towards that of the model's own guess."""

    type: Literal["trc"] = "trc"
    weight: float = Field(default=0.2, ge=0, le=1)
    """lambda: the guess's share."""
    soft: bool = False
    """The paper's expected embedding; the released code's, and so the default, is that of the likeliest token."""
    ramp: bool = False
    """lambda grows from 0 over all rounds."""
    disturb: bool = False
    """lambda is disturbed by N(0, 1) / 2 of itself in each step."""
    train_input_embedding: bool = False
    """Let the gradient into the input table. The released code looks embeddings up in a frozen copy, so that there the
    table learns only where it is the output head too."""


Embedding: TypeAlias = Annotated[NoEmbedding | NeftuneConfig | ScheduledConfig | TrcConfig, Field(discriminator="type")]


class NoWeighting(Config):
    """Every token weighs the same."""

    type: Literal["none"] = "none"


class DrpConfig(Config):
    """IFT's dynamic relation propagation: a token weighs what its successors lose."""

    type: Literal["drp"] = "drp"
    gamma: float = Field(default=0.95, ge=0, le=1)
    variant: Variant = "code"
    """code, eq21 or alg1: the released code, and the paper's equation 21 and Algorithm 1, which all differ."""
    detach_weights: bool = False
    """Hold the weights fixed; in the released code the gradient goes through them."""


Weighting: TypeAlias = Annotated[NoWeighting | DrpConfig, Field(discriminator="type")]


def inputs(hook: Embedding, batch: Batch, network: Network, moment: Moment) -> dict[str, Tensor]:
    """What the network reads in the pass that the loss is taken of, in place of the batch's own ids."""
    if isinstance(hook, NeftuneConfig):
        gold, there = network.embeddings(batch.ids), _there(batch, network)
        rows = [slice(place, place + 1) for place in range(len(gold))]
        noisy = [neftune(gold[row], there[row], hook.alpha, moment.generator(row.start)) for row in rows]
        return {"inputs_embeds": torch.cat(noisy)}
    if isinstance(hook, ScheduledConfig):
        probability = teacher_forcing_probability(hook.schedule, moment.step, k=hook.k, c=hook.c, epsilon=hook.epsilon)
        with torch.no_grad():
            own = network.logits(batch)[:, :-1].argmax(-1)
        keep = [keep_gold(row[None], probability, moment.generator(place)) for place, row in enumerate(batch.mask)]
        return {"input_ids": scheduled(batch.ids, own.cpu(), torch.cat(keep))}
    if isinstance(hook, TrcConfig):
        return {"inputs_embeds": _mixed(hook, batch, network, moment)}
    return {}


def row_losses(
    weighting: DrpConfig, lp: Float[Tensor, "rows targets"], mask: Bool[Tensor, "rows targets"]
) -> Float[Tensor, " rows"]:
    return relation_loss(lp, mask, weighting.gamma, weighting.variant, weighting.detach_weights)


def _mixed(hook: TrcConfig, batch: Batch, network: Network, moment: Moment) -> Float[Tensor, "rows tokens width"]:
    noise = float(torch.randn((), generator=moment.generator())) if hook.disturb else 0.0
    share = mixing_weight(hook.weight, progress=moment.progress, ramp=hook.ramp, noise=noise)
    gold = network.embeddings(batch.ids)
    gold = gold if hook.train_input_embedding else gold.detach()
    with torch.no_grad():
        logits = network.logits(batch)[:, :-1]
        table = network.embeddings(torch.arange(logits.shape[-1]))
    if hook.soft:
        return mix_soft(gold, logits.float().softmax(-1), table, network.mask(batch), share)
    return mix_hard(gold, logits.argmax(-1), table, network.mask(batch), share)


def _there(batch: Batch, network: Network) -> Bool[Tensor, "rows tokens"]:
    return batch.attention.bool().to(network.lm.device)
