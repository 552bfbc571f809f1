"""Stable Diffusion 3 and 3.5. Source: github.com/Stability-AI/sd3.5, ``mmditx.py``, and the published files."""

from collections.abc import Mapping

from raftdiff.diffusion.families.originals.bundle import Bundle
from raftdiff.diffusion.families.originals.names import Names, numbered

STREAMS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "x_block": {
        "attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "attn.proj": ("attn.to_out.0",),
        "attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
        "attn2.proj": ("attn2.to_out.0",),
        "mlp.fc1": ("ff.net.0.proj",),
        "mlp.fc2": ("ff.net.2",),
        "adaLN_modulation.1": ("norm1.linear",),
    },
    "context_block": {
        "attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "attn.proj": ("attn.to_add_out",),
        "mlp.fc1": ("ff_context.net.0.proj",),
        "mlp.fc2": ("ff_context.net.2",),
        "adaLN_modulation.1": ("norm1_context.linear",),
    },
}
"""Layers of a block in the original code, and those that they are in diffusers."""
NORMS = {
    "x_block.attn.ln_q": "attn.norm_q",
    "x_block.attn.ln_k": "attn.norm_k",
    "x_block.attn2.ln_q": "attn2.norm_q",
    "x_block.attn2.ln_k": "attn2.norm_k",
    "context_block.attn.ln_q": "attn.norm_added_q",
    "context_block.attn.ln_k": "attn.norm_added_k",
}
BLOCK = {f"{stream}.{name}": several for stream, layers in STREAMS.items() for name, several in layers.items()}
BLOCK |= {name: (layer,) for name, layer in NORMS.items()}
ALONE = {
    "pos_embed": "pos_embed.pos_embed",
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "context_embedder": "context_embedder",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
NAMES = Names(
    layers={
        **{name: (layer,) for name, layer in ALONE.items()},
        **numbered("joint_blocks", "transformer_blocks", BLOCK),
    },
    swapped=frozenset({"final_layer.adaLN_modulation.1", "joint_blocks.{last}.context_block.adaLN_modulation.1"}),
)
BUNDLE = Bundle(
    NAMES,
    {"text_encoder": ("clip_l",), "text_encoder_2": ("clip_g",), "text_encoder_3": ("t5xxl",)},
    vae="first_stage_model.",
)
