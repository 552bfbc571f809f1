"""Stable Diffusion 3. Pictures are 16 px, latents 16x8x8."""

from typing import Any

from raftdiff.diffusion.families.tiny.clip import text_encoder, tokenizer
from raftdiff.diffusion.families.tiny.t5 import t5_encoder, t5_tokenizer
from raftdiff.diffusion.families.tiny.unets import vae

WIDTH = 96
"""Of what is said of a token: T5's, and CLIP's two side by side, filled."""


def whole() -> dict[str, Any]:
    """With all three text encoders; queries and keys are normed and the first block attends twice, as in 3.5 medium."""
    return {**without_t5(), "text_encoder_3": t5_encoder(WIDTH), "tokenizer_3": t5_tokenizer()}


def without_t5() -> dict[str, Any]:
    """Without T5, as many run it."""
    import diffusers

    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=48,
        out_channels=16,
        pos_embed_max_size=12,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return {
        "transformer": transformer,
        "vae": vae(16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": text_encoder("CLIPTextModelWithProjection", 32, open_clip=False),
        "text_encoder_2": text_encoder("CLIPTextModelWithProjection", 48, open_clip=True),
        "tokenizer": tokenizer(open_clip=False),
        "tokenizer_2": tokenizer(open_clip=True),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }
