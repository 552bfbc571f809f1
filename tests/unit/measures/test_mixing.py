"""How rewards went together in a round, against what can be counted by hand."""

import numpy as np
import pytest

from raftdiff.measures.mixing import agreement, agreements, chosen_above, contributions, signed, told_nothing
from raftdiff.types import Item, Key, Scores, Selection, SelectionKind

NAN = np.nan


def test_agreement_counts_the_pairs_that_both_tell_apart() -> None:
    one = np.array([[1.0, 2.0, 3.0, NAN], [1.0, 1.0, 2.0, 5.0]])
    other = np.array([[2.0, 1.0, 3.0, 9.0], [8.0, 9.0, 9.0, NAN]])
    # first prompt: two of three pairs alike; second: (0, 2) alike, (0, 1) and (1, 2) a tie for one of them
    assert agreement(one, other) == pytest.approx(3 / 4)
    assert agreement(one, one) == 1
    assert agreement(one, -one) == 0


def test_rewards_that_tell_no_pair_apart_agree_on_nothing() -> None:
    assert agreements({"a": np.ones((2, 3)), "b": np.arange(6.0).reshape(2, 3)}) == {"a": {"b": None}}


def test_a_prompt_that_is_told_nothing_of_has_one_score_or_none() -> None:
    assert told_nothing(np.array([[1.0, 1.0], [1.0, NAN], [NAN, NAN], [1.0, 2.0]])) == 0.75


@pytest.mark.parametrize(
    ("kind", "items", "expected"),
    [
        ("weighted", [((1,), 0.25), ((2,), 0.75)], [0, 0.25, 0.75]),
        ("pairs", [((2, 0), 1.0)], [-1, 0, 1]),
        ("ranked", [((1, 0, 2), 1.0)], [0, 1, -1]),
        ("advantages", [((0,), -0.5), ((1,), 0.5)], [-0.5, 0.5, 0]),
    ],
)
def test_what_is_learnt_of_each_candidate(
    kind: SelectionKind, items: list[tuple[tuple[int, ...], float]], expected: list[float]
) -> None:
    held = tuple(Item(tuple(Key(0, "cat", k) for k in places), weight) for places, weight in items)
    scores = Scores(0, ("cat",), np.zeros((1, 3)), {})
    np.testing.assert_array_equal(signed(scores, Selection(kind, held)), [expected])


def test_contributions_add_up_to_one_and_name_who_spoke_against() -> None:
    parts = {"clip": np.array([[0.0, 4.0], [1.0, 1.0]]), "size": np.array([[1.0, 0.0], [0.0, 3.0]])}
    learnt = np.array([[0.0, 1.0], [0.0, 1.0]])  # above the means by 2 and 0, by -0.5 and 1.5
    assert contributions(parts, learnt) == {"clip": pytest.approx(2 / 3), "size": pytest.approx(1 / 3)}
    assert contributions(parts, np.ones((2, 2))) == {"clip": None, "size": None}, "all of them: nothing was chosen"


def test_chosen_above_is_in_spreads_within_a_prompt_and_of_pairs_their_difference() -> None:
    table = np.array([[1.0, 3.0], [10.0, 10.0], [NAN, NAN]])  # spread: sqrt((1 + 1) / (1 + 1))
    assert chosen_above(table, np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])) == pytest.approx(0.5)
    assert chosen_above(table, np.array([[-1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])) == pytest.approx(1.0)
    assert chosen_above(np.ones((1, 2)), np.array([[1.0, 0.0]])) is None
    assert chosen_above(table, np.zeros((3, 2))) is None
