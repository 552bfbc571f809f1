"""Diversity figures: the worked example, and where definitions differ."""

import math

import pytest

from raftdiff.errors import UserError
from raftdiff.measures.texts import alike, distinct, mean_length, msttr, unique

TEXTS = ["the cat sat on the mat", "the dog sat"]


def test_worked_numbers():
    assert distinct(TEXTS, 1) == pytest.approx(0.666667, abs=2e-6)
    assert unique(TEXTS, 1) == 4
    assert distinct(TEXTS, 2) == 1.0
    assert unique(TEXTS, 2) == 7
    assert msttr(TEXTS, 4, gem_compat=True) == pytest.approx(0.875)
    assert msttr(TEXTS, 4) == pytest.approx(0.875)
    assert mean_length(TEXTS) == 4.5


def test_unique_counts_what_occurs_once_and_is_no_ratio():
    assert unique(["a a b", "b c"], 1) == 1
    assert distinct(["a a b", "b c"], 1) == pytest.approx(3 / 5)


def test_tokens_are_lower_cased_and_cut_at_white_space_only():
    assert unique(["The the", "Mat. mat"], 1) == 2
    assert mean_length(["  a\tb\n c "]) == 3


def test_n_grams_do_not_reach_into_the_next_answer():
    assert distinct(["a b", "b a"], 2) == 1.0
    assert unique(["a", "b", "c"], 2) == 0
    assert math.isnan(distinct(["a", "b"], 2))


def test_windows_are_of_equal_size_and_the_incomplete_one_is_left_out():
    assert msttr(["a b a b", "c c c"], 3) == pytest.approx((2 / 3 + 2 / 3) / 2)  # a b a | b c c | c
    assert msttr(["a b c"], 3) == 1.0
    assert math.isnan(msttr(["a b"], 3))
    assert math.isnan(msttr([], 3))


def test_gem_compat_lets_what_is_left_of_a_long_answer_exceed_a_window():
    """a b | then c c c c d waits whole for the next answer, whose first -3 tokens, none, join it."""
    texts = ["a b c c c c d", "e f", "g h i"]
    assert msttr(texts, 2) == pytest.approx((1 + 0.5 + 0.5 + 1 + 1 + 1) / 6)
    assert msttr(texts, 2, gem_compat=True) == pytest.approx((1 + 2 / 5 + 1) / 3)


def test_one_answer_longer_than_a_window_counts_more_than_once_only_in_strict_windows():
    long = " ".join(["x"] * 250)
    assert msttr([long]) == pytest.approx(0.01)
    assert msttr([long, "y"], gem_compat=True) == pytest.approx((0.01 + 1 / 150) / 2)


def test_nothing_and_nonsense():
    assert math.isnan(mean_length([]))
    assert mean_length([""]) == 0
    assert unique([], 1) == 0
    assert math.isnan(distinct([], 1))
    with pytest.raises(UserError, match="n-grams of 0 tokens"):
        distinct(TEXTS, 0)
    with pytest.raises(UserError, match="window of 0 tokens"):
        msttr(TEXTS, 0)


def test_chinese_and_japanese_are_counted_by_their_characters():
    assert distinct(["我很高兴", "我很难过"], 2) == 5 / 6
    assert mean_length(["我很高兴 today", "ねこ"]) == 3.5
    assert mean_length(["plain english, as ever"]) == 4


def test_how_alike_answers_are_is_the_cosine_of_their_words_and_pairs_of_words():
    """ "a b c" has the counts a, b, c, ab, bc; "b c" b, c, bc: three of five and of three, 3 / sqrt(15)."""
    found = alike(["a b c", "B  c", "x", "c b a", "a b c"])
    assert found[0].tolist() == [1.0, pytest.approx(3 / 15**0.5, abs=1e-6), 0.0, 0.6, 1.0]
    assert found.diagonal().tolist() == [1.0] * 5
    assert (found == found.T).all()


def test_answers_of_one_word_or_none_are_alike_where_they_are_the_same():
    assert alike(["", " ", "yes", "yes", "no"]).astype(int).tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]
