"""The clipped policy-gradient objective that PPO, GRPO, RLOO and RAFT++ share; they differ in their advantages
(``raftdiff.selection.advantages``) and in how per-token losses are averaged (``tokens.aggregate``)."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from raftdiff.llm.model.tokens import kl_estimates

Values = Float[Tensor, "batch targets"]
Scalar = Float[Tensor, ""]


class PolicyLoss(NamedTuple):
    losses: Values
    """Per token, 0 outside the mask; lower is better."""
    clip_fraction: Scalar
    """How many response tokens the clip cut off from their gradient, 0 to 1."""
    approx_kl: Scalar
    """Mean over response tokens of rho - 1 - log rho, in nats: how far the policy is from the one that sampled."""


def clipped_objective(
    lp: Values,
    old: Values,
    advantages: Float[Tensor, " batch"] | Values,
    mask: Bool[Tensor, "batch targets"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    reference: Values | None = None,
    beta: float = 0.0,
) -> PolicyLoss:
    """-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) per token, with rho = exp(lp - old).

    ``old`` is the policy that sampled, held fixed. With ``old = lp.detach()`` rho is 1 and the gradient is -A grad lp:
    plain REINFORCE. ``clip_low = clip_high = math.inf`` leaves the ratio unclipped. Advantages are one an answer, or
    one a token; positive means more of this. With ``reference``, ``beta`` times the k3 estimate of the KL to it is
    added.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq 7; two clips: DAPO, arXiv:2503.14476; beta: GRPO,
    arXiv:2402.03300, eq 3. Values outside the mask have no influence and no gradient.
    """
    per_token = advantages.unsqueeze(1) if advantages.ndim == 1 else advantages
    log_ratio = torch.where(mask, lp - old.detach(), 0.0)
    ratio = log_ratio.exp()
    plain, clipped = ratio * per_token, ratio.clamp(1 - clip_low, 1 + clip_high) * per_token
    losses = -torch.minimum(plain, clipped)
    if reference is not None and beta:
        losses = losses + beta * kl_estimates(torch.where(mask, lp, 0.0), torch.where(mask, reference.detach(), 0.0)).k3
    cut = ((ratio < 1 - clip_low) & (per_token < 0)) | ((ratio > 1 + clip_high) & (per_token > 0))
    tokens = mask.sum().clamp(min=1)
    drift = (torch.expm1(log_ratio) - log_ratio).detach()  # rho - 1 - log rho
    return PolicyLoss(torch.where(mask, losses, 0.0), (cut & mask).sum() / tokens, drift.sum() / tokens)
