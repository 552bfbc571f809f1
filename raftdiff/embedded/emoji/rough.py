"""Pictures as a generator makes them: what the judge and the reward must be fair on.

The autoencoder is slow on a CPU, so every concept is passed through it once; the other pictures are painted afresh.
"""

from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Int64
from torch import Tensor

from raftdiff.embedded.emoji.data import SIZE, Pictures, World
from raftdiff.embedded.emoji.world import BACKGROUNDS, OBJECTS, STYLES

SHARES = (0.5, 0.3)
"""Of a batch: rebuilt by the autoencoder, and spoilt. The others are clean."""
LATENT_NOISE = 0.3
"""Largest standard deviation of the noise put on latents of unit spread."""


def load_vae(cache: Path, device: str) -> Any:
    """The autoencoder that train_vae left in ``cache``."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(cache / "vae").eval().requires_grad_(False)
    return vae.to(device, memory_format=torch.channels_last)


@torch.no_grad()
def rebuild(vae: Any, pictures: Pictures) -> Pictures:
    """Pictures passed through the autoencoder, with more or less noise on their latents, as generated ones look."""
    latents = vae.encode(pictures.to(vae.device, memory_format=torch.channels_last)).latent_dist.sample()
    level = LATENT_NOISE / vae.config.scaling_factor * torch.rand(len(latents), 1, 1, 1, device=latents.device)
    rebuilt: Tensor = vae.decode(latents + level * torch.randn_like(latents)).sample
    return rebuilt.cpu().clamp(-1, 1)


@final
class Bank:
    """A rebuilt picture of every concept, hold-outs included, and a painter for the others."""

    def __init__(self, world: World, vae: Any) -> None:
        self._world = world
        made = []
        for number, rows in enumerate(torch.split(every_row(), 128)):
            rebuilt = rebuild(vae, world.paint(*rows.unbind(1)))
            made.append(((rebuilt + 1) * 127.5).round().to(torch.uint8))
            if number % 10 == 0:
                print(f"rebuilt {128 * number} pictures", flush=True)
        self._rebuilt = torch.cat(made).view(len(OBJECTS), len(STYLES), len(BACKGROUNDS), 3, SIZE, SIZE)

    def pictures(self, rows: Int64[Tensor, "batch 3"]) -> Pictures:
        """A picture of each concept, given as indices: rebuilt, spoilt or clean."""
        chance = torch.rand(len(rows))
        rebuilt, clean = chance < SHARES[0], chance > sum(SHARES)
        batch = torch.empty(len(rows), 3, SIZE, SIZE)
        batch[rebuilt] = self._rebuilt[tuple(rows[rebuilt].unbind(1))].float() / 127.5 - 1
        batch[~rebuilt] = self._world.paint(*rows[~rebuilt].unbind(1))
        spoilt = ~rebuilt & ~clean
        batch[spoilt] = self._world.degrade(batch[spoilt])
        return batch


def every_row() -> Int64[Tensor, "concepts 3"]:
    """All concepts as indices, in the order of ``world.all_concepts``."""
    return torch.cartesian_prod(*(torch.arange(len(names)) for names in (OBJECTS, STYLES, BACKGROUNDS)))


def random_rows(count: int) -> Int64[Tensor, "count 3"]:
    """Concepts drawn evenly, with repetition."""
    table = every_row()
    return table[torch.randint(len(table), (count,))]
