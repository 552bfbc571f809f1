"""JPEG size: a reward without a network, whose optimum anybody can see."""

import io
from collections.abc import Callable, Sequence
from typing import Literal, final

import torch
from jaxtyping import Float32
from PIL import Image
from pydantic import Field

from raftdiff.recipes.config import RewardConfig
from raftdiff.types import Sample

Direction = Literal["compressible", "incompressible"]


class JpegConfig(RewardConfig):
    type: Literal["jpeg"] = "jpeg"
    name: str = "jpeg"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    direction: Direction = "compressible"
    """compressible rewards small files (-kB), incompressible large ones (+kB)."""
    quality: int = Field(default=95, ge=1, le=95)
    """JPEG quality, 1 to 95; published numbers use 95."""

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "JpegReward":
        del device, resolve  # no model here
        return JpegReward(direction=self.direction, quality=self.quality, name=self.name)


@final
class JpegReward:
    """The size of the picture as a JPEG file, in kB of 1000 bytes; negated for ``compressible``. Higher is better.

    At quality 95 and 512 x 512 px, photographs are at 50 to 250 kB. The size grows with the resolution: compare within
    one only. Bytes differ a little between versions of libjpeg.

    Source: Black et al. 2023 (DDPO), arXiv:2305.13301. No weights.
    """

    def __init__(self, *, direction: Direction = "compressible", quality: int = 95, name: str = "jpeg") -> None:
        self.name = name
        self._quality = quality
        self._sign = -1 if direction == "compressible" else 1

    def score(self, samples: Sequence[Sample[Image.Image]]) -> Float32[torch.Tensor, " samples"]:
        sizes = [self._sign * jpeg_kilobytes(sample.media, self._quality) for sample in samples]
        return torch.tensor(sizes, dtype=torch.float32)


def jpeg_kilobytes(image: Image.Image, quality: int = 95) -> float:
    """Size as a JPEG file in kB (1 kB = 1000 bytes), metadata left out."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=quality)
    return buffer.tell() / 1000
