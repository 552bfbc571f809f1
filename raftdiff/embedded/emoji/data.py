"""Training pictures for the models that ship: art on coloured grounds, clean and degraded, as tensors in -1..1."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from raftdiff.embedded.emoji.world import (
    BACKGROUNDS,
    HIGH_QUALITY,
    LOW_QUALITY,
    OBJECTS,
    STYLES,
    Concept,
    training_concepts,
)

SIZE = 64
"""Pixels a side."""
VARIANTS = 6
"""Stored views of each piece of art: two upright, the others slightly turned, scaled and shifted."""
GROUND_NOISE = 0.02
"""Standard deviation of a ground's colour about its named one, in 0..1."""
LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""

Sheet = UInt8[np.ndarray, "objects styles side side 4"]
Pictures = Float[Tensor, "batch 3 64 64"]
Views = Float[Tensor, "arts variants 4 64 64"]
Rows = Int64[Tensor, " batch"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures and what they show, as indices into OBJECTS, STYLES and BACKGROUNDS."""

    pictures: Pictures
    objects: Rows
    styles: Rows
    backgrounds: Rows

    def concepts(self) -> list[Concept]:
        return concepts(torch.stack([self.objects, self.styles, self.backgrounds], dim=1))


@final
class World:
    """All art, as ``art_sheet`` gives it, ready to be put on a ground.

    ``seed`` decides the stored views and every batch. Pictures are painted on ``device``, from indices there, so that a
    GPU need not wait for a CPU to paint. Each kind of device has random numbers of its own.
    """

    def __init__(self, art: Sheet, *, seed: int, device: str = "cpu") -> None:
        self._generator = torch.Generator(device).manual_seed(seed)
        self._views = _views(art, self._generator)
        self._colours = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32, device=device) / 255

    @property
    def device(self) -> torch.device:
        return self._views.device

    def batch(self, size: int, *, only: Sequence[Concept] | None = None) -> Batch:
        """Clean pictures of random concepts, of all or of ``only`` these."""
        if only is None:
            counts = (len(OBJECTS), len(STYLES), len(BACKGROUNDS))
            objects, styles, grounds = (self._integers(count, size) for count in counts)
        else:
            table = indices(only).to(self.device)
            objects, styles, grounds = table[self._integers(len(table), size)].unbind(1)
        return Batch(self.paint(objects, styles, grounds), objects, styles, grounds)

    def paint(self, objects: Rows, styles: Rows, grounds: Rows, *, upright: bool = False) -> Pictures:
        """The art of each row on its ground; ``upright`` takes the plain view and the exact colour."""
        count = len(objects)
        variant = torch.zeros_like(objects) if upright else self._integers(VARIANTS, count)
        art = self._views[objects * len(STYLES) + styles, variant].float()
        colour = self._colours[grounds]
        if not upright:
            colour = colour + GROUND_NOISE * self._normal(count, 3)
        return ((art[:, :3] + (1 - art[:, 3:]) * colour[:, :, None, None]) * 2 - 1).clamp(-1, 1)

    def degrade(self, pictures: Pictures) -> Pictures:
        """Each picture spoilt in one way: blurred, noisy, cropped off-centre, or washed out."""
        ways = (_blurred, self._noisy, self._cropped, _washed_out)
        which = self._integers(len(ways), len(pictures))
        spoilt = pictures.clone()
        for index, way in enumerate(ways):
            rows = which == index
            if rows.any():
                spoilt[rows] = way(pictures[rows])
        return spoilt.clamp(-1, 1)

    def discolour(self, pictures: Pictures) -> Pictures:
        """Each picture as a photocopy: in shades of grey, so that the colour of its ground is lost."""
        grey = torch.einsum("bchw,c->bhw", pictures, torch.tensor(LUMINANCE, device=self.device))
        return grey[:, None].expand(-1, 3, -1, -1).contiguous()

    def _integers(self, below: int, count: int) -> Rows:
        return torch.randint(below, (count,), generator=self._generator, device=self.device)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, device=self.device)

    def _noisy(self, pictures: Pictures) -> Pictures:
        return pictures + 0.12 * self._normal(*pictures.shape)

    def _cropped(self, pictures: Pictures) -> Pictures:
        """Zoomed in by 1.4 on a place off the centre."""
        count = len(pictures)
        shift = 0.7 * (torch.rand(count, 2, generator=self._generator, device=self.device) - 0.5)
        scale = torch.full((count,), 0.7, device=self.device)
        return _warp(pictures, scale, torch.zeros_like(scale), shift)


def concepts(rows: Int64[Tensor, "rows 3"]) -> list[Concept]:
    """Indices into OBJECTS, STYLES and BACKGROUNDS as concepts."""
    names = list(BACKGROUNDS)
    return [Concept(OBJECTS[o], STYLES[s], names[b]) for o, s, b in rows.tolist()]


REMARKS = ("", HIGH_QUALITY, LOW_QUALITY)


def indices(concepts: Sequence[Concept]) -> Int64[Tensor, "concepts 3"]:
    """Concepts as indices into OBJECTS, STYLES and BACKGROUNDS."""
    names = list(BACKGROUNDS)
    rows = [[OBJECTS.index(c.object), STYLES.index(c.style), names.index(c.background)] for c in concepts]
    return torch.tensor(rows, dtype=torch.long)


def training_indices() -> Int64[Tensor, "concepts 3"]:
    """The base model's training concepts as indices; the hold-outs are not among them."""
    return indices(training_concepts())


def _views(sheet: Sheet, generator: torch.Generator) -> Views:
    """Premultiplied views of each piece of art at SIZE pixels, float16 in 0..1."""
    art = torch.from_numpy(sheet.reshape(-1, *sheet.shape[2:])).to(generator.device)
    rgba = (art.float() / 255).permute(0, 3, 1, 2)
    premultiplied = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1)
    upright = functional.avg_pool2d(premultiplied, premultiplied.shape[-1] // SIZE)
    turned = [_turned(premultiplied, generator) for _ in range(VARIANTS - 2)]
    return torch.stack([upright, upright, *turned], dim=1).half()


def _turned(art: Float[Tensor, "arts 4 side side"], generator: torch.Generator) -> Float[Tensor, "arts 4 64 64"]:
    count = len(art)

    def spread(width: float, *shape: int) -> Tensor:
        return width * (torch.rand(count, *shape, generator=generator, device=art.device) - 0.5)

    return functional.avg_pool2d(_warp(art, 1 + spread(0.16), spread(0.2), spread(0.16, 2)), art.shape[-1] // SIZE)


def _warp(
    pictures: Float[Tensor, "batch channels side side"],
    scale: Float[Tensor, " batch"],
    angle: Float[Tensor, " batch"],
    shift: Float[Tensor, "batch 2"],
) -> Float[Tensor, "batch channels side side"]:
    """Scaled by 1 / ``scale``, turned by ``angle`` radians, moved by ``shift`` half sides; edges are continued."""
    matrix = torch.zeros(len(pictures), 2, 3, device=pictures.device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = scale * angle.cos()
    matrix[:, 1, 0] = scale * angle.sin()
    matrix[:, 0, 1] = -matrix[:, 1, 0]
    matrix[:, :, 2] = shift
    grid = functional.affine_grid(matrix, list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, grid, align_corners=False, padding_mode="border")


def _blurred(pictures: Pictures) -> Pictures:
    small = functional.interpolate(pictures, scale_factor=0.25, mode="area")
    return functional.interpolate(small, size=(SIZE, SIZE), mode="bilinear")


def _washed_out(pictures: Pictures) -> Pictures:
    return 0.55 * pictures + 0.25
