"""A reward model's accuracy, calibration and view of its pairs: closed forms, invariants and edges."""

import math

import numpy as np
import pytest

from raftdiff.measures import calibration
from raftdiff.measures.calibration import accuracy, ece, mixing, principal, reliability
from raftdiff.measures.statistics import Z

D = np.array([0.5, -0.6, 0.4])


def logit(p):
    return math.log(p / (1 - p))


def test_worked_accuracy():
    found = accuracy(D)
    assert found.mean == pytest.approx(2 / 3)
    assert found.n == 3
    assert found.std == pytest.approx(np.std([1, 0, 1], ddof=1))
    low, high = found.ci95  # Wilson's for 2 of 3, as tabled
    assert (low, high) == pytest.approx((0.207656, 0.938510), abs=2e-5)


def test_a_tie_counts_half_and_nan_not_at_all():
    assert accuracy(np.array([1.0, 0.0])).mean == 0.75
    assert accuracy(np.array([1.0, 0.0, np.nan])).n == 2
    assert accuracy(np.zeros(5)).mean == 0.5


def test_accuracy_depends_on_signs_alone():
    d = np.random.default_rng(0).normal(size=50)
    assert accuracy(7 * d) == accuracy(d)
    assert accuracy(-d).mean == pytest.approx(1 - accuracy(d).mean)


def test_the_interval_of_a_perfect_score_is_not_a_point():
    low, high = accuracy(np.ones(10)).ci95
    assert high == pytest.approx(1.0)
    assert low == pytest.approx(10 / (10 + Z**2))  # Wilson's lower end at p = 1
    assert accuracy(np.ones(1000)).ci95[0] > 0.99


def test_the_interval_covers_the_truth_19_times_in_20():
    rng = np.random.default_rng(0)
    right = rng.random((2000, 60)) < 0.8
    ends = [accuracy(np.where(row, 1.0, -1.0)).ci95 for row in right]
    assert 0.93 < np.mean([low <= 0.8 <= high for low, high in ends]) < 0.97


def test_no_pairs_no_figures():
    for empty in (np.zeros(0), np.full(3, np.nan)):
        assert accuracy(empty).n == 0
        assert np.isnan(accuracy(empty).mean)
        assert reliability(empty) == []
        assert np.isnan(ece(empty))


def test_reliability_in_numbers():
    """Four pairs at 0.8, of which three are favoured rightly, and two that are sure: one right, one wrong."""
    sure = 4.0
    found = reliability(np.array([logit(0.8)] * 3 + [-logit(0.8), sure, -sure]), bins=5)
    assert [(round(one.low, 6), round(one.high, 6), one.n) for one in found] == [(0.8, 0.9, 4), (0.9, 1.0, 2)]
    assert [one.accuracy for one in found] == [0.75, 0.5]
    p = 1 / (1 + math.exp(-sure))
    assert [one.confidence for one in found] == pytest.approx([0.8, p])
    assert ece(np.array([logit(0.8)] * 3 + [-logit(0.8), sure, -sure]), bins=5) == pytest.approx(
        (4 * 0.05 + 2 * (p - 0.5)) / 6
    )


def test_the_ends_of_the_range_have_a_bin():
    assert [one.n for one in reliability(np.array([0.0, 1e4, -1e4]), bins=10)] == [1, 2]
    assert reliability(np.zeros(4))[0].accuracy == 0.5
    assert ece(np.zeros(4)) == 0.0
    assert ece(np.full(3, -1e4)) == 1.0  # certain, and always wrong


def test_labels_drawn_from_the_probabilities_are_calibrated_and_scaled_rewards_are_not():
    rng = np.random.default_rng(0)
    gap = np.abs(rng.normal(size=20_000) * 2)
    d = np.where(rng.random(len(gap)) < 1 / (1 + np.exp(-gap)), gap, -gap)
    assert ece(d) < 0.01
    assert ece(3 * d) > 0.08
    assert all(one.accuracy < one.confidence for one in reliability(3 * d)[1:])  # overconfident
    assert ece(d / 3) > 0.08
    assert all(one.accuracy > one.confidence for one in reliability(d / 3))


def test_mixed_features_are_at_1_and_apart_ones_at_0():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(400, 6)), rng.normal(size=(400, 6))
    assert mixing(one, other) == pytest.approx(1.0, abs=0.05)
    apart = np.eye(6)[0]
    assert mixing(one + 20 * apart, other - 20 * apart) == 0.0
    near = mixing(one + apart, other - apart)
    assert 0.1 < near < 0.8


def test_mixing_is_over_chance_also_where_the_sets_differ_in_size():
    rng = np.random.default_rng(1)
    assert mixing(rng.normal(size=(700, 6)), rng.normal(size=(100, 6))) == pytest.approx(1.0, abs=0.1)


def test_mixing_is_symmetric_and_a_matter_of_directions():
    rng = np.random.default_rng(2)
    one, other = rng.normal(size=(30, 4)), rng.normal(size=(40, 4)) + 0.5
    value = mixing(one, other)
    assert mixing(other, one) == pytest.approx(value)
    assert mixing(3 * one, other * rng.uniform(0.1, 5, size=(40, 1))) == pytest.approx(value)


def test_mixing_in_numbers():
    """Two pairs of directions; every row's nearest is of its own kind, the next of the other. Chance is 2/3."""
    one, other = np.array([[1.0, 0.0], [1.0, 0.1]]), np.array([[0.0, 1.0], [0.1, 1.0]])
    assert mixing(one, other, k=1) == 0.0
    assert mixing(one, other, k=2) == pytest.approx(0.5 / (2 / 3))
    assert mixing(one, other, k=10) == pytest.approx(1.0)  # all neighbours there are


def test_mixing_does_not_depend_on_how_the_matrix_is_cut(monkeypatch):
    rng = np.random.default_rng(3)
    one, other = rng.normal(size=(25, 4)), rng.normal(size=(25, 4))
    whole = mixing(one, other)
    monkeypatch.setattr(calibration, "ROWS", 7)
    assert mixing(one, other) == whole


def test_mixing_of_nothing_is_not_a_number():
    assert np.isnan(mixing(np.zeros((0, 4)), np.ones((3, 4))))
    assert mixing(np.ones((10, 4)), np.ones((10, 4))) == pytest.approx(0.95, abs=0.11)  # all alike: about mixed


def test_principal_components_of_a_line_and_of_a_plane():
    t = np.arange(5.0)
    found = principal(np.stack([3 * t, 4 * t, 0 * t], axis=1) + 7)
    np.testing.assert_allclose(found.projection[:, 0], 5 * (t - 2), atol=1e-12)
    np.testing.assert_allclose(found.share, [1.0, 0.0], atol=1e-12)
    assert principal(np.ones((4, 3))).share.tolist() == [0.0, 0.0]


def test_shares_are_of_the_variance_and_the_picture_keeps_distances():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 3)) * [5.0, 2.0, 0.5]
    found = principal(features, 3)
    variance = np.linalg.eigvalsh(np.cov(features.T))[::-1]
    np.testing.assert_allclose(found.share, variance / variance.sum())
    gaps = np.linalg.norm(features[:, None] - features, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(found.projection[:, None] - found.projection, axis=-1), gaps, atol=1e-9)
    np.testing.assert_allclose(found.projection.var(axis=0), variance * 39 / 40)


def test_one_set_of_features_gives_one_picture():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(12, 3)) * [5.0, 2.0, 0.5]
    order = rng.permutation(12)
    np.testing.assert_allclose(principal(features[order]).projection, principal(features).projection[order], atol=1e-9)
    assert principal(features[:1]).projection.shape == (1, 1)
