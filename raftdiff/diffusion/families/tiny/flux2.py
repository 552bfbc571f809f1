"""FLUX.2 klein. Pictures are 16 px, latents 32x4x4."""

from typing import Any

import torch

from raftdiff.diffusion.families.tiny.qwen3 import qwen3, qwen3_tokenizer

WIDTH = 16
"""Of what Qwen3 says of a token, three layers of which are read."""


def klein() -> dict[str, Any]:
    """Base and distilled differ in their weights alone."""
    import diffusers

    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=32,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    for name, weight in transformer.named_parameters():  # else the blocks would hardly matter
        if "modulation" in name:
            weight.data.mul_(8)
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=8,
        sample_size=16,
    )
    vae.bn.running_mean.copy_(0.1 * torch.randn(32))
    vae.bn.running_var.copy_(0.5 + torch.rand(32))
    return {
        "transformer": transformer,
        "vae": vae,
        "text_encoder": qwen3(WIDTH, layers=28),
        "tokenizer": qwen3_tokenizer(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    }
