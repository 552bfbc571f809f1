"""From logits to what every loss is made of: log-probabilities of the response tokens, their masks, sums and means.

    lp[:, t] = log_softmax(logits[:, t])[ids[:, t + 1]]      (batch, tokens - 1), float32

``mask`` has the shape of ``lp`` and is true where the *target*, the token at t + 1, belongs to the response; the end
of sequence is one of them when the model wrote it. Prompt and padding never are.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from raftdiff.errors import UserError

Aggregation = Literal["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "dr_grpo"]
Values = Float[Tensor, "batch targets"]
Mask = Bool[Tensor, "batch targets"]
PerRow = Float[Tensor, " batch"]
Scalar = Float[Tensor, ""]


class KlEstimates(NamedTuple):
    """Estimates, token by token, of KL(policy || reference) from tokens that the policy sampled; in nats."""

    k1: Float[Tensor, "*shape"]
    """lp - ref: unbiased, may be negative."""
    k2: Float[Tensor, "*shape"]
    """(lp - ref)^2 / 2: biased, small variance."""
    k3: Float[Tensor, "*shape"]
    """exp(ref - lp) - 1 - (ref - lp): unbiased, never negative."""


def log_probabilities(
    logits: Float[Tensor, "batch tokens vocabulary"], ids: Int[Tensor, "batch tokens"]
) -> Float32[Tensor, "batch tokens-1"]:
    """The log-probability of each token but the first, in nats, float32 whatever the dtype of the logits.

    The normaliser is taken in float32 too: in bfloat16 it would have three digits.
    """
    wide = logits[:, :-1].float()
    picked = wide.gather(-1, ids[:, 1:].long().unsqueeze(-1)).squeeze(-1)
    return picked - wide.logsumexp(dim=-1)


def response_mask(
    prompt_tokens: Int[Tensor, " batch"], tokens: Int[Tensor, " batch"], length: int
) -> Bool[Tensor, "batch targets"]:
    """Where the target is a response token, for right-padded rows of ``length`` tokens; (batch, length - 1).

    Row b holds ``prompt_tokens[b]`` of prompt, then response up to ``tokens[b]`` in all, then padding. Tokens are
    counted, never compared, so it does not matter that the padding token is often the end of sequence. A row without a
    prompt loses its first response token: nothing predicts position 0.

    Raises:
        UserError: a row is said to have more tokens than ``length``.
    """
    if len(tokens) and int(tokens.max()) > length:
        raise UserError(
            f"Response mask: a row has {int(tokens.max())} tokens, the batch is {length} long; "
            "cut the row before it is counted, or pad the batch to its longest row."
        )
    target = torch.arange(1, max(1, length), device=tokens.device)
    return (target >= prompt_tokens.unsqueeze(1)) & (target < tokens.unsqueeze(1))


def sums(values: Values, mask: Mask) -> PerRow:
    """Sum over the masked tokens of each row. What is outside the mask has no influence and no gradient, NaN or not."""
    return torch.where(mask, values, 0.0).sum(dim=1)


def means(values: Values, mask: Mask) -> PerRow:
    """Mean over the masked tokens of each row; of ``lp`` it is RRHF's length-normalised p.

    Raises:
        UserError: a row has no masked token; its mean would be 0 / 0.
    """
    return sums(values, mask) / _counts(mask)


def aggregate(
    values: Values,
    mask: Mask,
    how: Aggregation,
    *,
    max_length: int | None = None,
    total_tokens: int | None = None,
    sequences: int | None = None,
) -> Scalar:
    """One number from per-token losses; the scale says what a long answer weighs.

    - ``token_mean``: sum / number of tokens. Long answers weigh more. (DAPO, arXiv:2503.14476)
    - ``seq_mean_token_mean``: mean over rows of the row's mean. (GRPO, arXiv:2402.03300)
    - ``seq_mean_token_sum``: mean over rows of the row's sum. (RLOO, arXiv:2402.14740)
    - ``dr_grpo``: sum / (rows * ``max_length``), the same divisor for every answer. (Dr. GRPO, arXiv:2503.20783)

    ``total_tokens`` (for ``token_mean``) and ``sequences`` (for the others) are the counts of the *whole* optimiser
    step, by default those of this batch. With them the parts of a step that is cut into micro-batches add up to the
    step, however it is cut; without them, a micro-batch of short answers would weigh as much as one of long ones.

    Raises:
        UserError: ``dr_grpo`` without ``max_length``, nothing to divide by, or a row without tokens that needs a mean.
    """
    rows = _positive(len(mask) if sequences is None else sequences, "sequences")
    if how == "seq_mean_token_mean":
        return means(values, mask).sum() / rows
    total = sums(values, mask).sum()
    if how == "token_mean":
        return total / _positive(int(mask.sum()) if total_tokens is None else total_tokens, "tokens")
    if how == "seq_mean_token_sum":
        return total / rows
    if max_length is None:
        raise UserError("Aggregation 'dr_grpo' divides by the longest response allowed; set max_length (in tokens).")
    return total / (rows * _positive(max_length, "tokens of max_length"))


def perplexity(lp: Values, mask: Mask) -> Scalar:
    """exp of the mean negative log-probability over all masked tokens of the batch; from 1, lower is likelier."""
    return torch.exp(-aggregate(lp, mask, "token_mean"))


def entropy(logits: Float[Tensor, "*shape vocabulary"]) -> Float32[Tensor, "*shape"]:
    """Entropy of the next-token distribution in nats, from 0 to log(vocabulary); float32. A logit may be -inf."""
    log_p = torch.log_softmax(logits.float(), dim=-1)
    p = log_p.exp()
    return -(p * torch.where(p > 0, log_p, 0.0)).sum(dim=-1)


def kl_estimates(lp: Float[Tensor, "*shape"], ref: Float[Tensor, "*shape"]) -> KlEstimates:
    """Schulman's three estimators ("Approximating KL divergence", 2020), token by token."""
    difference = lp - ref
    return KlEstimates(difference, difference.square() / 2, torch.expm1(-difference) + difference)


def _counts(mask: Mask) -> Int[Tensor, " batch"]:
    counts = mask.sum(dim=1)
    if not bool((counts > 0).all()):
        rows = torch.nonzero(counts == 0).flatten().tolist()
        raise UserError(
            f"Rows {rows} of the batch have no response token, so they have no mean; "
            "leave empty answers out, or allow longer sequences if the prompt used the whole length."
        )
    return counts


def _positive(count: int, what: str) -> int:
    if count <= 0:
        raise UserError(f"A loss cannot be averaged over {count} {what}; leave empty answers out of the batch.")
    return count
