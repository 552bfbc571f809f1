"""Preference strength: worked numbers, what each way of denoising says of a pair, deciles and curves."""

from itertools import pairwise

import numpy as np
import pytest
from pydantic import TypeAdapter

from raftdiff.errors import UserError
from raftdiff.llm.reward_models.strength import (
    DenoiseConfig,
    FlipConfig,
    FlipMarginConfig,
    MarginConfig,
    NoDenoiseConfig,
    SmoothConfig,
    SoftMarginConfig,
    by_decile,
    flip,
    flip_margin,
    margin,
    plain,
    roc,
    smooth,
    soft_margin,
    strength,
)

ENSEMBLE = np.array([[0.6, 0.4, 0.5], [-1, -0.4, -0.7], [0.3, -0.2, 0.2]])
MU = np.array([0.5, -0.7, 0.1])
DENOISERS = [NoDenoiseConfig, FlipConfig, MarginConfig, FlipMarginConfig, SoftMarginConfig, SmoothConfig]


def close(actual, expected):
    np.testing.assert_allclose(actual, np.array(expected), rtol=0, atol=2e-6)


def told(annotation):
    return [part.tolist() for part in annotation]


def test_worked_numbers_of_the_ensemble():
    mu, sigma = strength(ENSEMBLE)
    close(mu, MU)
    close(sigma, [0.08165, 0.244949, 0.216025])


def test_sigma_is_of_the_population():
    wrong = ENSEMBLE.std(axis=1, ddof=1)
    close(wrong, [0.1, 0.3, 0.264575])
    assert (strength(ENSEMBLE).sigma < wrong).all()


def test_one_model_is_sure_of_itself_and_none_is_refused():
    mu, sigma = strength(ENSEMBLE[:, :1])
    assert (mu.tolist(), sigma.tolist()) == ([0.6, -1.0, 0.3], [0.0, 0.0, 0.0])
    with pytest.raises(UserError, match="there is none; train at least one"):
        strength(np.zeros((3, 0)))


def test_strength_does_not_depend_on_the_order_of_the_models():
    d = np.random.default_rng(0).normal(size=(6, 10)).astype(np.float32)
    close(strength(d), strength(d[:, ::-1].copy()))


def test_what_each_way_says_of_the_worked_pairs():
    no, none = [False] * 3, [0.0] * 3
    assert told(plain(3)) == [no, none, none]
    assert told(flip(MU, 1 / 3)) == [[False, True, False], none, none]
    assert told(margin(MU, 1.0)) == [no, [0.5, -0.7, 0.1], none]
    assert told(margin(MU, 0.5)) == [no, [0.25, -0.35, 0.05], none]
    assert told(flip_margin(MU, 1 / 3, 1.0)) == [[False, True, False], [0.5, 0.7, 0.1], none]
    assert told(soft_margin(MU, 0.1, 1.0)) == [no, [0.5, -0.7, 0.1], [0.0, 0.1, 0.0]]
    assert told(smooth(3, 0.1)) == [no, none, [0.1] * 3]


def test_the_margin_turns_round_with_the_flip():
    """|mu| where the ensemble wanted the flip; where it did not (a share too large), it speaks against it."""
    told = flip_margin(MU, 1.0, 1.0)
    assert told.flipped.all()
    close(told.margin, -MU)
    close(flip_margin(MU, 2 / 3, 1.0).margin, [0.5, 0.7, -0.1])


def test_flipping_all_twice_is_the_identity():
    d = np.array([0.5, -0.6, 0.4])
    for share, mu in ((1 / 3, MU), (1.0, MU)):
        flipped = flip(mu, share).flipped
        once = np.where(flipped, -d, d)
        assert np.where(flipped, -once, once).tolist() == d.tolist()
        assert (once != d).sum() == round(3 * share)


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.04, 0), (0.2, 2), (0.25, 2), (0.55, 6), (1.0, 10)])
def test_the_share_is_of_the_lowest_strengths(share, count):
    mu = np.random.default_rng(3).permutation(10) - 4.5
    flipped = flip(mu, share).flipped
    assert sorted(mu[flipped]) == sorted(mu)[:count]


def test_equal_strengths_are_flipped_in_their_order():
    assert flip(np.zeros(5), 0.4).flipped.tolist() == [True, True, False, False, False]


def test_annotations_follow_their_pairs():
    order = np.array([2, 0, 1])
    for way in (lambda mu: flip_margin(mu, 1 / 3, 1.0), lambda mu: soft_margin(mu, 0.1, 2.0)):
        assert told(way(MU[order])) == [part[order].tolist() for part in way(MU)]


