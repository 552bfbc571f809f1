"""The text world's truth as a reward and as a judge: the grammar itself says how good a review is."""

from collections.abc import Callable, Sequence
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Float32
from pydantic import Field

from raftdiff.embedded.reviews import world
from raftdiff.recipes.config import RewardConfig
from raftdiff.types import Prompt, Sample


class ReviewConfig(RewardConfig):
    """How positive a review of the text world is, by its grammar."""

    type: Literal["review"] = "review"
    name: str = "review"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    fluency: bool = True
    """What does not parse scores -1. With false any text scores the mean valence of its opinion words: a proxy that can
    be hacked."""

    threshold: float | None = Field(default=None, ge=-1, le=1)
    """With it the score is 1 for reviews from here on and -1 for the others: right and wrong, as RAFT++ wants them."""

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "ReviewReward":
        del device, resolve  # no model here
        return ReviewReward(fluency=self.fluency, threshold=self.threshold, name=self.name)


@final
class ReviewReward:
    """Mean valence of the review's opinion words, -1 to 1; higher is better. Exact, no weights.

    The best that the grammar allows is ``reviews.best_reward()``.
    """

    def __init__(self, *, fluency: bool = True, threshold: float | None = None, name: str = "review") -> None:
        self.name = name
        self._fluency, self._threshold = fluency, threshold

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """
        Raises:
            UserError: a prompt is none of the text world, and whether its answers parse is asked.
        """
        if self._fluency:
            world.check([prompt.caption for prompt in prompts])

    def score(self, samples: Sequence[Sample[str]]) -> Float32[torch.Tensor, " samples"]:
        values = [
            world.reward(one.prompt.caption, one.media) if self._fluency else world.sentiment(one.media)
            for one in samples
        ]
        if self._threshold is not None:
            values = [1.0 if value >= self._threshold else -1.0 for value in values]
        return torch.tensor(values, dtype=torch.float32)


def judge(texts: Sequence[str], captions: Sequence[str]) -> dict[str, np.ndarray]:
    """Whether each review parses for its prompt, and whether it is positive on the whole."""
    return {
        "fluent": np.array([world.fluent(caption, text) for caption, text in zip(captions, texts, strict=True)]),
        "positive": np.array([world.sentiment(text) > 0 for text in texts]),
    }


def true_perplexity(samples: Sequence[Sample[str]]) -> float:
    """Of the reviews under the grammar, a word: finite for broken text too. Lower is likelier."""
    return world.true_perplexity([one.prompt.caption for one in samples], [one.media for one in samples])
