"""PickScore: which picture of a caption would the users of a web application choose?

A ``CLIPModel`` of transformers (ViT-H/14, tuned on choices from LAION's weights). The reward is the cosine of picture
and caption times the model's own scale, which is about 100 in the published weights: in practice 16 to 24; higher is
better. Of two pictures for one caption a difference of d means that the first is chosen with a probability of
1 / (1 + exp(-d)); scores for different captions are not comparable.

Source: Kirstain et al. 2023, "Pick-a-Pic", arXiv:2305.01569; https://github.com/yuvalkirstain/PickScore. Licence: the
code's is MIT; the card of the weights names none.
"""

from collections.abc import Callable, Iterator
from typing import Literal

from pydantic import Field

from raftdiff.errors import Need
from raftdiff.recipes.config import RewardConfig
from raftdiff.rewards.clip import ClipReward
from raftdiff.rewards.clip_weights import Precision, clip_needs
from raftdiff.rewards.tower import Tower, open_tower
from raftdiff.rewards.transformers_clip import PREFIX


class PickScoreConfig(RewardConfig):
    type: Literal["pickscore"] = "pickscore"
    name: str = "pickscore"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    model: str = "yuvalkirstain/PickScore_v1"
    """The folder or hub id of the model, which brings its tokenizer and its preparation of pictures."""
    dtype: Precision = "float32"
    """Precision of the towers: float32, bfloat16 or float16."""
    batch_size: int = Field(default=32, ge=1)
    """Pictures per forward of the image tower."""

    def needs(self, resolve: Callable[[str], str]) -> Iterator[Need]:
        """What is not on this machine; see ``recipes.needs``."""
        return clip_needs(f"{PREFIX}{resolve(self.model)}", None, None)

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> ClipReward:
        """The reward; ``resolve`` turns the name of a shipped model into its folder and leaves other names alone."""
        name = f"{PREFIX}{resolve(self.model)}"
        tower = open_tower(name, device=device, dtype=self.dtype, batch_size=self.batch_size)
        return pickscore(tower, name=self.name)


def pickscore(tower: Tower, *, name: str = "pickscore") -> ClipReward:
    """The reward on the tower of such a model: cosines times its own scale."""
    return ClipReward(tower, scale=tower.logit_scale, name=name)
