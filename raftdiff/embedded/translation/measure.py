"""The figures on the card of translate-lm.

    python -m raftdiff.embedded.translation.measure

Prints, on training and on held-out sources, how good one translation of each is: drawn at temperature 1 and greedily;
and, beside them, careless translations, which the model learnt from.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raftdiff import embedded
from raftdiff.embedded.language import draw, load
from raftdiff.embedded.translation import world
from raftdiff.embedded.translation.careless import careless


def figures(prompts: Sequence[str], texts: Sequence[str]) -> dict[str, float]:
    """Means of every measure over translations."""
    pairs = list(zip(prompts, texts, strict=True))
    return {
        "adequate": float(np.mean([world.adequate(*pair) for pair in pairs])),
        "faithfulness": float(np.mean([world.faithfulness(*pair) for pair in pairs])),
        "fluent": float(np.mean([world.fluent(text) for text in texts])),
        "elegance": float(np.mean([world.elegance(text) for text in texts])),
        "quality": float(np.mean([world.quality(*pair) for pair in pairs])),
        "words": float(np.mean([len(text.split()) for text in texts])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=embedded.folder("translate-lm"))
    parser.add_argument("--samples", type=int, default=1000, help="sources of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    given = parser.parse_args()
    model, tokenizer = load(given.model)
    for name, apart in (("training", False), ("held-out", True)):
        generator = np.random.default_rng(given.seed)
        meant = [world.draw(generator, apart=apart) for _ in range(given.samples)]
        prompts = [world.source(one) for one in meant]
        told = {
            "drawn": draw(model, tokenizer, prompts, seed=given.seed),
            "greedy": draw(model, tokenizer, prompts, seed=given.seed, greedy=True),
            "careless": [careless(one, generator) for one in meant],
        }
        for how, texts in told.items():
            print(f"{name} sources, {how}:", *(f"{key} {value:.3f}" for key, value in figures(prompts, texts).items()))
        for prompt, text in zip(prompts[:3], told["drawn"], strict=False):
            print(f"  {prompt} {text}")


if __name__ == "__main__":
    main()
