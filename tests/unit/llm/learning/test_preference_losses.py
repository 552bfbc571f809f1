"""Pair and label losses: the worked numbers, their gradients and their edges."""

import math

import pytest
import torch

from raftdiff.errors import UserError
from raftdiff.llm.learning.preference_losses import (
    dpo,
    hinge,
    implicit_reward,
    ipo,
    kto,
    kto_reference_point,
    orpo,
    reference_margin,
    robust_dpo,
    simpo,
)


def row(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(tensor, *expected):
    torch.testing.assert_close(tensor, torch.tensor(expected, dtype=tensor.dtype), rtol=0, atol=2e-6)


PC, QC, PR, QR = row(-10), row(-11), row(-14), row(-13)
H = reference_margin(PC, QC, PR, QR)


def test_worked_numbers_of_the_dpo_family():
    close(H, 2.0)
    close(dpo(H, 0.1), 0.598139)
    close(implicit_reward(PC, QC, 0.1), 0.1)
    close(implicit_reward(PR, QR, 0.1), -0.1)
    close(dpo(H, 0.1, smoothing=0.1), 0.618139)
    close(robust_dpo(H, 0.1, 0.1), 0.573139)
    close(ipo(H, 0.1), 9.0)
    close(ipo(reference_margin(PC / 5, QC / 5, PR / 8, QR / 8), 0.1), 21.855625)
    close(hinge(H, 0.1), 0.8)


def test_worked_numbers_without_a_reference():
    close(simpo(PC / 5, PR / 8, 2.0, 1.0), 1.701413)
    total, sft = orpo(row(-2), row(-1.75), 0.1), orpo(row(-2), row(-1.75), 0.0)
    close(total, 2.085176)
    close(sft, 2.0)
    close((total - sft) / 0.1, 0.851757)


def test_worked_numbers_of_kto():
    h = torch.cat([PC - QC, PR - QR])
    labels = torch.tensor([True, False])
    close(kto(h, labels, torch.tensor(0.5), 0.1), 0.487503, 0.46257)
    close(kto(row(0, 0), labels, torch.tensor(0.0), 0.1), 0.5, 0.5)
    weighted = kto(h, labels, torch.tensor(0.5), 0.1, desirable_weight=2.0, undesirable_weight=0.5)
    close(weighted, 2 * 0.4875026, 0.5 * 0.4625702)


def test_the_gradient_of_dpo_weighs_a_pair_by_how_wrong_it_is():
    h = row(2).requires_grad_()
    dpo(h, 0.1).sum().backward()
    close(-h.grad / 0.1, 0.450166)


def test_at_the_reference_dpo_is_log_2():
    p = row(-3, -50)
    close(dpo(reference_margin(p, p, 2 * p, 2 * p), 0.3), math.log(2), math.log(2))


def test_smoothing_has_its_minimum_at_a_finite_margin():
    h = torch.linspace(-40, 40, 8001, dtype=torch.float64)
    losses = dpo(h, 0.5, smoothing=0.1)
    assert h[losses.argmin()].item() == pytest.approx(math.log(0.9 / 0.1) / 0.5, abs=0.01)


def test_robust_dpo_is_unbiased_under_flips():
    """The mean of the loss over labels flipped with probability e is the clean loss."""
    e, h = 0.3, row(1.7, -4)
    torch.testing.assert_close((1 - e) * robust_dpo(h, 0.2, e) + e * robust_dpo(-h, 0.2, e), dpo(h, 0.2))


@pytest.mark.parametrize("rate", [0.5, -0.1, float("nan")])
def test_a_rate_of_wrong_labels_is_below_a_half(rate):
    with pytest.raises(UserError, match="flip = .*: a rate of wrong labels must be at least 0 and below 0.5"):
        robust_dpo(H, 0.1, rate)
    with pytest.raises(UserError, match="smoothing = "):
        dpo(H, 0.1, rate)


def test_large_margins_stay_finite_with_a_gradient():
    h = torch.tensor([-2000.0, 2000.0], requires_grad=True)
    losses = dpo(h, 1.0) + robust_dpo(h, 1.0, 0.1) + hinge(h, 1.0)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(h.grad).all()
    assert h.grad[0] < -1


def test_orpo_stays_finite_where_the_policy_is_certain_or_hopeless():
    chosen = torch.tensor([0.0, -1e-9, -400.0], requires_grad=True)
    losses = orpo(chosen, torch.tensor([-1.0, 0.0, 0.0]), 0.5)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(chosen.grad).all()


def test_the_reference_point_is_clamped_and_has_no_gradient():
    h = torch.tensor([-3.0, 1.0], requires_grad=True)
    assert kto_reference_point(h).item() == 0.0
    point = kto_reference_point(h + 4)
    assert point.item() == pytest.approx(3.0)
    assert not point.requires_grad
    with pytest.raises(UserError, match="answers paired with other prompts"):
        kto_reference_point(h[:0])


def test_directions():
    """Every loss falls as the better answer becomes likelier."""
    low, high = row(-2.0), row(-1.0)
    for loss in (
        lambda h: dpo(h, 0.1),
        lambda h: robust_dpo(h, 0.1, 0.2),
        lambda h: ipo(h, 0.1),
        lambda h: hinge(h, 0.1),
    ):
        assert loss(high) < loss(low)
    assert simpo(high, low, 2.0, 0.5) < simpo(low, low, 2.0, 0.5)
    assert orpo(high, low, 0.1) < orpo(low, low, 0.1)
    z = torch.tensor(0.0)
    assert kto(high, torch.tensor([True]), z, 0.1) < kto(low, torch.tensor([True]), z, 0.1)
    assert kto(high, torch.tensor([False]), z, 0.1) > kto(low, torch.tensor([False]), z, 0.1)
