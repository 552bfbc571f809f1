"""What PPO learns by: worked numbers, closed forms, masks, and the running figures that keep rewards in range."""

import pytest
import torch

from raftdiff.errors import UserError
from raftdiff.llm.learning.policy_gradient import clipped_objective
from raftdiff.llm.model.tokens import aggregate
from raftdiff.llm.ppo.losses import RewardScaler, adaptive_kl, gae, token_rewards, value_loss, whiten

ALL = torch.ones(1, 3, dtype=torch.bool)
LP, REF = torch.tensor([[-1, -0.5, -2]]), torch.tensor([[-1.2, -0.4, -1.5]])
R, V = torch.tensor([1.0]), torch.tensor([[0.2, 0.3, 0.5]])
REWARDS = torch.tensor([[-0.02, 0.01, 1.05]])
A = torch.tensor([[0.775875, 0.7325, 0.55]])
NAN = float("nan")


def close(tensor, expected):
    torch.testing.assert_close(tensor, torch.tensor(expected, dtype=tensor.dtype), rtol=0, atol=2e-6)


def ragged(rows=6, length=9):
    """A mask of answers of different length after prompts of different length, and tables that hold NaN outside."""
    generator = torch.Generator().manual_seed(0)
    start = torch.tensor([0, 3, 1, 0, 5, 2][:rows])
    end = torch.tensor([9, 4, 6, 1, 9, 7][:rows])
    position = torch.arange(length)
    mask = (position >= start[:, None]) & (position < end[:, None])
    tables = [torch.where(mask, torch.randn(rows, length, generator=generator), NAN) for _ in range(4)]
    return mask, *tables


def test_worked_numbers_of_an_answer():
    rewards = token_rewards(LP, REF, R, ALL, 0.1)
    close(rewards, REWARDS.tolist())
    advantages, returns = gae(rewards, V, ALL, 1.0, 0.95)
    close(advantages, A.tolist())
    close(returns, [[0.975875, 1.0325, 1.05]])


@pytest.mark.parametrize(("lam", "expected"), [(1.0, [[0.84, 0.76, 0.55]]), (0.0, [[0.08, 0.21, 0.55]])])
def test_worked_numbers_of_other_lambdas(lam, expected):
    close(gae(REWARDS, V, ALL, 1.0, lam).advantages, expected)


def test_lambda_1_gives_the_rewards_to_come():
    close(gae(REWARDS, V, ALL, 1.0, 1.0).returns, [[1.04, 1.06, 1.05]])
    mask, rewards, values, *_ = ragged()
    returns = gae(rewards, values, mask, 1.0, 1.0).returns
    for row, told, there in zip(returns, rewards, mask, strict=True):
        torch.testing.assert_close(row[there], told[there].flip(0).cumsum(0).flip(0))


def test_lambda_0_is_the_one_step_error():
    mask, rewards, values, *_ = ragged()
    advantages = gae(rewards, values, mask, 0.9, 0.0).advantages
    for row, r, v, there in zip(advantages, rewards, values, mask, strict=True):
        following = torch.cat([v[there][1:], torch.zeros(1)])
        torch.testing.assert_close(row[there], r[there] + 0.9 * following - v[there])


def test_advantages_are_the_weighted_sum_of_the_errors_to_come():
    """The definition, written out: A_t = sum over l of (gamma lam)^l d_{t+l}."""
    mask, rewards, values, *_ = ragged()
    gamma, lam = 0.97, 0.9
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for row, reward, value, there in zip(advantages, rewards, values, mask, strict=True):
        r, v = reward[there].double(), value[there].double()
        errors = r + gamma * torch.cat([v[1:], torch.zeros(1)]) - v
        count = len(r)
        expected = [sum((gamma * lam) ** (j - i) * errors[j] for j in range(i, count)) for i in range(count)]
        torch.testing.assert_close(row[there].double(), torch.stack(expected), rtol=0, atol=1e-5)
    torch.testing.assert_close(returns[mask], (advantages + values)[mask])


