"""FLUX.1. Pictures are 16 px, latents 16x8x8, sixteen tokens."""

from typing import Any

from raftdiff.diffusion.families.tiny.clip import TOKENS, text_encoder, tokenizer
from raftdiff.diffusion.families.tiny.t5 import t5_encoder, t5_tokenizer
from raftdiff.diffusion.families.tiny.unets import vae


def dev() -> dict[str, Any]:
    """Told a guidance; its steps shift with the picture's size."""
    return _parts(guidance_embeds=True, scheduler={"shift": 3.0, "use_dynamic_shifting": True})


def schnell() -> dict[str, Any]:
    """Told none; its steps do not shift."""
    return _parts(guidance_embeds=False, scheduler={"shift": 1.0})


def _parts(*, guidance_embeds: bool, scheduler: dict[str, Any]) -> dict[str, Any]:
    import diffusers

    transformer = diffusers.FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    return {
        "transformer": transformer,
        "vae": vae(16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": text_encoder("CLIPTextModel", 32, open_clip=False),
        "text_encoder_2": t5_encoder(32),
        "tokenizer": tokenizer(open_clip=False),
        "tokenizer_2": t5_tokenizer(TOKENS),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(**scheduler),
    }
