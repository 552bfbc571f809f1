"""Losses on preference pairs and labelled answers, one value a row, lower is better.

    h = (pc - qc) - (pr - qr)        reference_margin

p is the policy's log-probability of an answer, q the frozen reference's, c the chosen answer, r the rejected one. p and
q are *sums* over response tokens for DPO and its kin; SimPO and ORPO have no reference and take *means* per token. At
policy == reference, h = 0 and DPO is log 2. A tie is no preference: leave it out of the pairs.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from raftdiff.errors import UserError

Rows = Float[Tensor, " rows"]


def reference_margin(pc: Rows, qc: Rows, pr: Rows, qr: Rows) -> Rows:
    """h, in nats: how much more the policy prefers the chosen answer than the reference does."""
    return (pc - qc) - (pr - qr)


def implicit_reward(p: Rows, q: Rows, beta: float) -> Rows:
    """beta (p - q): the reward, up to a constant of the prompt, that the policy is optimal for. Higher is better."""
    return beta * (p - q)


def dpo(h: Rows, beta: float, smoothing: float = 0.0) -> Rows:
    """-log sigma(beta h); with ``smoothing`` s (cDPO), (1 - s) of it and s of the flipped pair's.

    Source: Rafailov et al. 2023, arXiv:2305.18290, eq 7; cDPO: Mitchell 2023, "A note on DPO with noisy preferences".
    With s > 0 the minimum is at the finite beta h = log((1 - s) / s).
    """
    _check_rate(smoothing, "smoothing")
    return -(1 - smoothing) * logsigmoid(beta * h) - smoothing * logsigmoid(-beta * h)


def robust_dpo(h: Rows, beta: float, flip: float) -> Rows:
    """DPO's loss, unbiased although a fraction ``flip`` of the labels is wrong; may be negative.

    Source: Chowdhury et al. 2024, arXiv:2403.00409, eq 14.

    Raises:
        UserError: ``flip`` is not in [0, 0.5).
    """
    _check_rate(flip, "flip")
    return (-(1 - flip) * logsigmoid(beta * h) + flip * logsigmoid(-beta * h)) / (1 - 2 * flip)


def ipo(h: Rows, beta: float) -> Rows:
    """(h - 1 / (2 beta))^2.

    Source: Azar et al. 2023, arXiv:2310.12036, eq 17, with h of sums. TRL feeds h of means per token, which is another
    loss: for that one, build h from means.
    """
    return (h - 1 / (2 * beta)).square()


def hinge(h: Rows, beta: float) -> Rows:
    """max(0, 1 - beta h). Source: SLiC, Zhao et al. 2023, arXiv:2305.10425; with DPO's margin: arXiv:2309.06657."""
    return relu(1 - beta * h)


def simpo(avg_c: Rows, avg_r: Rows, beta: float, gamma: float) -> Rows:
    """-log sigma(beta (avg_c - avg_r) - gamma), averages per token, no reference.

    Source: Meng et al. 2024, arXiv:2405.14734, eq 6. gamma is the paper's margin, not its ratio to beta.
    """
    return -logsigmoid(beta * (avg_c - avg_r) - gamma)


def orpo(avg_c: Rows, avg_r: Rows, weight: float) -> Rows:
    """-avg_c + weight * -log sigma(log odds ratio), odds(p) = p / (1 - p) of the mean log-probability per token.

    Source: Hong et al. 2024, arXiv:2403.07691, eqs 6 and 7; ``weight`` is the paper's lambda.
    """
    log_odds = (avg_c - avg_r) - (_log_complement(avg_c) - _log_complement(avg_r))
    return -avg_c - weight * logsigmoid(log_odds)


def kto(
    h: Rows,
    desirable: Bool[Tensor, " rows"],
    z: Float[Tensor, ""],
    beta: float,
    *,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Rows:
    """1 - sigma(beta (h - z)) for a desirable answer, 1 - sigma(beta (z - h)) for an undesirable one.

    Here h = p - q of the single answer, on sums, and ``z`` is ``kto_reference_point``. With labels of unequal number
    the paper keeps weight * count of the two kinds within a factor of 4/3.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, eq 8, less its constant.
    """
    sign = torch.where(desirable, 1.0, -1.0).to(h.dtype)
    weight = torch.where(desirable, desirable_weight, undesirable_weight).to(h.dtype)
    return weight * torch.sigmoid(-beta * sign * (h - z))


def kto_reference_point(h_mismatched: Rows) -> Float[Tensor, ""]:
    """z: the batch's mean of p - q on answers paired with *other* prompts, at least 0, without gradient; in nats.

    Raises:
        UserError: there is no mismatched pair; a batch of one has none.
    """
    if not len(h_mismatched):
        raise UserError("KTO's reference point needs answers paired with other prompts; use a batch of two or more.")
    return h_mismatched.detach().mean().clamp(min=0.0)


def _log_complement(log_p: Rows) -> Rows:
    """log(1 - exp(log_p)), finite even where the policy is certain (log_p = 0)."""
    return torch.log(-torch.expm1(log_p.clamp(max=-torch.finfo(log_p.dtype).eps)))


def _check_rate(rate: float, name: str) -> None:
    if not 0 <= rate < 0.5 or math.isnan(rate):
        raise UserError(f"{name} = {rate}: a rate of wrong labels must be at least 0 and below 0.5.")
