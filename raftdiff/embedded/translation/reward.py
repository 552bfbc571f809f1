"""The world of translation's truth as a reward: its grammar says how good a translation is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, final

import torch
from jaxtyping import Float32
from pydantic import Field

from raftdiff.embedded.translation import world
from raftdiff.recipes.config import RewardConfig
from raftdiff.types import Prompt, Sample

Aspect = Literal["adequate", "faithful", "fluent", "elegant", "quality"]
_MEASURES: Mapping[Aspect, Callable[[str, str], float]] = {
    "adequate": world.adequate,
    "faithful": world.faithfulness,
    "fluent": lambda _, text: world.fluent(text),
    "elegant": lambda _, text: world.elegance(text),
    "quality": world.quality,
}


class RenderingConfig(RewardConfig):
    """How good a translation into the language of translate-lm is, by its grammar."""

    type: Literal["rendering"] = "rendering"
    name: str = "rendering"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    aspect: Aspect = "quality"
    """adequate: it says what the source says, 1, or not, 0; faithful: how much of it; fluent: it is grammatical, 1, or
    not, 0; elegant: the share of its choices in which it took the finer, 0 where it is not fluent; quality: 0 unless
    adequate and fluent, else 0.5 and half of how elegant it is."""

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "RenderingReward":
        del device, resolve  # no model here
        return RenderingReward(self.aspect, name=self.name)


@final
class RenderingReward:
    """0 to 1, higher is better, exact, no weights. Of sources of the world of translation alone."""

    def __init__(self, aspect: Aspect = "quality", *, name: str = "rendering") -> None:
        self.name = name
        self._measure = _MEASURES[aspect]

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """
        Raises:
            UserError: a prompt is no source of this world.
        """
        world.check([prompt.caption for prompt in prompts])

    def score(self, samples: Sequence[Sample[str]]) -> Float32[torch.Tensor, " samples"]:
        values = [float(self._measure(one.prompt.caption, one.media)) for one in samples]
        return torch.tensor(values, dtype=torch.float32)
