"""How far a candidate is from the nearest other of its prompt: against choosing the same picture or answer twice."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Float32
from pydantic import Field

from raftdiff.errors import Need
from raftdiff.measures.diversity import pixels
from raftdiff.measures.statistics import cosines, nearest, originals, unit_length
from raftdiff.measures.texts import alike
from raftdiff.ranking import Features
from raftdiff.recipes.config import RewardConfig
from raftdiff.rewards.clip_weights import Precision, clip_needs
from raftdiff.rewards.tower import open_tower
from raftdiff.scoring import by_prompt
from raftdiff.types import Sample

Likeness = Float[np.ndarray, "candidates candidates"]
Alike = Callable[[Sequence[Sample[Any]], Sequence[Sequence[int]]], list[Likeness]]
"""The cosines of any two candidates of each prompt, given all samples and the places of each prompt's."""


class DuplicatesConfig(RewardConfig):
    type: Literal["duplicates"] = "duplicates"
    name: str = "duplicates"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    discard: float | None = Field(default=None, gt=0, le=2)
    """Of candidates of a prompt that are nearer to each other than this, all but the first are discarded (NaN). None
    discards nothing."""
    model: str | None = None
    """The CLIP model on whose features pictures are compared; see `clip`. None compares the pixels, at 16 x 16."""
    pretrained: str | None = None
    """For an open_clip model name: whose weights; see `clip`."""
    quick_gelu: bool | None = None
    """Read only where `pretrained` is a file; see `clip`."""
    dtype: Precision = "float32"
    """Precision of the towers: float32, bfloat16 or float16."""
    batch_size: int = Field(default=32, ge=1)
    """Pictures per forward of the image tower."""

    def needs(self, resolve: Callable[[str], str]) -> Iterator[Need]:
        """What is not on this machine; see ``recipes.needs``."""
        if self.model is not None:
            yield from clip_needs(resolve(self.model), self.pretrained, self.quick_gelu)

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "DuplicatesReward":
        """The reward; ``resolve`` turns the name of a shipped model into its folder and leaves other names alone."""
        features: Features = pixels
        if self.model is not None:
            features = open_tower(
                resolve(self.model),
                self.pretrained,
                device=device,
                dtype=self.dtype,
                quick_gelu=self.quick_gelu,
                batch_size=self.batch_size,
            ).image_features
        return DuplicatesReward(by_features(features), discard=self.discard, name=self.name)


class DuplicateTextsConfig(RewardConfig):
    type: Literal["duplicates"] = "duplicates"
    name: str = "duplicates"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    discard: float | None = Field(default=None, gt=0, le=2)
    """Of answers to a prompt that are nearer to each other than this, all but the first are discarded (NaN). None
    discards nothing."""

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "DuplicatesReward":
        del device, resolve  # no model here
        return DuplicatesReward(by_words, discard=self.discard, name=self.name)


@final
class DuplicatesReward:
    """The distance to the nearest other candidate of the prompt, 1 - cos: 0 (there is an equal) to 2, in practice to 1.
    Higher is better: less like the others. A candidate alone has 2.

    Pictures are compared by the features of a CLIP model or by their pixels, answers by their words and pairs of words.
    With ``discard``, of candidates that are nearer to each other only the one of the lowest index stays, whatever other
    rewards say of them, and the others no longer count as neighbours.
    """

    whole_prompts: ClassVar[bool] = True

    def __init__(self, alike: Alike, *, discard: float | None = None, name: str = "duplicates") -> None:
        self.name = name
        self._alike, self._discard = alike, discard

    def score(self, samples: Sequence[Sample[Any]]) -> Float32[torch.Tensor, " samples"]:
        found = np.full(len(samples), np.nan)
        prompts = by_prompt((sample.prompt.id, sample.index) for sample in samples)
        for places, table in zip(prompts, self._alike(samples, prompts), strict=True):
            kept = np.ones(len(places), dtype=bool) if self._discard is None else originals(table, self._discard)
            found[np.array(places)[kept]] = nearest(table[np.ix_(kept, kept)])
        return torch.from_numpy(found).float()


def by_features(features: Features) -> Alike:
    """Pictures by their features, all in one pass."""

    def tables(samples: Sequence[Sample[Any]], prompts: Sequence[Sequence[int]]) -> list[Likeness]:
        unit = unit_length(features(samples).float().cpu().numpy())
        return [cosines(unit[list(places)]) for places in prompts]

    return tables


def by_words(samples: Sequence[Sample[str]], prompts: Sequence[Sequence[int]]) -> list[Likeness]:
    """Answers by the words that they share, and pairs of words."""
    return [alike([samples[place].media for place in places]) for places in prompts]
