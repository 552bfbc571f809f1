"""What the pixels say, as rewards without weights: sharpness, exposure, saturation, edges, colours.

At weight 0 each looks on, with a ``target`` it keeps another reward in bounds, and alone it is pleased by the wrong
pictures.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float32
from PIL import Image
from pydantic import Field, field_validator

from raftdiff.measures import signals
from raftdiff.recipes.config import RewardConfig
from raftdiff.types import Sample

Signal = Callable[[signals.Pixels], float]


class SignalConfig(RewardConfig):
    """What all of them have."""

    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward; below 0 for as little as possible."""
    target: float | None = Field(default=None, allow_inf_nan=False)
    """The best value, within the signal's range: the reward is then minus the distance to it. Without one, more is
    better."""
    span: ClassVar[tuple[float, float]]
    """The least and the most that the signal says of any picture."""

    @field_validator("target")
    @classmethod
    def _within(cls, target: float | None) -> float | None:
        least, most = cls.span
        if target is not None and not least <= target <= most:
            raise ValueError(f"this signal is {least:g} to {most:g} for any picture; name a value within")
        return target


class SharpnessConfig(SignalConfig):
    type: Literal["sharpness"] = "sharpness"
    name: str = "sharpness"
    """The column of this reward in tables and logs."""
    span = (0, 1020)

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "SignalReward":
        del device, resolve  # no model here, nor below
        return SignalReward(signals.sharpness, target=self.target, name=self.name)


class ExposureConfig(SignalConfig):
    type: Literal["exposure"] = "exposure"
    name: str = "exposure"
    """The column of this reward in tables and logs."""
    span = (0.04, 1)

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "SignalReward":
        del device, resolve
        return SignalReward(signals.exposure, target=self.target, name=self.name)


class SaturationConfig(SignalConfig):
    type: Literal["saturation"] = "saturation"
    name: str = "saturation"
    """The column of this reward in tables and logs."""
    span = (0, 1)

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "SignalReward":
        del device, resolve
        return SignalReward(signals.saturation, target=self.target, name=self.name)


class EdgeDensityConfig(SignalConfig):
    type: Literal["edge_density"] = "edge_density"
    name: str = "edge_density"
    """The column of this reward in tables and logs."""
    span = (0, 1)
    threshold: float = Field(default=signals.EDGE, ge=0, le=1)
    """What counts as an edge: a step of so much of the way from black to white, over one pixel."""

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "SignalReward":
        del device, resolve
        threshold = self.threshold
        return SignalReward(lambda pixels: signals.edge_density(pixels, threshold), target=self.target, name=self.name)


class ColourEntropyConfig(SignalConfig):
    type: Literal["colour_entropy"] = "colour_entropy"
    name: str = "colour_entropy"
    """The column of this reward in tables and logs."""
    span = (0, 9)

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "SignalReward":
        del device, resolve
        return SignalReward(signals.colour_entropy, target=self.target, name=self.name)


@final
class SignalReward:
    """A signal of each picture, in its own unit and range; see ``measures.signals``. Higher is better.

    With a ``target`` it is minus the distance to that, 0 at best. ``sharpness`` and ``edge_density`` depend on the
    resolution: compare within one only. No caption is read, no weights are needed.
    """

    def __init__(self, signal: Signal, *, target: float | None = None, name: str) -> None:
        self.name = name
        self._signal, self._target = signal, target

    def score(self, samples: Sequence[Sample[Image.Image]]) -> Float32[torch.Tensor, " samples"]:
        found = [self._signal(signals.rgb(sample.media)) for sample in samples]
        if self._target is not None:
            found = [-abs(value - self._target) for value in found]
        return torch.tensor(found, dtype=torch.float32)
