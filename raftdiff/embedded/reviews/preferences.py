"""Preference pairs of the text world with known truth and wrong labels, as the data of a reward model have them.

    python -m raftdiff.embedded.reviews.preferences --count 400 --noise 0.2 > FILE

Of each prompt two answers: half of them are `review-lm`'s own, the others the grammar's, of which some are broken (two
words swapped, or one left out). The truth prefers the higher ``world.reward``, in which broken text is worst; a share
of the labels, drawn evenly, says the opposite.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from raftdiff import embedded
from raftdiff.embedded.reviews import world
from raftdiff.seeds import fold

OWN, BROKEN = 0.5, 0.1
"""Shares of answers that are the model's own and broken."""
WORDS = 18
"""Longest answer: a short one is read quickly, and has few opinions to weigh."""
GAP = 0.1
"""Smallest difference in true reward: close pairs are allowed, ties are not."""

Answers = Mapping[str, Sequence[str]]
"""Prompt -> texts."""


def own_answers(prompts: Sequence[str], each: int, *, seed: int = 0, model: Any = None) -> dict[str, list[str]]:
    """``each`` reviews of each prompt that a language model draws, review-lm unless told: (model, tokenizer)."""
    from raftdiff.embedded.language import draw, load

    lm, tokenizer = model or load(embedded.folder("review-lm"))
    drawn: dict[str, list[str]] = {prompt: [] for prompt in prompts}
    asked = list(prompts) * each
    for prompt, text in zip(asked, draw(lm, tokenizer, asked, seed=fold(seed, "own") % 2**32), strict=True):
        drawn[prompt].append(text)
    return drawn


def preferences(
    own: Answers, count: int, *, seed: int = 0, noise: float = 0.0, words: int = WORDS, gap: float = GAP
) -> list[dict[str, Any]]:
    """``count`` pairs on the prompts of ``own``, each {"id", "prompt", "chosen", "rejected", "truth", "gap"}.

    Args:
        own: answers of a model to draw from.
        noise: share of wrong labels, rounded to whole pairs. Of one seed the pairs are the same at every noise, and
            what is wrong at a small share is so at a larger one.
        words: how long an answer may be.
        gap: smallest difference in true reward.

    ``truth`` is 1 where the label is right, else 0; ``gap`` is by how much the better answer's true reward is higher.

    Raises:
        ValueError: noise is no share, or no answer of ``own`` is short enough.
    """
    if not 0 <= noise <= 1:
        raise ValueError(f"noise is {noise}; it is a share, within [0, 1].")
    generator = np.random.default_rng(fold(seed, "pairs"))
    short = {
        prompt: kept
        for prompt in own
        if (kept := [text for text in own[prompt] if _length(text) in range(1, words + 1)])
    }
    if not short:
        raise ValueError(f"No answer has between 1 and {words} words.")
    pairs = _pairs(short, generator, words, gap)
    wrong = wrong_labels(count, seed=seed, noise=noise)
    found = []
    for place, (prompt, better, worse) in zip(range(count), pairs, strict=False):
        chosen, rejected = (worse, better) if place in wrong else (better, worse)
        apart = round(world.reward(prompt, better) - world.reward(prompt, worse), 6)
        told = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "truth": int(place not in wrong)}
        found.append({"id": f"{place:04d}", **told, "gap": apart})
    return found


def wrong_labels(count: int, *, seed: int, noise: float) -> set[int]:
    """Which of the pairs of a seed are labelled wrongly."""
    return set(np.random.default_rng(fold(seed, "wrong")).permutation(count)[: round(noise * count)].tolist())


def broken(text: str, generator: np.random.Generator) -> str:
    """Two neighbouring words swapped, or one left out. Now and then that still parses."""
    words = text.split()
    at = int(generator.integers(len(words) - 1))
    words[at : at + 2] = words[at + 1 : at + 2] if generator.random() < 0.5 else words[at : at + 2][::-1]
    return " ".join(words)


def _pairs(own: Answers, generator: np.random.Generator, words: int, gap: float) -> Iterator[tuple[str, str, str]]:
    """Prompts, each with a better and a worse answer, without end."""
    prompts = list(own)
    while True:
        prompt = prompts[int(generator.integers(len(prompts)))]
        one, other = (_answer(prompt, own[prompt], generator, words) for _ in range(2))
        apart = world.reward(prompt, one) - world.reward(prompt, other)
        if abs(apart) >= gap:
            yield (prompt, one, other) if apart > 0 else (prompt, other, one)


def _answer(prompt: str, own: Sequence[str], generator: np.random.Generator, words: int) -> str:
    source = generator.random()
    if source < OWN:
        return own[int(generator.integers(len(own)))]
    text = world.sample(prompt, generator)
    while _length(text) > words:
        text = world.sample(prompt, generator)
    return broken(text, generator) if source >= 1 - BROKEN else text


def _length(text: str) -> int:
    return len(text.split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=400, help="pairs (default: %(default)s)")
    parser.add_argument("--noise", type=float, default=0.0, help="share of wrong labels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--held-out", action="store_true", help="on the prompts that review-lm was never trained on")
    given = parser.parse_args()
    asked = world.held_out_prompts() if given.held_out else world.training_prompts()
    for pair in preferences(own_answers(asked, 4, seed=given.seed), given.count, seed=given.seed, noise=given.noise):
        print(json.dumps(pair))


if __name__ == "__main__":
    main()
