"""Weights, pairs and bounds from a table of rewards: worked numbers, ties, discards and ragged rows."""

import numpy as np
import pytest

from raftdiff.errors import UserError
from raftdiff.selection.advantages import (
    best_of_k_bound,
    best_of_n_kl_bound,
    dr_grpo,
    grpo,
    kl_corrected,
    max_min_pairs,
    raft_plus_plus,
    reinforce_plus_plus_baseline,
    reinforce_rej,
    rloo,
    rwr,
)
from raftdiff.selection.best import best_of_k, top_fraction

NAN = np.nan
FIVE = [[1.0, 0, 0, 1, 0]]
FOUR = [[2.0, 0.5, 1.5, -0.5]]
E1 = [[0.1, 0.9, 0.4, 0.2], [1.5, 1.2, 1.4, 1.1], [-0.3, -0.8, -0.1, -0.5]]
COMPARING = [grpo, dr_grpo, rloo, reinforce_plus_plus_baseline]
ALL = [*COMPARING, raft_plus_plus, reinforce_rej, lambda r: rwr(r, 0.5)]


def table(rows):
    return np.array(rows, dtype=np.float64)


def close(actual, expected):
    np.testing.assert_allclose(actual, np.array(expected), rtol=0, atol=2e-6)


def test_worked_numbers_of_the_group_methods():
    close(grpo(table(FIVE)), [[1.095245, -0.730163, -0.730163, 1.095245, -0.730163]])
    close(grpo(table(FIVE), epsilon=0.0), [[1.095445, -0.730297, -0.730297, 1.095445, -0.730297]])
    close(dr_grpo(table(FIVE)), [[0.6, -0.4, -0.4, 0.6, -0.4]])
    close(rloo(table(FIVE)), [[0.75, -0.5, -0.5, 0.75, -0.5]])
    close(rloo(table(FOUR)), [[1.5, -0.5, 0.833333, -1.833333]])
    close(rwr(table(FOUR), 0.5), [[0.702048, 0.034953, 0.258269, 0.00473]])
    close(raft_plus_plus(table([[1, -1, -1, 1]])), [[1, 0, 0, 1]])
    close(
        reinforce_plus_plus_baseline(table([[1, 0, 0, 1], [0, 0, 0, 1]])),
        [[1.069045, -1.069045, -1.069045, 1.069045], [-0.534522, -0.534522, -0.534522, 1.603567]],
    )


def test_rloo_with_the_kl_in_the_reward():
    r = kl_corrected(table([[1, 0]]), table([[4, -2]]), table([[0, 0]]), 0.05)
    close(rloo(r), [[0.7, -0.7]])


def test_worked_numbers_of_raft():
    r = table(E1)
    assert best_of_k(r).argmax(axis=1).tolist() == [1, 0, 2]
    close(r[best_of_k(r)].mean(), 0.766667)
    close(r.mean(), 0.425)
    close(r[:, 0].mean(), 0.433333)
    assert np.argwhere(top_fraction(r, 0.25)).tolist() == [[1, 0], [1, 1], [1, 2]]
    close(r[top_fraction(r, 0.25)].mean(), 1.366667)


def test_picks_do_not_change_under_a_constant_per_prompt_and_a_positive_factor():
    r = np.random.default_rng(4).normal(size=(8, 5))
    moved = np.arange(8.0)[:, None] + 3 * r
    np.testing.assert_array_equal(best_of_k(moved), best_of_k(r))
    assert max_min_pairs(moved) == max_min_pairs(r)


@pytest.mark.parametrize(
    ("beta", "corrected", "pick"),
    [(0.0, [0.1, 0.9, 0.8, 0.2], 1), (0.05, [0.1, 0.75, 0.775, 0.2], 2), (0.2, [0.1, 0.3, 0.7, 0.2], 2)],
)
def test_the_kl_term_changes_only_what_is_picked(beta, corrected, pick):
    r, lp, lp0 = table([[0.1, 0.9, 0.8, 0.2]]), table([[-3, -1, -2, -4]]), table([[-3, -4, -2.5, -4]])
    close(kl_corrected(r, lp, lp0, beta), [corrected])
    assert best_of_k(kl_corrected(r, lp, lp0, beta)).argmax() == pick
    assert r.tolist() == [[0.1, 0.9, 0.8, 0.2]]


def test_pairs_and_no_pair_for_ties():
    r = table([*E1, [0.5, 0.5, 0.5, 0.5]])
    pairs = max_min_pairs(r)
    assert pairs == [(0, 1, 0), (1, 0, 3), (2, 2, 1)]
    close([r[row, best] - r[row, worst] for row, best, worst in pairs], [0.8, 0.4, 0.7])
    assert max_min_pairs(table([[3, 3, 1, 1]])) == [(0, 0, 2)]
    assert max_min_pairs(table([[NAN, 2, NAN, 1], [NAN, NAN, NAN, 7], [NAN] * 4, [-np.inf, 5, 5, NAN]])) == [(0, 1, 3)]


