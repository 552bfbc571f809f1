"""Length of the answer: nearer to a target, more, or less."""

import re
from collections.abc import Callable, Sequence
from typing import Literal, final

import torch
from jaxtyping import Float32
from pydantic import Field, model_validator

from raftdiff.measures.texts import spaced
from raftdiff.recipes.config import RewardConfig
from raftdiff.types import Sample

Unit = Literal["words", "characters", "tokens"]
Direction = Literal["target", "more", "fewer"]
WORD = re.compile(r"\w+(?:['’\-]\w+)*")


class LengthConfig(RewardConfig):
    type: Literal["length"] = "length"
    name: str = "length"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    unit: Unit = "words"
    """words as people count them (of Chinese and Japanese each character), characters, or tokens: what white space
    separates."""
    direction: Direction = "target"
    """target rewards nearness to it, more and fewer reward length itself."""
    target: int | None = Field(default=None, ge=0)
    """The wanted length; with more or fewer, the length beyond which nothing is gained."""

    @model_validator(mode="after")
    def _aims_somewhere(self) -> "LengthConfig":
        if self.direction == "target" and self.target is None:
            raise ValueError("'target' is required here, unless direction is more or fewer")
        return self

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "LengthReward":
        del device, resolve  # no model here
        return LengthReward(unit=self.unit, direction=self.direction, target=self.target, name=self.name)


@final
class LengthReward:
    """A number of ``unit``s; higher is better. With n the answer's length and t the target:

    ``target``: -|n - t|, from -inf to 0. ``more``: n, at most t. ``fewer``: -n, at most -t.

    Of Chinese and Japanese each character is a word; for other scripts without spaces, such as Thai, count characters.
    The tokens are not those of a model. Characters are Unicode code points. No licence, no weights.
    """

    def __init__(
        self, *, unit: Unit = "words", direction: Direction = "target", target: int | None = None, name: str = "length"
    ) -> None:
        self.name = name
        self._unit, self._direction, self._target = unit, direction, target

    def score(self, samples: Sequence[Sample[str]]) -> Float32[torch.Tensor, " samples"]:
        return torch.tensor([self._score(length(sample.media, self._unit)) for sample in samples], dtype=torch.float32)

    def _score(self, n: int) -> int:
        if self._direction == "target":
            return -abs(n - (self._target or 0))
        if self._direction == "more":
            return n if self._target is None else min(n, self._target)
        return -n if self._target is None else -max(n, self._target)


def length(text: str, unit: Unit = "words") -> int:
    """How long the text is.

    >>> length("It's a well-known fact, 42."), length("a, b", "tokens"), length("a, b", "characters")
    (5, 2, 4)
    >>> length("我很高兴, really")
    5
    """
    if unit == "characters":
        return len(text)
    return len(text.split()) if unit == "tokens" else len(WORD.findall(spaced(text)))