def test_soft_labels_leave_a_strength_of_exactly_0_alone():
    assert soft_margin(np.array([0.0, -1e-9]), 0.2, 1.0).smoothing.tolist() == [0.0, 0.2]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (NoDenoiseConfig(), plain(3)),
        (FlipConfig(share=1 / 3), flip(MU, 1 / 3)),
        (MarginConfig(scale=0.5), margin(MU, 0.5)),
        (FlipMarginConfig(share=1 / 3, scale=0.5), flip_margin(MU, 1 / 3, 0.5)),
        (SoftMarginConfig(smoothing=0.2, scale=0.5), soft_margin(MU, 0.2, 0.5)),
        (SmoothConfig(smoothing=0.2), smooth(3, 0.2)),
    ],
)
def test_each_config_is_its_function(config, expected):
    assert told(config.annotate(MU, 3)) == told(expected)
    assert TypeAdapter(DenoiseConfig).validate_python(config.model_dump()) == config


def test_the_default_share_is_the_bottom_fifth():
    assert FlipConfig().annotate(np.arange(10.0), 10).flipped.tolist() == [True] * 2 + [False] * 8


@pytest.mark.parametrize("config", DENOISERS)
def test_without_strengths_a_sentence_where_they_are_needed(config):
    if not config().needs_strength:
        assert len(config().annotate(None, 4).flipped) == 4
        return
    with pytest.raises(UserError, match="4 of 4 pairs have no strength .* raftdiff llm rm strength"):
        config().annotate(None, 4)
    with pytest.raises(UserError, match="1 of 2 pairs have no strength"):
        config().annotate(np.array([0.3, np.nan]), 2)


@pytest.mark.parametrize("config", [SmoothConfig, SoftMarginConfig])
def test_labels_that_are_wrong_half_the_time_say_nothing(config):
    with pytest.raises(ValueError, match="less than 0.5"):
        config(smoothing=0.5)


def test_deciles_are_tenths_of_the_count():
    mu = np.random.default_rng(1).permutation(100) / 10
    found = by_decile(mu, (mu >= 5).astype(float))
    assert [tenth.mean for tenth in found] == [0.0] * 5 + [1.0] * 5
    assert [tenth.n for tenth in found] == [10] * 10
    assert (found[0].low, found[0].high, found[9].high) == (0.0, 0.9, 9.9)
    assert all(one.high < other.low for one, other in pairwise(found))


def test_deciles_of_few_pairs_and_of_missing_values():
    found = by_decile(np.array([2.0, 1.0, 3.0]), np.array([0.0, np.nan, 1.0]))
    assert [tenth.n for tenth in found] == [1, 1, 1]
    assert np.isnan(found[0].mean)
    assert [tenth.mean for tenth in found[1:]] == [0.0, 1.0]
    assert by_decile(np.zeros(0), np.zeros(0)) == []
    assert sum(tenth.n for tenth in by_decile(np.arange(23.0), np.zeros(23))) == 23


def test_a_curve_in_numbers():
    """Thresholds 3, 2 (two pairs), 1: the tie is one slanted step."""
    found = roc(np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False]))
    assert (found.fpr.tolist(), found.tpr.tolist()) == ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
    assert found.auc == 0.875


def test_the_area_is_how_often_a_positive_scores_above_a_negative():
    rng = np.random.default_rng(5)
    scores, positive = rng.integers(6, size=60).astype(float), rng.random(60) < 0.3
    gaps = scores[positive][:, None] - scores[~positive]
    expected = ((gaps > 0) + 0.5 * (gaps == 0)).mean()
    assert 0.3 < expected < 0.7
    assert roc(scores, positive).auc == pytest.approx(expected)
    assert roc(-scores, positive).auc == pytest.approx(1 - expected)
    order = rng.permutation(60)
    assert roc(scores[order], positive[order]).auc == pytest.approx(expected)


@pytest.mark.parametrize(("scores", "auc"), [([2, 1, 0], 1.0), ([0, 1, 2], 0.0), ([7, 7, 7], 0.5)])
def test_areas_that_are_known(scores, auc):
    assert roc(np.array(scores, dtype=float), np.array([True, False, False])).auc == auc


def test_a_curve_of_one_kind_is_not_a_number():
    for positive in (np.ones(3, dtype=bool), np.zeros(3, dtype=bool)):
        found = roc(np.arange(3.0), positive)
        assert np.isnan(found.auc)
        assert np.isnan(found.tpr).all()


def test_strength_finds_flipped_labels():
    """Models that see the truth through noise: their mean finds nine in ten of the wrong labels at the bottom."""
    rng = np.random.default_rng(0)
    wrong = np.arange(500) < 100
    sign = np.where(wrong, -1.0, 1.0)
    mu = strength(sign[:, None] * rng.gamma(2, 1, size=(500, 1)) + rng.normal(size=(500, 10))).mu
    assert roc(-mu, wrong).auc > 0.97
    assert wrong[flip(mu, 0.2).flipped].mean() > 0.9
    shares = [tenth.mean for tenth in by_decile(mu, wrong.astype(float))]
    assert shares[0] == 1.0
    assert shares[-1] == 0.0
