"""The families that raftdiff knows, and which of them a model is of."""

from collections.abc import Mapping
from typing import Any

from raftdiff.diffusion.families.family import Family
from raftdiff.diffusion.families.flux import Flux
from raftdiff.diffusion.families.flux2 import Flux2Klein
from raftdiff.diffusion.families.sana import Sana
from raftdiff.diffusion.families.sd import StableDiffusion
from raftdiff.diffusion.families.sd3 import StableDiffusion3
from raftdiff.diffusion.families.sdxl import StableDiffusionXL
from raftdiff.diffusion.families.zimage import ZImage

FAMILIES: tuple[Family, ...] = (
    StableDiffusion(),
    StableDiffusionXL(),
    StableDiffusion3(),
    ZImage(),
    Sana(),
    Flux(),
    Flux2Klein(),
)
TUNABLE = f"raftdiff tunes {', '.join(family.told for family in FAMILIES)}, and others in their format"
"""What ends sentences about other models."""


def of_index(index: Mapping[str, Any]) -> Family | None:
    """The family that a ``model_index.json`` names."""
    named = index.get("_class_name")
    return next((family.stated(index) for family in FAMILIES if family.pipeline == named), None)
