"""Z-Image. Pictures are 16 px, latents 16x8x8."""

from typing import Any

from raftdiff.diffusion.families.tiny.qwen3 import qwen3, qwen3_tokenizer
from raftdiff.diffusion.families.tiny.unets import vae

WIDTH = 32
"""Of what Qwen3 says of a token."""


def whole() -> dict[str, Any]:
    """With Turbo's shift. What fills pictures and texts up to a multiple of 32 tokens is seen, as a trained one is."""
    import diffusers
    from torch.nn.init import normal_

    transformer = diffusers.ZImageTransformer2DModel(
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 16, 16],
    )
    normal_(transformer.x_pad_token)
    normal_(transformer.cap_pad_token)
    return {
        "transformer": transformer,
        "vae": vae(16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": qwen3(WIDTH, 2).model,
        "tokenizer": qwen3_tokenizer(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }
