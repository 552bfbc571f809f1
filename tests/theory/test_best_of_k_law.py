"""The law of best of K on a categorical policy, without a model: T rounds with K equal one with K^T.

Then the loop itself, on samples: it approaches the law as data grow, and the true reward rises under noisy rewards.
"""

import numpy as np
import pytest

from raftdiff.selection.advantages import best_of_k_bound, best_of_n_kl_bound, exact_best_of, exact_best_of_k, rloo, rwr
from raftdiff.selection.best import best_of_k

P = np.array([0.5, 0.3, 0.2])
R = np.array([0.0, 1.0, 2.0])


def kl(p, q):
    there = p > 0
    return float((p[there] * np.log(p[there] / q[there])).sum())


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6)


def policies(count=20, ties=False):
    rng = np.random.default_rng(0)
    for _ in range(count):
        outcomes = int(rng.integers(2, 9))
        r = rng.integers(0, 3, outcomes).astype(float) if ties else rng.normal(size=outcomes)
        yield rng.dirichlet(np.ones(outcomes)), r


def test_worked_numbers_of_one_round():
    best = exact_best_of_k(P, R, 2)
    close(best, [0.25, 0.39, 0.36])
    close([P @ R, best @ R, kl(best, P)], [0.7, 1.11, 0.140638])
    close(exact_best_of_k(P, R, 1), P)  # K = 1 is plain fine-tuning on one's own samples


def test_worked_numbers_of_four_rounds():
    rounds = [P]
    for _ in range(4):
        rounds.append(exact_best_of_k(rounds[-1], R, 2))
    close([p @ R for p in rounds], [0.7, 1.11, 1.5279, 1.828322, 1.971837])
    close([kl(p, P) for p in rounds], [0, 0.140638, 0.559751, 1.068533, 1.469645])
    close(rounds[2], [0.0625, 0.3471, 0.5904])
    close(exact_best_of_k(P, R, 4), rounds[2])
    close(exact_best_of_k(exact_best_of_k(P, R, 4), R, 4) @ R, 1.971837)


def test_worked_numbers_of_mixed_samplers():
    best = exact_best_of(np.stack([P, [0.1, 0.2, 0.7]]), R)
    close(best, [0.05, 0.19, 0.76])
    close(best @ R, 1.71)


def test_the_kl_regularised_optimum_is_another_policy():
    tilted = rwr((np.log(P) + R / 1.0)[None], 1.0)[0]
    close(tilted, [0.179, 0.291944, 0.529056])
    assert np.abs(tilted - exact_best_of_k(P, R, 4)).max() > 0.05


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("first", "second"), [(2, 2), (2, 3), (4, 2), (1, 5)])
def test_rounds_compose(first, second, ties):
    for p, r in policies(ties=ties):
        close(exact_best_of_k(exact_best_of_k(p, r, first), r, second), exact_best_of_k(p, r, first * second))


@pytest.mark.parametrize("ties", [False, True])
def test_every_round_dominates_the_one_before(ties):
    """At every threshold, the chance of at least that reward does not fall; and the result is a distribution."""
    for p, r in policies(ties=ties):
        best = exact_best_of_k(p, r, 3)
        assert best.sum() == pytest.approx(1)
        assert (best >= 0).all()
        assert all(best[r >= level].sum() >= p[r >= level].sum() - 1e-12 for level in r)


def test_only_the_order_of_the_rewards_matters_and_ties_keep_their_proportions():
    for p, r in policies():
        np.testing.assert_allclose(exact_best_of_k(p, r, 5), exact_best_of_k(p, np.exp(2 * r) + 3, 5))
        np.testing.assert_allclose(exact_best_of_k(p, np.zeros_like(r), 5), p)
    best = exact_best_of_k(np.array([0.2, 0.1, 0.7]), np.array([1.0, 1.0, 0.0]), 4)
    assert best[0] / best[1] == pytest.approx(2)


def test_a_tie_between_samplers_goes_to_the_first():
    p, q = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert exact_best_of(np.stack([p, q]), np.zeros(2)).tolist() == [1, 0]
    assert exact_best_of(np.stack([q, p]), np.zeros(2)).tolist() == [0, 1]


@pytest.mark.parametrize("k", [1, 2, 4, 16])
def test_the_best_of_k_uniform_rewards_has_mean_k_over_k_plus_1(k):
    r = (np.arange(800) + 0.5) / 800
    assert exact_best_of_k(np.full(800, 1 / 800), r, k) @ r == pytest.approx(k / (k + 1), abs=1e-4)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", [1, 2, 8, 32])
def test_bounds_on_reward_and_kl(k, ties):
    for p, r in policies(ties=ties):
        best = exact_best_of_k(p, r, k)
        assert p @ r - 1e-12 <= best @ r <= best_of_k_bound(float(p @ r), float(np.ptp(r)), k) + 1e-12
        assert kl(best, p) <= best_of_n_kl_bound(k) + 1e-12


