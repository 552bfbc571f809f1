"""Z-Image and Z-Image-Turbo: a flow by a transformer that reads a caption, as long as it is, and a picture as one."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from raftdiff.diffusion.families.family import Component, FewSteps, Layers, Modules, Shapes, Solver, Tokenizer
from raftdiff.diffusion.families.originals.zimage import BUNDLE
from raftdiff.diffusion.families.shared import flow, unet
from raftdiff.diffusion.families.shared.autoencoders import KL
from raftdiff.diffusion.families.shared.reading import tokens_in, user_turn
from raftdiff.diffusion.families.texts import Texts
from raftdiff.diffusion.process import Process
from raftdiff.errors import UserError

TOKENS = 512
"""Of a caption, its turn's frame included, that the pipeline reads."""
PATCH = 2
"""Latent positions that a token of a picture has along one side."""
LEVELS = 1000
"""Of noise, that the pipeline counts; the network is told 1 at a picture and 0 at noise."""
ATTENTION = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
FEED_FORWARD = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
VAE = {
    **unet.VAE,
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "sample_size": 1024,
}
OWN = "cap_pad_token"
"""The weight by which its network is known in a single file; Lumina's, which is alike, has none."""


@final
@dataclass(frozen=True, slots=True)
class ZImage:
    """See ``family.Family``. Source: Z-Image team 2025, arXiv:2511.22699, and diffusers' ``ZImagePipeline``.

    The pipeline's ``guidance_scale`` is 1 less than guidance here and elsewhere: it draws with c + g (c - u), which is
    u + w (c - u) at w = g + 1. So its 4 is ``guidance: 5``, and its 0, as Turbo has it, is ``guidance: 1``.
    """

    name: str = "zimage"
    told: str = "Z-Image"
    pipeline: str = "ZImagePipeline"
    denoiser: str = "transformer"
    full_vae: bool = False
    guided: bool = True
    paths: tuple[str, ...] = flow.PATHS

    @property
    def components(self) -> Mapping[str, Component]:
        return {
            "transformer": Component("diffusers", "ZImageTransformer2DModel"),
            "vae": Component("diffusers", "AutoencoderKL"),
            "text_encoder": Component("transformers", "Qwen3Model"),
        }

    @property
    def tokenizers(self) -> Mapping[str, Tokenizer]:
        return {"tokenizer": Tokenizer("text_encoder", "Qwen2Tokenizer")}

    @property
    def layers(self) -> Layers:
        """As diffusers' training script has them, and for ``all`` the feed-forward layers too."""
        return Layers(ATTENTION, (*ATTENTION, *FEED_FORWARD), {})

    @property
    def autoencoder(self) -> KL:
        return KL()

    @property
    def vae_config(self) -> Mapping[str, Any]:
        return VAE

    def stated(self, index: Mapping[str, Any]) -> "ZImage":
        del index
        return self

    def recognise(self, shapes: Shapes, path: Path) -> str | None:
        if not any(name.endswith(OWN) for name in shapes):
            return None
        return "Tongyi-MAI/Z-Image-Turbo"

    def held(self, names: Collection[str]) -> frozenset[str]:
        return BUNDLE.held(names)

    def converted(self, weights: Mapping[str, Tensor], configs: Path, dtype: torch.dtype) -> dict[str, Any]:
        return BUNDLE.networks(self.components, weights, configs, dtype)

    def single_file(self, modules: Modules) -> dict[str, Tensor]:
        return BUNDLE.weights(self.components, modules)

    def check(self, modules: Modules, name: str) -> None:
        network, vae, encoder = (modules[part].config for part in ("transformer", "vae", "text_encoder"))
        if network.in_channels != vae.latent_channels:
            raise UserError(
                f"{name}: its transformer takes {network.in_channels} channels where the VAE makes "
                f"{vae.latent_channels}: these parts are not of one model."
            )
        if network.cap_feat_dim != encoder.hidden_size:
            raise UserError(
                f"{name}: its transformer expects {network.cap_feat_dim} numbers of a token, the text encoder gives "
                f"{encoder.hidden_size}: these parts are not of one model."
            )
        if not modules["tokenizer"].chat_template:
            raise UserError(
                f"{name}: tokenizer/ has no chat template, in which {self.told} reads a caption as a person's turn. "
                "Fetch the published tokenizer_config.json, or chat_template.jinja, again."
            )

    def process(self, scheduler: Any, name: str) -> Process:
        return flow.process(scheduler, name)

    def solvers(self, scheduler: Any) -> Mapping[str, Solver]:
        return flow.solvers(scheduler)

    def few_steps(self, modules: Modules, scheduler: Any) -> FewSteps | None:
        del modules, scheduler
        return None

    def set_steps(
        self, solver: Any, steps: int, modules: Modules, *, pixels: tuple[int, int], device: torch.device
    ) -> None:
        side = KL().factor(modules["vae"]) * PATCH
        tokens = (pixels[0] // side) * (pixels[1] // side)
        flow.set_steps(solver, steps, tokens, device, flow.even(steps))

    def token_limit(self, modules: Modules) -> int | None:
        del modules
        return TOKENS

    def tokens(self, modules: Modules, caption: str) -> int:
        return tokens_in(modules["tokenizer"], user_turn(modules["tokenizer"], caption, thinking=True))

    def encode(self, modules: Modules, captions: Sequence[str]) -> Texts:
        """The last layer but one of Qwen3, which reads forwards only, so that what fills texts up changes nothing."""
        tokenizer, encoder = modules["tokenizer"], modules["text_encoder"]
        read = tokenizer(
            [user_turn(tokenizer, caption, thinking=True) for caption in captions],
            padding=True,
            padding_side="right",
            max_length=TOKENS,
            truncation=True,
            return_tensors="pt",
        ).to(next(encoder.parameters()).device)
        said = encoder(read.input_ids, attention_mask=read.attention_mask, output_hidden_states=True, use_cache=False)
        return Texts(said.hidden_states[-2], mask=read.attention_mask.bool())

    def embedded_guidance(self, modules: Modules) -> float | None:
        del modules
        return None

    def ask(
        self,
        network: Any,
        xt: Tensor,
        timesteps: Tensor,
        texts: Texts,
        *,
        pixels: tuple[int, int],
        guidance: float | None,
    ) -> Tensor:
        """The network takes lists, a film of one frame and a caption without filling each; it says x0 - noise."""
        del pixels, guidance
        masks = [slice(None)] * len(texts) if texts.mask is None else list(texts.mask)
        said = network(
            list(xt[:, :, None].unbind()),
            (LEVELS - timesteps.expand(len(xt))) / LEVELS,
            [tokens[mask] for tokens, mask in zip(texts.tokens, masks, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(said)[:, :, 0]

    def size(self, modules: Modules) -> tuple[int, int] | None:
        """The VAE's: the transformer's config says none."""
        side = int(modules["vae"].config.sample_size)
        return side, side

    def multiple(self, modules: Modules) -> int:
        del modules
        return PATCH

    def kohya(self, component: str, layer: str, modules: Modules) -> str:
        """diffusers' names behind ``diffusion_model.``, as ai-toolkit writes and ComfyUI (``comfy/lora.py``, Lumina2)
        and diffusers read them. musubi-tuner's ``lora_unet_layers_0_attention_to_q`` ComfyUI does not know."""
        del component, modules
        return f"diffusion_model.{layer}"

    def described(self, modules: Modules, prediction_type: str) -> Mapping[str, str]:
        """As musubi-tuner writes it; Turbo differs in its weights alone."""
        return {
            "ss_base_model_version": "z_image",
            "modelspec.architecture": "Z-Image",
            "modelspec.implementation": "https://github.com/Tongyi-MAI/Z-Image",
        }

    def pipeline_arguments(self) -> Mapping[str, Any]:
        return {}
