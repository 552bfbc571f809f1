"""What reward models learn by: worked numbers, invariants, gradients, and the variants that are known traps."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, logsigmoid, normalize

from raftdiff.errors import UserError
from raftdiff.llm.reward_models.losses import bradley_terry, centring, meta_difference, simcse, sinkhorn, swav
from raftdiff.llm.reward_models.strength import flip, flip_margin, margin, plain, smooth, soft_margin
from raftdiff.measures.calibration import accuracy

CHOSEN, REJECTED = (torch.tensor(r, dtype=torch.float64) for r in ([1.2, 0.3, -0.5], [0.7, 0.9, -0.9]))
D = CHOSEN - REJECTED
MU = np.array([0.5, -0.7, 0.1])
S, T, PROTOTYPES = torch.eye(2), torch.tensor([[0.8, 0.6], [0.6, 0.8]]), torch.eye(2)
LOG_2 = math.log(2)


def close(tensor, expected):
    torch.testing.assert_close(tensor, torch.tensor(expected, dtype=tensor.dtype), rtol=0, atol=2e-6)


def annotated(annotation, d=D):
    """The loss as a reward model is trained on it: swapped pairs, then margin and smoothing."""
    flipped, gap, smoothing = (torch.from_numpy(part) for part in annotation)
    return bradley_terry(torch.where(flipped, -d, d), gap, smoothing).mean()


def test_worked_numbers_of_bradley_terry():
    close(bradley_terry(D), [0.474077, 1.037488, 0.513015])
    close(bradley_terry(D).mean(), 0.67486)
    close(bradley_terry(D, smoothing=0.1).mean(), 0.68486)
    assert accuracy(D.numpy()).mean == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (plain(3), 0.67486),
        (smooth(3, 0.1), 0.68486),
        (margin(MU, 1.0), 0.630633),
        (flip(MU, 1 / 3), 0.47486),
        (flip_margin(MU, 1 / 3, 1.0), 0.663966),
        (soft_margin(MU, 0.1, 1.0), 0.633966),
    ],
)
def test_worked_numbers_of_denoising(annotation, expected):
    close(annotated(annotation), expected)


def test_a_flip_that_keeps_its_signed_margin_is_another_loss():
    wrong = flip_margin(MU, 1 / 3, 1.0)._replace(margin=MU)
    close(annotated(wrong), 0.49617)


def test_an_epsilon_in_the_logarithm_caps_the_loss_and_stops_the_gradient():
    def released(d):
        return -torch.log(torch.sigmoid(d) + 1e-5)

    close(released(D).mean(), 0.67484)
    far = torch.tensor([-20.0], dtype=torch.float64, requires_grad=True)
    close(released(far), [11.512719])
    close(bradley_terry(far), [20.0])
    assert torch.autograd.grad(released(far).sum(), far)[0].abs() < 1e-3
    close(torch.autograd.grad(bradley_terry(far).sum(), far)[0], [-1.0])


def test_rewards_far_apart_are_finite_in_float32():
    d = torch.tensor([-1e4, 1e4], requires_grad=True)
    bradley_terry(d, smoothing=0.1).sum().backward()
    close(d.grad, [-0.9, 0.1])


def test_a_constant_of_the_prompt_changes_nothing():
    constant = torch.tensor([3.0, -7.0, 100.0], dtype=torch.float64)
    torch.testing.assert_close(bradley_terry((CHOSEN + constant) - (REJECTED + constant)), bradley_terry(D))


def test_equal_rewards_are_log_2_whatever_the_smoothing():
    close(bradley_terry(torch.zeros(2), smoothing=torch.tensor([0.0, 0.3])), [LOG_2, LOG_2])


def test_no_strength_is_plain_bradley_terry():
    close(annotated(margin(np.zeros(3), 1.0)), bradley_terry(D).mean().item())
    close(annotated(margin(MU, 0.0)), bradley_terry(D).mean().item())
    close(annotated(flip(MU, 0.0)), bradley_terry(D).mean().item())


def test_smoothing_has_its_minimum_at_the_log_odds_past_the_margin():
    for a in (0.05, 0.1, 0.3):
        at = torch.tensor([math.log((1 - a) / a) + 0.4], dtype=torch.float64, requires_grad=True)
        bradley_terry(at, 0.4, a).sum().backward()
        assert abs(at.grad.item()) < 1e-12
        near = [bradley_terry(at.detach() + step, 0.4, a) for step in (-0.01, 0.0, 0.01)]
        assert near[1] < min(near[0], near[2])
    plain_gradient = torch.tensor([9.0], requires_grad=True)
    bradley_terry(plain_gradient).sum().backward()
    assert plain_gradient.grad.item() < 0  # without smoothing there is no end


def test_a_margin_inside_the_sigmoid_moves_the_gradient_and_one_outside_would_not():
    d = D.clone().requires_grad_()
    gradients = [torch.autograd.grad(bradley_terry(d, m).sum(), d)[0] for m in (0.0, 1.0)]
    assert (gradients[1] < gradients[0]).all()  # a margin asks for more
    torch.testing.assert_close(gradients[1], torch.sigmoid(D - 1.0) - 1)
    printed = torch.autograd.grad((-logsigmoid(d) + 1.0).sum(), d)[0]
    torch.testing.assert_close(printed, gradients[0])


def test_centring():
    close((bradley_terry(D) + 0.01 * centring(CHOSEN, REJECTED)).mean(), 0.698227)
    shift = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (bradley_terry(CHOSEN - REJECTED) + centring(CHOSEN + shift, REJECTED + shift)).mean().backward()
    close(shift.grad, [4 * (CHOSEN + REJECTED).mean().item()])  # falls towards rewards about 0


def test_worked_numbers_of_simcse():
    close(simcse(S, T, 1.0), 0.598139)
    close(simcse(S, T, 0.05), 0.01815)


def test_simcse_is_a_matter_of_directions_and_of_the_others_in_the_batch():
    torch.manual_seed(0)
    s, t = torch.randn(5, 4), torch.randn(5, 4)
    value = simcse(s, t, 0.5)
    torch.testing.assert_close(simcse(3 * s, t * torch.rand(5, 1), 0.5), value)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(simcse(s[order], t[order], 0.5), value)
    assert simcse(s, s, 0.5) < value
    close(simcse(s[:1], t[:1], 0.5), 0.0)
    close(simcse(s[:1].repeat(3, 1), s[:1].repeat(3, 1), 0.05), math.log(3))  # collapsed: nothing told apart


def test_simcse_pulls_the_two_views_together_and_the_rows_apart():
    torch.manual_seed(0)
    s, t = torch.randn(6, 8, requires_grad=True), torch.randn(6, 8, requires_grad=True)
    optimizer = torch.optim.SGD([s, t], lr=1.0)
    for _ in range(100):
        optimizer.zero_grad()
        simcse(s, t, 0.1).backward()
        optimizer.step()
    cosine = cosine_similarity(s[:, None], t[None], dim=-1).detach()
    assert cosine.diagonal().min() > cosine[~torch.eye(6, dtype=torch.bool)].max() + 0.3


def test_worked_numbers_of_swav():
    close(sinkhorn(T @ PROTOTYPES.T, 0.5, 3), [[0.598688, 0.401312], [0.401312, 0.598688]])
    close(sinkhorn(S @ PROTOTYPES.T, 0.5, 3), [[0.880797, 0.119203], [0.119203, 0.880797]])
    close(swav(S, T, PROTOTYPES, tau=0.1, epsilon=0.5, iterations=3), 4.378503)


def test_sinkhorn_shares_the_prototypes_out():
    torch.manual_seed(0)
    scores = torch.rand(30, 5)
    scores[:, 2] += 1.0  # everybody's favourite
    assert (scores.argmax(1) == 2).all()
    q = sinkhorn(scores, 0.05, 100)
    torch.testing.assert_close(q.sum(1), torch.ones(30))
    torch.testing.assert_close(q.sum(0), torch.full((5,), 6.0), rtol=0, atol=1e-2)
    torch.testing.assert_close(sinkhorn(scores, 0.05, 0), (scores / 0.05).softmax(1))


def test_sinkhorn_is_what_scaling_rows_and_columns_gives():
    torch.manual_seed(0)
    scores = torch.rand(6, 3)
    q = (scores / 0.5).exp()
    for _ in range(3):
        q = q / q.sum(0, keepdim=True)
        q = q / q.sum(1, keepdim=True)
    torch.testing.assert_close(sinkhorn(scores, 0.5, 3), q)
    assert torch.isfinite(sinkhorn(1e4 * scores, 0.01, 3)).all()


def test_the_codes_have_no_gradient_and_the_prototypes_do():
    torch.manual_seed(0)
    s, t, prototypes = (torch.randn(rows, 4, requires_grad=True) for rows in (6, 6, 3))
    assert not sinkhorn(s @ prototypes.T, 0.5, 3).requires_grad
    swav(s, t, prototypes, tau=0.1, epsilon=0.5, iterations=3).backward()
    for tensor in (s, t, prototypes):
        assert tensor.grad.abs().max() > 0
        torch.testing.assert_close((tensor.grad * tensor).sum(1), torch.zeros(len(tensor)), rtol=0, atol=1e-5)


def test_swav_is_symmetric_and_best_where_views_agree():
    torch.manual_seed(0)
    s, t, prototypes = torch.randn(6, 4), torch.randn(6, 4), torch.randn(3, 4)
    options = {"tau": 0.1, "epsilon": 0.5, "iterations": 3}
    value = swav(s, t, prototypes, **options)
    torch.testing.assert_close(swav(t, s, prototypes, **options), value)
    torch.testing.assert_close(swav(2 * s, 5 * t, 3 * prototypes, **options), value)
    assert swav(s, s, prototypes, **options) < value


@pytest.mark.parametrize(("k", "low", "high"), [(2, 0.25, 0.5), (3, 0.333333, 0.666667), (5, 0.4, 0.8)])
def test_the_range_of_the_meta_difference(k, low, high):
    close(meta_difference(torch.full((4, k), 0.7)), low)
    assert high - 1e-4 < meta_difference(torch.arange(k)[None] * 15.0) <= high + 1e-6
    torch.manual_seed(0)
    values = torch.stack([meta_difference(2 * torch.randn(1, k)) for _ in range(50)])
    assert ((values >= low - 1e-6) & (values < high + 1e-6)).all()


THETA = torch.tensor([0.5, -0.2], dtype=torch.float64)
ANSWERS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
PAIR = torch.tensor([[1.0, 0.5], [0.2, 0.8]], dtype=torch.float64)


def difference(theta):
    return meta_difference((ANSWERS @ theta)[None])


def preference(theta):
    return bradley_terry(((PAIR[0] - PAIR[1]) @ theta)[None]).mean()


def gradient(function, theta):
    return torch.autograd.grad(function(theta.requires_grad_()), theta)[0]


def test_worked_numbers_of_a_meta_step():
    """Up J, the preference gradient there, applied to where it started. No second derivative."""
    close(difference(THETA), 0.408996)
    up = gradient(difference, THETA.clone())
    close(up, [0.101493, -0.104273])
    ahead = THETA + 0.1 * up
    close(ahead, [0.510149, -0.210427])
    close(preference(THETA), 0.489367)
    close(preference(ahead), 0.48503)
    g = gradient(preference, ahead.clone())
    close(g, [-0.307457, 0.115296])
    close(THETA - 0.1 * g, [0.530746, -0.21153])
    close(THETA - 0.1 * gradient(preference, THETA.clone()), [0.530959, -0.21161])


def test_the_gradient_of_the_meta_difference_is_that_of_finite_differences():
    torch.manual_seed(0)
    rewards = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(meta_difference, (rewards,))
    assert difference(THETA + 1e-3 * gradient(difference, THETA.clone())) > difference(THETA)


def test_identical_answers_have_no_meta_gradient():
    rewards = torch.tensor([[0.3, 0.3, 0.3], [1.0, 1.0, 2.0]], requires_grad=True)
    meta_difference(rewards).backward()
    assert rewards.grad[0].tolist() == [0.0, 0.0, 0.0]
    assert rewards.grad[1, 0] == rewards.grad[1, 1] < 0 < rewards.grad[1, 2]


def test_the_meta_difference_is_a_mean_over_prompts_and_has_no_order():
    torch.manual_seed(0)
    rewards = torch.randn(4, 5)
    each = torch.stack([meta_difference(row[None]) for row in rewards])
    torch.testing.assert_close(meta_difference(rewards), each.mean())
    torch.testing.assert_close(meta_difference(rewards[:, torch.randperm(5)]), each.mean())
    torch.testing.assert_close(meta_difference(-rewards + torch.arange(4)[:, None]), each.mean())
    pairs = [(i, j) for i in range(5) for j in range(i + 1, 5)]
    slow = [2 / 25 * sum(torch.sigmoid((row[i] - row[j]).abs()) for i, j in pairs) for row in rewards]
    torch.testing.assert_close(each, torch.stack(slow))


def test_one_answer_to_a_prompt_is_refused():
    with pytest.raises(UserError, match="there is 1; draw two or more"):
        meta_difference(torch.zeros(3, 1))


def test_plain_training_fits_flipped_labels_and_the_oracles_flip_does_not():
    """A reward model of as many weights as pairs learns every wrong label; flipped by its truth, none."""
    torch.manual_seed(0)
    features, truth = normalize(torch.randn(40, 60), dim=1), torch.randn(60)
    wrong = np.arange(40) < 10
    d_true = features @ truth
    features = features * d_true.sign()[:, None] * torch.where(torch.from_numpy(wrong), -1.0, 1.0)[:, None]

    def trained(annotation):
        weights = torch.zeros(60, requires_grad=True)
        optimizer = torch.optim.Adam([weights], lr=0.1)
        for _ in range(300):
            optimizer.zero_grad()
            annotated(annotation, features @ weights).backward()
            optimizer.step()
        return features @ weights.detach()

    oracle = flip(np.where(wrong, -1.0, 1.0), 0.25)
    assert (trained(plain(40)) > 0).all()
    assert ((trained(oracle) > 0).numpy() == ~wrong).all()
