"""Between pictures and latents: the VAE's two halves, in batches; and which sizes fit a model."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from raftdiff.diffusion.models.loaded import Parts
from raftdiff.diffusion.sizes import told
from raftdiff.errors import UserError


@torch.no_grad()
def decode(parts: Parts, latents: Float[Tensor, "batch channels height width"], batch_size: int) -> list[Image.Image]:
    """Pictures from latents scaled as the denoiser sees them.

    One with any number that is none (NaN, infinity) is black all over: a picture of one colour is discarded, a part of
    one would not be noticed.
    """
    with parts.idle.fetched(parts.vae):
        decoded = [(rows, parts.decode(rows)) for rows in torch.split(latents, batch_size)]
    pictures: list[Image.Image] = []
    for rows, pixels in decoded:
        whole = pixels.isfinite().flatten(1).all(dim=1) & rows.isfinite().flatten(1).all(dim=1).to(pixels.device)
        shown = torch.where(whole[:, None, None, None], pixels, -1.0)
        bytes_ = ((shown / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        pictures += [Image.fromarray(np.asarray(one)) for one in bytes_.permute(0, 2, 3, 1).cpu().numpy()]
    return pictures


@torch.no_grad()
def encode(
    parts: Parts, pictures: Sequence[Image.Image], batch_size: int
) -> Float[Tensor, "batch channels height width"]:
    """Latents of pictures of one size, scaled as the denoiser sees them, float32 on the CPU."""
    found = []
    for start in range(0, len(pictures), batch_size):
        rows = np.stack([np.asarray(one.convert("RGB")) for one in pictures[start : start + batch_size]])
        pixels = torch.from_numpy(rows).permute(0, 3, 1, 2).float() / 127.5 - 1
        with parts.idle.fetched(parts.vae):
            found.append(parts.encode(pixels).cpu())
    return torch.cat(found)


def check_size(height: int, width: int, parts: Parts) -> None:
    """
    Raises:
        UserError: a picture of so many pixels does not fit the model.
    """
    multiple = parts.multiple
    if height % multiple or width % multiple:
        high, wide = (max(multiple, round(side / multiple) * multiple) for side in (height, width))
        raise UserError(
            f"sampler or evaluation: a picture of {told((height, width))} does not fit this model; both must be "
            f"multiples of {multiple}, as in {told((high, wide))}."
        )
