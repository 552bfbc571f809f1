"""Intuitive Fine-Tuning: a temporal residual connection (TRC) on the inputs, relation propagation (DRP) on the losses.

TRC. A first pass on the gold text, without gradient, predicts each response token. The embedding at each response
position then becomes (1 - lambda) E(gold) + lambda E(predicted), and a second pass on these gives the loss against the
gold text.

DRP. A token's loss is weighted by how wrong the tokens after it are. Paper and code give three different losses; with n
response tokens and l_t = -lp_t:

- ``code``: s_t = sum_{k>=t} gamma^(k-t) l_k / n, w = s n / sum(s), L = sum(w l) / n. gamma == 0 means w = 1, plain SFT,
  although gamma -> 0 tends to sum(l^2) / sum(l).
- ``eq21``: L = sum_t t l_t, the paper's equation 21: weights 1..n, gamma unused.
- ``alg1``: w_t = gamma^(n-t) sum_{i>=t} l_i, L = sum(w l), the paper's Algorithm 1.

Source: Hua et al. 2024, arXiv:2405.11870, and github.com/TsinghuaC3I/Intuitive-Fine-Tuning.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from raftdiff.errors import UserError
from raftdiff.llm.model.tokens import sums

Variant = Literal["code", "eq21", "alg1"]
Embeddings = Float[Tensor, "batch tokens width"]
Table = Float[Tensor, "vocabulary width"]
Values = Float[Tensor, "batch targets"]
Mask = Bool[Tensor, "batch targets"]


def mix_hard(
    gold: Embeddings, predicted: Int[Tensor, "batch targets"], table: Table, mask: Mask, weight: float
) -> Embeddings:
    """TRC as in the code: mixes in the embedding of the model's greedy token.

    ``predicted[:, t] = argmax logits[:, t]`` is the guess at position t + 1, aligned with ``mask`` as log-probabilities
    are. The first response position is mixed, the prompt is not. ``table`` is what the model's input embedding gives
    for each token (scaled where the model scales it); no gradient goes through it. ``weight`` is lambda, clamped to
    [0, 1].
    """
    return _mix(gold, table.detach()[predicted], mask, weight)


def mix_soft(
    gold: Embeddings, probabilities: Float[Tensor, "batch targets vocabulary"], table: Table, mask: Mask, weight: float
) -> Embeddings:
    """TRC as in the paper: mixes in the expected embedding under the model's own next-token distribution."""
    own = probabilities.detach().to(table.dtype) @ table.detach()
    return _mix(gold, own, mask, weight)


def mixing_weight(weight: float, *, progress: float = 1.0, ramp: bool = False, noise: float = 0.0) -> float:
    """lambda of one step, in [0, 1]: with ``ramp`` it grows linearly with ``progress`` (0 to 1), and a standard normal
    draw ``noise`` disturbs it by half its size, as the code's disturbance does."""
    ramped = weight * progress if ramp else weight
    return min(1.0, max(0.0, ramped + 0.5 * weight * noise))


def relation_weights(
    losses: Values, mask: Mask, gamma: float, variant: Variant = "code", detach: bool = False
) -> Values:
    """w, zero outside the mask; positions count response tokens only.

    In the code, and so by default, gradients flow through w; a token can then get a *negative* gradient weight, which
    lowers its probability. The authors say that this is meant. ``detach`` holds w fixed.

    Raises:
        UserError: ``gamma`` is outside [0, 1].
    """
    if not 0 <= gamma <= 1:
        raise UserError(f"gamma = {gamma}: the decay of relation propagation must lie in 0 to 1.")
    order = torch.argsort((~mask).byte(), dim=1, stable=True)  # response tokens first, in their order
    there = mask.gather(1, order)
    dense = torch.where(there, losses.gather(1, order), 0.0)
    weights = _dense_weights(dense.detach() if detach else dense, there, gamma, variant)
    return torch.zeros_like(losses).scatter(1, order, torch.where(there, weights, 0.0))


def relation_loss(
    lp: Values, mask: Mask, gamma: float, variant: Variant = "code", detach_weights: bool = False
) -> Float[Tensor, " batch"]:
    """L of each row; a step takes the mean over its rows. ``code`` is a mean over tokens, the others are sums.

    An empty row gives 0; leave such rows out of the count.
    """
    losses = torch.where(mask, -lp, 0.0)
    weighted = sums(losses * relation_weights(losses, mask, gamma, variant, detach_weights), mask)
    return weighted / mask.sum(dim=1).clamp(min=1) if variant == "code" else weighted


def _mix(gold: Embeddings, own: Float[Tensor, "batch targets width"], mask: Mask, weight: float) -> Embeddings:
    share = min(1.0, max(0.0, weight))
    mixed = (1 - share) * gold[:, 1:] + share * own.to(gold.dtype)
    return torch.cat([gold[:, :1], torch.where(mask.unsqueeze(-1), mixed, gold[:, 1:])], dim=1)


def _dense_weights(losses: Values, there: Mask, gamma: float, variant: Variant) -> Values:
    """The weights of rows whose tokens stand at the front."""
    position = torch.arange(losses.shape[1], device=losses.device)
    counts = there.sum(dim=1, keepdim=True)
    if variant == "eq21":
        return (position + 1).to(losses.dtype).expand_as(losses)
    if variant == "alg1":
        remaining = losses.flip(1).cumsum(1).flip(1)
        return remaining * gamma ** (counts - 1 - position).clamp(min=0).to(losses.dtype)
    if gamma == 0:
        return torch.ones_like(losses)
    ahead = position.unsqueeze(1) - position  # (k, t): how far k is ahead of t
    decay = torch.where(ahead >= 0, gamma ** ahead.clamp(min=0).to(losses.dtype), 0.0)
    s = losses @ decay
    total = torch.where(there, s, 0.0).sum(dim=1, keepdim=True)
    # A text that is certain everywhere has no loss to share out; w = 1 is the limit for equal losses.
    return torch.where(total > 0, s * counts / torch.where(total > 0, total, 1.0), 1.0)
