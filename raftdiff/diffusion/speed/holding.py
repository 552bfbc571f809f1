"""The network as it could be held otherwise than the recipe says: another memory format, another dtype, compiled."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch

from raftdiff.diffusion.models.loaded import Parts
from raftdiff.diffusion.models.loading import ModelConfig, called
from raftdiff.training.devices import DTYPES, convolves_slowly, find_dtype

Change = Mapping[str, Any]
"""Of a recipe's ``model``."""


def changes(model: ModelConfig, parts: Parts, *, compiled: bool) -> Iterator[Change]:
    """What could be tried; ``compiled``: compiling too, which takes minutes. Of weights that are rounded, split or on
    their way between memories there is nothing to try, and what is compiled is compared with what is not."""
    if model.quantise is not None or model.offload == "blocks" or model.sharded:
        return
    if model.compile:
        yield {"compile": False}
        return
    layout: Change = {"channels_last": not model.channels_last}
    free = not convolves_slowly(parts.dtype, parts.device)
    layouts = [layout] if free and any(weight.dim() == 4 for weight in parts.denoiser.parameters()) else []
    quick = parts.dtype == torch.float32 and find_dtype("auto", parts.device) == torch.bfloat16
    halves: list[Change] = [{"dtype": "bfloat16"}] if quick else []
    yield from [*layouts, *halves, *({**one, **other} for one in halves for other in layouts)]
    if compiled:
        yield from [{"compile": True}, *({"compile": True, **one} for one in layouts)]


def held(parts: Parts, change: Change) -> Parts:
    """The model with a copy of the network that is held so; whoever lets it go has the memory back."""
    if change.get("compile"):
        torch.compiler.reset()  # as often as it forgets none, PyTorch stops compiling without a word
    network = deepcopy(parts.denoiser)
    dtype = DTYPES[change["dtype"]] if "dtype" in change else parts.dtype
    torch.nn.Module.to(network, dtype=dtype)  # past diffusers' own .to, which warns at any dtype
    laid_out = bool(change.get("channels_last", parts.channels_last))
    network.to(memory_format=torch.channels_last if laid_out else torch.contiguous_format)
    return replace(
        parts,
        modules={**parts.modules, parts.family.denoiser: network},
        network=called(network, change.get("compile", False)),
        dtype=dtype,
        channels_last=laid_out,
    )


def told(change: Change) -> str:
    """As on the command line.

    >>> told({"compile": True, "channels_last": False})
    'model.compile=true model.channels_last=false'
    """
    return " ".join(f"model.{key}={str(value).lower()}" for key, value in change.items())
