"""PickScore: which picture of a caption would the users of a web application choose?"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, final

import torch
from jaxtyping import Float, Float32
from PIL import Image
from pydantic import Field

from raftdiff.errors import Need
from raftdiff.recipes.config import Config
from raftdiff.rewards.clip_weights import Precision, clip_needs
from raftdiff.rewards.tower import Tower, open_tower
from raftdiff.rewards.transformers_clip import PREFIX
from raftdiff.types import Prompt, Sample


class PickScoreConfig(Config):
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

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "PickScoreReward":
        """The reward; ``resolve`` turns the name of a shipped model into its folder and leaves other names alone."""
        name = f"{PREFIX}{resolve(self.model)}"
        tower = open_tower(name, device=device, dtype=self.dtype, batch_size=self.batch_size)
        return PickScoreReward(tower, name=self.name)


@final
class PickScoreReward:
    """The cosine between the embeddings of the picture and of ``sample.prompt.caption``, times the model's own scale.

    The scale of the published weights is about 100. Range minus to plus the scale, in practice 16 to 24; higher is
    better. Of two pictures for one caption a difference of d means that the first is chosen with a probability of
    1 / (1 + exp(-d)); scores for different captions are not comparable.

    Source: Kirstain et al. 2023, "Pick-a-Pic", arXiv:2305.01569; https://github.com/yuvalkirstain/PickScore. A
    ``CLIPModel`` (ViT-H/14, from LAION's weights) of transformers. Licence: the code's is MIT; the card of the weights
    names none.
    """

    def __init__(self, tower: Tower, *, name: str = "pickscore") -> None:
        self.name = name
        self.tower = tower
        """Shared with every other reward on the same weights, and of use for diversity figures."""

    @property
    def token_limit(self) -> int:
        return self.tower.token_limit

    def reads_whole(self, text: str) -> bool:
        """Whether all of a caption is read."""
        return self.tower.reads_whole(text)

    def score(self, samples: Sequence[Sample[Image.Image]]) -> Float32[torch.Tensor, " samples"]:
        images = self.tower.image_features(samples)
        texts = self.tower.text_features([sample.prompt.caption for sample in samples])
        return self.tower.logit_scale * (images * texts).sum(dim=-1)

    def graded(
        self, pixels: Float[torch.Tensor, "batch 3 height width"], prompts: Sequence[Prompt]
    ) -> Float[torch.Tensor, " batch"]:
        """The same with gradient; see ``types.Differentiable``."""
        return self.tower.logit_scale * self.tower.cosines(pixels, [prompt.caption for prompt in prompts])
