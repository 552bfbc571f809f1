"""Human Preference Score v2 and v2.1: which picture of a caption do people prefer?

A CLIP ViT-H/14 of open_clip, tuned on choices from LAION's weights. Range -100 to 100, in practice 20 to 35; higher is
better. Comparable for pictures of one caption; v2 and v2.1 have scales of their own. Of two pictures for one caption, a
difference of d means that the first is preferred with a probability of about 1 / (1 + exp(-d)). Pictures are shown
whole: made smaller until the longer edge fits, on black.

Source: Wu et al. 2023, "Human Preference Score v2", arXiv:2306.09341; https://github.com/tgxs002/HPSv2 (Apache-2.0, the
weights too).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from pydantic import Field

from raftdiff.errors import Need, UserError
from raftdiff.recipes.config import RewardConfig
from raftdiff.rewards.checkpoints import demand_layout, no_file, shapes, tensors
from raftdiff.rewards.clip import ClipReward
from raftdiff.rewards.clip_weights import Precision
from raftdiff.rewards.tower import open_tower

MODEL = "ViT-H-14"
"""As open_clip calls it; both versions have its layout."""
WHERE = "HPS_v2.1_compressed.pt and HPS_v2_compressed.pt are at huggingface.co/xswu/HPSv2"


class HpsConfig(RewardConfig):
    type: Literal["hps"] = "hps"
    name: str = "hps"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    checkpoint: Path
    """The file HPS_v2.1_compressed.pt or HPS_v2_compressed.pt."""
    dtype: Precision = "float32"
    """Precision of the towers: float32, bfloat16 or float16."""
    batch_size: int = Field(default=32, ge=1)
    """Pictures per forward of the image tower."""

    def needs(self, resolve: Callable[[str], str]) -> Iterator[Need]:
        """What is not on this machine; see ``recipes.needs``."""
        del resolve
        if not self.checkpoint.is_file():
            yield Need("checkpoint", _missing(self.checkpoint))

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> ClipReward:
        """100 cosines, as the authors' tables have it; their function ``hpsv2.score`` returns a hundredth of it."""
        del resolve
        demand_hps(self.checkpoint)  # before the tower: a wrong file should not cost a minute of loading
        tower = open_tower(
            MODEL,
            str(self.checkpoint),
            quick_gelu=False,
            prepare=whole,
            device=device,
            dtype=self.dtype,
            batch_size=self.batch_size,
        )
        return ClipReward(tower, name=self.name)


@final
class FitWhole:
    """Resizes pixels until their longer edge is ``side``, and fills up with black on both sides."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(
        self, pixels: Float[torch.Tensor, "*batch 3 height width"]
    ) -> Float[torch.Tensor, "*batch 3 side side"]:
        from torchvision.transforms.functional import InterpolationMode, pad, resize

        height, width = pixels.shape[-2:]
        high, wide = (round(edge * self.side / max(height, width)) for edge in (height, width))
        if (high, wide) != (height, width):
            pixels = resize(pixels, [max(high, 1), max(wide, 1)], InterpolationMode.BICUBIC, antialias=True)
        above, before = (self.side - pixels.shape[-2]) // 2, (self.side - pixels.shape[-1]) // 2
        below, behind = self.side - pixels.shape[-2] - above, self.side - pixels.shape[-1] - before
        filled: torch.Tensor = pad(pixels, [before, above, behind, below])
        return filled


def whole(own: Any) -> Any:
    """HPS's preparation of pictures, from open_clip's for the same model: numbers first, then the size, so that nothing
    is rounded to bytes in between."""
    from open_clip.transform import MaybeToTensor
    from torchvision.transforms import CenterCrop, Compose, Normalize

    side = next(step.size[0] for step in own.transforms if isinstance(step, CenterCrop))
    normalise = next(step for step in own.transforms if isinstance(step, Normalize))
    return Compose([MaybeToTensor(), FitWhole(side), normalise])


def demand_hps(path: Path) -> None:
    """
    Raises:
        UserError: no such file, or it holds other things than the weights of such a model.
    """
    import open_clip

    if not path.is_file():
        raise UserError(_missing(path))
    what = "The HPS checkpoint"
    found = tensors(what, path, device="meta", advice=f"{WHERE}; HPS_v2.pt holds a whole training.")
    with torch.device("meta"):
        network = open_clip.CLIP(**open_clip.get_model_config(MODEL))
    demand_layout(f"{what} '{path}'", found, shapes(network))


def _missing(path: Path) -> str:
    return no_file("HPS checkpoint", path, "checkpoint", WHERE)
