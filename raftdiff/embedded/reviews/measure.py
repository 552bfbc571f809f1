"""The figures on the card of review-lm, and what a policy could reach.

    python -m raftdiff.embedded.reviews.measure

Prints, on training and on held-out prompts: how many samples parse, their true reward and perplexity, and how far the
model is from the grammar, in nats a word (the end of a review counts as a word).
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raftdiff.embedded.language import draw, load, log_probabilities
from raftdiff.embedded.reviews import world


def words(texts: Sequence[str]) -> int:
    """Words of all texts, the end of each counted as one."""
    return sum(len(text.split()) + 1 for text in texts)


def figures(model: Any, tokenizer: Any, prompts: Sequence[str], *, seed: int) -> dict[str, float]:
    """What the card says, of one review of the model and one of the grammar for each prompt."""
    generator = np.random.default_rng(seed)
    own = draw(model, tokenizer, prompts, seed=seed)
    true = [world.sample(prompt, generator) for prompt in prompts]
    rewards = np.array([world.reward(prompt, text) for prompt, text in zip(prompts, own, strict=True)])
    entropy = -sum(world.log_probability(*pair) for pair in zip(prompts, true, strict=True)) / words(true)
    crossed = -float(log_probabilities(model, tokenizer, prompts, true).sum()) / words(true)
    return {
        "samples": float(len(prompts)),
        "parse": float(np.mean([world.fluent(*pair) for pair in zip(prompts, own, strict=True)])),
        "mean reward": float(rewards.mean()),
        "standard deviation of the reward": float(rewards.std()),
        "share with a reward of 0.9 or more": float((rewards >= 0.9).mean()),
        "words in a sample": words(own) / len(own) - 1,
        "true perplexity of the samples": world.true_perplexity(prompts, own),
        "true perplexity of the grammar's": world.true_perplexity(prompts, true),
        "words in one of the grammar's": words(true) / len(true) - 1,
        "entropy of the grammar, nats a word": entropy,
        "cross-entropy of the model, nats a word": crossed,
        "cross-entropy over entropy": crossed / entropy,
        "perplexity of the model on the grammar's": math.exp(crossed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path(__file__).parents[1] / "models" / "review-lm")
    parser.add_argument("--samples", type=int, default=2000, help="for each of the two lists (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    given = parser.parse_args()
    model, tokenizer = load(given.model)
    print(f"best reward {world.best_reward():.3f}: {world.best_review(world.prompts()[0])}")
    for name, prompts in (("training", world.training_prompts()), ("held out", world.held_out_prompts())):
        asked = (prompts * math.ceil(given.samples / len(prompts)))[: given.samples]
        print(f"\n{name} prompts")
        for label, value in figures(model, tokenizer, asked, seed=given.seed).items():
            print(f"  {label}: {value:.4g}")
        for prompt, text in zip(asked[:3], draw(model, tokenizer, asked[:3], seed=given.seed), strict=True):
            print(f"  {prompt} {text}")


if __name__ == "__main__":
    main()