def test_without_a_penalty_and_undiscounted_the_advantage_is_the_reward_less_the_value():
    mask, lp, ref, values, _ = ragged()
    rewards = torch.linspace(-1, 2, len(mask))
    advantages = gae(token_rewards(lp, ref, rewards, mask, 0.0), values, mask, 1.0, 1.0).advantages
    torch.testing.assert_close(advantages[mask], (rewards[:, None] - values)[mask])


def test_prompt_and_padding_hold_0_and_have_no_influence():
    mask, rewards, values, *_ = ragged()
    for table in gae(rewards, values, mask, 0.9, 0.8):
        assert (table[~mask] == 0).all()
    kept = gae(rewards, values, mask, 0.9, 0.8).advantages
    other = gae(torch.where(mask, rewards, 99.0), torch.where(mask, values, -7.0), mask, 0.9, 0.8).advantages
    torch.testing.assert_close(other, kept, rtol=0, atol=0)


def test_a_batch_and_its_padding_change_no_row():
    mask, rewards, values, *_ = ragged()
    whole = gae(rewards, values, mask, 0.9, 0.8).advantages
    for row in range(len(mask)):
        at = slice(row, row + 1)
        torch.testing.assert_close(gae(rewards[at], values[at], mask[at], 0.9, 0.8).advantages, whole[at])
    wider = [torch.nn.functional.pad(table, (2, 3), value=fill) for table, fill in ((rewards, 5.0), (values, 5.0))]
    padded = gae(*wider, torch.nn.functional.pad(mask, (2, 3), value=False), 0.9, 0.8).advantages
    torch.testing.assert_close(padded[:, 2:-3], whole)


def test_a_token_left_out_of_an_answer_is_passed_over():
    mask = torch.tensor([[True, False, True, True]])
    rewards, values = torch.tensor([[-0.02, 9.0, 0.01, 1.05]]), torch.tensor([[0.2, 9.0, 0.3, 0.5]])
    close(gae(rewards, values, mask, 1.0, 0.95).advantages, [[0.775875, 0.0, 0.7325, 0.55]])


def test_advantages_and_returns_have_no_gradient():
    lp, values = LP.clone().requires_grad_(), V.clone().requires_grad_()
    rewards = token_rewards(lp, REF, R, ALL, 0.1)
    assert not rewards.requires_grad
    assert not any(table.requires_grad for table in gae(rewards, values, ALL, 1.0, 0.95))


def test_the_reward_stands_at_the_last_response_token_and_never_at_padding():
    mask, lp, ref, *_ = ragged()
    rewards = token_rewards(lp, ref, torch.arange(1.0, 7.0), mask, 0.0)
    assert [row.nonzero().flatten().tolist() for row in rewards] == [[8], [3], [5], [0], [8], [6]]
    close(rewards.sum(1), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])


def test_the_penalty_is_the_kl_of_each_token_and_is_not_clipped():
    mask, lp, ref, *_ = ragged()
    rewards = token_rewards(1000 * lp, ref, torch.zeros(6), mask, 0.05)
    torch.testing.assert_close(rewards[mask], -0.05 * (1000 * lp - ref)[mask])
    assert (rewards[~mask] == 0).all()


def test_an_empty_answer_is_named():
    with pytest.raises(UserError, match=r"Rows \[1\] of the batch have no response token to carry a reward"):
        token_rewards(LP.repeat(2, 1), REF.repeat(2, 1), torch.ones(2), torch.cat([ALL, ~ALL]), 0.1)


def test_worked_numbers_of_whitening():
    white = whiten(A, ALL)
    close(white, [[0.916983, 0.473817, -1.3908]])
    close(white.clamp(-0.5, 0.5), [[0.5, 0.473817, -0.5]])


def test_whitened_advantages_have_mean_0_and_variance_1_over_the_mask():
    mask, values, *_ = ragged()
    white = whiten(values, mask)
    assert white[mask].mean().abs() < 1e-6
    assert white[mask].var(correction=0).item() == pytest.approx(1.0, abs=1e-4)
    assert (white[~mask] == 0).all()
    torch.testing.assert_close(whiten(torch.where(mask, 3 * values + 7, NAN), mask), white, rtol=0, atol=1e-4)


