"""FLUX.2. Source: github.com/black-forest-labs/flux2, ``model.py``, and the published files."""

from raftdiff.diffusion.families.originals.bundle import Bundle
from raftdiff.diffusion.families.originals.names import Names, numbered

SMALL, LARGE = "qwen3_4b", "qwen3_8b"
"""What ComfyUI calls the text encoders of klein 4B and 9B."""
ALONE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.norm.query_norm.scale": ("attn.norm_q.weight",),
    "img_attn.norm.key_norm.scale": ("attn.norm_k.weight",),
    "txt_attn.norm.query_norm.scale": ("attn.norm_added_q.weight",),
    "txt_attn.norm.key_norm.scale": ("attn.norm_added_k.weight",),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.linear_in",),
    "img_mlp.2": ("ff.linear_out",),
    "txt_mlp.0": ("ff_context.linear_in",),
    "txt_mlp.2": ("ff_context.linear_out",),
}
"""Blocks of two streams."""
SINGLE = {
    "linear1": ("attn.to_qkv_mlp_proj",),
    "linear2": ("attn.to_out",),
    "norm.query_norm.scale": ("attn.norm_q.weight",),
    "norm.key_norm.scale": ("attn.norm_k.weight",),
}
"""Blocks of one."""
BLOCKS = {
    **numbered("double_blocks", "transformer_blocks", DOUBLE),
    **numbered("single_blocks", "single_transformer_blocks", SINGLE),
}
NAMES = Names(
    layers={**{name: (layer,) for name, layer in ALONE.items()}, **BLOCKS},
    swapped=frozenset({"final_layer.adaLN_modulation.1"}),
)
BUNDLE = Bundle(NAMES, {"text_encoder": (SMALL, LARGE)}, vae="vae.")
