"""Frozen weights in 8 or 4 bits, under a LoRA that is trained in full precision."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn

from raftdiff.errors import Need

Bits = Literal["int8", "nf4"]
BYTES = {"int8": 1.0, "nf4": 0.5 + 4 / 64}
"""A weight, nf4's one float32 for each 64 of them included."""


def needs(key: str) -> Iterator[Need]:
    """What is missing for ``key`` of a recipe."""
    if find_spec("bitsandbytes") is None:
        yield Need(key, "bitsandbytes is not installed. Install it with: pip install 'raftdiff[quantised]'.")


def layers(module: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers that are quantised: those of the blocks, which are counted. What embeds time and texts before
    them and makes the picture after them is small, and its errors reach everything."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and any(part.isdigit() for part in name.split("."))
    }


def quantise(module: Any, bits: Bits, compute: torch.dtype, device: torch.device) -> None:
    """Put bitsandbytes' layers in the place of a network's own, on ``device``, in place.

    ``int8``: rounded by rows, activations too (LLM.int8, arXiv:2208.07339). ``nf4``: rounded to the quantiles of a
    normal distribution, 64 weights at a time (QLoRA, arXiv:2305.14314); multiplied in ``compute``.
    """
    import bitsandbytes as bnb

    for name, layer in layers(module).items():
        size, bias = (layer.in_features, layer.out_features), layer.bias is not None
        made: Any
        if bits == "nf4":
            made = bnb.nn.Linear4bit(*size, bias=bias, compute_dtype=compute, quant_type="nf4", device="meta")
            made.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        else:
            made = bnb.nn.Linear8bitLt(*size, bias=bias, has_fp16_weights=False, threshold=6.0, device="meta")
            made.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        made.bias = layer.bias
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, made.requires_grad_(False).to(device))
    # peft asks these which of its layers to put around them
    module.is_loaded_in_4bit, module.is_loaded_in_8bit = bits == "nf4", bits == "int8"


def is_quantised(module: Any) -> bool:
    """Whether ``quantise`` was here."""
    return bool(getattr(module, "is_loaded_in_4bit", False) or getattr(module, "is_loaded_in_8bit", False))