def test_whitening_one_token_equal_tokens_or_none_is_0():
    one = torch.tensor([[False, True, False]])
    close(whiten(A, one), [[0.0, 0.0, 0.0]])
    close(whiten(torch.ones(1, 3), ALL), [[0.0, 0.0, 0.0]])
    close(whiten(A, ~ALL), [[0.0, 0.0, 0.0]])


def test_worked_numbers_of_the_policy_loss():
    """From rewards to loss: the whitened advantages, not the ones that are clipped as well."""
    white = whiten(gae(token_rewards(LP, REF, R, ALL, 0.1), V, ALL, 1.0, 0.95).advantages, ALL)
    new = torch.tensor([[-0.7, -0.6, -1.9]])
    found = clipped_objective(new, LP, white, ALL)
    close(aggregate(found.losses, ALL, "token_mean"), 0.002655)
    close(found.clip_fraction, 1 / 3)
    close(found.approx_kl, 0.019956)
    clipped = clipped_objective(new, LP, white.clamp(-0.5, 0.5), ALL)
    assert abs(aggregate(clipped.losses, ALL, "token_mean") - 0.002655) > 0.01
    close(aggregate(clipped_objective(LP, LP, white, ALL).losses, ALL, "token_mean"), 0.0)


def test_at_ratio_1_each_token_is_pushed_by_its_advantage():
    mask, lp, _, advantages, _ = ragged()
    lp = torch.where(mask, lp, 0.0).requires_grad_()
    clipped_objective(lp, lp.detach(), torch.where(mask, advantages, 0.0), mask).losses.sum().backward()
    torch.testing.assert_close(lp.grad, torch.where(mask, -advantages, 0.0))


RETURNS = torch.tensor([[0.975875, 1.0325, 1.05]])
NEW = torch.tensor([[0.5, 0.35, 0.45]])


def test_worked_numbers_of_the_value_loss():
    assert aggregate(value_loss(NEW, V, RETURNS, ALL, 0.2), ALL, "token_mean").item() == pytest.approx(
        0.192906, abs=2e-6
    )
    close(aggregate(value_loss(NEW, V, RETURNS, ALL, None), ALL, "token_mean"), 0.175377)
    clipped = torch.tensor([[0.4, 0.35, 0.45]])  # only the first ran away
    close(value_loss(NEW, V, RETURNS, ALL, 0.2), ((clipped - RETURNS) ** 2 / 2).tolist())


def test_the_clip_never_makes_the_value_loss_smaller():
    mask, new, old, returns, _ = ragged()
    free = value_loss(new, old, returns, mask, None)
    for clip in (0.0, 0.1, 0.5, 2.0):
        assert (value_loss(new, old, returns, mask, clip) >= free).all()
    torch.testing.assert_close(value_loss(new, old, returns, mask, 1e3), free)
    assert (value_loss(new, old, returns, mask, 0.1) > free).any()


@pytest.mark.parametrize(("new", "gradient"), [(0.1, -0.9), (0.5, 0.0), (5.0, 4.0), (-0.5, -1.5)])
def test_a_value_that_ran_towards_its_return_past_the_clip_waits(new, gradient):
    """Old value 0, return 1, clip 0.2: inside, past it, past the return, and the wrong way."""
    value = torch.tensor([[new]], requires_grad=True)
    value_loss(value, torch.zeros(1, 1), torch.ones(1, 1), ALL[:, :1], 0.2).sum().backward()
    close(value.grad, [[gradient]])


def test_values_of_prompt_and_padding_have_no_loss_and_no_gradient():
    mask, new, old, returns, _ = ragged()
    new = new.requires_grad_()
    losses = value_loss(new, old, returns, mask, 0.2)
    losses.sum().backward()
    assert (losses[~mask] == 0).all()
    assert (new.grad[~mask] == 0).all()
    assert torch.isfinite(new.grad).all()


def test_the_value_loss_does_not_teach_old_values_or_returns():
    old, returns = V.clone().requires_grad_(), RETURNS.clone().requires_grad_()
    losses = value_loss(NEW.clone().requires_grad_(), old, returns, ALL, 0.2)
    losses.sum().backward()
    assert old.grad is None
    assert returns.grad is None


