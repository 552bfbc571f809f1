"""Scenes as rows of small integers, which a painter reads on any device without a loop over pictures."""

import random
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from raftdiff.embedded.scenes.world import (
    COLOURS,
    GROUNDS,
    MOST,
    OBJECTS,
    RELATIONS,
    SIZES,
    STYLES,
    Part,
    Scene,
    held_out_colours,
    held_out_styles,
    random_scene,
)

LOOKS = ("cartoon", *COLOURS)
"""How an object can look: as a cartoon, or sketched in one of the colours."""
CARTOON_SHARE = 0.6
"""Of the objects whose style is open."""
OPEN = -1
PART = 5
"""Columns of a part: object, count, size, style, colour."""
COLUMNS = 2 * PART + 2
"""Then the relation and the ground."""

Rows = Int64[Tensor, "rows 12"]


def to_rows(scenes: Sequence[Scene]) -> Rows:
    """Indices into the lists of ``world``; ``OPEN`` for what is left open, and for the object of a missing part."""
    return torch.tensor([_row(scene) for scene in scenes], dtype=torch.long).view(-1, COLUMNS)


def _row(scene: Scene) -> list[int]:
    parts = [*scene.parts, *[None] * (2 - len(scene.parts))]
    numbers = [number for part in parts for number in _numbers(part)]
    return [*numbers, _index(RELATIONS, scene.relation), _index(tuple(GROUNDS), scene.ground)]


def _numbers(part: Part | None) -> list[int]:
    if part is None:
        return [OPEN, 0, OPEN, OPEN, OPEN]
    words = (_index(SIZES, part.size), _index(STYLES, part.style), _index(tuple(COLOURS), part.colour))
    return [OBJECTS.index(part.object), part.count, *words]


def _index(names: Sequence[str], name: str) -> int:
    return names.index(name) if name else OPEN


def parts(rows: Rows) -> Int64[Tensor, "rows 2 5"]:
    return rows[:, : 2 * PART].view(-1, 2, PART)


def slots(rows: Rows) -> Int64[Tensor, "rows 4"]:
    """For each of ``MOST`` places in a picture the part that fills it, 0 or 1; ``OPEN`` where there is none."""
    counts = parts(rows)[:, :, 1]
    place = torch.arange(MOST, device=rows.device)
    first, total = counts[:, :1], counts.sum(dim=1, keepdim=True)
    return torch.where(place < first, 0, torch.where(place < total, 1, OPEN))


def look_shares(*, all_of_them: bool) -> Float[Tensor, "objects looks"]:
    """How often an object whose style is open has each look; the hold-outs never, unless ``all_of_them``."""
    sketched = (1 - CARTOON_SHARE) / len(COLOURS)
    shares = torch.tensor([CARTOON_SHARE, *[sketched] * len(COLOURS)]).repeat(len(OBJECTS), 1)
    if all_of_them:
        return shares
    for row, name in enumerate(OBJECTS):
        for colour in held_out_colours(name) if "sketched" not in held_out_styles(name) else tuple(COLOURS):
            shares[row, LOOKS.index(colour)] = 0
    return shares


def random_rows(count: int, *, seed: int, held_out: bool | None = None) -> tuple[Rows, list[str]]:
    """Rows and captions of random scenes, of the training data, of the hold-outs or (by default) of both."""
    rng = random.Random(seed)
    scenes = [random_scene(rng, held_out=held_out) for _ in range(count)]
    return to_rows(scenes), [scene.caption for scene in scenes]
