"""The parts of emoji-flow, untrained, and their files: as Stable Diffusion 3's without T5, on scene-sd's latents.

All models that ship may take 48 MiB together, which left about 2.2 million numbers to these parts beside a copy of the
autoencoder. A patch of 2 x 2 latents covers 8 x 8 pixels, half as much along a side as Stable Diffusion 3's, and makes
100 tokens of a picture; 400 patches of one latent each take several times as long. Of the shapes that fill the room,
few wide blocks are the fastest: each block also attends to the 256 zeros that stand for T5, whatever its width. The
first text encoder is narrower than scene-sd's and begins by learning what that one says, as those of Stable Diffusion
3 are encoders that were trained before; the second is there because the format wants one.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raftdiff.embedded.scenes.networks import LATENT, VAE, load_vae, read, text_config
from raftdiff.embedded.scenes.tokens import build_tokenizer

WIDTH, HEADS, BLOCKS, PATCH = 128, 8, 3, 2
CLIPS = {
    "text_encoder": {"width": 128, "inner": 256, "layers": 3, "heads": 4},
    "text_encoder_2": {"width": 32, "inner": 64, "layers": 2, "heads": 1},
}
CONTEXT = sum(sizes["width"] for sizes in CLIPS.values())
T5_TOKENS = 256
"""Zeros that the pipeline tells where there is no T5."""
SHIFT = 3.0
"""As Stable Diffusion 3's: what a picture's ground and its layout are is told by very noisy latents."""
LACKING = {"text_encoder_3": None, "tokenizer_3": None}
"""What ``from_pretrained`` must be told to do without."""
FILES = {name: f"emoji-flow.{name}.safetensors" for name in ("transformer", *CLIPS)}
"""Of trained weights; the autoencoder's file is scene-sd's."""


def build(tokenizer: Any) -> dict[str, Any]:
    """The parts that learn, by the names that they have in the pipeline."""
    from transformers import CLIPTextModelWithProjection

    clips = {name: CLIPTextModelWithProjection(text_config(tokenizer, **sizes)) for name, sizes in CLIPS.items()}
    return {"transformer": build_transformer(), **clips}


def build_transformer() -> Any:
    """Its blocks begin as the identity, as those of Peebles and Xie 2022, arXiv:2212.09748 (adaLN-Zero)."""
    from diffusers import SD3Transformer2DModel

    transformer = SD3Transformer2DModel(
        sample_size=LATENT,
        patch_size=PATCH,
        in_channels=4,
        out_channels=4,
        num_layers=BLOCKS,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=CONTEXT,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=CONTEXT,
        pos_embed_max_size=LATENT // PATCH,
        qk_norm="rms_norm",
    )
    last = transformer.norm_out.linear, transformer.proj_out
    blocks = (norm.linear for block in transformer.transformer_blocks for norm in (block.norm1, block.norm1_context))
    for layer in (*last, *blocks):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return transformer


def say(modules: Mapping[str, Any], tokens: Tensor, *, zeros: int = T5_TOKENS) -> tuple[Tensor, Tensor]:
    """What the transformer is told of captions, as the pipeline tells it: of each token, T5's zeros after them
    (captions, 28 + zeros, 224); and of each caption (captions, 224)."""
    said = [modules[name](tokens, output_hidden_states=True) for name in CLIPS]
    clip = torch.cat([one.hidden_states[-2] for one in said], dim=-1)
    nothing = clip.new_zeros(len(clip), zeros, CONTEXT)
    return torch.cat([clip, nothing], dim=1), torch.cat([one.text_embeds for one in said], dim=-1)


def assemble(results: Path, folder: Path) -> Path:
    """The files of ``results`` as a folder that ``StableDiffusion3Pipeline`` and raftdiff load, in float16."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    tokenizer = build_tokenizer()
    modules = build(tokenizer)
    for name, file in FILES.items():
        read(results / file, modules[name])
    vae = load_vae(results / VAE).to(memory_format=torch.contiguous_format)
    vae.register_to_config(shift_factor=0.0)  # Stable Diffusion's pipeline knows no shift, this one needs a number
    pipeline = StableDiffusion3Pipeline(
        vae=vae.half(),
        **{name: module.half() for name, module in modules.items()},
        tokenizer=tokenizer,
        tokenizer_2=build_tokenizer(),
        **LACKING,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
    )
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
