"""Stable Diffusion 3 and 3.5: a flow by a transformer that reads what two CLIPs and T5 say of a caption."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from raftdiff.diffusion.families.family import Component, FewSteps, Layers, Modules, Shapes, Solver, Tokenizer
from raftdiff.diffusion.families.originals.sd3 import BUNDLE, STREAMS
from raftdiff.diffusion.families.shared import flow, unet
from raftdiff.diffusion.families.shared.autoencoders import KL
from raftdiff.diffusion.families.shared.reading import limit_of, tokenised, tokens_in
from raftdiff.diffusion.families.texts import Texts
from raftdiff.diffusion.process import Process
from raftdiff.errors import UserError

T5_TOKENS = 256
"""That T5 reads, and that stand for what it would have said where it is left out."""
ATTENTION = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    *("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
)
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
VAE = {
    **unet.VAE,
    "latent_channels": 16,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "sample_size": 1024,
}
SWAPPED = (1, 0)
"""Where the original code has the shift before the scale."""
MEDIUM = "stable-diffusion-3-medium-diffusers"
"""What the first model is called on the hub, which has none of what 3.5 is known by."""
FIRST = "joint_blocks.0.x_block.attn.qkv.weight"
"""The weight by which its network is known in a single file."""


@final
@dataclass(frozen=True, slots=True)
class StableDiffusion3:
    """See ``family.Family``. Source: Esser et al. 2024, arXiv:2403.03206, and the published checkpoints."""

    t5: bool = True
    """Whether T5 reads captions too; without it the network is told zeros in its place, as it was trained to bear."""
    name: str = "sd3"
    told: str = "Stable Diffusion 3 and 3.5"
    pipeline: str = "StableDiffusion3Pipeline"
    denoiser: str = "transformer"
    full_vae: bool = False
    guided: bool = True
    paths: tuple[str, ...] = flow.PATHS

    @property
    def components(self) -> Mapping[str, Component]:
        clip = Component("transformers", "CLIPTextModelWithProjection")
        return {
            "transformer": Component("diffusers", "SD3Transformer2DModel"),
            "vae": Component("diffusers", "AutoencoderKL"),
            "text_encoder": clip,
            "text_encoder_2": clip,
            **({"text_encoder_3": Component("transformers", "T5EncoderModel")} if self.t5 else {}),
        }

    @property
    def tokenizers(self) -> Mapping[str, Tokenizer]:
        third = {"tokenizer_3": Tokenizer("text_encoder_3", "T5TokenizerFast")} if self.t5 else {}
        return {"tokenizer": Tokenizer("text_encoder"), "tokenizer_2": Tokenizer("text_encoder_2"), **third}

    @property
    def layers(self) -> Layers:
        """As diffusers' training script has them, and for ``all`` the feed-forward layers too."""
        return Layers(ATTENTION, (*ATTENTION, *FEED_FORWARD), unet.CLIP_LAYERS)

    @property
    def autoencoder(self) -> KL:
        return KL()

    @property
    def vae_config(self) -> Mapping[str, Any]:
        return VAE

    def stated(self, index: Mapping[str, Any]) -> "StableDiffusion3":
        third = index.get("text_encoder_3")
        return replace(self, t5=bool(third and third[0] is not None))

    def recognise(self, shapes: Shapes, path: Path) -> str | None:
        if not any(name.endswith(FIRST) for name in shapes):
            return None
        sizes = {".attn2.qkv.weight": "stable-diffusion-3.5-medium", ".attn.ln_q.weight": "stable-diffusion-3.5-large"}
        model = next((sizes[mark] for mark in sizes if any(name.endswith(mark) for name in shapes)), MEDIUM)
        return f"stabilityai/{model}"

    def held(self, names: Collection[str]) -> frozenset[str]:
        return BUNDLE.held(names)

    def converted(self, weights: Mapping[str, Tensor], configs: Path, dtype: torch.dtype) -> dict[str, Any]:
        return BUNDLE.networks(self.components, weights, configs, dtype)

    def single_file(self, modules: Modules) -> dict[str, Tensor]:
        return BUNDLE.weights(self.components, modules)

    def check(self, modules: Modules, name: str) -> None:
        network, vae = modules["transformer"].config, modules["vae"].config
        clips = [modules[encoder].config for encoder in ("text_encoder", "text_encoder_2")]
        pooled, width = sum(clip.projection_dim for clip in clips), sum(clip.hidden_size for clip in clips)
        if network.in_channels != vae.latent_channels:
            raise UserError(
                f"{name}: its transformer takes {network.in_channels} channels where the VAE makes "
                f"{vae.latent_channels}: these parts are not of one model."
            )
        if network.pooled_projection_dim != pooled or network.joint_attention_dim < width:
            raise UserError(
                f"{name}: its transformer expects {network.pooled_projection_dim} numbers of a caption and "
                f"{network.joint_attention_dim} of a token; the two CLIPs give {pooled} and {width}: these parts are "
                "not of one model."
            )
        if self.t5 and modules["text_encoder_3"].config.d_model != network.joint_attention_dim:
            raise UserError(
                f"{name}: its transformer expects {network.joint_attention_dim} numbers of a token, T5 gives "
                f"{modules['text_encoder_3'].config.d_model}: these parts are not of one model."
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
        side = KL().factor(modules["vae"]) * self.multiple(modules)
        flow.set_steps(solver, steps, (pixels[0] // side) * (pixels[1] // side), device)

    def token_limit(self, modules: Modules) -> int | None:
        return T5_TOKENS if self.t5 else limit_of(modules, "tokenizer", "text_encoder")

    def tokens(self, modules: Modules, caption: str) -> int:
        return tokens_in(modules["tokenizer_3" if self.t5 else "tokenizer"], caption)

    def encode(self, modules: Modules, captions: Sequence[str]) -> Texts:
        """Of each CLIP the last layer but one, side by side, filled with zeros to T5's width; T5's tokens follow."""
        said = []
        for number in ("", "_2"):
            names = f"tokenizer{number}", f"text_encoder{number}"
            tokens = tokenised(modules, *names, captions, limit_of(modules, *names))
            said.append(modules[names[1]](tokens.input_ids, output_hidden_states=True))
        clip = torch.cat([one.hidden_states[-2] for one in said], dim=-1)
        width = modules["transformer"].config.joint_attention_dim
        if self.t5:
            tokens = tokenised(modules, "tokenizer_3", "text_encoder_3", captions, T5_TOKENS)
            third = modules["text_encoder_3"](tokens.input_ids)[0]
        else:
            third = clip.new_zeros(len(clip), T5_TOKENS, width)
        pooled = torch.cat([one.text_embeds for one in said], dim=-1)
        return Texts(torch.cat([pad(clip, (0, width - clip.shape[-1])), third], dim=1), pooled)

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
        del guidance
        config = network.config
        if (most := config.pos_embed_max_size) and max(xt.shape[-2:]) > most * config.patch_size:
            side = most * config.patch_size * pixels[0] // xt.shape[-2]
            raise UserError(
                f"sampler: a picture of {pixels[1]}x{pixels[0]} is larger than the positions that this network knows; "
                f"set height and width to {side} or less."
            )
        found: Tensor = network(
            xt,
            encoder_hidden_states=texts.tokens,
            pooled_projections=texts.pooled,
            timestep=timesteps.expand(len(xt)),
            return_dict=False,
        )[0]
        return found

    def size(self, modules: Modules) -> tuple[int, int] | None:
        side = int(modules["transformer"].config.sample_size) * KL().factor(modules["vae"])
        return side, side

    def multiple(self, modules: Modules) -> int:
        return int(modules["transformer"].config.patch_size)

    def kohya(self, component: str, layer: str, modules: Modules) -> str:
        """The transformer's by the names of diffusers, as OneTrainer writes and ComfyUI reads them."""
        del modules
        start = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}.get(component, "lora_transformer")
        return f"{start}_{layer.replace('.', '_')}"

    def joined(self, modules: Modules) -> Mapping[str, Mapping[str, tuple[int, ...]]]:
        """kohya's names, which are the original code's (sd-scripts, networks/lora_sd3.py, commit 077f6a4f)."""
        last = int(modules["transformer"].config.num_layers) - 1
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        for block in range(last + 1):
            for stream, layers in STREAMS.items():
                for name, several in layers.items():
                    found[f"lora_unet_joint_blocks_{block}_{stream}_{name.replace('.', '_')}"] = {
                        f"transformer_blocks.{block}.{layer}": (place,) for place, layer in enumerate(several)
                    }
        norm = f"transformer_blocks.{last}.norm1_context.linear"
        found[f"lora_unet_joint_blocks_{last}_context_block_adaLN_modulation_1"] = {norm: SWAPPED}
        return found

    def described(self, modules: Modules, prediction_type: str) -> Mapping[str, str]:
        """3.5 medium attends twice in its first blocks, 3.5 large norms queries and keys, 3 does neither."""
        config = modules["transformer"].config
        newer = "3.5-medium" if config.dual_attention_layers else "3.5-large"
        model = newer if config.qk_norm else "3-medium"
        return {
            "ss_base_model_version": f"sd{model.replace('-', '_').replace('.', '')}",
            "modelspec.architecture": f"stable-diffusion-{model}",
            "modelspec.implementation": "https://github.com/Stability-AI/sd3.5",
        }

    def pipeline_arguments(self) -> Mapping[str, Any]:
        return {} if self.t5 else {"text_encoder_3": None, "tokenizer_3": None}
