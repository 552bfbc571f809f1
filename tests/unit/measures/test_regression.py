"""Ridge and correlations: worked numbers, refits without each sample, and how often an interval holds."""

import numpy as np
import pytest

from raftdiff.measures.regression import STRENGTHS, Linear, least_clear, pearson, ranks, ridge, spearman


def refit(x: np.ndarray, y: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    """The minimum of |y - Xw - b|^2 + P |w|^2, by its normal equations with a column of ones that has no penalty."""
    wide = np.column_stack([x, np.ones(len(x))])
    held = np.diag([penalty] * x.shape[1] + [0.0])
    *weights, bias = np.linalg.solve(wide.T @ wide + held, wide.T @ y)
    return np.array(weights), float(bias)


def test_one_feature_by_hand() -> None:
    """The features vary by 2 in all, so strength 1 is a penalty of 2: w = 5 / (2 + 2), b = the mean."""
    found = ridge(np.array([[-1.0], [0.0], [1.0]]), np.array([1.0, 2.0, 6.0]), np.array([1.0]))
    assert found.weights == pytest.approx([1.25])
    assert (found.intercept, found.strength) == (pytest.approx(3.0), 1.0)
    assert found(np.array([[2.0]])) == pytest.approx([5.5])


@pytest.mark.parametrize(("samples", "width"), [(9, 14), (25, 4)])
def test_the_strength_is_the_one_that_does_best_on_each_sample_left_out(samples: int, width: int) -> None:
    draw = np.random.default_rng(samples)
    x = draw.normal(size=(samples, width)) * np.linspace(0.1, 3, width) + 5
    y = x[:, -1] + x[:, -2] + draw.normal(size=samples) * 2
    total = float(np.square(x - x.mean(axis=0)).sum())
    strengths = STRENGTHS[16::2]

    def left_out(strength: float) -> float:
        errors = []
        for k in range(samples):
            weights, bias = refit(np.delete(x, k, axis=0), np.delete(y, k), strength * total)
            errors.append(y[k] - x[k] @ weights - bias)
        return float(np.square(errors).mean())

    found = ridge(x, y, strengths)
    best = min(strengths, key=left_out)
    assert found.strength == best
    assert strengths[0] < best < strengths[-1], "or the choice would say nothing"
    weights, bias = refit(x, y, best * total)
    np.testing.assert_allclose(found.weights, weights, rtol=1e-6, atol=1e-9)
    assert found.intercept == pytest.approx(bias)


def test_another_unit_and_another_origin_predict_the_same() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(30, 5)).astype(np.float32), draw.normal(size=30)
    one, other = ridge(x, y), ridge(1000 * x + 3, 2 * y + 7)
    np.testing.assert_allclose(other(1000 * x + 3), 2 * one(x) + 7, atol=1e-3)


def test_what_is_linear_is_found_and_what_is_noise_is_left_alone() -> None:
    draw = np.random.default_rng(1)
    x, weights = draw.normal(size=(40, 6)), np.arange(6.0)
    found = ridge(x, x @ weights - 2)
    np.testing.assert_allclose(found.weights, weights, atol=1e-5)
    assert found.strength == STRENGTHS[0]
    noise = ridge(draw.normal(size=(60, 50)), draw.normal(size=60))
    assert noise.strength > 0.1
    assert float(np.abs(noise.weights).max()) < 0.2


@pytest.mark.parametrize("x", [np.ones((5, 3)), np.eye(2)])
def test_features_that_tell_nothing_are_refused(x: np.ndarray) -> None:
    with pytest.raises(ValueError, match="three samples or more, and features that differ"):
        ridge(x, np.arange(len(x), dtype=float))


def test_correlations_by_hand() -> None:
    """Four of five steps: 1 - 6 * 4 / (5 * 24) = 0.8; z = 1.0986, and 1.96 / sqrt(2) on both sides of it."""
    one, other = np.arange(5.0), np.array([2.0, 1.0, 4.0, 3.0, 5.0])
    assert pearson(one, other).value == pytest.approx(0.8)
    assert pearson(one, other).ci95 == pytest.approx((-0.2796, 0.9862), abs=1e-4)
    rank = spearman(one**3, np.exp(other))
    assert rank.value == pytest.approx(0.8)
    assert rank.ci95 == pytest.approx((-0.4571, 0.9908), abs=1e-4)
    assert pearson(one, -one).value == pytest.approx(-1)
    assert ranks(np.array([3.0, 1.0, 3.0, 3.0])).tolist() == [3.0, 1.0, 3.0, 3.0]
    assert spearman(np.array([0.0, 0.0, 1.0, 1.0]), np.array([1.0, 2.0, 3.0, 4.0])).value == pytest.approx(0.8944, 1e-3)


def test_without_a_spread_there_is_no_correlation_and_all_is_open() -> None:
    for found in (pearson(np.full(9, 0.1), np.arange(9.0)), spearman(np.arange(9.0), np.full(9, 0.1))):
        assert np.isnan(found.value)
        assert found.ci95 == (-1.0, 1.0)
    assert pearson(np.arange(3.0), np.array([1.0, 3.0, 2.0])).ci95 == (-1.0, 1.0)


@pytest.mark.parametrize("true", [0.0, 0.6])
def test_intervals_hold_the_truth_about_19_times_in_20(true: float) -> None:
    draw = np.random.default_rng(2)
    pairs = draw.multivariate_normal([0, 0], [[1, true], [true, 1]], size=(400, 40))
    of_ranks = 6 / np.pi * np.arcsin(true / 2)  # of the normal distribution
    for kind, held in ((pearson, true), (spearman, of_ranks)):
        told = [kind(one[:, 0], one[:, 1]).ci95 for one in pairs]
        assert 0.92 < np.mean([low <= held <= high for low, high in told]) < 0.98


def test_the_least_clear_correlation_is_where_the_interval_ends_at_zero() -> None:
    for n in (5, 60, 1000):
        low = np.tanh(np.arctanh(least_clear(n)) - 1.959964 / np.sqrt(n - 3))
        assert low == pytest.approx(0, abs=1e-12)


def test_a_fit_predicts_what_it_says() -> None:
    assert Linear(np.array([2.0, 0.0]), 1.0, 0.1)(np.array([[3.0, 9.0]], dtype=np.float32)).tolist() == [7.0]
