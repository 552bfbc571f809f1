"""Intuitive Fine-Tuning: three losses under one name, their gradients, and the mixing of embeddings."""

import pytest
import torch

from raftdiff.errors import UserError
from raftdiff.llm.learning.ift import mix_hard, mix_soft, mixing_weight, relation_loss, relation_weights
from raftdiff.llm.model.tokens import aggregate

LP = torch.tensor([[-0.5, -1.0, -0.25]], dtype=torch.float64)
ALL = torch.ones(1, 3, dtype=torch.bool)
VARIANTS = [("code", 0.95), ("code", 1.0), ("code", 0.0), ("eq21", 0.95), ("alg1", 0.95)]


def close(tensor, expected):
    torch.testing.assert_close(tensor, torch.tensor(expected, dtype=tensor.dtype), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("variant", "gamma", "weights", "loss"),
    [
        ("code", 0.95, [1.589212, 1.173681, 0.237107], 0.675855),
        ("code", 1.0, [1.615385, 1.153846, 0.230769], 0.673077),
        ("code", 0.0, [1.0, 1.0, 1.0], 0.583333),
        ("eq21", 0.95, [1.0, 2.0, 3.0], 3.25),
        ("alg1", 0.95, [1.579375, 1.1875, 0.25], 2.039687),
    ],
)
def test_worked_numbers(variant, gamma, weights, loss):
    close(relation_weights(-LP, ALL, gamma, variant), [weights])
    torch.testing.assert_close(
        relation_loss(LP, ALL, gamma, variant), torch.tensor([loss], dtype=torch.float64), rtol=0, atol=2e-6
    )


def test_gamma_zero_is_sft_although_the_limit_is_not():
    close(relation_loss(LP, ALL, 1e-9), [0.75])
    close(relation_loss(LP, ALL, 0.0), [0.583333])


def test_a_token_may_get_a_negative_gradient_weight_unless_weights_are_detached():
    for detach, expected in [(False, [0.474142, 0.440888, -0.008417]), (True, [0.529737, 0.391227, 0.079036])]:
        lp = LP.clone().requires_grad_()
        relation_loss(lp, ALL, 0.95, detach_weights=detach).sum().backward()
        close(-lp.grad, [expected])


def test_constant_and_doubled_losses():
    close(relation_loss(torch.full((1, 5), -0.7, dtype=torch.float64), torch.ones(1, 5, dtype=torch.bool), 0.95), [0.7])
    close(relation_loss(2 * LP, ALL, 0.95), [1.351709])


def test_invariants_of_the_code_variant():
    torch.manual_seed(0)
    lp, mask = -torch.rand(8, 12, dtype=torch.float64) - 0.01, torch.rand(8, 12) < 0.6
    mask[:, 3] = True
    weights, loss = relation_weights(-lp, mask, 0.9), relation_loss(lp, mask, 0.9)
    torch.testing.assert_close(weights.sum(1) / mask.sum(1), torch.ones(8, dtype=torch.float64))
    assert not weights[~mask].any()
    assert (loss >= torch.where(mask, -lp, torch.inf).min(1).values).all()
    assert (loss <= torch.where(mask, -lp, 0.0).max(1).values).all()
    sft = aggregate(-lp, mask, "seq_mean_token_mean")
    torch.testing.assert_close(relation_loss(lp, mask, 0.0).mean(), sft)


@pytest.mark.parametrize(("variant", "gamma"), VARIANTS)
def test_one_token_and_its_loss(variant, gamma):
    one, expected = torch.tensor([[-0.3]], dtype=torch.float64), 0.09 if variant == "alg1" else 0.3
    close(relation_loss(one, ALL[:, :1], gamma, variant), [expected])


@pytest.mark.parametrize(("variant", "gamma"), VARIANTS)
def test_prompt_padding_and_gaps_change_nothing(variant, gamma):
    nan = float("nan")
    lp = torch.tensor([[nan, -0.5, -1.0, -9.0, -0.25, nan]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[False, True, True, False, True, False]])
    loss = relation_loss(lp, mask, gamma, variant)
    torch.testing.assert_close(loss, relation_loss(LP, ALL, gamma, variant))
    loss.sum().backward()
    assert not lp.grad[~mask].any()


def test_a_text_that_is_certain_has_no_loss_and_a_finite_gradient():
    lp = torch.zeros(1, 3, requires_grad=True)
    loss = relation_loss(lp, ALL, 0.95)
    loss.sum().backward()
    assert loss.item() == 0
    assert torch.isfinite(lp.grad).all()
    with pytest.raises(UserError, match="must lie in 0 to 1"):
        relation_loss(LP, ALL, 1.5)


E = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
GOLD = torch.cat([torch.tensor([[9.0, 9.0]]), E])[None]  # a prompt token, then E(y) for y = 0, 1, 2


def test_worked_numbers_of_mixing():
    mixed = mix_hard(GOLD, torch.tensor([[0, 2, 2]]), E, ALL, 0.2)
    close(mixed, [[[9, 9], [1, 0], [0.2, 1], [1, 1]]])
    probabilities = torch.eye(3)[None].clone()
    probabilities[0, 1] = torch.tensor([0.1, 0.3, 0.6])
    close(mix_soft(GOLD, probabilities, E, ALL, 0.2)[0, 2], [0.14, 0.98])


def test_the_prompt_is_untouched_and_the_first_response_position_is_mixed():
    mask = torch.tensor([[False, True, True]])
    mixed = mix_hard(GOLD, torch.tensor([[2, 2, 2]]), E, mask, 1.0)
    assert mixed[0].tolist() == [[9, 9], [1, 0], [1, 1], [1, 1]]


def test_no_gradient_goes_through_the_table_or_the_first_pass():
    table, gold = E.clone().requires_grad_(), GOLD.clone().requires_grad_()
    probabilities = torch.full((1, 3, 3), 1 / 3, requires_grad=True)
    (
        mix_hard(gold, torch.tensor([[0, 2, 2]]), table, ALL, 0.2) + mix_soft(gold, probabilities, table, ALL, 0.2)
    ).sum().backward()
    assert table.grad is None
    assert probabilities.grad is None
    close(gold.grad[0, 1:], [[1.6, 1.6]] * 3)


def test_the_weight_of_a_step():
    assert mixing_weight(0.2) == 0.2
    assert mixing_weight(0.2, progress=0.25, ramp=True) == pytest.approx(0.05)
    assert mixing_weight(0.2, noise=1.0) == pytest.approx(0.3)
    assert mixing_weight(0.2, noise=-3.0) == 0.0
    assert mixing_weight(0.9, noise=2.0) == 1.0
    close(mix_hard(GOLD, torch.tensor([[2, 2, 2]]), E, ALL, 7.0), [[[9, 9], [1, 1], [1, 1], [1, 1]]])
