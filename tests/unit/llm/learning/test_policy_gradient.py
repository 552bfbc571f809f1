"""The clipped objective: worked numbers, its gradient at ratio 1, and what lies outside the mask."""

import math

import pytest
import torch

from raftdiff.llm.learning.policy_gradient import clipped_objective
from raftdiff.llm.model.tokens import aggregate, kl_estimates, sums

ALL = torch.ones(1, 3, dtype=torch.bool)


def close(tensor, expected):
    torch.testing.assert_close(tensor, torch.tensor(expected), rtol=0, atol=2e-6)


def test_worked_numbers_with_an_advantage_per_token():
    old, lp = torch.tensor([[-1, -0.5, -2]]), torch.tensor([[-0.7, -0.6, -1.9]])
    loss = clipped_objective(lp, old, torch.tensor([[0.916983, 0.473817, -1.3908]]), ALL)
    close((lp - old).exp(), [[1.349859, 0.904837, 1.105171]])
    close(aggregate(loss.losses, ALL, "token_mean"), 0.002655)
    close(loss.clip_fraction, 1 / 3)
    close(loss.approx_kl, 0.019956)


def test_raft_plus_plus_of_the_worked_ratios():
    lp, mask = torch.tensor([[1.1, 1.4, 0.7, 1.0]]).log().T, torch.ones(4, 1, dtype=torch.bool)
    loss = clipped_objective(lp, torch.zeros(4, 1), torch.tensor([1.0, 1, 0, 1]), mask)
    close(aggregate(loss.losses, mask, "token_mean"), -0.825)


def test_at_ratio_1_the_gradient_is_reinforce():
    torch.manual_seed(0)
    lp, mask = -torch.rand(3, 5), torch.rand(3, 5) < 0.7
    lp.requires_grad_()
    advantages = torch.tensor([1.5, -2.0, 0.0])
    loss = clipped_objective(lp, lp, advantages, mask)  # old is detached inside
    loss.losses.sum().backward()
    torch.testing.assert_close(lp.grad, -advantages[:, None] * mask)
    torch.testing.assert_close(loss.losses.detach(), -advantages[:, None] * mask)
    assert loss.clip_fraction == 0
    assert loss.approx_kl == 0


def test_whitened_advantages_give_zero_loss_at_ratio_1():
    lp = torch.tensor([[-1, -0.5, -2]])
    loss = clipped_objective(lp, lp, torch.tensor([[0.916983, 0.473817, -1.3908]]), ALL)
    close(aggregate(loss.losses, ALL, "token_mean"), 0.0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [(1.4, 1.0, False), (1.4, -1.0, True), (0.6, 1.0, True), (0.6, -1.0, False), (1.25, 1.0, True)],
)
def test_the_clip_stops_only_what_goes_too_far_in_the_wanted_direction(ratio, advantage, moves):
    lp = torch.tensor([[math.log(ratio)]], requires_grad=True)
    loss = clipped_objective(lp, torch.zeros(1, 1), torch.tensor([advantage]), ALL[:, :1], clip_low=0.2, clip_high=0.28)
    loss.losses.sum().backward()
    assert (lp.grad.item() != 0) == moves
    assert loss.clip_fraction.item() == (not moves)


def test_without_a_clip_the_ratio_is_kept_whole():
    lp = torch.tensor([[3.0, -3.0]])
    loss = clipped_objective(
        lp, torch.zeros(1, 2), torch.tensor([1.0]), ALL[:, :2], clip_low=math.inf, clip_high=math.inf
    )
    torch.testing.assert_close(loss.losses, -lp.exp())
    assert loss.clip_fraction == 0


def test_the_kl_to_a_reference_is_added_per_token():
    lp, ref = torch.tensor([[-1, -0.5, -2]]), torch.tensor([[-1.2, -0.4, -1.5]])
    plain = clipped_objective(lp, lp, torch.tensor([1.0]), ALL).losses
    with_kl = clipped_objective(lp, lp, torch.tensor([1.0]), ALL, reference=ref, beta=0.04).losses
    torch.testing.assert_close(with_kl - plain, 0.04 * kl_estimates(lp, ref).k3)


def test_outside_the_mask_there_may_be_anything():
    nan = float("nan")
    lp = torch.tensor([[-1.0, nan, 900.0]], requires_grad=True)
    old, mask = torch.tensor([[-1.0, -1.0, -900.0]]), torch.tensor([[True, False, False]])
    loss = clipped_objective(lp, old, torch.tensor([2.0]), mask, reference=torch.tensor([[-1.1, nan, 0.0]]), beta=0.1)
    loss.losses.sum().backward()
    assert loss.losses[0, 1:].tolist() == [0.0, 0.0]
    assert torch.isfinite(lp.grad).all()
    assert lp.grad[0, 1:].tolist() == [0.0, 0.0]
    assert torch.isfinite(loss.approx_kl)


def test_ratios_of_whole_answers_are_the_same_function_of_sums():
    """One column that holds the sums: RLOO's objective. At ratio 1 its gradient is that of the summed tokens."""
    torch.manual_seed(0)
    lp, mask = -torch.rand(4, 5), torch.rand(4, 5) < 0.8
    advantages, one = torch.randn(4), torch.ones(4, 1, dtype=torch.bool)
    tokens, answers = lp.clone().requires_grad_(), lp.clone().requires_grad_()
    aggregate(clipped_objective(tokens, lp, advantages, mask).losses, mask, "seq_mean_token_sum").backward()
    whole = clipped_objective(sums(answers, mask)[:, None], sums(lp, mask)[:, None], advantages, one).losses
    aggregate(whole, one, "seq_mean_token_sum").backward()
    torch.testing.assert_close(tokens.grad, answers.grad)
