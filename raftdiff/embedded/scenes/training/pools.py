"""What lessons are drawn from: scenes with their neighbours, and a pool of which the oldest are replaced."""

import random
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Int64
from torch import Tensor

from raftdiff.embedded.scenes.rows import Rows, to_rows
from raftdiff.embedded.scenes.tokens import tokenise_captions
from raftdiff.embedded.scenes.training.neighbours import GROUP, group
from raftdiff.embedded.scenes.world import random_scene


@dataclass(frozen=True, slots=True)
class Groups:
    """Scenes with their neighbours, `GROUP` each, side by side."""

    rows: Rows
    tokens: Int64[Tensor, "rows tokens"]

    def choose(self, count: int) -> Int64[Tensor, " rows"]:
        """The rows of ``count`` groups."""
        first = torch.randint(len(self.rows) // GROUP, (count, 1), device=self.rows.device) * GROUP
        return (first + torch.arange(GROUP, device=first.device)).flatten()


def groups(tokenizer: Any, count: int, *, seed: int, device: str) -> Groups:
    """``count`` groups of scenes, hold-outs among them: a reward may know more than the model."""
    rng = random.Random(seed)
    scenes = [scene for _ in range(count) for scene in group(rng, random_scene(rng))]
    tokens = tokenise_captions(tokenizer, [scene.caption for scene in scenes])
    return Groups(to_rows(scenes).to(device), tokens.to(device))


@final
class Ring:
    """Tensors of which the oldest rows are replaced by new ones."""

    def __init__(self, size: int, **like: Tensor) -> None:
        self._kept = {name: one.new_zeros(size, *one.shape) for name, one in like.items()}
        self._size, self._put = size, 0

    def __len__(self) -> int:
        """Rows that hold something."""
        return min(self._put, self._size)

    def put(self, **rows: Tensor) -> None:
        count = len(next(iter(rows.values())))
        for name, kept in self._kept.items():
            place = (self._put + torch.arange(count, device=kept.device)) % self._size
            kept[place] = rows[name].to(kept.dtype)
        self._put += count

    def draw(self, count: int) -> tuple[Tensor, ...]:
        """``count`` rows of each."""
        picked = torch.randint(len(self), (count,), device=next(iter(self._kept.values())).device)
        return tuple(kept[picked] for kept in self._kept.values())
