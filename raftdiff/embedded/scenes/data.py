"""Training pictures of scenes, painted from the art on any device, clean and spoilt, as tensors in -1..1."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from raftdiff.embedded.scenes.art import OBJECTS as ALL_OBJECTS
from raftdiff.embedded.scenes.art import STYLES as ALL_STYLES
from raftdiff.embedded.scenes.layout import SIZE, Layout, arrange
from raftdiff.embedded.scenes.rows import LOOKS, OPEN, Rows, look_shares, parts
from raftdiff.embedded.scenes.world import COLOURS, GROUNDS, MOST, OBJECTS

TEXTURE = 64
"""Side of a stored piece of art, in pixels."""
LEVELS = (64, 40)
"""Sides of the art inside its texture: the smaller is for small objects, which would flicker otherwise."""
GROUND_NOISE = 0.015
"""Standard deviation of a ground's colour about its named one, in 0..1."""
ART = {"cartoon": "cartoon", "sketched": "line sketch"}
"""Style of a scene -> style of the sheet of art."""
FLAWS = ("blurred", "noisy", "washed out", "cropped", "photocopied", "photocopied")
"""Ways to spoil a picture, those of the web's; the last is twice as likely."""
LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""

Sheet = UInt8[np.ndarray, "objects styles side side 4"]
Pictures = Float[Tensor, "batch 3 80 80"]
Textures = Float[Tensor, "textures 4 64 64"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures and what stands where in them."""

    pictures: Pictures
    layout: Layout
    objects: Int64[Tensor, "batch 4"]
    """Index into OBJECTS; -1 where there is nothing, or nothing that a person would recognise."""
    looks: Int64[Tensor, "batch 4"]
    """Index into LOOKS."""
    grounds: Int64[Tensor, " batch"]
    """Index into GROUNDS."""


@final
class Painter:
    """Paints scenes; ``seed`` decides all that their captions leave open.

    ``held_out`` says whether an open style may come out as one that the base model must never see. Each kind of device
    has random numbers of its own.
    """

    def __init__(self, art: Sheet, *, seed: int, device: str = "cpu", held_out: bool = False) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)
        self._textures = textures(art).to(device)
        self._shares = look_shares(all_of_them=held_out).to(device)
        self._inks = torch.tensor(list(COLOURS.values()), dtype=torch.float32, device=device) / 255
        self._grounds = torch.tensor(list(GROUNDS.values()), dtype=torch.float32, device=device) / 255

    @property
    def device(self) -> torch.device:
        return self._textures.device

    def paint(self, rows: Rows, *, mush: float = 0.0) -> Batch:
        """A picture of each row, on this painter's device; a share ``mush`` of the objects is made unrecognisable."""
        with self._exactly():
            return self._paint(rows.to(self.device), mush)

    def _exactly(self) -> torch.autocast:
        """In float32 whatever computes around: half precision would shake every place by a part of a pixel."""
        return torch.autocast(self.device.type, enabled=False)

    def _paint(self, rows: Rows, mush: float) -> Batch:
        layout = arrange(rows, self._generator)
        part = layout.part.clamp(min=0)
        there = layout.part >= 0
        objects = parts(rows)[:, :, 0].gather(1, part)
        looks = self._looks(rows).gather(1, part)
        grounds = torch.where(rows[:, -1] == OPEN, self._integers(len(GROUNDS), len(rows)), rows[:, -1])
        art = self._art(objects, looks, layout)
        if mush:
            spoilt = there & (self._uniform(*there.shape) < mush)
            art[spoilt] = self._mush(art[spoilt])
            objects = torch.where(spoilt, OPEN, objects)
        pictures = self._compose(art, layout, there, grounds)
        return Batch(pictures, layout, torch.where(there, objects, OPEN), looks, grounds)

    def spoil(self, pictures: Pictures, ways: Sequence[str] = FLAWS) -> Pictures:
        """Each picture spoilt in one of these ways."""
        known = {
            "blurred": _blurred,
            "noisy": self._noisy,
            "washed out": _washed_out,
            "cropped": self._cropped,
            "photocopied": photocopy,
        }
        which = self._integers(len(ways), len(pictures))
        spoilt = pictures.clone()
        for index, way in enumerate(ways):
            rows = (which == index).nonzero()[:, 0]
            if len(rows):
                with self._exactly():
                    spoilt[rows] = known[way](pictures[rows])
        return spoilt.clamp(-1, 1)

    def _looks(self, rows: Rows) -> Int64[Tensor, "rows 2"]:
        """A look for each part, drawn among those that its words allow."""
        named = parts(rows)
        style, colour = named[:, :, 3:4], named[:, :, 4:5]
        look = torch.arange(len(LOOKS), device=rows.device)
        allowed = (style == OPEN) | ((style == 0) == (look == 0))
        allowed &= (colour == OPEN) | (look == colour + 1)
        # A style or a colour that is said is painted, even a held-out one.
        shares = self._shares[named[:, :, 0].clamp(min=0)].clamp(min=1e-9) * allowed
        return torch.multinomial(shares.view(-1, len(LOOKS)), 1, generator=self._generator).view(-1, 2)

    def _art(self, objects: Int64[Tensor, "rows 4"], looks: Int64[Tensor, "rows 4"], layout: Layout) -> Tensor:
        """The texture of each place, (rows, 4, 4, 64, 64)."""
        level = (layout.size <= LEVELS[1]).long()
        sketched = (looks > 0).long()
        art = self._textures[(objects.clamp(min=0) * len(ART) + sketched) * len(LEVELS) + level].float()
        inks = self._inks[(looks - 1).clamp(min=0)]
        inked = art[:, :, 3:] * inks[..., None, None]
        art[:, :, :3] = torch.where((looks > 0)[..., None, None, None], inked, art[:, :, :3])
        return art

    def _compose(
        self, art: Tensor, layout: Layout, there: Bool[Tensor, "rows 4"], grounds: Int64[Tensor, " rows"]
    ) -> Pictures:
        count = len(art)
        grid = functional.affine_grid(_placement(layout).view(-1, 2, 3), [count * MOST, 4, SIZE, SIZE], False)
        drawn = functional.grid_sample(art.view(-1, 4, TEXTURE, TEXTURE), grid, align_corners=False)
        drawn = drawn.view(count, MOST, 4, SIZE, SIZE) * there[:, :, None, None, None]
        colour = self._grounds[grounds] + GROUND_NOISE * self._normal(count, 3)
        canvas = colour[:, :, None, None].expand(-1, -1, SIZE, SIZE)
        for place in range(MOST):
            canvas = drawn[:, place, :3] + (1 - drawn[:, place, 3:]) * canvas
        return (canvas * 2 - 1).clamp(-1, 1)

    def _mush(self, art: Float[Tensor, "arts 4 64 64"]) -> Float[Tensor, "arts 4 64 64"]:
        """What no person would recognise: two things in one, halves of two, one smeared, or one torn out of shape."""
        count = len(art)
        if not count:
            return art
        other = art[torch.randperm(count, generator=self._generator, device=self.device)].flip(-1)
        left = torch.arange(TEXTURE, device=self.device) < TEXTURE // 2
        ways = [0.5 * art + 0.5 * other, torch.where(left, art, other), _smeared(art), self._torn(art)]
        which = self._integers(len(ways), count)
        return torch.stack(ways)[which, torch.arange(count, device=self.device)]

    def _torn(self, art: Float[Tensor, "arts 4 64 64"]) -> Float[Tensor, "arts 4 64 64"]:
        shift = functional.interpolate(1.1 * self._normal(len(art), 2, 5, 5), size=TEXTURE, mode="bilinear")
        plain = torch.eye(2, 3, device=self.device).expand(len(art), -1, -1)
        grid = functional.affine_grid(plain, list(art.shape), False) + 0.5 * shift.permute(0, 2, 3, 1)
        return functional.grid_sample(art, grid, align_corners=False, padding_mode="border")

    def _noisy(self, pictures: Pictures) -> Pictures:
        return pictures + 0.15 * self._normal(*pictures.shape)

    def _cropped(self, pictures: Pictures) -> Pictures:
        """Zoomed in by 1.4 on a place off the centre."""
        matrix = torch.zeros(len(pictures), 2, 3, device=self.device)
        matrix[:, 0, 0] = matrix[:, 1, 1] = 0.7
        matrix[:, :, 2] = 0.6 * (self._uniform(len(pictures), 2) - 0.5)
        grid = functional.affine_grid(matrix, list(pictures.shape), False)
        return functional.grid_sample(pictures, grid, align_corners=False, padding_mode="border")

    def _integers(self, below: int, count: int) -> Int64[Tensor, " count"]:
        return torch.randint(below, (count,), generator=self._generator, device=self.device)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, device=self.device)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._generator, device=self.device)


