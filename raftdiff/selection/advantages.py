"""From rewards to weights and pairs: pure functions of a (prompts, candidates) table. numpy only.

NaN (and -inf) means discarded or, in a ragged table, absent: it takes part in no mean, and comes out as NaN. A prompt
with one valid candidate has nothing to compare it with; where the method compares, its advantage is 0. Equal rewards
give exactly 0 as well. Positive means "more of this".
"""

import math

import numpy as np
from jaxtyping import Bool, Float

from raftdiff.errors import UserError

Table = Float[np.ndarray, "prompts candidates"]
Distribution = Float[np.ndarray, " outcomes"]


def grpo(r: Table, epsilon: float = 1e-4) -> Table:
    """(r - mean) / (std + epsilon), std with n - 1. Source: Shao et al. 2024, arXiv:2402.03300; epsilon as in TRL.

    >>> grpo(np.array([[1.0, 0.0, 0.0, 1.0, 0.0]])).round(6).tolist()
    [[1.095245, -0.730163, -0.730163, 1.095245, -0.730163]]
    """
    centred, count = _centred(r)
    squares = np.where(_valid(r), centred, 0.0) ** 2
    std = np.sqrt(squares.sum(axis=1, keepdims=True) / np.maximum(count - 1, 1))
    return _divide(centred, std + epsilon)


def dr_grpo(r: Table) -> Table:
    """r - mean: GRPO without the division, which favours prompts that are almost always right or wrong.

    Source: Liu et al. 2025, arXiv:2503.20783. Its other half is the aggregation ``dr_grpo`` of the token losses.
    """
    return _centred(r)[0]


def rloo(r: Table) -> Table:
    """r - mean of the *others* = n / (n - 1) (r - mean). Source: Ahmadian et al. 2024, arXiv:2402.14740."""
    centred, count = _centred(r)
    advantages: Table = centred * count / np.maximum(count - 1, 1)
    return advantages


def reinforce_plus_plus_baseline(r: Table, epsilon: float = 1e-8) -> Table:
    """r - mean of the prompt, then divided by the std (n) of the whole batch.

    Source: Hu 2025, REINFORCE++, arXiv:2501.03262, the variant with a group baseline.
    """
    centred, _ = _centred(r)
    kept = centred[_valid(r)]
    std = math.sqrt(float((kept**2).mean())) if kept.size else 0.0  # the mean is 0: it is so in every group
    return _divide(centred, np.full((len(r), 1), std + epsilon))


def raft_plus_plus(r: Table) -> Table:
    """max(r, 0), for verifier rewards of -1 and +1: learn the right answers. Belongs with ratio and clip, without which
    it is no better than RAFT. Source: Xiong et al. 2025, arXiv:2504.11343."""
    return np.where(_valid(r), np.maximum(_wide(r), 0.0), np.nan)


def reinforce_rej(r: Table) -> Table:
    """r, but 0 for prompts whose answers are all alike: all right and all wrong teach nothing.

    Source: Xiong et al. 2025, arXiv:2504.11343 (Reinforce-Rej), for rewards of -1 and +1.
    """
    return np.where(_valid(r), np.where(_constant(r), 0.0, _wide(r)), np.nan)


def rwr(r: Table, temperature: float) -> Table:
    """softmax(r / temperature) within each prompt; weights that sum to 1. temperature -> 0 is RAFT.

    Source: reward-weighted regression, Peters & Schaal 2007; arXiv:2302.12192 for generative models.

    Raises:
        UserError: ``temperature`` is not above 0.
    """
    if not temperature > 0:
        raise UserError(f"temperature = {temperature}: reward-weighted regression needs one above 0.")
    valid = _valid(r)
    masked = np.where(valid, _wide(r), -np.inf)
    top = np.where(valid.any(axis=1), masked.max(axis=1, initial=-np.inf), 0.0)[:, None]
    weights = np.exp((masked - top) / temperature)
    total = weights.sum(axis=1, keepdims=True)
    return np.where(valid, weights / np.where(total > 0, total, 1.0), np.nan)


