"""RRHF: rank the k answers of a prompt by their length-normalised log-probability, and learn the best one.

    p_i    = mean over the tokens of answer i of log P(token)                    tokens.means(lp, mask)
    L_rank = sum over pairs with r_i < r_j of max(0, p_i - p_j)                   no margin
    L_ft   = -sum over the tokens of the best answer of log P(token)
    L      = L_rank + L_ft

Source: Yuan et al. 2023, arXiv:2304.05302, eqs 1 to 4. Over several prompts the mean is taken: the paper has one prompt
a device. The released code departs from the paper; ``compat_official`` follows the code.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import relu

from raftdiff.errors import UserError
from raftdiff.llm.model.tokens import means, sums

Table = Float[Tensor, "prompts candidates"]
Scalar = Float[Tensor, ""]


class RrhfLoss(NamedTuple):
    rank: Scalar
    """L_rank, unweighted."""
    ft: Scalar
    """L_ft."""
    total: Scalar
    """rank_weight * rank + ft: what is minimised."""


def rank_loss(p: Table, scores: Table, *, queries: int | None = None) -> Scalar:
    """L_rank, mean over the prompts that have a valid answer.

    A score of NaN or -inf marks a discarded answer or a padded cell: it takes part in no pair, and its p may be
    anything. Equal scores contribute nothing. ``queries`` is the number of prompts of the whole optimiser step.

    Raises:
        UserError: no prompt has a valid answer.
    """
    valid = _valid(scores)
    excess = relu(p.unsqueeze(2) - p.unsqueeze(1))  # (prompts, i, j): p_i - p_j where i is the likelier
    worse = scores.unsqueeze(2) < scores.unsqueeze(1)
    pairs = worse & valid.unsqueeze(2) & valid.unsqueeze(1)
    return torch.where(pairs, excess, 0.0).sum() / _queries(valid, queries)


def rrhf(
    lp: Float[Tensor, "answers targets"],
    mask: Bool[Tensor, "answers targets"],
    group: Int[Tensor, " answers"],
    scores: Float[Tensor, " answers"],
    *,
    rank_weight: float = 1.0,
    ft: Literal["sum", "mean"] = "sum",
    queries: int | None = None,
    compat_official: bool = False,
) -> RrhfLoss:
    """Both parts of the loss for a batch of answers; ``group`` says whose answer each is, in any order and number.

    ``ft``: the paper's sum over tokens, or their mean. Ties for the best go to the first answer of the prompt.

    ``compat_official`` does what the released code does (github.com/GanjinZero/RRHF): it overwrites the labels before
    it counts them, so every sum is divided by the padded length, in p and in L_ft alike. There a batch is one prompt's
    answers, so that this is the length of the longest of them with its prompt; nothing is normalised by an answer's
    own length then.

    Raises:
        UserError: an answer has no response token, or no answer has a valid score.
    """
    row, column = _cells(group)
    p = sums(lp, mask) / _longest(mask, row) if compat_official else means(lp, mask)
    shape = (int(row.max()) + 1 if len(row) else 0, int(column.max()) + 1 if len(column) else 0)
    table = torch.full(shape, float("nan"), dtype=scores.dtype, device=scores.device).index_put((row, column), scores)
    p_table = torch.zeros(shape, dtype=p.dtype, device=p.device).index_put((row, column), p)
    rank = rank_loss(p_table, table, queries=queries)

    gold = p if compat_official or ft == "mean" else sums(lp, mask)
    gold_table = torch.zeros(shape, dtype=gold.dtype, device=gold.device).index_put((row, column), gold)
    valid = _valid(table)
    best = torch.where(valid, table, -torch.inf).argmax(dim=1, keepdim=True)
    chosen = torch.where(valid.any(dim=1), gold_table.gather(1, best).squeeze(1), 0.0)
    fitted = -chosen.sum() / _queries(valid, queries)
    return RrhfLoss(rank, fitted, rank_weight * rank + fitted)


def _valid(scores: Table) -> Bool[Tensor, "prompts candidates"]:
    return scores > -torch.inf  # false for NaN


def _longest(mask: Bool[Tensor, "answers targets"], row: Int[Tensor, " answers"]) -> Float[Tensor, " answers"]:
    """Of each answer's prompt, the tokens of the longest answer with it."""
    position = torch.arange(mask.shape[1], device=mask.device)
    lengths = torch.where(mask, position, -2).amax(dim=1) + 2  # the target at t is the token at t + 1
    longest = torch.zeros(int(row.max()) + 1, dtype=lengths.dtype, device=mask.device)
    return longest.scatter_reduce(0, row, lengths, "amax")[row].float()


def _queries(valid: Bool[Tensor, "prompts candidates"], given: int | None) -> int:
    count = int(valid.any(dim=1).sum()) if given is None else given
    if count <= 0:
        raise UserError("RRHF: no answer of this batch has a score; leave prompts without a valid answer out.")
    return count


def _cells(group: Int[Tensor, " answers"]) -> tuple[Int[Tensor, " answers"], Int[Tensor, " answers"]]:
    """Row and column of each answer in a (prompts, candidates) table, in the order of the batch."""
    _, row, counts = torch.unique(group, return_inverse=True, return_counts=True)
    order = torch.argsort(row, stable=True)
    starts = counts.cumsum(0) - counts
    column = torch.empty_like(row)
    column[order] = torch.arange(len(row), device=row.device) - starts[row[order]]
    return row, column
