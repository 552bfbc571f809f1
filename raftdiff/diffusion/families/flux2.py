"""FLUX.2 klein: a flow by a transformer that reads three layers of what Qwen3 makes of a caption."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from raftdiff.diffusion.families.family import Component, FewSteps, Layers, Modules, Shapes, Solver, Tokenizer
from raftdiff.diffusion.families.originals.flux2 import BUNDLE, LARGE, SMALL
from raftdiff.diffusion.families.shared import flow
from raftdiff.diffusion.families.shared.autoencoders import tile
from raftdiff.diffusion.families.shared.reading import tokenised, tokens_in, user_turn
from raftdiff.diffusion.families.texts import Texts
from raftdiff.diffusion.process import Process
from raftdiff.errors import UserError

TOKENS = 512
"""Of a caption; a shorter one is filled up, and the filling is read too."""
READ = (9, 18, 27)
"""Which hidden states of Qwen3 are read, side by side."""
PATCH = 2
"""Positions of the VAE, along one side, that are one of the transformer's."""
WIDE = 4096
"""Width of the transformer of klein 9B; that of 4B is 3072."""
BLOCKS = 48
"""Of the second kind, at most: klein 4B has 20, 9B 24, dev 48."""
ATTENTION = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    "attn.to_qkv_mlp_proj",
    # by its whole name: in blocks of the first kind ``attn.to_out`` is a list of layers
    *(f"single_transformer_blocks.{block}.attn.to_out" for block in range(BLOCKS)),
)
FEED_FORWARD = ("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out")
FIRST = ("double_stream_modulation_img.lin.weight", "double_stream_modulation_img.linear.weight")
"""The weight by which its network is known in a single file, by its original name and by that in diffusers."""
DEV = ("guidance_in.in_layer.weight", "guidance_embedder.linear_1.weight")
"""One that dev has and klein has not, likewise."""


