"""A diffusion model in memory: its networks, and what sampler and fine-tuner ask of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from raftdiff.diffusion.families.family import Family, FewSteps
from raftdiff.diffusion.families.texts import Texts
from raftdiff.diffusion.models.text import PromptEncoder
from raftdiff.diffusion.process import Process
from raftdiff.errors import UserError
from raftdiff.training.devices import Idle


@dataclass(slots=True, repr=False)
class Parts:
    """One loaded model. The fine-tuner changes denoiser (and text encoders) in place; the sampler reads them."""

    family: Family
    modules: Mapping[str, Any]
    """Networks and tokenizers, by the names of their folders."""
    scheduler: Any
    """The model's own. Never stepped."""
    process: Process
    """What the network was trained on."""
    device: torch.device
    dtype: torch.dtype
    channels_last: bool
    name: str
    """What the user called the model; for sentences."""
    idle: Idle
    """Which of the networks wait in main memory."""
    prompts: PromptEncoder
    """Text -> embeddings, cached. Cleared by whoever changes the text encoder."""
    network: Callable[..., Any]
    """The denoiser to call: itself, or its compiled form, which shares the weights."""
    embedded_guidance: float | None
    """The guidance number that it is told; None where it is told none."""

    @property
    def denoiser(self) -> Any:
        """The network that is tuned: a U-Net."""
        return self.modules[self.family.denoiser]

    @property
    def vae(self) -> Any:
        return self.modules["vae"]

    @property
    def text_encoders(self) -> dict[str, Any]:
        """By name, in the family's order."""
        return {encoder: self.modules[encoder] for encoder, _ in self.family.tokenizers.values()}

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width, in pixels, of the pictures that the model was trained at; None where it does not say."""
        return self.family.size(self.modules)

    @property
    def few_steps(self) -> FewSteps | None:
        """How it draws, where it says that it was distilled to few steps."""
        return self.family.few_steps(self.modules, self.scheduler)

    @property
    def vae_factor(self) -> int:
        """Pixels per latent position, along one side."""
        return self.family.autoencoder.factor(self.vae)

    @property
    def multiple(self) -> int:
        """Heights and widths of pictures, in pixels, are multiples of it."""
        return self.vae_factor * self.family.multiple(self.modules)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Channels, height and width of the latents of pictures of so many pixels."""
        return self.family.autoencoder.channels(self.vae), height // self.vae_factor, width // self.vae_factor

    def check_guidance(self, key: str, guidance: float) -> None:
        """``key`` of the recipe begins the sentence.

        Raises:
            UserError: there is one, and the model draws without. diffusers ignores it; here it would be paid for and
                written down.
        """
        if guidance != 1 and not self.family.guided:
            raise UserError(
                f"{key}: {self.name} was distilled to draw without guidance (is_distilled in model_index.json), where "
                f"diffusers ignores one. It is {guidance:g} here; set it to 1."
            )

    def ask(self, network: Any, xt: torch.Tensor, timesteps: torch.Tensor, texts: Texts) -> torch.Tensor:
        """What ``network``, the denoiser or a compiled form of it, predicts, in the dtype that it is given."""
        height, width = (side * self.vae_factor for side in xt.shape[-2:])
        return self.family.ask(network, xt, timesteps, texts, pixels=(height, width), guidance=self.embedded_guidance)

    def predict(
        self, xt: torch.Tensor, timesteps: torch.Tensor, texts: Texts, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """The denoiser's word on some rows, float32; under autocast where ``dtype`` is another than its weights' own.

        One autocast region a call: its cache of cast weights must not outlive a change of the weights, nor hand
        weights that were cast without gradient to a pass that needs one.
        """
        own = dtype or self.dtype
        with torch.autocast(self.device.type, dtype=own, enabled=dtype is not None and dtype != torch.float32):
            found = self.ask(self.denoiser, xt.to(self.device, own), timesteps.to(self.device), texts.to(dtype=own))
        return found.float()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The VAE's pictures of latents scaled as the denoiser sees them: RGB, about -1 to 1, float32."""
        return self.family.autoencoder.decode(self.vae, latents.to(self.device))

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Latents of pictures (RGB, -1 to 1), scaled as the denoiser sees them, float32."""
        return self.family.autoencoder.encode(self.vae, pixels.to(self.device))
