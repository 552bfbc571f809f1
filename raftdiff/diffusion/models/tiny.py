"""Small random models in the exact formats of the families, for tests and for trying a recipe out in seconds."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from raftdiff.diffusion.families.family import Family
from raftdiff.diffusion.families.flux import Flux
from raftdiff.diffusion.families.flux2 import Flux2Klein
from raftdiff.diffusion.families.sana import Sana
from raftdiff.diffusion.families.sd import StableDiffusion
from raftdiff.diffusion.families.sd3 import StableDiffusion3
from raftdiff.diffusion.families.sdxl import StableDiffusionXL
from raftdiff.diffusion.families.tiny import flux, flux2, sana, sd3, unets, zimage
from raftdiff.diffusion.families.zimage import ZImage
from raftdiff.diffusion.models.checkpoints import one_file
from raftdiff.diffusion.models.quiet import quietly
from raftdiff.training.weights import PICKLED

Kind = Literal[
    "sd15",
    "sd21",
    "sd21_zero_snr",
    "sdxl",
    "sdxl_turbo",
    "sd3",
    "sd3_no_t5",
    "zimage",
    "sana",
    "flux_dev",
    "flux_schnell",
    "flux2",
    "flux2_distilled",
]
KINDS: Mapping[Kind, tuple[Family, Callable[[], dict[str, Any]]]] = {
    "sd15": (StableDiffusion(), unets.sd15),
    "sd21": (StableDiffusion(), unets.sd21),
    "sd21_zero_snr": (StableDiffusion(), unets.sd21_zero_snr),
    "sdxl": (StableDiffusionXL(), unets.sdxl),
    "sdxl_turbo": (StableDiffusionXL(), unets.sdxl_turbo),
    "sd3": (StableDiffusion3(), sd3.whole),
    "sd3_no_t5": (StableDiffusion3(t5=False), sd3.without_t5),
    "zimage": (ZImage(), zimage.whole),
    "sana": (Sana(), sana.whole),
    "flux_dev": (Flux(), flux.dev),
    "flux_schnell": (Flux(), flux.schnell),
    "flux2": (Flux2Klein(), flux2.klein),
    "flux2_distilled": (Flux2Klein(distilled=True), flux2.klein),
}
"""Each with its family and its networks, tokenizers and scheduler."""


def write_folder(folder: Path, kind: Kind, seed: int = 0) -> Path:
    """A diffusers folder."""
    import diffusers

    family = of(kind)
    with quietly():
        pipeline = getattr(diffusers, family.pipeline)(**components(kind, seed), **family.pipeline_arguments())
        pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def write_single_file(path: Path, kind: Kind, seed: int = 0) -> Path:
    """The same weights in one file under the original names: safetensors, or PyTorch's form by the path's ending."""
    from safetensors.torch import save_file

    held = one_file(of(kind)).single_file(components(kind, seed))
    weights = {name: weight.contiguous() for name, weight in held.items()}
    if path.suffix in PICKLED:
        torch.save({"state_dict": weights}, path)
    else:
        save_file(weights, path)
    return path


def of(kind: Kind) -> Family:
    """The family that a kind belongs to."""
    return KINDS[kind][0]


def components(kind: Kind, seed: int = 0) -> dict[str, Any]:
    """The parts of a tiny pipeline, random but for the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = KINDS[kind][1]()
    return {name: part.eval() if isinstance(part, torch.nn.Module) else part for name, part in made.items()}
