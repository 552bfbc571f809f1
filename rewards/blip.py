"""BLIP as its authors publish it: a ViT, and a BERT whose layers also look at the picture. Built from transformers' own
modules, whose arithmetic is the same; only the names of the weights differ, and the size of a norm's epsilon.

Source: Li et al. 2022, "BLIP", arXiv:2201.12086; https://github.com/salesforce/BLIP (BSD-3-Clause).
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Int64

HEAD = 64
"""Numbers in a head of attention, in every BLIP."""
EPSILON = 1e-6
"""Of the norms of the ViT, where transformers has 1e-5 by default."""
IMAGE, TEXT = "visual_encoder.", "text_encoder."
NAMES = (
    (r"^image\.embeddings\.class_embedding$", f"{IMAGE}cls_token"),
    (r"^image\.embeddings\.position_embedding$", f"{IMAGE}pos_embed"),
    (r"^image\.embeddings\.patch_embedding\.", f"{IMAGE}patch_embed.proj."),
    (r"^image\.encoder\.layers\.(\d+)\.layer_norm([12])\.", rf"{IMAGE}blocks.\1.norm\2."),
    (r"^image\.encoder\.layers\.(\d+)\.self_attn\.qkv\.", rf"{IMAGE}blocks.\1.attn.qkv."),
    (r"^image\.encoder\.layers\.(\d+)\.self_attn\.projection\.", rf"{IMAGE}blocks.\1.attn.proj."),
    (r"^image\.encoder\.layers\.(\d+)\.mlp\.", rf"{IMAGE}blocks.\1.mlp."),
    (r"^image\.post_layernorm\.", f"{IMAGE}norm."),
    (r"^text\.", TEXT),
)
"""What the network here calls its weights, and what the authors do."""
TELLING = {
    f"{IMAGE}pos_embed": 3,
    f"{IMAGE}patch_embed.proj.weight": 4,
    f"{IMAGE}blocks.0.mlp.fc1.weight": 2,
    f"{TEXT}embeddings.word_embeddings.weight": 2,
    f"{TEXT}embeddings.position_embeddings.weight": 2,
    f"{TEXT}encoder.layer.0.intermediate.dense.weight": 2,
}
"""Weights by whose shapes the sizes are known, and how many dimensions they have."""


class Sizes(NamedTuple):
    """What the shapes of the weights say of a model."""

    side: int
    """Of the square picture that it reads, in pixels."""
    patch: int
    image_width: int
    image_hidden: int
    image_layers: int
    text_width: int
    text_hidden: int
    text_layers: int
    tokens: int
    """In the vocabulary."""
    positions: int


def sizes(weights: Mapping[str, torch.Tensor]) -> Sizes:
    """``weights`` by their published names, of which those in ``TELLING`` are there."""

    def layers(start: str) -> int:
        found = (re.match(rf"{re.escape(start)}(\d+)\.", name) for name in weights)
        return 1 + max((int(one[1]) for one in found if one), default=-1)

    patch = weights[f"{IMAGE}patch_embed.proj.weight"].shape[3]
    words, places = weights[f"{TEXT}embeddings.word_embeddings.weight"].shape, weights[f"{IMAGE}pos_embed"].shape
    return Sizes(
        side=patch * math.isqrt(places[1] - 1),
        patch=patch,
        image_width=places[2],
        image_hidden=weights[f"{IMAGE}blocks.0.mlp.fc1.weight"].shape[0],
        image_layers=layers(f"{IMAGE}blocks."),
        text_width=words[1],
        text_hidden=weights[f"{TEXT}encoder.layer.0.intermediate.dense.weight"].shape[0],
        text_layers=layers(f"{TEXT}encoder.layer."),
        tokens=words[0],
        positions=weights[f"{TEXT}embeddings.position_embeddings.weight"].shape[0],
    )


@final
class Blip(torch.nn.Module):
    """The text encoder's first state, of a caption that was read with the picture before its eyes."""

    def __init__(self, sizes: Sizes) -> None:
        from transformers import BlipTextConfig, BlipVisionConfig
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        super().__init__()
        image = BlipVisionConfig(
            image_size=sizes.side,
            patch_size=sizes.patch,
            hidden_size=sizes.image_width,
            intermediate_size=sizes.image_hidden,
            num_hidden_layers=sizes.image_layers,
            num_attention_heads=max(sizes.image_width // HEAD, 1),
            layer_norm_eps=EPSILON,
            hidden_act="gelu",
        )
        text = BlipTextConfig(
            vocab_size=sizes.tokens,
            hidden_size=sizes.text_width,
            encoder_hidden_size=sizes.image_width,
            intermediate_size=sizes.text_hidden,
            num_hidden_layers=sizes.text_layers,
            num_attention_heads=max(sizes.text_width // HEAD, 1),
            max_position_embeddings=sizes.positions,
            is_decoder=True,  # so that transformers builds the layers that look at the picture
            bos_token_id=None,
            sep_token_id=None,
        )
        self.image = BlipVisionModel(image)
        self.text = BlipTextModel(text, add_pooling_layer=False)

    def forward(
        self,
        pixels: Float[torch.Tensor, "batch 3 side side"],
        tokens: Int64[torch.Tensor, "batch tokens"],
        mask: Int64[torch.Tensor, "batch tokens"],
    ) -> Float[torch.Tensor, "batch features"]:
        """``mask`` is 1 where there are words and 0 behind them; each word sees all others, as in BERT."""
        pixels = pixels.to(self.image.post_layernorm.weight.dtype)
        seen = self.image(pixel_values=pixels).last_hidden_state
        read = self.text(input_ids=tokens, attention_mask=mask, encoder_hidden_states=seen, is_decoder=False)
        first: torch.Tensor = read.last_hidden_state[:, 0]
        return first


def published(name: str) -> str:
    """What the authors call a weight of ``Blip``.

    >>> published("image.encoder.layers.3.self_attn.projection.bias"), published("text.embeddings.LayerNorm.bias")
    ('visual_encoder.blocks.3.attn.proj.bias', 'text_encoder.embeddings.LayerNorm.bias')
    """
    for here, there in NAMES:
        name = re.sub(here, there, name)
    return name


def materialise(network: Any) -> None:
    """Gives a network that was built on the meta device the one thing that no file holds: the numbers of the places."""
    places = network.text.embeddings.position_ids
    network.text.embeddings.position_ids = torch.arange(places.shape[-1])[None]
