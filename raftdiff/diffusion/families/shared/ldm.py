"""Weights from diffusers' names to those of the original single-file checkpoints (CompVis and Stability's ldm).

diffusers converts the other way. With this direction a model can be written as one file, and a LoRA of SDXL under the
names that kohya's scripts give it.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet_weights(state: Weights, layers: int) -> dict[str, Tensor]:
    """``layers`` is the U-Net's layers per block."""
    attended = {match[1] for name in state if (match := re.match(r"up_blocks\.(\d+)\.attentions", name))}
    return {f"model.diffusion_model.{_unet_name(name, layers, attended)}": weight for name, weight in state.items()}


def vae_weights(state: Weights, blocks: int, start: str = "first_stage_model.") -> dict[str, Tensor]:
    """``blocks`` is the VAE's number of resolutions; ldm numbers the decoder's from the other end."""
    return {f"{start}{_vae_name(name, blocks)}": _as_conv(name, weight) for name, weight in state.items()}


def unet_layer(name: str, unet: Any) -> str:
    """What a layer is called there, without the U-Net's own prefix."""
    attended = {str(block) for block, kind in enumerate(unet.config.up_block_types) if "Attn" in kind}
    return _unet_name(f"{name}.weight", unet.config.layers_per_block, attended).removesuffix(".weight")


def clip_weights(state: Weights, prefix: str) -> dict[str, Tensor]:
    """A text encoder in the form of SD 1.x, and of the first one of SDXL."""
    return {prefix + name.removeprefix("text_model."): weight for name, weight in state.items()}


def open_clip_weights(state: Weights, prefix: str) -> dict[str, Tensor]:
    """A text encoder in the form of SD 2.x, and of the second one of SDXL: query, key and value are one matrix."""
    plain = {name.removeprefix("text_model."): weight for name, weight in state.items()}
    weights = {prefix + new: plain[old] for old, new in OPEN_CLIP.items()}
    if (projection := plain.get("text_projection.weight")) is not None:
        weights[f"{prefix}text_projection"] = projection.T
    for name, weight in plain.items():
        match = re.match(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)$", name)
        if match is None:
            continue
        block, part, kind = f"{prefix}transformer.resblocks.{match[1]}.", match[2], match[3]
        if part in OPEN_CLIP_LAYER:
            weights[f"{block}{OPEN_CLIP_LAYER[part]}.{kind}"] = weight
        elif part == "self_attn.q_proj":
            three = [plain[name.replace("q_proj", letter)] for letter in ("q_proj", "k_proj", "v_proj")]
            weights[f"{block}attn.in_proj_{kind}"] = torch.cat(three)
    return weights


def _unet_name(name: str, layers: int, attended: set[str]) -> str:
    for end, ldm in UNET_ENDS.items():
        if name.startswith(end + "."):
            return ldm + name.removeprefix(end)
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        place = 1 if match[1] == "attentions" else 2 * int(match[2])
        return f"middle_block.{place}.{_inner(match[1], match[3])}"
    match = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    if match is None:
        raise ValueError(f"{name!r} is no parameter of a Stable Diffusion U-Net")
    way, block, part, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if way == "down":
        row = 1 + block * (layers + 1) + (layers if part == "downsamplers" else layer)
        if part == "downsamplers":
            return f"input_blocks.{row}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{row}.{int(part == 'attentions')}.{_inner(part, rest)}"
    row = block * (layers + 1) + (layers if part == "upsamplers" else layer)
    if part == "upsamplers":  # behind the attention of the same row, where there is one
        return f"output_blocks.{row}.{1 + int(match[2] in attended)}.{rest}"
    return f"output_blocks.{row}.{int(part == 'attentions')}.{_inner(part, rest)}"


def _inner(part: str, rest: str) -> str:
    if part != "resnets":
        return rest
    layer, _, kind = rest.rpartition(".")
    return f"{RESNET[layer]}.{kind}"


def _vae_name(name: str, blocks: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    if "mid_block.attentions.0" in name:
        name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
        return re.sub(r"to_([qkv])\.", r"\1.", name).replace("to_out.0", "proj_out")
    name = re.sub(r"encoder\.down_blocks\.(\d+)\.resnets", r"encoder.down.\1.block", name)
    name = re.sub(r"encoder\.down_blocks\.(\d+)\.downsamplers\.0", r"encoder.down.\1.downsample", name)
    name = re.sub(r"decoder\.up_blocks\.(\d+)", lambda found: f"decoder.up.{blocks - 1 - int(found[1])}", name)
    return re.sub(r"(decoder\.up\.\d+)\.resnets", r"\1.block", name).replace(".upsamplers.0", ".upsample")


def _as_conv(name: str, weight: Tensor) -> Tensor:
    """ldm's VAE attention is made of 1x1 convolutions."""
    return weight[:, :, None, None] if "attentions" in name and weight.ndim == 2 else weight
