"""How several rewards become one ranking, against closed forms."""

from collections.abc import Sequence

import numpy as np
import pytest

from raftdiff.selection.advantages import grpo
from raftdiff.selection.mixes import EPSILON, MIXES, MixName, Table, beaten, holds, last

NAN = np.nan
ONE = np.array([[0.0, 1.0, 2.0], [5.0, 3.0, 4.0]])
OTHER = np.array([[30.0, 20.0, 10.0], [10.0, 10.0, 40.0]])


def total(name: MixName, *rewards: tuple[float, Table]) -> Table:
    found: Table = np.sum(MIXES[name].parts(rewards), axis=0)
    return found


@pytest.mark.parametrize("name", MIXES)
def test_discarded_candidates_stay_so_and_change_nothing_for_the_others(name: MixName) -> None:
    """A column of NaN is as if it were not there."""
    padded = [np.insert(table, 1, NAN, axis=1) for table in (ONE, OTHER)]
    found = total(name, (1.0, padded[0]), (0.5, padded[1]))
    assert np.isnan(found[:, 1]).all()
    np.testing.assert_allclose(np.delete(found, 1, axis=1), total(name, (1.0, ONE), (0.5, OTHER)))


@pytest.mark.parametrize("name", MIXES)
def test_of_one_reward_every_mix_ranks_the_candidates_of_a_prompt_as_it_does(name: MixName) -> None:
    np.testing.assert_array_equal(total(name, (0.5, ONE)).argsort(axis=1), ONE.argsort(axis=1))


@pytest.mark.parametrize("name", ["grpo", "gdpo", "rank_sum"])
def test_candidates_that_are_all_alike_or_alone_have_one_total(name: MixName) -> None:
    same = total(name, (1.0, np.array([[7.0, 7.0, 7.0], [2.0, NAN, NAN]])))
    expected = 0.5 if name == "rank_sum" else 0.0
    np.testing.assert_array_equal(same, [[expected] * 3, [expected, NAN, NAN]])


def test_grpo_is_the_z_score_of_the_weighted_sum_within_the_prompt() -> None:
    np.testing.assert_allclose(total("grpo", (1.0, ONE), (0.1, OTHER)), grpo(ONE + 0.1 * OTHER), atol=1e-12)


def test_gdpo_is_the_sum_of_z_scores_over_their_deviation_in_the_batch() -> None:
    scores: Sequence[tuple[float, Table]] = [(2.0, ONE), (-1.0, OTHER)]
    z = [
        weight * (table - table.mean(axis=1, keepdims=True)) / (table.std(axis=1, ddof=1, keepdims=True) + EPSILON)
        for weight, table in scores
    ]
    summed = z[0] + z[1]
    expected = (summed - summed.mean()) / (summed.std(ddof=1) + EPSILON)
    np.testing.assert_allclose(total("gdpo", *scores), expected, atol=1e-12)


def test_gdpo_tells_apart_what_grpo_calls_equal() -> None:
    """The paper's example: of two right-or-wrong rewards, one won and both won get the same advantage from GRPO when
    the others won none, and not from GDPO."""
    easy, hard = np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([[0.0, 0.0], [0.0, 1.0]])
    one = total("grpo", (1.0, easy), (1.0, hard))
    np.testing.assert_allclose(one[0], one[1], atol=1e-3)
    both = total("gdpo", (1.0, easy), (1.0, hard))
    np.testing.assert_allclose(both[1], 2 * both[0], rtol=1e-3)


def test_gdpo_does_not_know_a_rewards_unit_or_zero() -> None:
    moved = total("gdpo", (1.0, ONE), (1.0, 1000 * OTHER - 7))
    np.testing.assert_allclose(moved, total("gdpo", (1.0, ONE), (1.0, OTHER)), atol=1e-4)


def test_rank_sum_knows_order_alone() -> None:
    found = total("rank_sum", (1.0, ONE), (2.0, OTHER))
    np.testing.assert_allclose(found, [[0 + 2, 0.5 + 1, 1 + 0], [1 + 0.5, 0 + 0.5, 0.5 + 2]])
    np.testing.assert_array_equal(total("rank_sum", (1.0, np.exp(ONE)), (2.0, OTHER**3)), found)


def test_rank_sum_of_a_negative_weight_wants_little() -> None:
    np.testing.assert_array_equal(total("rank_sum", (-1.0, ONE))[0].argsort(), [2, 1, 0])


def test_ties_share_what_they_beat() -> None:
    np.testing.assert_allclose(beaten(np.array([[1.0, 2.0, 2.0, 2.0, 9.0]])), [[0, 0.5, 0.5, 0.5, 1]])


def test_minimum_is_the_worst_weighted_score() -> None:
    np.testing.assert_allclose(total("minimum", (1.0, ONE), (0.1, OTHER)), [[0, 1, 1], [1, 1, 4]])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("weighted_sum", 2 * ONE + 0.1 * OTHER), ("grpo", 2 * ONE + 0.1 * OTHER), ("minimum", [[0, 2, 1], [1, 1, 4]])],
)
def test_the_level_of_a_sample_is_in_the_rewards_own_units(name: MixName, expected: Table) -> None:
    found = MIXES[name].level([(2.0, ONE), (0.1, OTHER)], [7.0, 7.0])
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("name", ["gdpo", "rank_sum"])
def test_where_weights_count_spreads_the_level_does_so_too(name: MixName) -> None:
    found = MIXES[name].level([(2.0, ONE), (1.0, OTHER)], [0.5, 10.0])
    np.testing.assert_allclose(found, 4 * ONE + OTHER / 10)


def test_a_bound_is_a_number_or_the_median_of_the_valid_candidates() -> None:
    table = np.array([[1.0, 2.0, 3.0, NAN], [NAN, NAN, NAN, NAN], [4.0, 4.0, 4.0, 4.0]])
    np.testing.assert_array_equal(holds(table, 2.0), [[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(holds(table, "median"), [[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])


@pytest.mark.parametrize("scores", [[[1.0, 9.0, 2.0], [5.0, NAN, 8.0]], [[3.0, 3.0, 3.0], [3.0, NAN, 3.0]]])
def test_whoever_fails_comes_after_all_that_hold_and_keeps_its_order(scores: list[list[float]]) -> None:
    table, fails = np.array(scores), np.array([[False, True, False], [True, True, False]])
    found = table + last(table, fails)
    kept = ~np.isnan(table)
    assert found[fails & kept].max() < found[~fails & kept].min()
    np.testing.assert_array_equal(found[fails & kept].argsort(), table[fails & kept].argsort())
    np.testing.assert_array_equal(found[~fails & kept], table[~fails & kept])
    assert np.isnan(found[1, 1])
