"""The held-out judge: what object, in which style, on which ground? It never serves as a reward.

Another architecture and another seed than the reward, trained on clean, spoilt and reconstructed pictures, so that it
is fair on generated ones. The ground is also judged by pixel colour, with no network at all.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from raftdiff.embedded.emoji.world import BACKGROUNDS, OBJECTS, STYLES, Concept, parse
from raftdiff.errors import UserError

SIZE = 64
FACTORS = ("object", "style", "background")
BATCH = 128

Verdicts = dict[str, Bool[np.ndarray, " pictures"]]


@final
class Network(nn.Module):
    """Strided convolutions, then one linear head for each factor."""

    def __init__(self, channels: Sequence[int], heads: dict[str, int]) -> None:
        super().__init__()
        sizes = [3, *channels]
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(pairwise(sizes)):
            stride = 1 if index == len(channels) - 1 else 2
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2))
        self.heads = nn.ModuleDict({name: nn.Linear(4 * channels[-1], count) for name, count in heads.items()})

    def forward(self, pictures: Float[Tensor, "batch 3 64 64"]) -> dict[str, Float[Tensor, "batch _"]]:
        features = self.trunk(pictures)
        return {name: head(features) for name, head in self.heads.items()}


@final
class EmojiJudge:
    """The shipped judge.

    Raises:
        UserError: the folder holds no judge.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}: there is no judge here (no config.json).")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self._device = device
        self._network = Network(config["channels"], config["heads"])
        weights = {
            name: t.float() if t.is_floating_point() else t
            for name, t in load_file(folder / "model.safetensors").items()
        }
        self._network.load_state_dict(weights)
        self._network.to(device).eval().requires_grad_(False)

    def judge(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Verdicts:
        """Whether each picture shows what its caption asks for.

        ``object``, ``style``, ``background`` as the network sees them; ``exact`` is all three; ``background_pixel`` is
        whether the median colour of the border is nearest to the named one.

        Raises:
            UserError: a caption is none of this world.
        """
        asked = [_concept(caption) for caption in captions]
        names = tuple(BACKGROUNDS)
        wanted = np.array([[OBJECTS.index(c.object), STYLES.index(c.style), names.index(c.background)] for c in asked])
        right = self.recognise(images) == wanted.reshape(-1, 3)
        verdicts = {factor: right[:, column] for column, factor in enumerate(FACTORS)}
        pixel = np.array([ground_by_pixel(image) for image in images], dtype=object)
        return {
            **verdicts,
            "background_pixel": np.array([c.background for c in asked], dtype=object) == pixel,
            "exact": right.all(axis=1),
        }

    @torch.no_grad()
    def recognise(self, images: Sequence[Image.Image]) -> Int64[np.ndarray, "pictures 3"]:
        """Indices into OBJECTS, STYLES and BACKGROUNDS."""
        found = [np.empty((0, 3), dtype=np.int64)]
        for start in range(0, len(images), BATCH):
            logits = self._network(to_tensor(images[start : start + BATCH]).to(self._device))
            found.append(torch.stack([logits[factor].argmax(1) for factor in FACTORS], dim=1).cpu().numpy())
        return np.concatenate(found)


def to_tensor(images: Sequence[Image.Image]) -> Float[Tensor, "pictures 3 64 64"]:
    """RGB at 64 px in -1..1; pictures of another size are scaled."""
    sized = [image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC) for image in images]
    return torch.from_numpy(np.stack([np.asarray(image) for image in sized])).permute(0, 3, 1, 2).float() / 127.5 - 1


def ground_by_pixel(image: Image.Image) -> str:
    """The named colour nearest (Euclidean, sRGB) to the median of the border, a sixteenth of the side wide."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    width = max(1, min(pixels.shape[:2]) // 16)
    inner = np.zeros(pixels.shape[:2], dtype=bool)
    inner[width:-width, width:-width] = True
    median = np.median(pixels[~inner], axis=0)
    return min(BACKGROUNDS, key=lambda name: float(np.square(median - np.array(BACKGROUNDS[name])).sum()))


def _concept(caption: str) -> Concept:
    found = parse(caption)
    if found is None:
        raise UserError(
            f"The judge knows only captions such as '{Concept('cat', 'cartoon', 'red').caption}', not '{caption}'."
        )
    return found
