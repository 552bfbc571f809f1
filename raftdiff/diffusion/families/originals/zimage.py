"""Z-Image. Source: ComfyUI (``comfy/utils.py``, ``z_image_to_diffusers``), whose files are those that people have: the
authors' own are diffusers' format."""

from raftdiff.diffusion.families.originals.bundle import Bundle
from raftdiff.diffusion.families.originals.names import Names, numbered

ALONE = {
    "x_embedder": "all_x_embedder.2-1",
    "final_layer.linear": "all_final_layer.2-1.linear",
    "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
}
SAME = ("x_pad_token", "cap_pad_token", "cap_embedder.0", "cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2")
BLOCK = {
    "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
    "attention.out": ("attention.to_out.0",),
    "attention.q_norm": ("attention.norm_q",),
    "attention.k_norm": ("attention.norm_k",),
    **{
        name: (name,)
        for name in (
            *("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.0"),
            *("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"),
        )
    },
}
NAMES = Names(
    layers={
        **{name: (layer,) for name, layer in ALONE.items()},
        **{name: (name,) for name in SAME},
        **numbered("layers", "layers", BLOCK),
        **numbered("noise_refiner", "noise_refiner", BLOCK),
        **numbered("context_refiner", "context_refiner", BLOCK),
    },
    unread=frozenset({"norm_final.weight"}),
)
BUNDLE = Bundle(NAMES, {"text_encoder": ("qwen3_4b",)}, vae="vae.")
