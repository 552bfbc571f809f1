"""FLUX.1 dev and schnell: a flow by a transformer that reads T5's tokens, and of CLIP the caption as a whole."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from raftdiff.diffusion.families.family import Component, FewSteps, Layers, Modules, Shapes, Solver, Tokenizer
from raftdiff.diffusion.families.originals.flux import BUNDLE
from raftdiff.diffusion.families.shared import flow, unet
from raftdiff.diffusion.families.shared.autoencoders import KL
from raftdiff.diffusion.families.shared.reading import limit_of, tokenised, tokens_in
from raftdiff.diffusion.families.texts import Texts
from raftdiff.diffusion.process import Process
from raftdiff.errors import UserError

PATCH = 2
"""Latent positions, along one side, that are a token together."""
GUIDANCE = 3.5
"""That dev is told, by default of diffusers' pipeline and training script alike."""
DEV_TOKENS, SCHNELL_TOKENS = 512, 256
"""Of T5's that each was trained to read, as diffusers' documentation and kohya's scripts have it."""
ATTENTION = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
)
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out")
"""The last two are the feed-forward layers of the blocks of one stream; the output layer has the name of the last."""
VAE = {
    **unet.VAE,
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "sample_size": 1024,
}
FIRST = "double_blocks.0.img_mod.lin.weight"
"""The weight by which its network is known in a single file; FLUX.2 and Chroma have no such layer."""
GUIDED = ("guidance_in.in_layer.weight", "guidance_embedder.linear_1.weight")
"""One that dev has and schnell has not."""
DIFFUSERS = {"x_embedder.weight", "single_transformer_blocks.0.norm.linear.weight"}
"""Those by which it is known in diffusers' names, in which FLUX.2, Chroma and HunyuanVideo lack one."""


