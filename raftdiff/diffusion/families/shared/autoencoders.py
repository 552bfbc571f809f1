"""Between pictures and latents."""

from typing import Any, final

from jaxtyping import Float
from torch import Tensor

Latents = Float[Tensor, "batch channels rows columns"]
TILE = 512
"""Pixels of a tile's side; diffusers' own tiles are as large as the pictures that a model was trained at."""
Pixels = Float[Tensor, "batch 3 height width"]


def tile(vae: Any) -> None:
    """Of diffusers' convolutional VAEs with one tile size."""
    vae.enable_tiling()
    vae.tile_sample_min_size = TILE
    vae.tile_latent_min_size = TILE // 2 ** (len(vae.config.block_out_channels) - 1)


@final
class KL:
    """The ``AutoencoderKL`` of diffusers: latents are shifted and scaled by its config.

    See ``autoencoder.Autoencoder``.
    """

    def factor(self, vae: Any) -> int:
        return int(2 ** (len(vae.config.block_out_channels) - 1))

    def channels(self, vae: Any) -> int:
        return int(vae.config.latent_channels)

    def tile(self, vae: Any) -> None:
        tile(vae)

    def decode(self, vae: Any, latents: Latents) -> Pixels:
        found: Tensor = vae.decode((latents / vae.config.scaling_factor + _shift(vae)).to(vae.dtype), return_dict=False)
        return found[0].float()

    def encode(self, vae: Any, pixels: Pixels) -> Latents:
        """Of what the VAE says the mean, so that the same picture is always the same lesson."""
        said = vae.encode(pixels.to(vae.dtype)).latent_dist.mode().float()
        latents: Tensor = (said - _shift(vae)) * vae.config.scaling_factor
        return latents


def _shift(vae: Any) -> float:
    return float(getattr(vae.config, "shift_factor", None) or 0.0)