def test_the_kl_bound_is_reached_by_continuous_rewards():
    r = np.arange(2000.0)
    assert kl(exact_best_of_k(np.full(2000, 1 / 2000), r, 8), np.full(2000, 1 / 2000)) == pytest.approx(
        best_of_n_kl_bound(8), abs=1e-3
    )


# --- the loop on samples ---

OUTCOMES = np.linspace(-1.5, 1.5, 16)  # true rewards; their standard deviation under UNIFORM is 0.92
UNIFORM = np.full(16, 1 / 16)


def one_round(p, r, k, prompts, *, rng, noise=None):
    """RAFT on a categorical policy: draw, score, pick, and fit the picks by maximum likelihood."""
    drawn = rng.choice(len(p), size=(prompts, k), p=p)
    scored = r[drawn] + (noise(rng, drawn.shape) if noise else 0.0)
    return np.bincount(drawn[best_of_k(scored)], minlength=len(p)) / prompts


@pytest.mark.parametrize("k", [2, 4, 8])
def test_the_loop_approaches_the_law_as_data_grow(k):
    """The distance to the law after two rounds falls as 1 / sqrt(prompts): 64 times the data, about 8 times closer."""
    rng, exact = np.random.default_rng(k), exact_best_of_k(UNIFORM, OUTCOMES, k**2)

    def distance(prompts):
        runs = []
        for _ in range(40):
            p = one_round(UNIFORM, OUTCOMES, k, prompts, rng=rng)
            p = one_round(p, OUTCOMES, k, prompts, rng=rng)
            runs.append(np.abs(p - exact).sum() / 2)
        return float(np.mean(runs))

    few, many = distance(100), distance(6400)
    assert few / many == pytest.approx(8, rel=0.5)
    assert many < 0.03


def test_the_loop_gains_with_k_and_with_rounds():
    rng, rewards = np.random.default_rng(0), {}
    for k in (1, 2, 4, 8):
        p, rewards[k] = P, [P @ R]
        for _ in range(2):
            p = one_round(p, R, k, 4000, rng=rng)
            rewards[k].append(p @ R)
    assert rewards[1] == pytest.approx([0.7] * 3, abs=0.06)
    for k in (2, 4, 8):
        assert rewards[k][0] < rewards[k][1] < rewards[k][2]
    assert rewards[1][1] < rewards[2][1] < rewards[4][1] < rewards[8][1]


BIASES = np.array([-0.75, -0.25, 0.5, 1.0])


def gaussian(sigma):
    return lambda rng, shape: rng.normal(0, sigma, shape)


def biased_prompts(rng, shape):
    """With probability 0.2 a prompt has a bias, and its rewards noise of standard deviation 1 about it."""
    hit = rng.random((shape[0], 1)) < 0.2
    return hit * (rng.choice(BIASES, (shape[0], 1)) + rng.normal(0, 1, shape))


def biased_samples(rng, shape):
    """The same, sample by sample."""
    return (rng.random(shape) < 0.2) * (rng.choice(BIASES, shape) + rng.normal(0, 1, shape))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("noise", [gaussian(1.0), biased_prompts, biased_samples])
def test_the_true_reward_rises_every_round_under_the_papers_three_kinds_of_noise(noise, seed):
    """RAFT, appendix A.3: the ranking sees noisy rewards; what is measured is the true one."""
    rng, p = np.random.default_rng(seed), UNIFORM
    means = [p @ OUTCOMES]
    for _ in range(4):
        p = one_round(p, OUTCOMES, 8, 1024, rng=rng, noise=noise)
        means.append(p @ OUTCOMES)
    assert np.diff(means[:3]).min() > 0.1  # later rounds have little left to gain
    assert np.diff(means).min() > -0.02
    assert means[-1] > 0.9


def test_raft_loses_more_to_noise_than_rloo():
    """One round from the same policy and samples, at sigma 0, 3 and 5: the part of its noise-free gain that is kept.

    RLOO's gradient is linear in the reward, so noise of mean 0 leaves its expectation alone; an argmax does not.
    Ahmadian et al. 2024 (arXiv:2402.14740, section 5.5) find the same order on language models.
    """

    def rloo_round(rng, noise):
        drawn = rng.choice(16, size=(8192, 4), p=UNIFORM)
        advantages = rloo(OUTCOMES[drawn] + noise(rng, drawn.shape))
        gradient = np.bincount(drawn.ravel(), weights=advantages.ravel(), minlength=16) / drawn.size
        logits = 12 * (gradient - UNIFORM * gradient.sum())
        return np.exp(logits) / np.exp(logits).sum()

    def raft_round(rng, noise):
        return one_round(UNIFORM, OUTCOMES, 4, 8192, rng=rng, noise=noise)

    gains = {
        (method, sigma): np.mean([method(np.random.default_rng(seed), gaussian(sigma)) @ OUTCOMES for seed in range(5)])
        for method in (rloo_round, raft_round)
        for sigma in (0.0, 3.0, 5.0)
    }
    for sigma in (3.0, 5.0):
        raft, other = (gains[method, sigma] / gains[method, 0.0] for method in (raft_round, rloo_round))
        assert 0 < raft < 0.5
        assert other > 0.8