@final
@dataclass(frozen=True, slots=True)
class Flux:
    """See ``family.Family``. Source: https://github.com/black-forest-labs/flux, and the published checkpoints.

    Dev was distilled from guided predictions and is told a guidance number, schnell was distilled to few steps and is
    told none; by that they are told apart.
    """

    name: str = "flux"
    told: str = "FLUX.1"
    pipeline: str = "FluxPipeline"
    denoiser: str = "transformer"
    full_vae: bool = False
    guided: bool = True
    paths: tuple[str, ...] = flow.PATHS

    @property
    def components(self) -> Mapping[str, Component]:
        return {
            "transformer": Component("diffusers", "FluxTransformer2DModel"),
            "vae": Component("diffusers", "AutoencoderKL"),
            "text_encoder": Component("transformers", "CLIPTextModel"),
            "text_encoder_2": Component("transformers", "T5EncoderModel"),
        }

    @property
    def tokenizers(self) -> Mapping[str, Tokenizer]:
        return {"tokenizer": Tokenizer("text_encoder"), "tokenizer_2": Tokenizer("text_encoder_2", "T5TokenizerFast")}

    @property
    def layers(self) -> Layers:
        """As diffusers' training script has them, CLIP as the only text encoder; for ``all`` the feed-forward layers
        too."""
        name = "text_encoder"
        return Layers(ATTENTION, (*ATTENTION, *FEED_FORWARD), {name: unet.CLIP_LAYERS[name]})

    @property
    def autoencoder(self) -> KL:
        return KL()

    @property
    def vae_config(self) -> Mapping[str, Any]:
        return VAE

    def stated(self, index: Mapping[str, Any]) -> "Flux":
        del index
        return self

    def recognise(self, shapes: Shapes, path: Path) -> str | None:
        if not any(name.endswith(FIRST) for name in shapes) and not shapes.keys() >= DIFFUSERS:
            return None
        dev = any(name.endswith(GUIDED) for name in shapes)
        return f"black-forest-labs/FLUX.1-{'dev' if dev else 'schnell'}"

    def held(self, names: Collection[str]) -> frozenset[str]:
        return BUNDLE.held(names)

    def converted(self, weights: Mapping[str, Tensor], configs: Path, dtype: torch.dtype) -> dict[str, Any]:
        return BUNDLE.networks(self.components, weights, configs, dtype)

    def single_file(self, modules: Modules) -> dict[str, Tensor]:
        return BUNDLE.weights(self.components, modules)

    def check(self, modules: Modules, name: str) -> None:
        network, vae = modules["transformer"].config, modules["vae"].config
        pooled, width = modules["text_encoder"].config.hidden_size, modules["text_encoder_2"].config.d_model
        if network.in_channels != PATCH**2 * vae.latent_channels:
            raise UserError(
                f"{name}: its transformer takes {network.in_channels} channels where {PATCH}x{PATCH} positions of the "
                f"VAE's make {PATCH**2 * vae.latent_channels}: these parts are not of one model, or it must be told a "
                "picture beside the caption."
            )
        if (network.pooled_projection_dim, network.joint_attention_dim) != (pooled, width):
            raise UserError(
                f"{name}: its transformer expects {network.pooled_projection_dim} numbers of a caption and "
                f"{network.joint_attention_dim} of a token; CLIP gives {pooled}, T5 {width}: these parts are not of "
                "one model."
            )

    def process(self, scheduler: Any, name: str) -> Process:
        return flow.process(scheduler, name)

    def solvers(self, scheduler: Any) -> Mapping[str, Solver]:
        return flow.solvers(scheduler)

    def few_steps(self, modules: Modules, scheduler: Any) -> FewSteps | None:
        del scheduler
        dev = modules["transformer"].config.guidance_embeds
        return None if dev else FewSteps("its transformer, which is told no guidance, as schnell's", 4, 1.0)

    def set_steps(
        self, solver: Any, steps: int, modules: Modules, *, pixels: tuple[int, int], device: torch.device
    ) -> None:
        side = KL().factor(modules["vae"]) * PATCH
        flow.set_steps(solver, steps, (pixels[0] // side) * (pixels[1] // side), device, flow.even(steps))

    def token_limit(self, modules: Modules) -> int | None:
        most = DEV_TOKENS if modules["transformer"].config.guidance_embeds else SCHNELL_TOKENS
        own = limit_of(modules, "tokenizer_2", "text_encoder_2")
        return most if own is None else min(own, most)

    def tokens(self, modules: Modules, caption: str) -> int:
        return tokens_in(modules["tokenizer_2"], caption)

    def encode(self, modules: Modules, captions: Sequence[str]) -> Texts:
        """T5's tokens, those that fill it up too, and what CLIP says of the caption as a whole."""
        names = "tokenizer", "text_encoder"
        pooled = modules["text_encoder"](tokenised(modules, *names, captions, limit_of(modules, *names)).input_ids)[1]
        read = tokenised(modules, "tokenizer_2", "text_encoder_2", captions, self.token_limit(modules))
        return Texts(modules["text_encoder_2"](read.input_ids)[0], pooled)

    def embedded_guidance(self, modules: Modules) -> float | None:
        return GUIDANCE if modules["transformer"].config.guidance_embeds else None

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
        """The network sees patches in a row, each with its row and column; tokens of texts stand at none. It is told
        the noise's level, 0 to 1."""
        del pixels
        patches = pixel_unshuffle(xt, PATCH)  # channels of a position lie together, as the network was trained
        rows, columns = patches.shape[-2:]
        places = [torch.arange(count, dtype=torch.float32, device=xt.device) for count in (1, rows, columns)]
        said = network(
            hidden_states=patches.flatten(2).transpose(1, 2),  # (batch, rows x columns, channels)
            encoder_hidden_states=texts.tokens,
            pooled_projections=texts.pooled,
            timestep=timesteps.expand(len(xt)) / 1000,
            img_ids=torch.cartesian_prod(*places),
            txt_ids=torch.zeros(texts.tokens.shape[1], len(places), device=xt.device),
            guidance=None if guidance is None else torch.full((len(xt),), guidance, device=xt.device),
            return_dict=False,
        )[0]
        return pixel_shuffle(said.transpose(1, 2).unflatten(2, (rows, columns)), PATCH)

    def size(self, modules: Modules) -> tuple[int, int] | None:
        """By the VAE's config, the only one that says it."""
        side = int(modules["vae"].config.sample_size)
        return side, side

    def multiple(self, modules: Modules) -> int:
        return PATCH

    def kohya(self, component: str, layer: str, modules: Modules) -> str:
        """The transformer's by the names of diffusers, as OneTrainer writes them. ComfyUI reads all of them
        (comfy/lora.py, at 17358c8f), diffusers those of attention. In kohya's own, queries, keys and values have one
        LoRA together, which three are not."""
        del modules
        start = "lora_te1" if component == "text_encoder" else "lora_transformer"
        return f"{start}_{layer.replace('.', '_')}"

    def described(self, modules: Modules, prediction_type: str) -> Mapping[str, str]:
        """As kohya's scripts and Stability's model specification have it."""
        model = "dev" if modules["transformer"].config.guidance_embeds else "schnell"
        return {
            "ss_base_model_version": "flux1",
            "modelspec.architecture": f"flux-1-{model}",
            "modelspec.implementation": "https://github.com/black-forest-labs/flux",
        }

    def pipeline_arguments(self) -> Mapping[str, Any]:
        return {}
