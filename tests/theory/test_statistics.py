"""Closed forms and invariants of the figures of an evaluation."""

import numpy as np
import pytest

from raftdiff.measures.statistics import (
    mean_distance,
    mean_pairwise_distance,
    mean_std_ci,
    paired_difference,
    share,
    t_interval,
    t_quantile,
    vendi,
    wilson,
    win_rate,
)

NAN = float("nan")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_mean_and_std_are_the_textbook_ones(rng):
    values = rng.normal(size=(5, 4))
    estimate = mean_std_ci(values)
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.std == pytest.approx(values.std(ddof=1))
    assert estimate.n == 20
    assert estimate.ci95[0] < estimate.mean < estimate.ci95[1]


def test_the_interval_covers_the_mean_of_a_normal_about_19_times_in_20(rng):
    def covers():
        low, high = mean_std_ci(rng.normal(3.0, 2.0, size=40), resamples=500).ci95
        return low < 3.0 < high

    assert 0.91 <= np.mean([covers() for _ in range(600)]) <= 0.98


def test_the_interval_covers_when_samples_of_a_prompt_resemble_each_other(rng):
    """Each prompt has its own level, so 8 samples of it say little more than one: resampling single samples would cover
    far less often."""

    def tables():
        return rng.normal(size=(40, 1)) + 0.3 * rng.normal(size=(40, 8))

    def covers(table):
        low, high = mean_std_ci(table, resamples=500).ci95
        return low < 0 < high

    drawn = [tables() for _ in range(600)]
    assert 0.91 <= np.mean([covers(table) for table in drawn]) <= 0.98
    assert np.mean([covers(table.reshape(-1)) for table in drawn]) < 0.7


def test_the_interval_is_deterministic_and_follows_scale_and_shift(rng):
    values = rng.normal(size=(6, 3))
    plain, moved = mean_std_ci(values, 7), mean_std_ci(10 * values + 5, 7)
    assert plain == mean_std_ci(values, 7)
    assert moved.ci95 == pytest.approx([10 * end + 5 for end in plain.ci95])
    assert moved.std == pytest.approx(10 * plain.std)


def test_one_prompt_is_resampled_by_its_samples(rng):
    values = rng.normal(size=(1, 30))
    assert mean_std_ci(values)[:4] == mean_std_ci(values[0])[:4]
    assert mean_std_ci(values).ci95[0] < mean_std_ci(values).ci95[1]
    assert (mean_std_ci(values).prompts, mean_std_ci(values[0]).prompts) == (1, 30)


def test_nan_is_left_out(rng):
    values = rng.normal(size=(6, 3))
    holed = np.concatenate([values, np.full((6, 1), NAN)], axis=1)
    for same, estimate in zip(mean_std_ci(holed), mean_std_ci(values), strict=True):
        assert same == pytest.approx(estimate)
    nothing = mean_std_ci(np.full((2, 2), NAN))
    assert (nothing.n, nothing.prompts) == (0, 0)
    assert np.isnan([nothing.mean, nothing.std, *nothing.ci95]).all()


def test_prompts_without_a_value_change_nothing(rng):
    values = rng.normal(size=(6, 3))
    empty = np.full((1, 3), NAN)
    assert mean_std_ci(np.concatenate([empty, values[:4], empty, values[4:]])) == mean_std_ci(values)


@pytest.mark.parametrize("values", [np.array([[1.0, 0.0], [NAN, NAN], [NAN, NAN]]), np.array([[2.0, NAN]])])
def test_one_prompt_of_several_has_a_mean_and_no_interval(values):
    """Resampling prompts would give the same one again and again: an interval of no width."""
    for found in (mean_std_ci(values), paired_difference(np.zeros_like(values), values)):
        assert found.mean == np.nanmean(values)
        assert found.prompts == 1
        assert np.isnan(found.ci95).all()


def test_pairing_sees_a_change_far_smaller_than_the_spread(rng):
    before = rng.normal(scale=10, size=(20, 2))
    after = before + 0.1 + 0.01 * rng.normal(size=(20, 2))
    difference = paired_difference(before, after)
    assert difference.mean == pytest.approx(after.mean() - before.mean())
    assert 0.09 < difference.ci95[0] < difference.ci95[1] < 0.11


def test_win_rate_counts_ties_half_and_leaves_nan_out():
    before = np.array([[1.0, 2.0], [3.0, NAN]])
    assert win_rate(before, np.array([[2.0, 2.0], [1.0, 9.0]])) == 0.5
    assert win_rate(before, before) == 0.5
    assert win_rate(before, before + 1) == 1.0
    assert np.isnan(win_rate(before, np.full((2, 2), NAN)))


def test_win_rates_of_both_directions_add_up_to_one(rng):
    one, other = rng.integers(3, size=(2, 10, 4)).astype(float)
    assert win_rate(one, other) + win_rate(other, one) == pytest.approx(1)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_vendi_of_identical_and_of_orthogonal_samples(n):
    assert vendi(np.ones((n, 5))) == pytest.approx(1)
    assert vendi(np.eye(7)[:n] * 3) == pytest.approx(n)


