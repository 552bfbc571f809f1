"""CLIP score: does the picture show what the caption says?"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, final

import torch
from jaxtyping import Float, Float32
from PIL import Image
from pydantic import Field, field_validator

from raftdiff.errors import Need
from raftdiff.recipes.config import RewardConfig
from raftdiff.rewards.clip_weights import Precision, clip_needs
from raftdiff.rewards.tower import Tower, open_tower
from raftdiff.types import Prompt, Sample

CAPTION = "{caption}"


class ClipConfig(RewardConfig):
    type: Literal["clip"] = "clip"
    name: str = "clip"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    model: str
    """An open_clip model name (ViT-L-14), a folder of open_clip or transformers, hf-hub:organisation/name,
    transformers:organisation/name, or a shipped model (scene-clip)."""
    pretrained: str | None = None
    """For an open_clip model name: whose weights, as a tag (openai, laion2b_s32b_b82k) or a checkpoint file."""
    quick_gelu: bool | None = None
    """Read only where `pretrained` is a file: whether these weights were trained with QuickGELU (OpenAI's were)."""
    dtype: Precision = "float32"
    """Precision of the towers: float32, bfloat16 or float16."""
    batch_size: int = Field(default=32, ge=1)
    """Pictures per forward of the image tower."""
    templates: tuple[str, ...] = Field(default=(CAPTION,), min_length=1)
    """What is read in place of the caption, which each holds as {caption}; of several the mean embedding."""

    @field_validator("templates")
    @classmethod
    def _hold_the_caption(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if CAPTION not in template:
                raise ValueError(f"'{template}' has no {CAPTION}, so every caption would get the same score")
        return templates

    def needs(self, resolve: Callable[[str], str]) -> Iterator[Need]:
        """What is not on this machine; see ``recipes.needs``."""
        return clip_needs(resolve(self.model), self.pretrained, self.quick_gelu)

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "ClipReward":
        """The reward; ``resolve`` turns the name of a shipped model into its folder and leaves other names alone."""
        tower = open_tower(
            resolve(self.model),
            self.pretrained,
            device=device,
            dtype=self.dtype,
            quick_gelu=self.quick_gelu,
            batch_size=self.batch_size,
        )
        return ClipReward(tower, templates=self.templates, name=self.name)


@final
class ClipReward:
    """``scale`` times the cosine between the embeddings of the picture and of ``sample.prompt.caption``: CLIP score,
    and the preference models that are a CLIP tuned on choices (``hps``, ``pickscore``).

    Range minus to plus the scale, in practice 10 to 40 for OpenAI's models at 100; higher is better. The paper's
    CLIPScore is 2.5 max(cos, 0): divide by 40 to compare. Of several ``templates`` the caption's embedding is the mean
    of the unit embeddings, made a unit again, as open_clip's zero-shot classifier has it.

    Source: Radford et al. 2021, arXiv:2103.00020; CLIPScore: Hessel et al. 2021, arXiv:2104.08718. Licences of the
    weights: OpenAI's and LAION's CLIP, MIT; for others see their model card.
    """

    def __init__(
        self, tower: Tower, *, scale: float = 100.0, templates: Sequence[str] = (CAPTION,), name: str = "clip"
    ) -> None:
        self.name, self.scale, self.templates = name, scale, tuple(templates)
        self.tower = tower
        """Shared with every other reward on the same weights, and of use for diversity figures."""

    @property
    def token_limit(self) -> int:
        return self.tower.token_limit

    def reads_whole(self, text: str) -> bool:
        """Whether all of a caption is read, in every template."""
        return all(self.tower.reads_whole(template.replace(CAPTION, text)) for template in self.templates)

    def score(self, samples: Sequence[Sample[Image.Image]]) -> Float32[torch.Tensor, " samples"]:
        images = self.tower.image_features(samples)
        return self.scale * (images * self._captions([sample.prompt for sample in samples])).sum(dim=-1)

    def graded(
        self, pixels: Float[torch.Tensor, "batch 3 height width"], prompts: Sequence[Prompt]
    ) -> Float[torch.Tensor, " batch"]:
        """The same with gradient; see ``types.Differentiable``."""
        images = self.tower.pixel_features(pixels)
        return self.scale * (images * self._captions(prompts).to(images.device)).sum(dim=-1)

    def _captions(self, prompts: Sequence[Prompt]) -> Float32[torch.Tensor, "prompts width"]:
        """The embedding of each prompt's caption."""
        each = [
            self.tower.text_features([template.replace(CAPTION, prompt.caption) for prompt in prompts])
            for template in self.templates
        ]
        return each[0] if len(each) == 1 else torch.nn.functional.normalize(torch.stack(each).mean(dim=0), dim=-1)
