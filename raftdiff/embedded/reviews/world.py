"""The text world: short film reviews from a grammar, so that sentiment, fluency and log-probability are all exact.

A prompt reads ``"western about pirates :"``, a review ``"the pirates in this western are truly superb . the script was
slow , but the final duels are gripping ! you will love it ."``: lower case, single spaces, punctuation a word of its
own. A review is an opening, none to three sentences in the middle, and a closing. A mood, positive or negative with
equal chance and never said, governs the opinion words of all of them: 85% agree with it. Some (genre, topic) pairs are
held out of the base model's training. Imports neither torch nor transformers.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import accumulate, pairwise, product

import numpy as np

from raftdiff.embedded.reviews.grammar import (
    AGREEMENT,
    COUNTS,
    DEGREES,
    GENRES,
    NEGATIONS,
    TOPICS,
    VALENCES,
    grammar,
    vocabulary,
)
from raftdiff.errors import UserError, nearest

__all__ = [
    "best_review",
    "best_reward",
    "check",
    "fluent",
    "held_out_prompts",
    "log_probability",
    "prompts",
    "reward",
    "sample",
    "sentiment",
    "smoothed_log_probability",
    "training_prompts",
    "true_perplexity",
    "vocabulary",
]

_ENDS = (".", "!")
_CONTINUES = 0.9
"""Chance that a salad goes on for another word."""
_UNKNOWN = "<unknown>"


def _stripe(genre: str, topic: str) -> int:
    return (TOPICS.index(topic) - tuple(GENRES).index(genre)) % 6


def prompts() -> list[str]:
    """All 240 prompts: every genre with every topic."""
    return [f"{genre} about {topic} :" for genre, topic in product(GENRES, TOPICS)]


def held_out_prompts() -> list[str]:
    """The 40 prompts that the base model was never trained on, though it saw their genre and topic in other company."""
    return [f"{genre} about {topic} :" for genre, topic in product(GENRES, TOPICS) if _stripe(genre, topic) == 0]


def training_prompts() -> list[str]:
    """The 200 prompts that the base model was trained on."""
    return [f"{genre} about {topic} :" for genre, topic in product(GENRES, TOPICS) if _stripe(genre, topic)]


def check(prompts: Iterable[str]) -> None:
    """
    Raises:
        UserError: one of them is none of this world.
    """
    for prompt in prompts:
        _placed(prompt)


@lru_cache(maxsize=1024)
def _placed(prompt: str) -> dict[str, str]:
    """What stands for the words ``<genre>``, ``<topic>``, ``<thing>`` and ``<things>`` under this prompt.

    Raises:
        UserError: the prompt is none of this world.
    """
    parts = prompt.split()
    if len(parts) != 4 or parts[1] != "about" or parts[3] != ":":
        raise UserError(f"'{prompt}' is no prompt of the text world; write one like 'western about pirates :'.")
    genre, topic = parts[0], parts[2]
    for word, known in ((genre, GENRES), (topic, TOPICS)):
        if word not in known:
            raise UserError(f"'{prompt}': the text world has no reviews about '{word}'. {nearest(word, known)}")
    thing, things = GENRES[genre]
    return {"<genre>": genre, "<topic>": topic, "<thing>": thing, "<things>": things}


def sample(prompt: str, generator: np.random.Generator, *, agreement: float = AGREEMENT) -> str:
    """One review of `prompt`; with another ``agreement`` (share of opinion words in the mood) that of another grammar.

    Raises:
        UserError: the prompt is none of this world (all functions that take one).
    """
    placed = _placed(prompt)
    rules = grammar(1 if generator.random() < 0.5 else -1, agreement)
    count = int(generator.choice(list(COUNTS), p=list(COUNTS.values())))
    words = [word for kind in _kinds(count) for word in rules.draw(kind, generator)[0]]
    return " ".join(placed.get(word, word) for word in words)


def _kinds(count: int) -> list[str]:
    return ["Opening", *["Middle"] * (count - 2), "Closing"]


def _lifted(prompt: str, text: str) -> tuple[str, ...]:
    """The words of `text`, the prompt's own replaced by what stands for them in the rules."""
    stands_for = {word: name for name, word in _placed(prompt).items()}
    known = _known()
    return tuple(stands_for.get(word, word) if word in known else _UNKNOWN for word in text.split())


