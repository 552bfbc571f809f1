"""Preference pairs of the text world, for the offline recipes: python -m raftdiff.embedded.reviews.pairs > FILE

Two reviews of the same prompt as the grammar draws them, the more positive one chosen; those of a like mood are left
out. The prompts are those that review-lm was trained on.
"""

import json

import numpy as np

from raftdiff.embedded.reviews import world

EACH = 2
LEAST = 0.25
"""Smallest difference in reward."""


def pairs(seed: int = 0) -> list[dict[str, str]]:
    """``EACH`` pairs a prompt: {"prompt", "chosen", "rejected"}."""
    generator = np.random.default_rng(seed)
    found = []
    for prompt in world.training_prompts():
        kept = 0
        while kept < EACH:
            worse, better = sorted(
                (world.sample(prompt, generator) for _ in range(2)), key=lambda text: world.reward(prompt, text)
            )
            if world.reward(prompt, better) - world.reward(prompt, worse) >= LEAST:
                found.append({"prompt": prompt, "chosen": better, "rejected": worse})
                kept += 1
    return found


if __name__ == "__main__":
    for pair in pairs():
        print(json.dumps(pair))
