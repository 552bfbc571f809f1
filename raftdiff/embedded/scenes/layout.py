"""Where the objects of a scene stand, how large and how turned: drawn at random until what the caption says holds."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from raftdiff.embedded.scenes.rows import Rows, parts, slots

SIZE = 80
"""Pixels a side of a picture."""
TRIES = 64
"""Arrangements drawn for each picture, of which the first that fits is taken, or the best where none does."""
NEAREST = 0.9
"""Least distance of two centres, in mean sizes."""
TURN = 0.22
"""Largest turn, in radians."""
STEEP = 1.3
"""How much further apart two related objects stand along the relation's axis than across it, at least."""
# Pixels, by the number of objects in the picture: least and most where the caption leaves the size open, then of small
# and of large ones. Said sizes are read off against MIDDLE.
_OPEN = ((30.0, 58.0), (29.0, 41.0), (28.0, 35.0), (28.0, 32.0))
_SMALL = (28.0, 32.0)
_LARGE = ((46.0, 62.0), (38.0, 41.0))
MIDDLE = 35.5
"""Pixels: what is smaller is small."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Of each of the four places in each picture."""

    part: Int64[Tensor, "rows 4"]
    """Which part of the caption fills it; -1 where there is none."""
    centre: Float[Tensor, "rows 4 2"]
    """x and y in pixels."""
    size: Float[Tensor, "rows 4"]
    """Side of the art in pixels."""
    angle: Float[Tensor, "rows 4"]
    """Radians."""
    mirrored: Bool[Tensor, "rows 4"]


def arrange(rows: Rows, generator: torch.Generator) -> Layout:
    """An arrangement of each row, on its device."""
    device, count = rows.device, len(rows)
    part = slots(rows)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    size = _sizes(rows, part, uniform(count, 4))
    half = size[:, None, :, None] / 2
    centres = half + uniform(count, TRIES, 4, 2) * (SIZE - 2 * half)
    room = torch.minimum(_apart(centres, size, part), _related(centres, size, rows))
    fits = room >= 0
    first = torch.where(fits.any(dim=1), fits.float().argmax(dim=1), room.argmax(dim=1))
    chosen = centres[torch.arange(count, device=device), first]
    return Layout(part, chosen, size, TURN * (2 * uniform(count, 4) - 1), uniform(count, 4) < 0.5)


def _sizes(rows: Rows, part: Int64[Tensor, "rows 4"], chance: Float[Tensor, "rows 4"]) -> Float[Tensor, "rows 4"]:
    device = rows.device
    said = parts(rows)[:, :, 2].gather(1, part.clamp(min=0))
    total = (part >= 0).sum(dim=1)
    limits = torch.tensor(_OPEN, device=device)[total - 1][:, None].expand(-1, 4, -1)
    large = torch.tensor(_LARGE, device=device)[(total - 1).clamp(max=1)][:, None]
    limits = torch.where((said == 0)[..., None], torch.tensor(_SMALL, device=device), limits)
    limits = torch.where((said == 1)[..., None], large, limits)
    return limits[..., 0] + chance * (limits[..., 1] - limits[..., 0])


def _apart(
    centres: Float[Tensor, "rows tries 4 2"], size: Float[Tensor, "rows 4"], part: Int64[Tensor, "rows 4"]
) -> Float[Tensor, "rows tries"]:
    """Least room between two objects, in pixels; below 0 where they overlap too much."""
    one, other = torch.triu_indices(4, 4, 1, device=centres.device)
    distance = (centres[:, :, one] - centres[:, :, other]).norm(dim=-1)
    wanted = NEAREST * (size[:, one] + size[:, other]) / 2
    there = (part[:, one] >= 0) & (part[:, other] >= 0)
    return torch.where(there[:, None], distance - wanted[:, None], 1e3).amin(dim=-1)


def _related(
    centres: Float[Tensor, "rows tries 4 2"], size: Float[Tensor, "rows 4"], rows: Rows
) -> Float[Tensor, "rows tries"]:
    """How well the relation holds, in pixels; below 0 where it does not."""
    relation = rows[:, -2]
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0], device=rows.device)[relation]
    apart = centres[:, :, 1] - centres[:, :, 0]
    upright = (relation >= 2)[:, None]
    along = sign[:, None] * torch.where(upright, apart[..., 1], apart[..., 0])
    across = torch.where(upright, apart[..., 0], apart[..., 1]).abs()
    return torch.where((relation >= 0)[:, None], along - STEEP * across, 1e3)