@cache
def _known() -> frozenset[str]:
    return frozenset(vocabulary())


@cache
def _longest(kind: str) -> int:
    return grammar(1).longest(kind)


@lru_cache(maxsize=1 << 16)
def _sentence_probability(mood: int, kind: str, words: tuple[str, ...]) -> float:
    return grammar(mood).probability(kind, words)


def log_probability(prompt: str, review: str) -> float:
    """Natural log of the exact probability of `review`, its end included; -inf where the grammar cannot say it.

    Sums over both moods. Spaces beyond one between words do not count.
    """
    sentences = _sentences(_lifted(prompt, review))
    if len(sentences) not in COUNTS:
        return -math.inf
    by_mood = [
        math.prod(
            _sentence_probability(mood, kind, words)
            for kind, words in zip(_kinds(len(sentences)), sentences, strict=True)
        )
        for mood in (1, -1)
    ]
    likelihood = COUNTS[len(sentences)] * sum(by_mood) / 2
    return math.log(likelihood) if likelihood > 0 else -math.inf


def _sentences(words: Sequence[str]) -> list[tuple[str, ...]]:
    """`words` cut after each "." and "!"; what is left after the last of them is a piece of its own."""
    cuts = [0, *(index + 1 for index, word in enumerate(words) if word in _ENDS)]
    if cuts[-1] < len(words):
        cuts.append(len(words))
    return [tuple(words[start:end]) for start, end in pairwise(cuts)]


def fluent(prompt: str, review: str) -> bool:
    """Whether the grammar can say `review` of `prompt`."""
    return log_probability(prompt, review) > -math.inf


def smoothed_log_probability(prompt: str, review: str, epsilon: float = 1e-3) -> float:
    """Natural log of the probability of `review` when each sentence may go wrong: finite for every text.

    With probability `epsilon` a sentence is a salad: words drawn evenly from the vocabulary and one more word that
    stands for every unknown one, going on with probability 0.9 each time, so possibly none. Exact: summed over moods,
    numbers of sentences and all ways to cut the text into them.

    Raises:
        ValueError: epsilon is not within (0, 1).
    """
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon is {epsilon}; it must lie within (0, 1).")
    words = _lifted(prompt, review)
    per_word = _CONTINUES / (len(vocabulary()) + 1)
    likelihood = sum(_scaled_likelihood(mood, words, epsilon, per_word) for mood in (1, -1)) / 2
    return math.log(likelihood) + len(words) * math.log(per_word)


def _scaled_likelihood(mood: int, words: tuple[str, ...], epsilon: float, per_word: float) -> float:
    """Probability of `words` in a mood over ``per_word ** len(words)``, which keeps long texts from underflowing."""
    reached = [1.0] + [0.0] * len(words)
    reached = _one_sentence_later(mood, "Opening", words, reached, epsilon=epsilon, per_word=per_word)
    likelihood = 0.0
    for count in range(min(COUNTS), max(COUNTS) + 1):
        over = _one_sentence_later(mood, "Closing", words, reached, epsilon=epsilon, per_word=per_word)
        likelihood += COUNTS[count] * over[-1]
        reached = _one_sentence_later(mood, "Middle", words, reached, epsilon=epsilon, per_word=per_word)
    return likelihood


def _one_sentence_later(
    mood: int, kind: str, words: tuple[str, ...], reached: Sequence[float], *, epsilon: float, per_word: float
) -> list[float]:
    """Scaled chance, for each i, of having said ``words[:i]`` with a sentence of this kind at its end."""
    found = [epsilon * (1 - _CONTINUES) * total for total in accumulate(reached)]
    end, longest = len(words) + 1, _longest(kind)
    for start in range(len(words) - 1, -1, -1):
        end = start + 1 if words[start] in _ENDS else end
        unended, long = end > len(words), end - start > longest
        if not unended and not long and (chance := _sentence_probability(mood, kind, words[start:end])) > 0:
            found[end] += (1 - epsilon) * reached[start] * chance / per_word ** (end - start)
    return found


