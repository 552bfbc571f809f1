"""The held-out judge of scenes: a small detector that says what stands where in which style. Never a reward.

A heat map for each kind of object, as CenterNet's (arXiv:1904.07850), and beside it the size and the look of what
stands there. The ground is judged by pixel colour, with no network at all.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from raftdiff.embedded.scenes.data import Batch
from raftdiff.embedded.scenes.layout import SIZE
from raftdiff.embedded.scenes.networks import read
from raftdiff.embedded.scenes.rows import LOOKS
from raftdiff.embedded.scenes.rules import FACTORS, Found, verdicts
from raftdiff.embedded.scenes.world import GROUNDS, OBJECTS, Scene, parse
from raftdiff.errors import UserError

WEIGHTS = "scene-judge.safetensors"
STRIDE = 4
CELLS = SIZE // STRIDE
DILATIONS = (1, 2, 3, 2, 1)
WIDTH = 128
APART = 5
"""Cells across: of two peaks nearer than that, the weaker is none."""
GROUND_DISTANCE = 45.0
"""Largest distance of a ground from its named colour, in 8-bit sRGB."""
BATCH = 256

Verdicts = dict[str, np.ndarray]
"""Of each factor, as floats: 1 right, 0 wrong, NaN where the caption does not ask."""


class _Block(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.layers(x))


@final
class Network(nn.Module):
    """Pictures -> (heat of each object, each look, size), as logits and as a share of the picture's side."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in ((3, 32, 2), (32, 64, 2), (64, WIDTH, 1)):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.trunk = nn.Sequential(*layers, *(_Block(WIDTH, dilation) for dilation in DILATIONS))
        self.head = nn.Conv2d(WIDTH, len(OBJECTS) + len(LOOKS) + 1, 1)
        with torch.no_grad():  # most cells hold nothing
            bias: Tensor = self.head.bias  # type: ignore[assignment]
            bias[: len(OBJECTS)] = -4.0

    def forward(self, pictures: Float[Tensor, "batch 3 80 80"]) -> tuple[Tensor, Tensor, Tensor]:
        heat, look, size = self.head(self.trunk(pictures)).split([len(OBJECTS), len(LOOKS), 1], dim=1)
        return heat, look, size[:, 0]


def loss(
    network: Network, batch: Batch, pictures: Float[Tensor, "batch 3 80 80"], coloured: Float[Tensor, " batch"]
) -> Tensor:
    """Focal loss of the heat; cross-entropy of the look, but of pictures in ``coloured`` (1 or 0) only; L1 of the size.

    Where ``batch.objects`` is -1 there is nothing to find.
    """
    heat, look, size = (part.float() for part in network(pictures))
    cell = (batch.layout.centre / STRIDE).long().clamp(0, CELLS - 1)
    there = (batch.objects >= 0).float()
    wanted = _heat_map(batch, there)
    share = heat.sigmoid().clamp(1e-4, 1 - 1e-4)
    peak = (wanted > 0.999).float()
    focal = peak * (1 - share).square() * share.log()
    focal = focal + (1 - peak) * (1 - wanted) ** 4 * share.square() * (1 - share).log()
    count = there.sum().clamp(min=1)
    rows = torch.arange(len(heat), device=heat.device)[:, None]
    looks = functional.cross_entropy(
        look[rows, :, cell[..., 1], cell[..., 0]].flatten(0, 1), batch.looks.flatten(), reduction="none"
    )
    looked = (looks * (there * coloured[:, None]).flatten()).sum() / count
    sized = ((size[rows, cell[..., 1], cell[..., 0]] - batch.layout.size / SIZE).abs() * there).sum() / count
    total: Tensor = looked - focal.sum() / count + 3 * sized
    return total


def _heat_map(batch: Batch, there: Float[Tensor, "batch 4"]) -> Float[Tensor, "batch objects cells cells"]:
    """1 in the cell of a centre, falling off as a Gaussian of one cell about it."""
    cell = (batch.layout.centre / STRIDE).long().clamp(0, CELLS - 1)
    place = torch.arange(CELLS, device=there.device)
    x = torch.exp(-0.5 * (place - cell[..., :1]).float().square())
    y = torch.exp(-0.5 * (place - cell[..., 1:]).float().square())
    spots = there[..., None, None] * y[..., :, None] * x[..., None, :]
    index = batch.objects.clamp(min=0)[..., None, None].expand_as(spots)
    empty = torch.zeros(len(spots), len(OBJECTS), CELLS, CELLS, device=there.device)
    return empty.scatter_reduce(1, index, spots, "amax")


