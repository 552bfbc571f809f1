"""Log-probabilities, masks and means: the worked numbers, and what prompts, padding and micro-batches must not do."""

import math

import pytest
import torch

from raftdiff.errors import UserError
from raftdiff.llm.model.tokens import (
    aggregate,
    entropy,
    kl_estimates,
    log_probabilities,
    means,
    perplexity,
    response_mask,
    sums,
)

LOGITS = torch.tensor([[[2.0, 1, 0], [0, 1, 2], [1, 1, 1], [0, 3, 0]]])
IDS = torch.tensor([[0, 2, 1, 1]])
LOSSES = torch.tensor([[1.0, 3, 0, 0], [2, 2, 4, 4]])
MASK = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)


def close(tensor, expected):
    torch.testing.assert_close(tensor, torch.tensor(expected, dtype=tensor.dtype), rtol=0, atol=2e-6)


def test_worked_numbers_of_one_text():
    lp = log_probabilities(LOGITS, IDS)
    mask = response_mask(torch.tensor([2]), torch.tensor([4]), 4)
    close(lp, [[-2.407606, -1.407606, -1.098612]])
    assert mask.tolist() == [[False, True, True]]
    close(sums(lp, mask), [-2.506218])
    close(means(lp, mask), [-1.253109])
    close(perplexity(lp, mask), 3.501212)


@pytest.mark.parametrize(
    ("how", "expected"),
    [("token_mean", 2.666667), ("seq_mean_token_mean", 2.5), ("seq_mean_token_sum", 8.0), ("dr_grpo", 1.0)],
)
def test_worked_numbers_of_the_aggregations(how, expected):
    close(aggregate(LOSSES, MASK, how, max_length=8), expected)


@pytest.mark.parametrize("how", ["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "dr_grpo"])
def test_micro_batches_with_the_counts_of_the_step_add_up_to_the_step(how):
    torch.manual_seed(0)
    losses, lengths = torch.randn(6, 9), torch.tensor([1, 9, 3, 2, 7, 5])
    mask = torch.arange(9) < lengths[:, None]
    whole = aggregate(losses, mask, how, max_length=9)
    for cuts in ([1, 5], [2, 2, 2], [3, 3]):
        parts = [
            aggregate(part, there, how, max_length=9, total_tokens=int(mask.sum()), sequences=6)
            for part, there in zip(losses.split(cuts), mask.split(cuts), strict=True)
        ]
        torch.testing.assert_close(sum(parts), whole)
    naive = torch.stack([aggregate(losses[:1], mask[:1], "token_mean"), aggregate(losses[1:], mask[1:], "token_mean")])
    assert abs(naive.mean() - aggregate(losses, mask, "token_mean")) > 0.01


def test_the_mask_counts_tokens_so_padding_may_be_the_end_of_sequence():
    """Rows: prompt 7 7, answer 5 and an end (2); prompt 7 2 (2 may stand in a prompt too), answer 5 5 5, cut off."""
    ids = torch.tensor([[7, 7, 5, 2, 2, 2], [7, 2, 5, 5, 5, 2]])
    mask = response_mask(torch.tensor([2, 2]), torch.tensor([4, 5]), ids.shape[1])
    assert [row[there].tolist() for row, there in zip(ids[:, 1:], mask, strict=True)] == [[5, 2], [5, 5, 5]]


def test_a_mask_without_prompt_or_response():
    assert response_mask(torch.tensor([0, 3]), torch.tensor([2, 3]), 3).tolist() == [[True, False], [False, False]]
    assert response_mask(torch.tensor([1]), torch.tensor([1]), 1).shape == (1, 0)
    with pytest.raises(UserError, match="a row has 9 tokens, the batch is 5 long"):
        response_mask(torch.tensor([2]), torch.tensor([9]), 5)


def test_prompt_and_padding_get_no_gradient():
    logits = torch.randn(2, 6, 5, requires_grad=True)
    lp = log_probabilities(logits, torch.randint(5, (2, 6)))
    mask = response_mask(torch.tensor([2, 3]), torch.tensor([5, 6]), 6)
    (-aggregate(lp, mask, "token_mean")).backward()
    touched = logits.grad.abs().sum(-1) > 0
    assert touched.tolist() == [[False, True, True, True, False, False], [False, False, True, True, True, False]]


def test_what_is_outside_the_mask_may_be_nan():
    values = torch.tensor([[1.0, float("nan")], [2.0, 3.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, True]])
    total = aggregate(values, mask, "token_mean")
    total.backward()
    close(total, 2.0)
    close(values.grad, [[1 / 3, 0.0], [1 / 3, 1 / 3]])


def test_an_empty_row_has_no_mean_and_says_so():
    mask = torch.tensor([[True, False], [False, False]])
    close(sums(torch.ones(2, 2), mask), [1.0, 0.0])
    for call in (means, lambda v, m: aggregate(v, m, "seq_mean_token_mean")):
        with pytest.raises(UserError, match=r"Rows \[1\] of the batch have no response token"):
            call(torch.ones(2, 2), mask)
    with pytest.raises(UserError, match="cannot be averaged over 0 tokens"):
        aggregate(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool), "token_mean")
    with pytest.raises(UserError, match="set max_length"):
        aggregate(torch.ones(2, 2), mask, "dr_grpo")


def test_an_empty_part_of_a_step_adds_nothing():
    close(aggregate(torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool), "token_mean", total_tokens=7), 0.0)


def test_bfloat16_logits_are_normalised_in_float32():
    torch.manual_seed(0)
    logits, ids = 4 * torch.randn(2, 5, 1000), torch.randint(1000, (2, 5))
    narrow = logits.bfloat16()
    lp = log_probabilities(narrow, ids)
    assert lp.dtype == torch.float32
    exact = narrow.double().log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(lp.double(), exact, rtol=0, atol=1e-5)
    assert (narrow.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1) - exact).abs().max() > 1e-2


def test_entropy_in_nats_and_with_forbidden_tokens():
    close(entropy(torch.tensor([0.5, 0.25, 0.25]).log()), 1.039721)
    close(entropy(torch.zeros(2, 3, 7)), [[math.log(7)] * 3] * 2)
    logits = torch.tensor([0.0, -torch.inf, 0.0], requires_grad=True)
    value = entropy(logits)
    value.backward()
    close(value.detach(), math.log(2))
    assert torch.isfinite(logits.grad).all()


def test_kl_estimates():
    lp, ref = torch.tensor([-1, -0.5, -2]), torch.tensor([-1.2, -0.4, -1.5])
    k1, k2, k3 = kl_estimates(lp, ref)
    close(k1, [0.2, -0.1, -0.5])
    close(k2, [0.02, 0.005, 0.125])
    close(k3, [0.018731, 0.005171, 0.148721])


def test_k1_and_k3_are_unbiased():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    k1, k2, k3 = kl_estimates(p.log(), q.log())
    true = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * k1).sum(), true)
    torch.testing.assert_close((p * k3).sum(), true)
    assert ((p * k2).sum() - true).abs() > 1e-3
    assert (k3 >= 0).all()