def test_worked_numbers_of_the_running_figures():
    scaler, raw = RewardScaler(), RewardScaler()
    close(scaler.scale(torch.tensor([1.0, 2, 4]), subtract_mean=True, clip=0.8), [-0.8, -0.218218, 0.8])
    assert (scaler.mean, scaler.std) == pytest.approx((2.333333, 1.527525), abs=2e-6)
    close(raw.scale(torch.tensor([1.0, 2, 4]), subtract_mean=False, clip=None), [0.654654, 1.309307, 2.618615])
    close(scaler.scale(torch.tensor([0.0, 3.0]), subtract_mean=True, clip=0.8), [-0.8, 0.632456])
    assert (scaler.mean, scaler.std) == pytest.approx((2.0, 1.581139), abs=2e-6)


def test_a_first_reward_alone_is_a_number():
    for subtract_mean, expected in ((True, 0.0), (False, 3.0)):
        close(RewardScaler().scale(torch.tensor([3.0]), subtract_mean=subtract_mean, clip=None), [expected])


def test_equal_rewards_are_not_divided_by_nothing():
    close(RewardScaler().scale(torch.full((4,), 0.1), subtract_mean=True, clip=0.8), [0.0] * 4)
    close(RewardScaler().scale(torch.full((4,), 0.1), subtract_mean=False, clip=None), [0.1] * 4)


def test_discarded_answers_are_not_counted():
    scaler = RewardScaler()
    scaled = scaler.scale(torch.tensor([1.0, NAN, 2, 4]), subtract_mean=True, clip=0.8)
    assert scaled.isnan().tolist() == [False, True, False, False]
    assert scaler.count == 3
    assert RewardScaler().scale(torch.tensor([NAN]), subtract_mean=True, clip=0.8).isnan().all()


def test_the_figures_are_of_all_rewards_however_they_came():
    rewards = 1e4 + torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for cuts in ([1000], [1] * 1000, [7, 893, 100]):
        scaler = RewardScaler()
        for part in rewards.split(cuts):
            scaler.scale(part, subtract_mean=True, clip=None)
        assert scaler.count == 1000
        assert scaler.mean == pytest.approx(rewards.mean().item(), rel=1e-12)
        assert scaler.std == pytest.approx(rewards.std().item(), rel=1e-6)


def test_history_and_not_the_batch_is_what_rewards_are_scaled_by():
    scaler = RewardScaler()
    scaler.scale(torch.randn(10_000, generator=torch.Generator().manual_seed(0)), subtract_mean=True, clip=None)
    shifted = scaler.scale(torch.tensor([3.0, 3.1, 3.2]), subtract_mean=True, clip=None)
    assert (shifted > 2.9).all()  # a good batch stays good; normalised by itself its mean would be 0


def test_state_goes_on_to_the_bit():
    batches = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    through, stopped, resumed = RewardScaler(), RewardScaler(), RewardScaler()
    for batch in batches[:2]:
        through.scale(batch, subtract_mean=True, clip=0.8)
        stopped.scale(batch, subtract_mean=True, clip=0.8)
    resumed.load_state_dict(stopped.state_dict())
    for batch in batches[2:]:
        one, other = (scaler.scale(batch, subtract_mean=True, clip=0.8) for scaler in (through, resumed))
        assert torch.equal(one, other)
    assert resumed == through


def test_the_kl_coefficient_follows_its_target():
    assert adaptive_kl(0.2, 9.0, 6.0, 256, 10_000.0) == pytest.approx(0.201024, abs=2e-6)
    assert adaptive_kl(0.2, 6.0, 6.0, 256, 10_000.0) == 0.2
    assert adaptive_kl(0.2, 600.0, 6.0, 256, 10_000.0) == adaptive_kl(0.2, 9.0, 6.0, 256, 10_000.0)  # error clipped
    assert adaptive_kl(0.2, 0.0, 6.0, 256, 10_000.0) == pytest.approx(0.2 * (1 - 0.2 * 0.0256))
    assert adaptive_kl(0.2, 6.6, 6.0, 10_000, 10_000.0) == pytest.approx(0.22)  # error 0.1, not clipped
