"""Sana (Xie et al. 2024, arXiv:2410.10629): linear attention on latents of 32 pixels a position, texts of Gemma 2.

For Sana 0.6B and 1.6B, and for Sana 1.5, which differs in sizes and in a norm. Captions are read as the pipeline reads
them with ``complex_human_instruction=None``: nothing is put before them. By default it puts an instruction of 166 words
before prompts, as its authors did in training, and none before negative ones; here captions are drawn and trained on as
a recipe has them.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from raftdiff.diffusion.families.autoencoder import Autoencoder
from raftdiff.diffusion.families.family import Component, FewSteps, Layers, Modules, Shapes, Solver, Tokenizer
from raftdiff.diffusion.families.originals.bundle import NETWORK
from raftdiff.diffusion.families.originals.sana import BUNDLE
from raftdiff.diffusion.families.shared import flow, reading
from raftdiff.diffusion.families.texts import Texts
from raftdiff.diffusion.process import Process
from raftdiff.errors import UserError

Latents = Float[Tensor, "batch channels rows columns"]
Pixels = Float[Tensor, "batch 3 height width"]

TOKENS = 300
"""Of a caption, that the networks were trained on and the pipeline reads."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
LAYERS = Layers(
    attention=ATTENTION,
    everything=(*ATTENTION, "ff.conv_inverted", "ff.conv_point"),
    text={},
)
"""Not ``ff.conv_depth``, each of whose channels is a convolution of its own: there is no low rank between channels."""
ORIGINAL = ("attention_y_norm.weight", "y_embedder.y_proj.fc1.weight")
OURS = ("caption_norm.weight", "transformer_blocks.0.ff.conv_inverted.weight")
"""Weights by which a single file of it is known, in the original code's names and in diffusers'."""
SPRINT = ("cfg_embedder.", "time_embed.guidance_embedder.")
NORMED = ("blocks.0.attn.q_norm.weight", "transformer_blocks.0.attn1.norm_q.weight")
"""What the distilled model, and Sana 1.5, have beside them."""
BLOCK = re.compile(r"(?:transformer_)?blocks\.(\d+)\.")
SANA = {28: "Sana_600M_1024px", 20: "Sana_1600M_1024px"}
SANA_1_5 = {20: "SANA1.5_1.6B_1024px", 60: "SANA1.5_4.8B_1024px"}
"""The published models by their blocks."""


@final
class DeepCompression:
    """The ``AutoencoderDC`` of diffusers (Chen et al. 2024, arXiv:2410.10733): latents are scaled, not shifted, and
    there is one of each picture, no distribution. See ``autoencoder.Autoencoder``."""

    def factor(self, vae: Any) -> int:
        return int(2 ** (len(vae.config.encoder_block_out_channels) - 1))

    def channels(self, vae: Any) -> int:
        return int(vae.config.latent_channels)

    def tile(self, vae: Any) -> None:
        vae.enable_tiling()  # of 512 pixels

    def decode(self, vae: Any, latents: Latents) -> Pixels:
        # to the VAE's dtype first, as the pipeline has it
        found: Tensor = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        return found.float()

    def encode(self, vae: Any, pixels: Pixels) -> Latents:
        found: Tensor = vae.encode(pixels.to(vae.dtype), return_dict=False)[0].float() * vae.config.scaling_factor
        return found


