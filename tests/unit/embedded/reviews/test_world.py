"""The text world: its probabilities are exact, its reward is what it says, and there is room to gain."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import combinations_with_replacement, pairwise
from pathlib import Path

import numpy as np
import pytest

from raftdiff.embedded.reviews import grammar as review_grammar
from raftdiff.embedded.reviews import world
from raftdiff.embedded.reviews.grammar import COUNTS, DEGREES, GENRES, NEGATIONS, TOPICS, VALENCES, grammar
from raftdiff.embedded.reviews.pcfg import read
from raftdiff.errors import UserError

PROMPT = "western about pirates :"
PROMPTS = Path(__file__).parents[4] / "configs/prompts"
SPOKEN = "another superb western about pirates . the loud duels were slow . what a gem !"
"""A review whose log-probability is worked by hand below."""


@cache
def drawn(count: int) -> list[tuple[str, str]]:
    """(prompt, review) of the grammar, all prompts in turn."""
    generator = np.random.default_rng(0)
    asked = (world.prompts() * (count // 240 + 1))[:count]
    return [(prompt, world.sample(prompt, generator)) for prompt in asked]


def test_the_world_is_as_large_as_the_card_says() -> None:
    assert (len(set(GENRES)), len(set(TOPICS)), len(set(world.prompts()))) == (10, 24, 240)
    assert (len(world.training_prompts()), len(world.held_out_prompts())) == (200, 40)
    assert len(world.vocabulary()) == len(set(world.vocabulary())) == 322


def test_hold_outs_and_training_prompts_share_nothing_and_leave_nothing_out() -> None:
    training, held_out = set(world.training_prompts()), set(world.held_out_prompts())
    assert not training & held_out
    assert training | held_out == set(world.prompts())


def test_every_genre_and_topic_is_held_out_somewhere_and_seen_somewhere() -> None:
    for found in (world.training_prompts(), world.held_out_prompts()):
        parts = [prompt.split() for prompt in found]
        assert {genre for genre, *_ in parts} == set(GENRES)
        assert {topic for _, _, topic, _ in parts} == set(TOPICS)


def test_hold_outs_are_what_the_weights_were_trained_with() -> None:
    assert world.held_out_prompts()[:2] == ["comedy about pirates :", "comedy about sailors :"]
    assert "western about dragons :" in world.held_out_prompts()


def test_the_prompt_files_agree_with_the_world() -> None:
    def lines(name: str) -> list[str]:
        return [line for line in (PROMPTS / name).read_text().splitlines() if not line.startswith("#")]

    assert lines("reviews_held_out.txt") == world.held_out_prompts()
    assert len(set(lines("reviews_train.txt"))) == len(lines("reviews_train.txt")) == 120
    assert set(lines("reviews_train.txt")) < set(world.training_prompts())


# --- the rules


def sizes(mood: int) -> dict[str, int]:
    """Symbol -> number of its derivations."""
    rules = grammar(mood).rules

    @cache
    def size(symbol: str) -> int:
        return sum(math.prod(map(size, parts)) for _, parts in rules[symbol]) if symbol in rules else 1

    return {symbol: size(symbol) for symbol in rules}


@pytest.mark.parametrize("mood", [1, -1])
def test_texts_of_every_small_symbol_are_unambiguous_and_add_up_to_one(mood: int) -> None:
    small = {symbol: size for symbol, size in sizes(mood).items() if size <= 4000}
    assert {"Phrase", "Verdicts", "Felts", "AnyThing", "Neutral"} <= set(small)
    for symbol, size in small.items():
        texts = grammar(mood).expansions(symbol)
        assert len(texts) == size, symbol
        total = math.fsum(grammar(mood).probability(symbol, text) for text in texts)
        assert total == pytest.approx(1, abs=1e-9), symbol


@pytest.mark.parametrize("kind", ["Opening", "Middle", "Closing"])
@pytest.mark.parametrize("mood", [1, -1])
def test_sentences_have_one_derivation(mood: int, kind: str) -> None:
    generator = np.random.default_rng(0)
    for _ in range(500):
        words, log_probability = grammar(mood).draw(kind, generator)
        assert math.log(grammar(mood).probability(kind, words)) == pytest.approx(log_probability, abs=1e-9)
        assert [word in ".!" for word in words] == [False] * (len(words) - 1) + [True]


def test_opinion_words_degrees_and_negations_are_said_as_such_only() -> None:
    """ "fall in love" as something that pirates do would be praise to `sentiment`."""
    assert not set(VALENCES) & set(DEGREES) | set(VALENCES) & set(NEGATIONS) | set(DEGREES) & set(NEGATIONS)
    for symbol, productions in read(review_grammar._RULES).items():
        for _, parts in productions:
            assert not set(parts) & set(VALENCES), symbol
            if symbol not in ("Degree", "Manner", "Size", "Negation"):
                assert not set(parts) & {*DEGREES, *NEGATIONS}, symbol


def test_signs_are_balanced() -> None:
    found = Counter(VALENCES.values())
    assert found[1.0] == found[-1.0]
    assert found[0.5] == found[-0.5]


def test_words_of_the_prompt_are_nothing_else() -> None:
    placed = {*GENRES, *TOPICS, *(thing for things in GENRES.values() for thing in things)}
    assert len(placed) == 10 + 24 + 20
    assert not placed & grammar(1).words()


def test_the_longest_review_fits_the_model() -> None:
    longest = {kind: grammar(1).longest(kind) for kind in ("Opening", "Middle", "Closing")}
    assert longest == {"Opening": 11, "Middle": 16, "Closing": 11}
    begin, prompt, end = 1, 4, 1
    assert begin + prompt + longest["Opening"] + 3 * longest["Middle"] + longest["Closing"] + end <= 128


# --- log-probabilities


def test_a_log_probability_by_hand() -> None:
    def opening(strong: float) -> float:
        return 0.18 * 0.65 * strong / 14 * 0.6 * 0.84

    def middle(mild: float) -> float:
        return 0.27 * (0.45 * (0.4 / 10 * 0.26) * 0.22 * 0.42 * mild / 14) * 0.84

    def closing(strong: float) -> float:
        return 0.14 * 0.65 * strong / 4

    likelihood = 0.35 * (
        0.5 * opening(0.34) * middle(0.11) * closing(0.34) + 0.5 * opening(0.04) * middle(0.51) * closing(0.04)
    )
    assert world.log_probability(PROMPT, SPOKEN) == pytest.approx(math.log(likelihood), abs=2e-6)


def test_every_sample_parses_and_is_made_of_known_words() -> None:
    known = set(world.vocabulary())
    for prompt, review in drawn(1000):
        assert world.fluent(prompt, review)
        assert set(review.split()) <= known
        assert 2 <= len(re.findall(r"[.!]", review)) <= 5
        assert review == " ".join(review.split()).lower()


def test_a_review_of_something_else_does_not_parse() -> None:
    assert world.fluent(PROMPT, SPOKEN)
    assert not world.fluent("comedy about pirates :", SPOKEN)
    assert not world.fluent("western about robots :", SPOKEN)
    assert not world.fluent(PROMPT, SPOKEN.replace("duels", "jokes"))  # another genre's


@pytest.mark.parametrize(
    "review",
    [
        "",
        ".",
        SPOKEN.removesuffix(" !"),
        SPOKEN + " what a gem !",
        SPOKEN.replace("a gem", "gem"),
        SPOKEN.replace("another", "Another"),
        SPOKEN.replace("duels were", "duels was"),
        SPOKEN.replace("western", "<genre>"),
        SPOKEN.replace("superb", "excellent"),
        SPOKEN.replace("the loud duels were slow . ", ". "),
        SPOKEN.replace(" .", "."),
        "what a gem ! another superb western about pirates .",
        "another superb western about pirates .",
        "another superb western about pirates . " + 4 * "the duels were slow . " + "what a gem !",
    ],
)
def test_edits_break_the_parse(review: str) -> None:
    assert world.log_probability(PROMPT, review) == -math.inf
    assert not world.fluent(PROMPT, review)
    assert world.reward(PROMPT, review) == -1


def test_a_word_left_out_or_swapped_seldom_parses() -> None:
    generator = np.random.default_rng(1)
    left = swapped = 0
    for prompt, review in drawn(400):
        words = review.split()
        at = int(generator.integers(len(words) - 1))
        left += world.fluent(prompt, " ".join(words[:at] + words[at + 1 :]))
        words[at], words[at + 1] = words[at + 1], words[at]
        swapped += world.fluent(prompt, " ".join(words))
    assert left < 60
    assert swapped < 20


def test_samples_are_as_frequent_as_their_log_probability_says() -> None:
    """Of all reviews that are an opening "... liked this western ..." and "what a ... !", the sum against the count."""
    texts = [
        f"{viewer} {felt} this western {link} pirates {end} what a {verdict} !"
        for viewer in ("i", "we", "my brother", "my sister", "my friends")
        for felt in sorted(word for word in VALENCES if re.fullmatch(r".*(ed|oathed)", word) and word != "tired")
        for link in ("about", "with")
        for end in (".", "!")
        for verdict in ("masterpiece", "triumph", "gem", "marvel", "letdown", "muddle", "misfire", "bore")
    ]
    likelihood = math.fsum(math.exp(world.log_probability(PROMPT, text)) for text in texts)
    assert likelihood == pytest.approx(0.15 * 0.20 * 0.7 * 0.14 * 0.65 / 2, rel=0.2)
    generator, members, count = np.random.default_rng(0), frozenset(texts), 30_000
    found = sum(world.sample(PROMPT, generator) in members for _ in range(count))
    assert abs(found - count * likelihood) < 3.5 * math.sqrt(count * likelihood)


def test_sentences_of_a_review_share_a_mood() -> None:
    """Two words from one mood, each 85% in it, agree in sign with 0.85^2 + 0.15^2."""
    agreed = [
        VALENCES[words[0]] * VALENCES[words[1]] > 0
        for _, review in drawn(12_000)
        if not any(word in NEGATIONS or word in ("but", "and") for word in review.split())
        and len(words := [word for word in review.split() if word in VALENCES]) == 2
    ]
    assert np.mean(agreed) == pytest.approx(0.745, abs=4 * math.sqrt(0.745 * 0.255 / len(agreed)))


# --- smoothing


def by_all_cuts(prompt: str, text: str, epsilon: float) -> float:
    """The definition, spelt out: moods, numbers of sentences, cuts."""
    words, unknown = text.split(), len(world.vocabulary()) + 1
    lifted = world._lifted(prompt, text)
    spoken = cache(lambda mood, kind, start, end: grammar(mood).probability(kind, lifted[start:end]))

    def terms() -> Iterator[float]:
        for mood in (1, -1):
            for count, chance in COUNTS.items():
                kinds = ["Opening", *["Middle"] * (count - 2), "Closing"]
                for inner in combinations_with_replacement(range(len(words) + 1), count - 1):
                    spans = pairwise((0, *inner, len(words)))
                    parts = [
                        (1 - epsilon) * spoken(mood, kind, *span)
                        + epsilon * 0.1 * (0.9 / unknown) ** (span[1] - span[0])
                        for kind, span in zip(kinds, spans, strict=True)
                    ]
                    yield chance / 2 * math.prod(parts)

    return math.log(math.fsum(terms()))


@pytest.mark.parametrize("epsilon", [1e-3, 0.3])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "what a gem !",
        "we loved this western with pirates ! what a gem !",
        "it lasts two hours . what a gem . !",
        "the the . nonsense what a gem !",
    ],
)
def test_smoothing_sums_over_every_way_to_cut_the_text(text: str, epsilon: float) -> None:
    expected = by_all_cuts(PROMPT, text, epsilon)
    assert world.smoothed_log_probability(PROMPT, text, epsilon) == pytest.approx(expected, abs=1e-9)


def test_smoothing_leaves_fluent_text_almost_alone() -> None:
    for prompt, review in drawn(200):
        exact, sentences = world.log_probability(prompt, review), len(re.findall(r"[.!]", review))
        smoothed = world.smoothed_log_probability(prompt, review)
        assert smoothed >= exact + sentences * math.log1p(-1e-3) - 1e-9
        assert smoothed == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("text", ["", "?!", "Ünknown words", "superb " * 1000, SPOKEN * 40, "! . " * 60, "\n\n"])
def test_smoothing_is_finite_for_every_text(text: str) -> None:
    assert -1e5 < world.smoothed_log_probability(PROMPT, text) < 0


def test_unknown_words_cost_as_much_as_one_more_word() -> None:
    unknown = world.smoothed_log_probability(PROMPT, "qwerty uiop")
    assert unknown == pytest.approx(world.smoothed_log_probability(PROMPT, "superb the"), abs=1e-9)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, -0.1])
def test_epsilon_is_a_probability(epsilon: float) -> None:
    with pytest.raises(ValueError, match="it must lie within"):
        world.smoothed_log_probability(PROMPT, SPOKEN, epsilon)


def test_true_perplexity_is_that_of_the_corpus_and_counts_ends() -> None:
    texts = [SPOKEN, "qwerty"]
    total = sum(world.smoothed_log_probability(PROMPT, text) for text in texts)
    assert world.true_perplexity([PROMPT] * 2, texts) == pytest.approx(math.exp(-total / (16 + 1 + 1 + 1)))


def test_true_perplexity_needs_as_many_prompts_as_reviews() -> None:
    with pytest.raises(ValueError, match="no reviews"):
        world.true_perplexity([], [])
    with pytest.raises(ValueError, match="is longer"):
        world.true_perplexity([PROMPT], [SPOKEN, SPOKEN])


def test_true_perplexity_tells_broken_text() -> None:
    asked, texts = zip(*drawn(200), strict=True)
    generator = np.random.default_rng(0)
    shuffled = [" ".join(generator.permutation(text.split())) for text in texts]
    assert 4 < world.true_perplexity(asked, texts) < 6
    assert world.true_perplexity(asked, shuffled) > 100


# --- sentiment and reward


@pytest.mark.parametrize(
    ("review", "expected"),
    [
        ("the plot was superb .", 1.0),
        ("the plot was good .", 0.5),
        ("the plot was truly good .", 0.75),
        ("the plot was truly superb .", 1.0),
        ("the plot was fairly superb .", 0.5),
        ("the plot was not superb .", -0.5),
        ("the plot was never awful .", 0.5),
        ("the plot was not very good .", -0.375),
        ("the plot was superb and dull .", 0.25),
        ("the plot was bland , but the jokes were brilliant .", 0.25),
        ("what a minor letdown !", -0.25),
        ("i really hated it .", -1.0),
        ("it takes place in paris .", 0.0),
        ("", 0.0),
        ("superb superb superb", 1.0),
        ("truly", 0.0),
        ("very the superb", 1.0),
    ],
)
def test_sentiment_by_hand(review: str, expected: float) -> None:
    assert world.sentiment(review) == pytest.approx(expected, abs=2e-6)


def test_saying_more_gains_nothing() -> None:
    once = "the plot was good . "
    assert world.sentiment(once * 5) == pytest.approx(world.sentiment(once))


def test_reward_is_the_sentiment_of_what_parses_for_this_prompt() -> None:
    assert world.reward(PROMPT, SPOKEN) == pytest.approx((1 - 0.5 + 1) / 3)
    assert world.reward("drama about pirates :", SPOKEN) == -1
    assert world.reward(PROMPT, "superb superb superb") == -1


@pytest.mark.parametrize("prompt", [PROMPT, "comedy about dragons :"])
def test_the_best_reward_is_attained(prompt: str) -> None:
    assert world.best_reward() == pytest.approx(1.0)
    assert world.reward(prompt, world.best_review(prompt)) == world.best_reward()


def test_no_sample_beats_the_best_and_the_mean_is_in_the_middle() -> None:
    rewards = np.array([world.reward(*pair) for pair in drawn(2000)])
    assert rewards.max() <= world.best_reward()
    assert abs(rewards.mean()) < 3.5 * rewards.std() / math.sqrt(len(rewards))
    assert rewards.std() > 0.4


def test_nine_tenths_of_the_best_reward_cost_no_fluency() -> None:
    pairs = drawn(2000)
    best = [pair for pair in pairs if world.reward(*pair) >= 0.9 * world.best_reward()]
    assert len(best) > 15

    def perplexity(found: list[tuple[str, str]]) -> float:
        return world.true_perplexity([prompt for prompt, _ in found], [text for _, text in found])

    assert perplexity(best) < 1.25 * perplexity(pairs[:240])


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("a film", "'a film' is no prompt of the text world; write one like 'western about pirates :'"),
        ("western about pirates", "is no prompt of the text world"),
        ("westren about pirates :", "no reviews about 'westren'. Did you mean 'western'?"),
        ("western about cats :", "no reviews about 'cats'"),
    ],
)
def test_other_prompts_are_told(prompt: str, sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        world.sample(prompt, np.random.default_rng(0))
    with pytest.raises(UserError, match=re.escape(sentence)):
        world.log_probability(prompt, SPOKEN)


def test_the_same_generator_gives_the_same_review() -> None:
    once, again = (world.sample(PROMPT, np.random.default_rng(7)) for _ in range(2))
    assert once == again
    assert once != world.sample(PROMPT, np.random.default_rng(8))
