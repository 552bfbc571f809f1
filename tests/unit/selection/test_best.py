"""Selectors: best of K, top fraction, random; ties, NaN, and what every round reports."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from raftdiff.ranking import Ranker
from raftdiff.selection.best import (
    BestOfK,
    BestOfKConfig,
    Random,
    TopFraction,
    TopFractionConfig,
    figures,
    undecided,
)
from raftdiff.selection.lessons import Advantage, All, BestWorst, Threshold
from raftdiff.types import Key, Sample, Scores, Selection

NAN = np.nan


def scores(table: list[list[float]], round: int = 0) -> Scores:
    total = np.array(table, dtype=np.float64)
    return Scores(round, tuple("abcdefgh"[: len(total)]), total, {"r": total})


def chosen(selection: Selection) -> list[tuple[str, int]]:
    return [(key.prompt, key.index) for item in selection.items for key in item.keys]


def test_best_of_k_takes_the_highest_of_each_prompt_and_ties_go_to_the_lowest_index() -> None:
    assert chosen(BestOfK(1).select(scores([[1, 5, 5], [7, 2, 7]]))) == [("a", 1), ("b", 0)]
    assert chosen(BestOfK(2).select(scores([[1, 5, 5], [7, 2, 7]]))) == [("a", 1), ("a", 2), ("b", 0), ("b", 2)]


def test_nan_is_discarded_and_a_prompt_without_a_valid_candidate_is_named() -> None:
    selection = BestOfK(2).select(scores([[NAN, 3, NAN], [NAN, NAN, NAN]], round=4))
    assert selection.items[0].keys == (Key(4, "a", 1),)
    assert len(selection.items) == 1
    assert selection.left_out == ("b",)


def test_top_fraction_ranks_the_whole_batch_so_that_easy_prompts_may_starve_hard_ones() -> None:
    table = [[1, 2, 3, 4], [8, 7, 6, 5]]
    assert chosen(TopFraction(0.5).select(scores(table))) == [("b", 0), ("b", 1), ("b", 2), ("b", 3)]
    assert chosen(TopFraction(0.001).select(scores(table))) == [("b", 0)]


def test_a_floor_keeps_the_best_of_every_prompt_within_the_same_budget() -> None:
    table = scores([[1, 2, 0, 0], [9, 8, 7, 6]])
    assert chosen(TopFraction(0.5, floor=1).select(table)) == [("a", 1), ("b", 0), ("b", 1), ("b", 2)]
    assert chosen(TopFraction(0.5, floor=2).select(table)) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert chosen(TopFraction(0.125, floor=1).select(table)) == [("a", 1), ("b", 0)], (
        "a floor may be more than the share"
    )
    assert chosen(TopFraction(0.5, floor=1).select(scores([[NAN, NAN], [3, 4]]))) == [("b", 0), ("b", 1)]


def test_top_fraction_breaks_ties_to_the_lowest_index_and_never_takes_nan() -> None:
    assert chosen(TopFraction(0.5).select(scores([[3, NAN], [3, 3]]))) == [("a", 0), ("b", 0)]
    assert chosen(TopFraction(1.0).select(scores([[3, NAN], [3, 3]]))) == [("a", 0), ("b", 0), ("b", 1)]


def test_best_of_k_does_not_change_under_a_rising_transform_of_the_reward() -> None:
    table = np.random.default_rng(0).normal(size=(6, 5))
    assert BestOfK(2).select(scores(table.tolist())) == BestOfK(2).select(scores(np.exp(3 * table).tolist()))


def test_best_of_k_follows_a_permutation_of_the_prompts() -> None:
    table = np.random.default_rng(1).normal(size=(5, 4))
    order = [3, 1, 4, 0, 2]
    one = dict(chosen(BestOfK(1).select(scores(table.tolist()))))
    other = {"abcde"[order["abcde".index(n)]]: k for n, k in chosen(BestOfK(1).select(scores(table[order].tolist())))}
    assert one == other


def test_random_is_uniform_over_the_valid_candidates_and_the_same_for_the_same_seed() -> None:
    table = scores([[0, 1, NAN, 3]])
    picks = [chosen(Random(1, seed).select(table))[0][1] for seed in range(600)]
    assert Random(1, 5).select(table) == Random(1, 5).select(table)
    counts = np.bincount(picks, minlength=4)
    assert counts[2] == 0
    # 200 expected each; five standard deviations of a binomial(600, 1/3) is 58.
    assert np.abs(counts[[0, 1, 3]] - 200).max() < 58


def test_random_differs_between_rounds() -> None:
    table = np.zeros((8, 16)).tolist()
    assert chosen(Random(1, 0).select(scores(table, 0))) != chosen(Random(1, 0).select(scores(table, 1)))


def test_figures_on_a_worked_table() -> None:
    table = scores([[1, 3], [2, NAN], [NAN, NAN]])
    found = figures(table, BestOfK(1).select(table))
    assert found == {
        "first_sample_mean": 1.5,
        "mean": 2.0,
        "selected_mean": 2.5,
        "random_mean": 2.0,
        "best_of_k": 2.5,
        "discard_rate": 0.5,
    }


def test_random_mean_is_matched_to_the_prompts_that_were_selected_from() -> None:
    table = scores([[0, 0], [10, 20]])
    assert figures(table, TopFraction(0.5).select(table))["random_mean"] == 15


@pytest.mark.parametrize("k", [2, 4, 8])
def test_best_of_k_of_uniform_rewards_has_the_mean_of_the_order_statistic(k: int) -> None:
    many = np.random.default_rng(k).uniform(size=(4000, k))
    wide = Scores(0, tuple(map(str, range(4000))), many, {})
    mean = figures(wide, BestOfK(1).select(wide))["selected_mean"]
    assert mean == pytest.approx(k / (k + 1), abs=5 * 0.24 / 4000**0.5)


@pytest.mark.parametrize(
    "config",
    [
        BestOfKConfig(keep=2),
        BestOfKConfig(keep=9),
        TopFractionConfig(fraction=0.01),
        TopFractionConfig(fraction=0.01, floor=2),
    ],
)
def test_a_plan_counts_what_is_then_selected(config: BestOfKConfig | TopFractionConfig) -> None:
    table = scores(np.random.default_rng(0).normal(size=(3, 4)).tolist())
    assert config.count(3, 4) == len(config.build(seed=0).select(table).items)


def test_the_total_is_the_weighted_sum_and_nan_of_a_weighted_reward_discards() -> None:
    class Fixed:
        def __init__(self, name: str) -> None:
            self.name = name

        def score(self, samples: Sequence[Sample[Any]]) -> torch.Tensor:
            return torch.zeros(len(samples))

    ranker = Ranker([(Fixed("a"), 2.0), (Fixed("b"), 0.0)], BestOfK())
    total = ranker.total({"a": np.array([[1.0, NAN]]), "b": np.array([[NAN, 1.0]])})
    np.testing.assert_array_equal(total, [[2.0, NAN]])


def test_prompts_of_which_no_reward_could_choose_are_counted_and_a_discard_is_a_choice() -> None:
    assert undecided(np.array([[1.0, 1.0], [1.0, 2.0], [NAN, 1.0], [NAN, NAN]])) == 1
    assert undecided(np.array([[1.0], [2.0]])) == 2
    assert undecided(np.array([[1.0], [2.0]]), "batch") == 0
    assert undecided(np.array([[1.0], [1.0]]), "batch") == 2
    assert undecided(np.array([[1.0], [1.0]]), "nothing") == 0


def test_selectors_say_what_they_need_told_apart() -> None:
    silent = [it for it in (BestOfK(), BestWorst()) if hasattr(it, "compares")]
    assert silent == []  # of each prompt, as for a selector of somebody else's
    assert (TopFraction(0.5).compares, Random(1, 0).compares, All().compares) == ("batch", "nothing", "nothing")
    assert (Threshold().compares, Threshold(0.5).compares) == ("prompt", "nothing")
    assert (Advantage("grpo").compares, Advantage("raft_plus_plus").compares) == ("prompt", "nothing")