@final
@dataclass(frozen=True, slots=True)
class Sana:
    """See the module, and ``family.Family``."""

    name: str = "sana"
    told: str = "Sana"
    pipeline: str = "SanaPipeline"
    denoiser: str = "transformer"
    full_vae: bool = False
    guided: bool = True

    @property
    def components(self) -> Mapping[str, Component]:
        return {
            "text_encoder": Component("transformers", "Gemma2Model"),
            "transformer": Component("diffusers", "SanaTransformer2DModel"),
            "vae": Component("diffusers", "AutoencoderDC"),
        }

    @property
    def tokenizers(self) -> Mapping[str, Tokenizer]:
        return {"tokenizer": Tokenizer("text_encoder", "GemmaTokenizer")}

    @property
    def layers(self) -> Layers:
        return LAYERS

    @property
    def autoencoder(self) -> Autoencoder:
        return DeepCompression()

    @property
    def vae_config(self) -> Mapping[str, Any]:
        return {}

    def stated(self, index: Mapping[str, Any]) -> "Sana":
        del index
        return self

    def recognise(self, shapes: Shapes, path: Path) -> str | None:
        names = {name.removeprefix(NETWORK) for name in shapes}
        if not names.issuperset(ORIGINAL) and not names.issuperset(OURS):
            return None
        if any(name.startswith(SPRINT) for name in names):
            raise UserError(
                f"{path}: this is Sana-Sprint, a distilled model that must be told a guidance; raftdiff tunes Sana and "
                "Sana 1.5."
            )
        blocks = {int(match[1]) for name in names if (match := BLOCK.match(name))}
        later = any(name.endswith(NORMED) for name in names)
        known = SANA_1_5 if later else SANA
        return f"Efficient-Large-Model/{known.get(len(blocks), known[20])}_diffusers"

    def held(self, names: Collection[str]) -> frozenset[str]:
        return BUNDLE.held(names)

    def converted(self, weights: Mapping[str, Tensor], configs: Path, dtype: torch.dtype) -> dict[str, Any]:
        return BUNDLE.networks(self.components, weights, configs, dtype)

    def single_file(self, modules: Modules) -> dict[str, Tensor]:
        """The transformer alone, as the authors' own code reads it."""
        return BUNDLE.weights(self.components, modules)

    def check(self, modules: Modules, name: str) -> None:
        """
        Raises:
            UserError: the transformer does not go with the VAE or the text encoder, or is Sana-Sprint's.
        """
        config, vae, text = modules["transformer"].config, modules["vae"].config, modules["text_encoder"].config
        if config.guidance_embeds:
            raise UserError(
                f"{name}: its transformer must be told a guidance (guidance_embeds), as that of Sana-Sprint, a "
                "distilled model; raftdiff tunes Sana and Sana 1.5."
            )
        if not config.in_channels == config.out_channels == vae.latent_channels:
            raise UserError(
                f"{name}: its transformer takes {config.in_channels} channels and makes {config.out_channels}, where "
                f"the VAE has {vae.latent_channels}: these parts are not of one model."
            )
        if config.caption_channels != text.hidden_size:
            raise UserError(
                f"{name}: its transformer expects text embeddings of width {config.caption_channels}, the text encoder "
                f"makes {text.hidden_size}: these parts are not of one model."
            )

    def process(self, scheduler: Any, name: str) -> Process:
        """At the levels of the model's own shift, 3 for most, on which it was trained. diffusers' training script
        reads the same file as another class, which does not know ``flow_shift``, and so trains at a shift of 1."""
        return flow.process(scheduler, name)

    def solvers(self, scheduler: Any) -> Mapping[str, Solver]:
        return flow.solvers(scheduler)

    @property
    def paths(self) -> tuple[str, ...]:
        return flow.PATHS

    def few_steps(self, modules: Modules, scheduler: Any) -> FewSteps | None:
        del modules, scheduler
        return None

    def set_steps(
        self, solver: Any, steps: int, modules: Modules, *, pixels: tuple[int, int], device: torch.device
    ) -> None:
        side = self.autoencoder.factor(modules["vae"]) * self.multiple(modules)
        flow.set_steps(solver, steps, (pixels[0] // side) * (pixels[1] // side), device)

    def token_limit(self, modules: Modules) -> int | None:
        del modules
        return TOKENS

    def tokens(self, modules: Modules, caption: str) -> int:
        return reading.tokens_in(modules["tokenizer"], _cleaned(caption))

    def encode(self, modules: Modules, captions: Sequence[str]) -> Texts:
        """Of every token, filled up to the limit, what Gemma's last layer says; and which tokens are the caption's."""
        cleaned = [_cleaned(caption) for caption in captions]
        read = reading.tokenised(modules, "tokenizer", "text_encoder", cleaned, TOKENS)
        said = modules["text_encoder"](read.input_ids, attention_mask=read.attention_mask, use_cache=False)
        return Texts(said.last_hidden_state, mask=read.attention_mask.bool())

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
        del pixels, guidance
        said: Tensor = network(
            xt,
            encoder_hidden_states=texts.tokens,
            encoder_attention_mask=texts.mask,
            timestep=timesteps.expand(len(xt)) * network.config.timestep_scale,
            return_dict=False,
        )[0]
        return said

    def size(self, modules: Modules) -> tuple[int, int] | None:
        side = int(modules["transformer"].config.sample_size) * self.autoencoder.factor(modules["vae"])
        return side, side

    def multiple(self, modules: Modules) -> int:
        return int(modules["transformer"].config.patch_size)

    def kohya(self, component: str, layer: str, modules: Modules) -> str:
        """diffusers' own names, with dots, as OneTrainer writes and reads them (modelSetup/SanaLoRASetup.py, commit
        00f380ac). Neither kohya's scripts nor ComfyUI itself know the model."""
        del modules
        return f"{component}.{layer}"

    def described(self, modules: Modules, prediction_type: str) -> Mapping[str, str]:
        """As OneTrainer (resources/sd_model_spec/sana-lora.json, commit fed2bce9)."""
        del modules, prediction_type
        return {
            "ss_base_model_version": "sana",
            "modelspec.architecture": "sana",
            "modelspec.implementation": "https://github.com/NVlabs/Sana",
        }

    def pipeline_arguments(self) -> Mapping[str, Any]:
        return {}


def _cleaned(caption: str) -> str:
    """As the pipeline reads captions: in small letters."""
    return caption.lower().strip()