def test_bounds():
    close([best_of_n_kl_bound(n) for n in (1, 2, 4, 8, 32)], [0, 0.193147, 0.636294, 1.204442, 2.496986])
    close(best_of_k_bound(0.7, 2.0, 2), 1.87741)
    assert best_of_k_bound(0.7, 2.0, 1) == 0.7


@pytest.mark.parametrize("method", COMPARING)
def test_equal_rewards_and_a_single_candidate_teach_nothing(method):
    assert method(table([[0.1, 0.1, 0.1], [7, 7, 7]])).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert method(table([[5.0]])).tolist() == [[0]]
    assert grpo(table([[0.1, 0.1, 0.1]]), epsilon=0.0).tolist() == [[0, 0, 0]]
    mixed = method(table([[0.1, 0.1, 0.1], [1, 2, 3]]))
    assert mixed[0].tolist() == [0, 0, 0]
    assert mixed[1, 2] > 0 > mixed[1, 0]


@pytest.mark.parametrize("method", ALL)
def test_discarded_cells_stay_nan_and_take_part_in_nothing(method):
    full = method(table([[2, 0.5, -1], [1, -1, 1]]))
    holed = method(table([[2, NAN, 0.5, -1], [1, -1, -np.inf, 1]]))
    np.testing.assert_array_equal(np.isnan(holed), [[False, True, False, False], [False, False, True, False]])
    np.testing.assert_allclose(holed[0, [0, 2, 3]], full[0])
    np.testing.assert_allclose(holed[1, [0, 1, 3]], full[1])
    assert np.isnan(method(table([[NAN, NAN, NAN]]))).all()
    np.testing.assert_allclose(method(table([[2, 0.5], [NAN, NAN]]))[0], method(table([[2, 0.5]]))[0])


@pytest.mark.parametrize("method", COMPARING)
def test_a_constant_per_prompt_does_not_matter_and_the_mean_is_zero(method):
    r = np.random.default_rng(0).normal(size=(5, 6))
    shifted = r + np.arange(5.0)[:, None]
    np.testing.assert_allclose(method(r), method(shifted), atol=1e-9)
    np.testing.assert_allclose(method(r).mean(axis=1), 0, atol=1e-12)
    np.testing.assert_array_equal(method(r).argsort(axis=1), r.argsort(axis=1))


def test_rloo_is_the_reward_less_the_mean_of_the_others():
    r = np.random.default_rng(1).normal(size=(3, 5))
    others = np.stack([np.delete(r, k, axis=1).mean(axis=1) for k in range(5)], axis=1)
    np.testing.assert_allclose(rloo(r), r - others)


def test_reinforce_rej_drops_all_right_and_all_wrong():
    r = table([[1, 1, 1], [-1, -1, -1], [1, -1, -1], [NAN, 1, NAN]])
    np.testing.assert_array_equal(reinforce_rej(r), table([[0, 0, 0], [0, 0, 0], [1, -1, -1], [NAN, 0, NAN]]))


def test_the_whole_batch_shares_one_scale_in_reinforce_plus_plus():
    r = np.random.default_rng(2).normal(size=(6, 4)) * np.arange(1, 7)[:, None]
    whitened = reinforce_plus_plus_baseline(r)
    assert whitened.std() == pytest.approx(1)
    np.testing.assert_allclose(whitened.std(axis=1) / whitened[0].std(), r.std(axis=1) / r[0].std())
    np.testing.assert_allclose(grpo(r).std(axis=1), grpo(r)[0].std(), rtol=1e-3)


def test_rwr_is_a_distribution_between_raft_and_all_alike():
    r = np.random.default_rng(3).normal(size=(4, 5)) * 500
    np.testing.assert_allclose(rwr(r, 0.1).sum(axis=1), 1)
    np.testing.assert_array_equal(rwr(r, 1e-3).argmax(axis=1), r.argmax(axis=1))
    np.testing.assert_allclose(rwr(r, 1e-3).max(axis=1), 1)
    np.testing.assert_allclose(rwr(r, 1e9), 0.2, atol=1e-5)
    with pytest.raises(UserError, match="needs one above 0"):
        rwr(r, 0.0)


@pytest.mark.parametrize("method", ALL)
def test_inputs_are_not_changed_and_float32_is_welcome(method):
    r = np.array([[2.0, NAN, 0.5]], dtype=np.float32)
    before = r.copy()
    assert method(r).dtype == np.float64
    np.testing.assert_array_equal(r, before)
