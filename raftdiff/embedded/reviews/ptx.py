"""Reviews of the text world as the grammar draws them, for the PTX loss: python -m raftdiff.embedded.reviews.ptx > FILE

What review-lm was trained on, good and bad alike: two reviews of each of its training prompts.
"""

import json

import numpy as np

from raftdiff.embedded.reviews import world

EACH = 2


def written(seed: int = 1) -> list[dict[str, str]]:
    """``EACH`` reviews a prompt: {"prompt", "response"}."""
    generator = np.random.default_rng(seed)
    return [
        {"prompt": prompt, "response": world.sample(prompt, generator)}
        for prompt in world.training_prompts()
        for _ in range(EACH)
    ]


if __name__ == "__main__":
    for row in written():
        print(json.dumps(row))