def textures(sheet: Sheet) -> Textures:
    """Premultiplied art of every object, style and level, float16 in 0..1, in that order."""
    objects = [ALL_OBJECTS.index(name) for name in OBJECTS]
    styles = [ALL_STYLES.index(name) for name in ART.values()]
    art = torch.from_numpy(sheet[np.ix_(objects, styles)].reshape(-1, *sheet.shape[2:])).permute(0, 3, 1, 2)
    rgba = art.float() / 255
    premultiplied = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1)
    levels = []
    for side in LEVELS:
        small = functional.interpolate(premultiplied, size=(side, side), mode="area")
        margin = (TEXTURE - side) // 2
        levels.append(functional.pad(small, [margin] * 4))
    return torch.stack(levels, dim=1).flatten(0, 1).half()


def _placement(layout: Layout) -> Float[Tensor, "rows 4 2 3"]:
    """From a place in the picture to a place in the texture, both in -1..1."""
    content = torch.where(layout.size <= LEVELS[1], LEVELS[1] / TEXTURE, LEVELS[0] / TEXTURE)
    scale = content * SIZE / layout.size
    mirror = torch.where(layout.mirrored, -1.0, 1.0)
    cos, sin = layout.angle.cos() * scale, layout.angle.sin() * scale
    turn = torch.stack([torch.stack([mirror * cos, mirror * sin], -1), torch.stack([-sin, cos], -1)], -2)
    centre = layout.centre * (2 / SIZE) - 1
    return torch.cat([turn, -turn @ centre[..., None]], dim=-1)


def photocopy(pictures: Pictures) -> Pictures:
    """In shades of grey, so that the colours are lost."""
    weights = torch.tensor(LUMINANCE, dtype=pictures.dtype, device=pictures.device)[:, None, None]
    return (pictures * weights).sum(dim=1, keepdim=True).expand(-1, 3, -1, -1).contiguous()


def _smeared(art: Tensor) -> Tensor:
    return functional.interpolate(functional.avg_pool2d(art, 11, stride=11, padding=1), size=TEXTURE, mode="bilinear")


def _blurred(pictures: Pictures) -> Pictures:
    small = functional.interpolate(pictures, scale_factor=0.25, mode="area")
    return functional.interpolate(small, size=(SIZE, SIZE), mode="bilinear")


def _washed_out(pictures: Pictures) -> Pictures:
    return 0.55 * pictures + 0.25