def max_min_pairs(r: Table) -> list[tuple[int, int, int]]:
    """(row, best, worst) of each prompt, ties to the lowest index; no pair where all valid rewards are equal.

    >>> max_min_pairs(np.array([[0.1, 0.9, 0.4], [2.0, 2.0, np.nan]]))
    [(0, 1, 0)]
    """
    valid, wide = _valid(r), _wide(r)
    rows = [int(row) for row in np.flatnonzero(valid.any(axis=1) & ~_constant(r)[:, 0])]
    best, worst = np.where(valid, wide, -np.inf), np.where(valid, wide, np.inf)
    return [(row, int(best[row].argmax()), int(worst[row].argmin())) for row in rows]


def kl_corrected(r: Table, lp: Table, lp0: Table, beta: float) -> Table:
    """r - beta (lp - lp0), on sums over the answer: RAFT's reward with the KL term.

    For ranking only, never in the loss. ``lp`` is the current policy's log-probability, whoever sampled the answer,
    ``lp0`` the initial policy's. Source: Dong et al. 2023, arXiv:2304.06767, section 3.
    """
    return np.where(_valid(r), _wide(r) - beta * (_wide(lp) - _wide(lp0)), np.nan)


def best_of_n_kl_bound(n: int) -> float:
    """log n - (n - 1) / n: how far best of n can be from the policy it samples, in nats.

    An upper bound, reached by continuous rewards (Beirami et al. 2024, arXiv:2401.01879).

    >>> round(best_of_n_kl_bound(8), 6)
    1.204442
    """
    return math.log(n) - (n - 1) / n


def best_of_k_bound(mean: float, spread: float, k: int) -> float:
    """mean + sqrt(spread^2 / 2 * log k): what best of k cannot exceed on average.

    ``spread`` is the difference of the highest and the lowest reward there is, in the reward's unit.
    Source: Dong et al. 2023, arXiv:2304.06767.
    """
    return mean + math.sqrt(spread**2 / 2 * math.log(k))


def exact_best_of(policies: Float[np.ndarray, "candidates outcomes"], r: Distribution) -> Distribution:
    """The distribution of the best of independent draws, one from each row of ``policies``; ties to the lowest row.

    It is what RAFT's ranking learns from, and so the policy after an ideal round. ``r`` is the reward of each outcome.
    """
    below, up_to = r[None, :] < r[:, None], r[None, :] <= r[:, None]
    best: Distribution = policies[0].astype(np.float64)
    for policy in policies[1:].astype(np.float64):
        best = best * (up_to @ policy) + policy * (below @ best)
    return best


def exact_best_of_k(p: Distribution, r: Distribution, k: int) -> Distribution:
    """The distribution of the best of k draws from p. T rounds with k are one with k^T.

    >>> exact_best_of_k(np.array([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 2.0]), 2).round(2).tolist()
    [0.25, 0.39, 0.36]
    """
    return exact_best_of(np.tile(p, (k, 1)), r)


def _wide(r: Table) -> Table:
    return r.astype(np.float64)


def _valid(r: Table) -> Bool[np.ndarray, "prompts candidates"]:
    return r > -np.inf  # false for NaN


def _constant(r: Table) -> Bool[np.ndarray, "prompts 1"]:
    """Rows whose valid rewards are all equal, or that have none."""
    valid, wide = _valid(r), _wide(r)
    high = np.where(valid, wide, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    low = np.where(valid, wide, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    constant: Bool[np.ndarray, "prompts 1"] = high <= low
    return constant


def _centred(r: Table) -> tuple[Table, Float[np.ndarray, "prompts 1"]]:
    """r minus the mean of its row, exactly 0 in a constant row; and how many are valid in each row."""
    valid, wide = _valid(r), _wide(r)
    count = valid.sum(axis=1, keepdims=True).astype(np.float64)
    mean = np.where(valid, wide, 0.0).sum(axis=1, keepdims=True) / np.maximum(count, 1)
    centred = np.where(_constant(r), 0.0, np.where(valid, wide, 0.0) - mean)
    return np.where(valid, centred, np.nan), count


def _divide(centred: Table, by: Float[np.ndarray, "prompts 1"]) -> Table:
    """0 / 0 is 0 here: no spread, nothing to learn."""
    return centred / np.where(by > 0, by, 1.0)