@final
class Patches:
    """The ``AutoencoderKLFlux2`` of diffusers: of its latents, four positions are one of four times the channels, and
    each channel is normalised by what the VAE knows of its mean and variance. See ``autoencoder.Autoencoder``."""

    def factor(self, vae: Any) -> int:
        return int(PATCH * 2 ** (len(vae.config.block_out_channels) - 1))

    def channels(self, vae: Any) -> int:
        return int(vae.config.latent_channels) * PATCH**2

    def tile(self, vae: Any) -> None:
        tile(vae)

    def decode(
        self, vae: Any, latents: Float[Tensor, "batch channels rows columns"]
    ) -> Float[Tensor, "batch 3 height width"]:
        mean, deviation = _statistics(vae)
        positions = pixel_shuffle(latents.float() * deviation + mean, PATCH)
        found: Tensor = vae.decode(positions.to(vae.dtype), return_dict=False)[0]
        return found.float()

    def encode(
        self, vae: Any, pixels: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Of what the VAE says the mean, so that the same picture is always the same lesson."""
        mean, deviation = _statistics(vae)
        said = vae.encode(pixels.to(vae.dtype)).latent_dist.mode().float()
        latents: Tensor = (pixel_unshuffle(said, PATCH) - mean) / deviation
        return latents


@final
@dataclass(frozen=True, slots=True)
class Flux2Klein:
    """See ``family.Family``. Source: Black Forest Labs' FLUX.2 klein, 4B and 9B, as diffusers draws with it."""

    distilled: bool = False
    """Into few steps, without guidance; the models called base are not."""
    name: str = "flux2"
    told: str = "FLUX.2 klein"
    pipeline: str = "Flux2KleinPipeline"
    denoiser: str = "transformer"
    full_vae: bool = False
    paths: tuple[str, ...] = flow.PATHS

    @property
    def guided(self) -> bool:
        return not self.distilled

    @property
    def components(self) -> Mapping[str, Component]:
        return {
            "transformer": Component("diffusers", "Flux2Transformer2DModel"),
            "vae": Component("diffusers", "AutoencoderKLFlux2"),
            "text_encoder": Component("transformers", "Qwen3ForCausalLM"),
        }

    @property
    def tokenizers(self) -> Mapping[str, Tokenizer]:
        return {"tokenizer": Tokenizer("text_encoder", "Qwen2TokenizerFast")}

    @property
    def layers(self) -> Layers:
        """As diffusers' training script has them, and the text's attention; for ``all`` the feed-forward layers too,
        which blocks of the second kind hold in one matrix with the attention."""
        return Layers(ATTENTION, (*ATTENTION, *FEED_FORWARD), {})

    @property
    def autoencoder(self) -> Patches:
        return Patches()

    @property
    def vae_config(self) -> Mapping[str, Any]:
        return {}

    def stated(self, index: Mapping[str, Any]) -> "Flux2Klein":
        return replace(self, distilled=bool(index.get("is_distilled", False)))

    def recognise(self, shapes: Shapes, path: Path) -> str | None:
        if not any(name.endswith(FIRST) for name in shapes) or any(name.endswith(DEV) for name in shapes):
            return None
        width = next(shape[-1] for name, shape in shapes.items() if name.endswith(FIRST))
        return f"black-forest-labs/FLUX.2-klein-{'9B' if width >= WIDE else '4B'}"

    def held(self, names: Collection[str]) -> frozenset[str]:
        return BUNDLE.held(names)

    def converted(self, weights: Mapping[str, Tensor], configs: Path, dtype: torch.dtype) -> dict[str, Any]:
        return BUNDLE.networks(self.components, weights, configs, dtype)

    def single_file(self, modules: Modules) -> dict[str, Tensor]:
        called = SMALL if modules["text_encoder"].config.hidden_size < WIDE else LARGE
        return replace(BUNDLE, encoders={"text_encoder": (called,)}).weights(self.components, modules)

    def check(self, modules: Modules, name: str) -> None:
        network, encoder = modules["transformer"].config, modules["text_encoder"].config
        if network.in_channels != (made := Patches().channels(modules["vae"])):
            raise UserError(
                f"{name}: its transformer takes {network.in_channels} channels where the VAE makes {made}: these parts "
                "are not of one model."
            )
        if encoder.num_hidden_layers < max(READ) or network.joint_attention_dim != len(READ) * encoder.hidden_size:
            raise UserError(
                f"{name}: its transformer expects {network.joint_attention_dim} numbers of a token, from {len(READ)} "
                f"of at least {max(READ)} layers; the text encoder has {encoder.num_hidden_layers} layers of "
                f"{encoder.hidden_size}: these parts are not of one model."
            )
        if not modules["tokenizer"].chat_template:
            raise UserError(
                f"{name}: its tokenizer has no chat template, in which captions are told to Qwen3. Fetch "
                "tokenizer/chat_template.jinja again."
            )

    def process(self, scheduler: Any, name: str) -> Process:
        return flow.process(scheduler, name)

    def solvers(self, scheduler: Any) -> Mapping[str, Solver]:
        return flow.solvers(scheduler)

    def few_steps(self, modules: Modules, scheduler: Any) -> FewSteps | None:
        del modules, scheduler
        return FewSteps("is_distilled in its model_index.json", 4, 1.0) if self.distilled else None

    def set_steps(
        self, solver: Any, steps: int, modules: Modules, *, pixels: tuple[int, int], device: torch.device
    ) -> None:
        side = Patches().factor(modules["vae"])
        mu = shift_of((pixels[0] // side) * (pixels[1] // side), steps)
        flow.set_shifted(solver, steps, mu, device, flow.even(steps))

    def token_limit(self, modules: Modules) -> int | None:
        return TOKENS

    def tokens(self, modules: Modules, caption: str) -> int:
        return tokens_in(modules["tokenizer"], user_turn(modules["tokenizer"], caption, thinking=False))

    def encode(self, modules: Modules, captions: Sequence[str]) -> Texts:
        told = [user_turn(modules["tokenizer"], caption, thinking=False) for caption in captions]
        read = tokenised(modules, "tokenizer", "text_encoder", told, TOKENS)
        # past the head, whose word on the next token nobody asked for
        said = modules["text_encoder"].model(
            read.input_ids, attention_mask=read.attention_mask, output_hidden_states=True, use_cache=False
        )
        return Texts(torch.cat([said.hidden_states[layer] for layer in READ], dim=-1))

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
        rows, columns = xt.shape[-2:]
        found: Tensor = network(
            hidden_states=xt.flatten(2).transpose(1, 2),
            encoder_hidden_states=texts.tokens,
            timestep=timesteps.expand(len(xt)) / 1000,
            img_ids=_places(1, rows, columns, 1, device=xt.device),
            txt_ids=_places(1, 1, 1, texts.tokens.shape[1], device=xt.device),
            guidance=None,
            return_dict=False,
        )[0]
        return found.transpose(1, 2).reshape(len(xt), -1, rows, columns)

    def size(self, modules: Modules) -> tuple[int, int] | None:
        """The VAE's, 1024 px, which is what the pipeline draws at; the transformer does not say."""
        side = int(modules["vae"].config.sample_size)
        return side, side

    def multiple(self, modules: Modules) -> int:
        return 1

    def kohya(self, component: str, layer: str, modules: Modules) -> str:
        """By the names of diffusers, as OneTrainer writes and ComfyUI (comfy/lora.py, ``flux_to_diffusers``) reads
        them."""
        return f"lora_{component}_{layer.replace('.', '_')}"

    def described(self, modules: Modules, prediction_type: str) -> Mapping[str, str]:
        """As kohya's musubi-tuner writes them."""
        config = modules["transformer"].config
        size = "9b" if config.num_attention_heads * config.attention_head_dim >= WIDE else "4b"
        return {
            "ss_base_model_version": f"flux_2_klein_{size}",
            "modelspec.architecture": f"Flux.2-klein-{size}",
            "modelspec.implementation": "https://github.com/black-forest-labs/flux2",
        }

    def pipeline_arguments(self) -> Mapping[str, Any]:
        return {"is_distilled": self.distilled}


def shift_of(tokens: int, steps: int) -> float:
    """The mu by which steps are shifted to where there is more noise, of a picture of so many tokens.

    Fitted by the authors (github.com/black-forest-labs/flux2, ``compute_empirical_mu``): linear in the tokens, by one
    line at 10 steps and another at 200, and linear in the steps between them; large pictures go by the second alone.
    """
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    return at_200 + (at_200 - at_10) / 190 * (steps - 200)


def _statistics(vae: Any) -> tuple[Float[Tensor, "1 channels 1 1"], Float[Tensor, "1 channels 1 1"]]:
    """Mean and standard deviation of each channel."""
    mean, variance = (it.float().view(1, -1, 1, 1) for it in (vae.bn.running_mean, vae.bn.running_var))
    return mean, (variance + vae.config.batch_norm_eps).sqrt()


def _places(*sizes: int, device: torch.device) -> Int[Tensor, "positions 4"]:
    """Picture, row, column and token of each position of a grid."""
    return torch.cartesian_prod(*(torch.arange(size, device=device) for size in sizes))
