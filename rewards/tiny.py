"""Reward models in miniature, random and in the formats in which the real ones are published, for tests.

They read lower-case letters, each a token.
"""

import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

ENDS = ("<|startoftext|>", "<|endoftext|>")
CLIP: Mapping[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
"""A model of open_clip's, as its configurations describe them."""


def write_pickscore(folder: Path, *, seed: int = 0) -> Path:
    """A CLIP model of transformers with tokenizer and preparation of pictures, such as yuvalkirstain/PickScore_v1."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    words = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase), *ENDS]
    tokenizer = CLIPTokenizer(vocab={word: place for place, word in enumerate(words)}, merges=[])
    tokenizer.model_max_length = 16
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu"}
    text = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 16}
    vision = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64}
    ends = {"bos_token_id": 0, "eos_token_id": 2}  # as the published configuration has them
    config = CLIPConfig(text_config={**text, **shape, **ends}, vision_config={**vision, **shape}, projection_dim=24)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(4.6)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def write_hps(file: Path, *, seed: int = 0) -> Path:
    """A checkpoint of ``CLIP``, as HPS_v2.1_compressed.pt is one of open_clip's ViT-H-14: half precision, in a
    ``state_dict``."""
    import open_clip

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = open_clip.CLIP(**CLIP).state_dict()
    torch.save({"state_dict": {name: weight.half() for name, weight in weights.items()}}, file)
    return file
