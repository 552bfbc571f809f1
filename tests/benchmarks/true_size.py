"""SDXL at its true size, with random weights, on a CPU: one picture drawn in one step, and one step learnt from it.

    python tests/benchmarks/true_size.py --side 256 --dtype float32

Says seconds, and the most memory held. In bfloat16 a processor without instructions for it takes several times as
long, in half the memory.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raftdiff.diffusion.families.sdxl import StableDiffusionXL
from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
from raftdiff.diffusion.models.checkpoints import folder_layout
from raftdiff.diffusion.models.components import without_weights
from raftdiff.diffusion.models.loaded import Parts
from raftdiff.diffusion.models.loading import ModelConfig, assemble
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.records.provenance import provenance
from raftdiff.training.devices import DTYPES, DType
from raftdiff.types import Item, Prompt, Selection, silent

LAYERS = (nn.Linear, nn.Conv2d, nn.Embedding, nn.LayerNorm, nn.GroupNorm)
SPREAD = 0.02
POOL = 1 << 20
"""Random numbers, of which every weight takes some: drawing billions would take longer than using them."""


@contextmanager
def uninitialised() -> Iterator[None]:
    """Within, layers are made without first weights."""
    from transformers.initialization import no_init_weights

    before = [(kind, kind.reset_parameters) for kind in LAYERS]
    for kind in LAYERS:
        kind.reset_parameters = lambda self: None  # type: ignore[method-assign]
    try:
        with no_init_weights():
            yield
    finally:
        for kind, reset in before:
            kind.reset_parameters = reset  # type: ignore[method-assign]


def filled(module: nn.Module) -> nn.Module:
    """Random weights; norms as they begin, biases zero."""
    pool = (SPREAD * torch.randn(POOL, generator=torch.Generator().manual_seed(0), dtype=torch.float32)).to(
        torch.get_default_dtype()
    )
    for name, parameter in module.named_parameters():
        flat = parameter.data.view(-1)
        if parameter.ndim == 1:
            flat.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            continue
        for start in range(0, len(flat), POOL):
            part = flat[start : start + POOL]
            part.copy_(pool[: len(part)])
    return module


def model(folder: Path, dtype: DType) -> Parts:
    import diffusers
    import transformers

    family = StableDiffusionXL()
    family.configs("sdxl", None, folder, folder)
    layout, modules = folder_layout(folder, weights=False), {}
    torch.set_default_dtype(DTYPES[dtype])
    with uninitialised():
        for name, component in family.components.items():
            kind = getattr({"diffusers": diffusers, "transformers": transformers}[component.library], component.kind)
            if component.library == "diffusers":
                made = kind.from_config(kind.load_config(folder / name))
            else:
                made = kind(kind.config_class.from_pretrained(folder / name))
            modules[name] = filled(made)
    torch.set_default_dtype(torch.float32)
    config = ModelConfig(base="SDXL's size, random", dtype=dtype, device="cpu")
    return assemble(family, {**modules, **without_weights(layout)}, config, torch.device("cpu"), DTYPES[dtype])


def most() -> float:
    """GB of resident memory so far, at the fullest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=256, help="pixels (default: %(default)s)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="(default: %(default)s)")
    given = parser.parse_args()
    found: dict[str, Any] = {"side": given.side, "dtype": given.dtype}
    with tempfile.TemporaryDirectory() as scratch:
        began = time.time()
        parts = model(Path(scratch), given.dtype)
        found["parameters"] = {
            name: sum(it.numel() for it in parts.modules[name].parameters()) for name in parts.family.components
        }
        found |= {"made_s": time.time() - began, "made_gb": most()}
        print(json.dumps(found), flush=True)
        drawing = DiffusionSamplerConfig(steps=1, guidance=1.0, height=given.side, width=given.side, batch_size=1)
        prompt, began = Prompt("p", "a red fox", "a red fox", "a red fox"), time.time()
        (sample,) = drawing.build(parts).sample([prompt], per_prompt=1, seed=0, round=0, done=set())
        found |= {"drawn_s": time.time() - began, "drawn_gb": most()}
        assert sample.aux["latent"].isfinite().all()
        print(json.dumps(found), flush=True)
        config = DiffusionFineTunerConfig(rank=16, steps=1, batch_size=1, gradient_checkpointing=True)
        tuner = config.build(parts, total_rounds=1, guidance=1.0, seed=0)
        began = time.time()
        figures = tuner.fit(Selection("weighted", (Item((sample.key,)),)), {sample.key: sample}, seed=0, report=silent)
        found |= {"learnt_s": time.time() - began, "learnt_gb": most(), "loss": figures["loss"], **provenance()}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
