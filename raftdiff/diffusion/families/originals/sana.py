"""Sana and Sana 1.5. Source: github.com/NVlabs/Sana, ``diffusion/model/nets/sana_multi_scale.py`` and
``sana_blocks.py``, whose files hold a transformer alone; names as diffusers has them, commit 065628f5
(``scripts/convert_sana_to_diffusers.py``)."""

from raftdiff.diffusion.families.originals.bundle import Bundle
from raftdiff.diffusion.families.originals.names import Names, numbered

ALONE = {
    "x_embedder.proj": "patch_embed.proj",
    "t_embedder.mlp.0": "time_embed.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_embed.emb.timestep_embedder.linear_2",
    "t_block.1": "time_embed.linear",
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
    "attention_y_norm": "caption_norm",
    "final_layer.linear": "proj_out",
    "final_layer.scale_shift_table": "scale_shift_table",
}
BLOCK = {
    "scale_shift_table": ("scale_shift_table",),
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.q_norm": ("attn1.norm_q",),
    "attn.k_norm": ("attn1.norm_k",),
    "attn.proj": ("attn1.to_out.0",),
    "cross_attn.q_linear": ("attn2.to_q",),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
    "cross_attn.q_norm": ("attn2.norm_q",),
    "cross_attn.k_norm": ("attn2.norm_k",),
    "cross_attn.proj": ("attn2.to_out.0",),
    "mlp.inverted_conv.conv": ("ff.conv_inverted",),
    "mlp.depth_conv.conv": ("ff.conv_depth",),
    "mlp.point_conv.conv": ("ff.conv_point",),
}
NAMES = Names(
    layers={**{name: (layer,) for name, layer in ALONE.items()}, **numbered("blocks", "transformer_blocks", BLOCK)},
    unread=frozenset({"pos_embed", "y_embedder.y_embedding", "logvar_linear.weight", "logvar_linear.bias"}),
)
"""Unread: places, which are computed; what stood for a caption that training left out; and a loss's own layer."""
BUNDLE = Bundle(NAMES, {}, vae=None)
