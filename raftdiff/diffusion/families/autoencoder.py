"""What stands between pictures and latents."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Autoencoder(Protocol):
    """Between pictures and latents, as the denoiser sees them: shifted, scaled and packed. Pixels are RGB, -1 to 1."""

    def factor(self, vae: Any) -> int:
        """Pixels per latent position, along one side."""
        ...

    def channels(self, vae: Any) -> int:
        """Of the latents."""
        ...

    def tile(self, vae: Any) -> None:
        """Let it decode a large picture in tiles of 512 pixels from now on."""
        ...

    def decode(
        self, vae: Any, latents: Float[Tensor, "batch channels rows columns"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """About -1 to 1, float32."""
        ...

    def encode(
        self, vae: Any, pixels: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Float32, without chance."""
        ...