@final
class SceneJudge:
    """The judge of a folder of results.

    Raises:
        UserError: the folder holds no judge, or (judging) a caption is none of this world.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self._device = device
        self._network = Network()
        metadata = read(folder / WEIGHTS, self._network)
        self._least = json.loads(metadata.get("least", "0.4"))
        self._network.to(device).eval().requires_grad_(False)

    def judge(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Verdicts:
        """Whether each picture shows what its caption asks for, by factor; without those of which no caption speaks."""
        scenes = [_scene(caption) for caption in captions]
        found = self.find(images)
        grounds = [ground_by_pixel(image) for image in images]
        rows = [verdicts(*triple) for triple in zip(scenes, found, grounds, strict=True)]
        said = {
            name: np.array([np.nan if row[name] is None else float(bool(row[name])) for row in rows])
            for name in (*FACTORS, "exact")
        }
        return {name: values for name, values in said.items() if not np.isnan(values).all()}

    @torch.no_grad()
    def find(self, images: Sequence[Image.Image]) -> list[list[Found]]:
        """What stands where in each picture."""
        found: list[list[Found]] = []
        for start in range(0, len(images), BATCH):
            pictures = to_tensor(images[start : start + BATCH]).to(self._device)
            found += peaks(self._network(pictures), self._least)
        return found


def peaks(maps: tuple[Tensor, Tensor, Tensor], least: float) -> list[list[Found]]:
    """The network's maps as things found, those at least as certain as ``least``."""
    heat, look, size = (part.float() for part in maps)
    certain, kind = heat.sigmoid().max(dim=1)
    around = functional.max_pool2d(certain[:, None], APART, stride=1, padding=APART // 2)[:, 0]
    found: list[list[Found]] = [[] for _ in range(len(heat))]
    places = ((certain == around) & (certain >= least)).nonzero()
    picture, row, column = places.unbind(1)
    looks = look.argmax(dim=1)[picture, row, column].tolist()
    sizes = (SIZE * size[picture, row, column]).tolist()
    kinds, scores = kind[picture, row, column].tolist(), certain[picture, row, column].tolist()
    for index, (where, down, right) in enumerate(places.tolist()):
        x, y = STRIDE * (right + 0.5), STRIDE * (down + 0.5)
        thing = Found(OBJECTS[kinds[index]], LOOKS[looks[index]], x, y, sizes[index], scores[index])
        found[where].append(thing)
    return found


def to_tensor(images: Sequence[Image.Image]) -> Float[Tensor, "pictures 3 80 80"]:
    """RGB at 80 px in -1..1; pictures of another size are scaled."""
    sized = [image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC) for image in images]
    return torch.from_numpy(np.stack([np.asarray(image) for image in sized])).permute(0, 3, 1, 2).float() / 127.5 - 1


def ground_by_pixel(image: Image.Image) -> str | None:
    """The named colour nearest (Euclidean, sRGB) to the median of the border, or None where none is near."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    width = max(1, min(pixels.shape[:2]) // 20)
    inner = np.zeros(pixels.shape[:2], dtype=bool)
    inner[width:-width, width:-width] = True
    median = np.median(pixels[~inner], axis=0)
    distance = {name: float(np.linalg.norm(median - np.array(colour))) for name, colour in GROUNDS.items()}
    best = min(distance, key=lambda name: distance[name])
    return best if distance[best] <= GROUND_DISTANCE else None


def right_of(verdicts: Verdicts) -> dict[str, float]:
    """Each factor's share of right pictures, among those whose captions ask for it."""
    return {name: round(float(np.nanmean(values)), 4) for name, values in verdicts.items()}


def _scene(caption: str) -> Scene:
    found = parse(caption)
    if found is None:
        example = "a cat left of a fox on a white background"
        raise UserError(f"The judge knows only captions such as '{example}', not '{caption}'.")
    return found
