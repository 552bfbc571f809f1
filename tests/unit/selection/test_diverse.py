"""The best set under a penalty for similarity: worked numbers, what it is at its ends, and what it never does."""

import numpy as np
import pytest
from pydantic import ValidationError

from raftdiff.errors import UserError
from raftdiff.measures.statistics import cosines, unit_length
from raftdiff.selection.best import best_of_k
from raftdiff.selection.diverse import Diverse, DiverseConfig, diverse
from raftdiff.types import Key, Scores

NAN = np.nan
LINE = np.array([[[1.0, 0.9, 0.4, 0.0], [0.9, 1.0, 0.5, 0.1], [0.4, 0.5, 1.0, 0.6], [0.0, 0.1, 0.6, 1.0]]])
"""Four candidates on a line, at 0, 0.1, 0.6 and 1: similarity is 1 less their distance, 0.583 on average."""


def world(prompts: int = 6, candidates: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Totals with a discard here and there, and the cosines of random features."""
    rng = np.random.default_rng(seed)
    total = rng.normal(size=(prompts, candidates))
    total[rng.random(total.shape) < 0.1] = NAN
    return total, cosines(unit_length(rng.normal(size=(prompts, candidates, 3))))


def places(total: list[list[float]], similarity: np.ndarray, keep: int, penalty: float) -> list[list[int]]:
    chosen = diverse(np.array(total), similarity, keep, penalty)
    return [np.flatnonzero(row).tolist() for row in chosen]


def test_worked_numbers() -> None:
    """Totals 3, 2, 1, 0 have a standard deviation of sqrt(5 / 3) = 1.291, so with penalty p the second is worth
    2 - 1.291 p (1 - 0.1 / 0.583), the third 1 - 1.291 p (1 - 0.6 / 0.583), the last 0 - 1.291 p (1 - 1 / 0.583):
    the second is the best up to p = 0.904, from there on the third, and from p = 1.129 the last."""
    totals = [[3.0, 2.0, 1.0, 0.0]]
    found = [places(totals, LINE, 2, penalty)[0] for penalty in (0.0, 0.90, 0.91, 1.12, 1.14, 1e6)]
    assert found == [[0, 1], [0, 1], [0, 2], [0, 2], [0, 3], [0, 3]]


def test_each_next_looks_at_the_nearest_of_those_taken() -> None:
    """Of 0 and 1 the one at 0.6 is farther than the one at 0.1, though 0.1 is far from 1."""
    assert places([[3.0, 2.0, 1.0, 0.0]], LINE, 3, 1e6) == [[0, 2, 3]]


@pytest.mark.parametrize("keep", [1, 2, 4, 99])
def test_without_a_penalty_it_is_best_of_k_exactly(keep: int) -> None:
    total, similarity = world()
    np.testing.assert_array_equal(diverse(total, similarity, keep, 0.0), best_of_k(total, keep))
    ties = np.round(total)
    np.testing.assert_array_equal(diverse(ties, similarity, keep, 0.0), best_of_k(ties, keep))


@pytest.mark.parametrize("penalty", [0.0, 0.5, 2.0, 1e6])
def test_the_best_is_always_taken_no_discard_ever_and_as_many_as_there_are(penalty: float) -> None:
    total, similarity = world()
    chosen = diverse(total, similarity, 3, penalty)
    assert chosen[best_of_k(total, 1)].all()
    assert not chosen[np.isnan(total)].any()
    assert chosen.sum(axis=1).tolist() == np.minimum(3, (~np.isnan(total)).sum(axis=1)).tolist()


def test_it_follows_a_permutation_of_the_candidates_and_of_the_prompts() -> None:
    total, similarity = world()
    columns, rows = np.random.default_rng(1).permutation(7), np.random.default_rng(2).permutation(6)
    moved = similarity[rows][:, columns][:, :, columns]
    found = diverse(total[rows][:, columns], moved, 3, 0.7)
    np.testing.assert_array_equal(found, diverse(total, similarity, 3, 0.7)[rows][:, columns])


def test_penalty_means_the_same_for_every_reward_and_every_scale_of_distance() -> None:
    total, similarity = world()
    narrow = 1 - (1 - similarity) / 64
    np.testing.assert_array_equal(
        diverse(total, similarity, 3, 0.7), diverse(1024 * total + 8, np.round(narrow, 12), 3, 0.7)
    )


def test_of_equals_one_is_taken_while_another_is_worth_it_and_both_where_none_is() -> None:
    twins = np.array([[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    assert places([[3.0, 2.9, 2.7]], twins, 2, 1.0) == [[0, 2]]
    assert places([[3.0, 2.9, -9.0]], twins, 2, 1.0) == [[0, 1]], "far more than a standard deviation worse"
    assert places([[3.0, 2.9, NAN]], twins, 2, 1.0) == [[0, 1]]
    assert places([[3.0, 2.9, 2.7]], twins, 3, 1.0) == [[0, 1, 2]]


def test_where_nothing_tells_candidates_apart_the_lowest_are_taken_and_without_scores_the_distances_decide() -> None:
    assert places([[1.0, 1.0, 1.0, 1.0]], LINE, 2, 0.5) == [[0, 3]]
    assert places([[1.0, 1.0, 1.0]], np.ones((1, 3, 3)), 2, 0.5) == [[0, 1]]
    assert places([[1.0, 2.0, 2.0]], np.ones((1, 3, 3)), 2, 9.0) == [[1, 2]]
    equal = np.where(np.eye(4, dtype=bool), 1.0, 0.5)[None]
    assert places([[1.0, 1.0, 1.0, 1.0]], equal, 3, 0.5) == [[0, 1, 2]]


def test_the_more_the_penalty_the_farther_apart_and_the_lower_the_score() -> None:
    total, similarity = world(200, 8)
    scores, apart = [], []
    for penalty in (0.0, 0.25, 0.5, 1.0, 2.0, 1e6):
        chosen = diverse(total, similarity, 3, penalty)
        both = chosen[:, :, None] & chosen[:, None, :] & ~np.eye(8, dtype=bool)
        scores.append(total[chosen].mean())
        apart.append((1 - similarity)[both].mean())
    assert scores == sorted(scores, reverse=True)
    assert apart == sorted(apart)
    assert apart[-1] > 1.3 * apart[0]


def test_a_selection_has_a_weight_of_one_each_and_names_who_has_nothing() -> None:
    similarity = np.broadcast_to(LINE, (2, 4, 4))
    table = Scores(3, ("a", "b"), np.array([[3.0, 2.9, 1.0, 2.0], [NAN] * 4]), {}, similarity=similarity)
    found = DiverseConfig(keep=2).build(seed=0).select(table)
    assert [(item.keys, item.weight) for item in found.items] == [((Key(3, "a", 0),), 1.0), ((Key(3, "a", 3),), 1.0)]
    assert (found.kind, found.left_out) == ("weighted", ("b",))


def test_scores_that_say_nothing_of_similarity_are_a_sentence() -> None:
    with pytest.raises(UserError, match="'diverse' needs to know how alike candidates are.*give the Ranker"):
        Diverse(2, 1.0).select(Scores(0, ("a",), np.zeros((1, 3)), {}))


def test_a_plan_counts_what_is_then_selected() -> None:
    assert [DiverseConfig(keep=keep).count(3, 4) for keep in (2, 9)] == [6, 12]


@pytest.mark.parametrize("wrong", [{"keep": 1}, {"penalty": -0.1}, {"penalty": float("inf")}, {"penalty": NAN}])
def test_one_alone_differs_from_nothing_and_a_penalty_is_a_number(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        DiverseConfig(**wrong)
