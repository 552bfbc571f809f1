"""What reward models learn by, from rewards and features to losses. Lower is better, but for ``meta_difference``.

    d = r(chosen) - r(rejected)        a pair's difference, in the unit of the reward

A constant added to every reward of a prompt changes no d: rewards compare within a prompt. At d = 0 Bradley-Terry is
log 2.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, logsigmoid, normalize

from raftdiff.errors import UserError

Pairs = Float[Tensor, " pairs"]
Features = Float[Tensor, "rows width"]
Scalar = Float[Tensor, ""]


def bradley_terry(d: Pairs, margin: Pairs | float = 0.0, smoothing: Pairs | float = 0.0) -> Pairs:
    """-[(1 - a) log sigma(d - margin) + a log sigma(margin - d)], one a pair; a is ``smoothing``.

    ``margin`` is by how much the chosen answer should win, for a flipped pair in the sense of the flip. With a > 0 the
    minimum is at the finite d = margin + log((1 - a) / a).

    Source: Wang et al. 2024, "Secrets of RLHF in Large Language Models Part II", arXiv:2401.06080. Departures: the
    margin is inside the sigmoid (the paper prints it outside, where it has no gradient), and log sigma is exact where
    the released code's log(sigma + 1e-5) stops at -11.5 and no longer learns from pairs that are badly wrong.
    """
    z = d - margin
    return -(1 - smoothing) * logsigmoid(z) - smoothing * logsigmoid(-z)


def centring(chosen: Pairs, rejected: Pairs) -> Pairs:
    """(r_c + r_r)^2, one a pair: keeps rewards about 0, which the differences leave open.

    Source: Eisenstein et al. 2023, arXiv:2312.09244; TRL weighs it by 0.01.
    """
    return (chosen + rejected).square()


def simcse(s: Features, t: Features, tau: float) -> Scalar:
    """Each row of ``s`` should be nearer, by cosine, to its own row of ``t`` than to the others'; mean over rows.

    ``s`` and ``t`` are features of the same texts under two dropout masks.

    Source: Gao et al. 2021, arXiv:2104.08821, eq 4; for reward models arXiv:2401.06080. The latter does not give
    its temperature ``tau``; the former uses 0.05. 0 for a single row, which has nothing to be told from.
    """
    cosine = normalize(s.float(), dim=-1) @ normalize(t.float(), dim=-1).T
    return cross_entropy(cosine / tau, torch.arange(len(s), device=s.device))


def sinkhorn(
    scores: Float[Tensor, "rows prototypes"], epsilon: float, iterations: int
) -> Float[Tensor, "rows prototypes"]:
    """SwAV's codes: which prototypes each row belongs to, all prototypes being used about equally. Each row sums to 1.

    exp(scores / epsilon), then ``iterations`` times its columns and rows scaled to equal sums; in logarithms, so that a
    small ``epsilon`` does not overflow. Without gradient.

    Source: Caron et al. 2020, arXiv:2006.09882, section 3.1; Cuturi 2013.
    """
    log_q = scores.detach().float() / epsilon
    for _ in range(iterations):
        log_q = log_q - log_q.logsumexp(dim=0, keepdim=True)
        log_q = log_q - log_q.logsumexp(dim=1, keepdim=True)
    return log_q.softmax(dim=1)


def swav(
    s: Features,
    t: Features,
    prototypes: Float[Tensor, "prototypes width"],
    *,
    tau: float,
    epsilon: float,
    iterations: int,
) -> Scalar:
    """Each view should tell the other's code: -sum q_t log p_s - sum q_s log p_t, mean over rows.

    p is the softmax of a row's cosines with the prototypes over ``tau``, q the code by ``sinkhorn`` of the same
    cosines. Prototypes are learnt, and only their directions matter.

    Source: Caron et al. 2020, arXiv:2006.09882, eqs 1 and 2; for reward models arXiv:2401.06080.
    """
    centres = normalize(prototypes.float(), dim=-1)
    cosines = [normalize(view.float(), dim=-1) @ centres.T for view in (s, t)]
    q_s, q_t = (sinkhorn(cosine, epsilon, iterations) for cosine in cosines)
    log_p_s, log_p_t = (log_softmax(cosine / tau, dim=-1) for cosine in cosines)
    return -(q_t * log_p_s + q_s * log_p_t).sum(dim=-1).mean()


def meta_difference(rewards: Float[Tensor, "prompts answers"]) -> Scalar:
    """J: how well a reward model tells apart k answers to one prompt; mean over prompts. Higher is better.

    2 / k^2 * sum over i < j of sigma(|r_i - r_j|), from (k - 1) / 2k (all alike) to below (k - 1) / k. Answers of equal
    reward have no gradient on one another.

    Source: Dou et al. 2024, MetaRM, arXiv:2405.00438.

    Raises:
        UserError: fewer than two answers a prompt, which have no difference.
    """
    k = rewards.shape[1]
    if k < 2:
        raise UserError(f"MetaRM compares answers to one prompt, and there is {k}; draw two or more.")
    first, second = torch.triu_indices(k, k, offset=1, device=rewards.device)
    gaps = (rewards[:, first] - rewards[:, second]).abs()
    return 2 / k**2 * gaps.sigmoid().sum(dim=1).mean()