def test_vendi_of_two_samples_in_closed_form():
    """Eigenvalues of [[1, c], [c, 1]] / 2 are (1 + c) / 2 and (1 - c) / 2."""
    c = 0.6
    p = np.array([(1 + c) / 2, (1 - c) / 2])
    features = np.array([[1, 0], [c, np.sqrt(1 - c**2)]])
    assert vendi(features) == pytest.approx(np.exp(-(p * np.log(p)).sum()))


def test_vendi_does_not_mind_order_scale_rotation_or_copies(rng):
    features = rng.normal(size=(9, 4))
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    for same in (features[::-1], features * 5, features @ rotation, np.tile(features, (3, 1))):
        assert vendi(same) == pytest.approx(vendi(features))
    assert np.isnan(vendi(features[:0]))


def test_vendi_is_the_same_by_samples_and_by_features(rng):
    wide = rng.normal(size=(6, 40))
    kernel = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(kernel @ kernel.T / 6)
    assert vendi(wide) == pytest.approx(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()))
    assert vendi(np.concatenate([wide, np.zeros((6, 9))], axis=1)) == pytest.approx(vendi(wide))


def test_pairwise_distance_against_a_loop_over_pairs(rng):
    features = rng.normal(size=(7, 3))
    prompts = ["a", "b", "a", "b", "b", "alone", "a"]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = np.mean(
        [
            np.mean([1 - unit[i] @ unit[j] for i in range(7) for j in range(i) if prompts[i] == prompts[j] == prompt])
            for prompt in ("a", "b")
        ]
    )
    assert mean_pairwise_distance(features, prompts) == pytest.approx(expected)


def test_pairwise_distance_at_its_ends():
    assert mean_pairwise_distance(np.ones((3, 2)), "aaa") == pytest.approx(0)
    assert mean_pairwise_distance(np.array([[1.0, 0], [-1, 0]]), "aa") == pytest.approx(2)
    assert np.isnan(mean_pairwise_distance(np.ones((3, 2)), "abc"))


def test_mean_distance_is_zero_only_in_place():
    features = np.eye(3)
    assert mean_distance(features, 2 * features) == pytest.approx(0)
    assert mean_distance(features, np.roll(features, 1, axis=0)) == pytest.approx(1)


@pytest.mark.parametrize(("degrees", "known"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (30, 2.0423), (1000, 1.9623)])
def test_t_quantile_against_the_printed_table(degrees, known):
    assert t_quantile(degrees) == pytest.approx(known, abs=2e-4)


def test_t_interval():
    assert t_interval(np.array([1.0, 2.0, 3.0])) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-3)
    assert np.isnan(t_interval(np.array([1.0]))).all()


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_the_interval_of_a_share_covers_it_whether_or_not_answers_to_a_prompt_resemble_each_other(rng, p):
    """Of 20 prompts with 4 answers each; alike, they say no more than 20 answers do."""

    def covers(table):
        low, high = share(table).ci95
        return low <= p <= high

    apart = [(rng.random((20, 4)) < p).astype(float) for _ in range(400)]
    alike = [np.repeat((rng.random((20, 1)) < p).astype(float), 4, axis=1) for _ in range(400)]
    assert np.mean([covers(table) for table in apart]) >= 0.9
    assert np.mean([covers(table) for table in alike]) >= 0.9


def test_a_share_of_independent_answers_is_wilsons_and_of_answers_all_alike_that_of_as_many_prompts():
    mixed = np.array([[1.0], [0.0], [1.0], [1.0], [0.5], [NAN]])
    assert share(mixed).mean == pytest.approx(0.7)
    assert share(mixed).ci95 == pytest.approx(wilson(0.7, 5.0))
    assert share(np.array([[1.0], [0.0]])).ci95 == pytest.approx((0.0945, 0.9055), abs=1e-4), "as tabled for 1 of 2"
    for n in (3, 10):  # one answer a prompt: in closed form, from the middle to each end
        p, z = 1 - 1 / n, 1.959964
        middle, half = (p + z**2 / (2 * n)) / (1 + z**2 / n), z * np.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
        ends = (middle - half / (1 + z**2 / n), middle + half / (1 + z**2 / n))
        assert share(np.array([[1.0]] * (n - 1) + [[0.0]])).ci95 == pytest.approx(ends)
    assert share(np.array([[1.0, 1.0], [0.0, 0.0]])).ci95 == pytest.approx(wilson(0.5, 2.0)), (
        "alike: as one answer each"
    )
    assert share(np.ones((3, 7))).ci95 == wilson(1.0, 3.0)
    assert share(np.array([[1.0, 0.0, 1.0]])).ci95 == wilson(2 / 3, 1.0), "one prompt tells nothing of others"
    assert share(np.array([[1.0, 1.0], [0.0, 0.0]] * 4)).n == 16
    assert np.isnan(share(np.full((2, 2), NAN)).ci95).all()
    assert share(np.zeros((0, 1))).n == 0
    assert share(mixed).prompts == 5
