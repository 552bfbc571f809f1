"""What a fine-tuner may do to its inputs: noise on the embeddings (NEFTune), own tokens for gold ones (scheduled
sampling)."""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from raftdiff.errors import UserError

Schedule = Literal["linear", "exponential", "inverse_sigmoid"]


def neftune(
    embeddings: Float[Tensor, "batch tokens width"],
    mask: Bool[Tensor, "batch tokens"],
    alpha: float,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch tokens width"]:
    """Embeddings plus U(-1, 1) alpha / sqrt(L d) at the real tokens; for training only.

    ``mask`` is the *attention* mask: prompt and response, no padding. L is its count in the row. The noise is drawn
    where the generator lives (the CPU by default), so that no device changes it.

    Source: Jain et al. 2023, arXiv:2310.05914, Algorithm 1. Transformers' hook takes L from the padded batch, so there
    the noise on a short text depends on its neighbours; here it does not.
    """
    place = generator.device if generator is not None else torch.device("cpu")
    noise = 2 * torch.rand(embeddings.shape, generator=generator, device=place) - 1
    length = mask.sum(dim=1).clamp(min=1)
    scale = alpha / (length * embeddings.shape[-1]).float().sqrt()
    added = noise.to(embeddings.device) * scale[:, None, None]
    return embeddings + torch.where(mask.unsqueeze(-1), added, 0.0).to(embeddings.dtype)


def teacher_forcing_probability(
    kind: Schedule, step: int, *, k: float = 1.0, c: float = 0.0, epsilon: float = 0.0
) -> float:
    """The probability that an input token is the gold one at ``step``, from 0; falls with the step.

    linear: max(epsilon, k - c step), capped at 1; exponential: k^step, k < 1; inverse_sigmoid: k / (k + exp(step / k)),
    k >= 1. Source: Bengio et al. 2015, arXiv:1506.03099, section 2.4.

    Raises:
        UserError: ``k`` is outside the range of its schedule.
    """
    if kind == "linear":
        return min(1.0, max(epsilon, k - c * step))
    if kind == "exponential":
        if not 0 <= k <= 1:
            raise UserError(f"k = {k}: the exponential schedule k^step falls only for k from 0 to 1.")
        return float(k**step)
    if k < 1:
        raise UserError(f"k = {k}: the inverse sigmoid schedule needs k of 1 or more.")
    decay = math.exp(-step / k)  # k / (k + e^x) = k e^-x / (k e^-x + 1), which cannot overflow
    return k * decay / (k * decay + 1)


def keep_gold(
    mask: Bool[Tensor, "batch targets"], probability: float, generator: torch.Generator | None = None
) -> Bool[Tensor, "batch targets"]:
    """Which targets stay gold as inputs: each response token with ``probability``, everything else always."""
    place = generator.device if generator is not None else torch.device("cpu")
    drawn = torch.rand(mask.shape, generator=generator, device=place) < probability
    return drawn.to(mask.device) | ~mask


def scheduled(
    gold: Int[Tensor, "batch tokens"], own: Int[Tensor, "batch tokens-1"], keep: Bool[Tensor, "batch tokens-1"]
) -> Int[Tensor, "batch tokens"]:
    """The inputs of the second pass: gold tokens, but ``own`` where not ``keep``. The targets stay ``gold``.

    ``own[:, t]`` is what the first pass, on gold inputs and without gradient, wrote at position t + 1. Two passes stand
    in for the token-by-token mixing of the paper (Mihaylova & Martins 2019, arXiv:1906.07651).
    """
    return torch.cat([gold[:, :1], torch.where(keep, gold[:, 1:], own.to(gold.dtype))], dim=1)