def true_perplexity(prompts: Sequence[str], reviews: Sequence[str], epsilon: float = 1e-3) -> float:
    """exp(-(sum of smoothed log-probabilities) / (sum of words + 1)), the end of a review counted as a word.

    That of a whole corpus: long reviews count for more. Lower is more fluent; 1 at the least.

    Raises:
        ValueError: there are no reviews, or not as many as prompts.
    """
    if not reviews:
        raise ValueError("There are no reviews to take the perplexity of.")
    pairs = list(zip(prompts, reviews, strict=True))
    total = sum(smoothed_log_probability(prompt, review, epsilon) for prompt, review in pairs)
    return math.exp(-total / sum(len(review.split()) + 1 for review in reviews))


def _opinions(words: Sequence[str]) -> list[float]:
    """The value of each opinion word, in [-1, 1]: its valence by its degree and negation, if they stand before it."""
    values = []
    for index, word in enumerate(words):
        if word in VALENCES:
            value, before = VALENCES[word], index - 1
            if before >= 0 and words[before] in DEGREES:
                value, before = max(-1.0, min(1.0, value * DEGREES[words[before]])), before - 1
            if before >= 0 and words[before] in NEGATIONS:
                value *= NEGATIONS[words[before]]
            values.append(value)
    return values


def sentiment(review: str) -> float:
    """Mean value of the opinion words, in [-1, 1]; 0 where there is none. Higher is more positive.

    A degree before the word scales its valence (kept within [-1, 1]), a negation turns it round and halves it. Looks at
    words only, so it is defined for broken text too, and broken text can fool it: `reward` cannot be fooled so. A mean,
    so saying more of the same gains nothing.

    >>> sentiment("the plot was truly good , but the jokes are never superb .")
    0.125
    """
    values = _opinions(review.split())
    return sum(values) / len(values) if values else 0.0


def reward(prompt: str, review: str) -> float:
    """`sentiment` of a review that the grammar can say of this prompt, else -1. Higher is better; in [-1, 1]."""
    return sentiment(review) if fluent(prompt, review) else -1.0


@cache
def _best_sentences(kind: str) -> dict[int, tuple[float, tuple[str, ...]]]:
    """Number of opinion words -> the highest sum of their values in such a sentence, with words that have it."""

    def alike(word: str) -> str:
        tables: tuple[Mapping[str, float], ...] = (VALENCES, DEGREES, NEGATIONS)
        return next((f"{index}:{table[word]}" for index, table in enumerate(tables) if word in table), "")

    best: dict[int, tuple[float, tuple[str, ...]]] = {}
    for words in grammar(1).expansions(kind, alike).values():
        values = _opinions(words)
        if len(values) not in best or sum(values) > best[len(values)][0]:
            best[len(values)] = (sum(values), words)
    return best


def best_review(prompt: str) -> str:
    """A review with the highest reward that the grammar allows, found by going through all combinations of values.

    Of those, one with the fewest opinion words.
    """
    placed = _placed(prompt)
    found: tuple[float, int, tuple[str, ...]] = (-math.inf, 0, ())
    for count in COUNTS:
        reached: dict[int, tuple[float, tuple[str, ...]]] = {0: (0.0, ())}
        for kind in _kinds(count):
            longer: dict[int, tuple[float, tuple[str, ...]]] = {}
            for (opinions, (total, words)), (more, (value, added)) in product(
                reached.items(), _best_sentences(kind).items()
            ):
                if total + value > longer.get(opinions + more, (-math.inf, ()))[0]:
                    longer[opinions + more] = (total + value, words + added)
            reached = longer
        rows = [(total / opinions, -opinions, words) for opinions, (total, words) in reached.items() if opinions]
        found = max([found, *rows])
    return " ".join(placed.get(word, word) for word in found[2])


@cache
def best_reward() -> float:
    """The highest reward that the grammar allows, computed; the same for every prompt."""
    return sentiment(best_review(prompts()[0]))
