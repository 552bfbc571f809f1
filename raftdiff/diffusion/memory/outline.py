"""A model without its numbers: shapes alone, on PyTorch's meta device."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from raftdiff.diffusion.families.texts import Texts
from raftdiff.diffusion.memory.published import published
from raftdiff.diffusion.models.checkpoints import Layout, folder_layout, hub_configs, recognise_file
from raftdiff.diffusion.models.components import file_layout, outlined, without_weights
from raftdiff.diffusion.models.loaded import Parts
from raftdiff.diffusion.models.loading import ModelConfig, assemble
from raftdiff.diffusion.models.quiet import quietly
from raftdiff.training.devices import DTYPES

META = torch.device("meta")
PLAIN: Mapping[str, Any] = {
    "text_device": None,
    "quantise": None,
    "offload": False,
    "compile": False,
    "attention": "default",
    "loras": [],
    "embeddings": [],
}
"""What an outline does without: settings that do something to numbers, and what is merged into them."""


def outline(config: ModelConfig, resolve: Callable[[str], str] = str) -> Parts:
    """The model that ``config.base`` names, by its configs: a folder or a hub id needs no weights, and of a single file
    only the head is read. The hub is not asked for models whose sizes are ``published``.

    Raises:
        UserError: nothing is there, or it is of no family that is known.
    """
    base = resolve(config.base)
    path = Path(base).expanduser()
    plain = config.model_copy(update=PLAIN)
    if not path.exists() and (known := published(base)):
        return assemble(*known, plain, META, DTYPES[config.dtype])
    with tempfile.TemporaryDirectory() as scratch, quietly():
        if path.is_file():
            found = recognise_file(path, vae=config.vae is None)
            predicts = config.prediction_type or found.prediction_type
            layout = file_layout(path, found, config.config, predicts, Path(scratch), weights=False)
        else:
            layout = folder_layout(path if path.is_dir() else hub_configs(base), weights=False)
        return assemble(layout.family, _modules(layout), plain, META, DTYPES[config.dtype])


def outlined_text(parts: Parts) -> Texts:
    """What an outline's network is told of one caption, none of it hidden."""
    from transformers import masking_utils

    asks = getattr(masking_utils, "_ignore_causal_mask_sdpa", None)
    try:
        if asks is not None:  # it asks the mask's numbers whether it hides anything
            masking_utils._ignore_causal_mask_sdpa = lambda *_, **__: False
        said = parts.prompts(["a picture"])
    finally:
        if asks is not None:
            masking_utils._ignore_causal_mask_sdpa = asks
    return Texts(said.tokens, said.pooled)


def _modules(layout: Layout) -> dict[str, Any]:
    parts = {name: outlined(layout, name) for name in layout.family.components}
    return {**parts, **without_weights(layout)}
