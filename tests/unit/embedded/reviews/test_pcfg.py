"""Grammars: what they say adds up to one, and drawing, pricing and listing agree."""

import math
from collections import Counter

import numpy as np
import pytest

from raftdiff.embedded.reviews.pcfg import Grammar, read

SMALL = Grammar(
    read("""
    Review: 2 Verdict . | 1 Verdict and Verdict .
    Verdict: 3 good | very good
        | Rare
    Rare: odd | odd indeed
    """)
)
TWICE = Grammar(read("Text: Left b | a Right\nLeft: 1 a | 3 c\nRight: 1 b | 1 d"))
"""Says "a b" in two ways."""


def test_the_longest_text_is_known() -> None:
    assert SMALL.longest("Review") == 6 == max(map(len, SMALL.expansions("Review")))


def test_weights_are_made_to_sum_to_one_and_lines_may_go_on() -> None:
    assert SMALL.rules["Verdict"] == ((0.6, ("good",)), (0.2, ("very", "good")), (0.2, ("Rare",)))
    assert SMALL.words() == {"good", "very", "odd", "indeed", "and", "."}


def test_every_text_listed_adds_up_to_one() -> None:
    texts = SMALL.expansions("Review")
    assert len(texts) == 4 + 4 * 4
    assert math.fsum(SMALL.probability("Review", text) for text in texts) == pytest.approx(1, abs=1e-12)


def test_a_probability_by_hand() -> None:
    assert SMALL.probability("Review", ["good", "and", "odd", "indeed", "."]) == pytest.approx(1 / 3 * 0.6 * 0.2 / 2)


@pytest.mark.parametrize("text", ["", "good", "good . .", "good and .", "and good .", "odd very ."])
def test_other_texts_have_none(text: str) -> None:
    assert SMALL.probability("Review", text.split()) == 0


def test_derivations_of_the_same_text_are_summed() -> None:
    assert TWICE.probability("Text", ["a", "b"]) == pytest.approx(0.5 * 0.25 + 0.5 * 0.5)
    assert math.fsum(TWICE.probability("Text", text) for text in TWICE.expansions("Text")) == pytest.approx(1)


def test_what_is_drawn_is_as_frequent_as_its_probability() -> None:
    generator = np.random.default_rng(0)
    drawn = Counter(SMALL.draw("Review", generator)[0] for _ in range(8000))
    expected = {text: 8000 * SMALL.probability("Review", text) for text in SMALL.expansions("Review")}
    assert set(drawn) <= set(expected)
    statistic = sum((drawn[text] - count) ** 2 / count for text, count in expected.items())
    assert statistic < 43.8  # 99.9% of chi-square with 19 degrees of freedom


def test_the_log_probability_of_a_drawing_is_its_derivations() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        words, log_probability = SMALL.draw("Review", generator)
        assert log_probability == pytest.approx(math.log(SMALL.probability("Review", words)))
        words, log_probability = TWICE.draw("Text", generator)
        assert math.exp(log_probability) <= TWICE.probability("Text", words) + 1e-12


def test_words_of_a_kind_are_listed_once() -> None:
    found = SMALL.expansions("Verdict", lambda word: "praise" if word == "good" else "")
    assert found == {("praise",): ("good",), (): ("odd",)}
