"""GenEval: does the picture show the objects that the prompt names, as many, of that colour, in that place?

Source: Ghosh, Hajishirzi & Schmidt 2023, arXiv:2310.11513; github.com/djghosh13/geneval (MIT).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float32
from PIL import Image
from pydantic import Field

from raftdiff.errors import Need, UserError
from raftdiff.recipes.config import RewardConfig
from raftdiff.rewards.clip_weights import Precision, clip_needs, openai_weights
from raftdiff.rewards.detection import Detector, detector_needs, open_detector
from raftdiff.rewards.geneval_rules import COLOURS, Detection, Verdict, judge, kept, wanted
from raftdiff.rewards.tower import open_tower
from raftdiff.types import Explained, Prompt, Sample

GROUND = "#999999"
"""What stands in place of the pixels beside an object, where its colour is asked for."""
TEMPLATES = ("a photo of a {colour} {label}", "a photo of a {colour}-colored {label}", "a photo of a {colour} object")
COUNTING = 0.9
"""The published threshold where objects are counted."""


class GenEvalConfig(RewardConfig):
    type: Literal["geneval"] = "geneval"
    name: str = "geneval"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    detector: str = "facebook/mask2former-swin-small-coco-instance"
    """A folder or hub id of a detector of transformers: Mask2Former, one of fixed classes such as DETR, or one that is
    asked by words such as OWLv2 or Grounding DINO."""
    threshold: float = Field(default=0.3, ge=0, lt=1)
    """Objects of which the detector is no surer are none."""
    counting_threshold: float | None = Field(default=None, ge=0, lt=1)
    """The same where objects are counted (tag counting); 0.9 as published. A detector that is asked by words is never
    so sure, so with one it must be said."""
    model: str = "ViT-L-14"
    """The CLIP model that names colours; see `clip`."""
    pretrained: str | None = None
    """Whose weights; openai, which GenEval takes, when `model` is an open_clip name."""
    quick_gelu: bool | None = None
    """Read only where `pretrained` is a file: whether these weights were trained with QuickGELU (OpenAI's were)."""
    dtype: Precision = "float32"
    """Precision of the CLIP model: float32, bfloat16 or float16."""
    batch_size: int = Field(default=16, ge=1)
    """Objects per forward of the CLIP model; pictures go through the detector one by one."""

    def needs(self, resolve: Callable[[str], str]) -> Iterator[Need]:
        """What is not on this machine; see ``recipes.needs``."""
        yield from detector_needs(resolve(self.detector))
        name = resolve(self.model)
        yield from clip_needs(name, self.pretrained or openai_weights(name), self.quick_gelu)

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "GenEvalReward":
        """The reward; ``resolve`` turns the name of a shipped model into its folder and leaves other names alone."""
        detector = open_detector(resolve(self.detector), device=device)
        if detector.by_words and self.counting_threshold is None:
            raise UserError(
                f"geneval: '{self.detector}' is asked by words and is never as sure as {COUNTING}, GenEval's threshold "
                "where objects are counted. Say one that suits it: counting_threshold=0.3, for example."
            )
        tower = open_tower(
            resolve(self.model),
            self.pretrained or openai_weights(resolve(self.model)),
            device=device,
            dtype=self.dtype,
            quick_gelu=self.quick_gelu,
            batch_size=self.batch_size,
        )
        counting = COUNTING if self.counting_threshold is None else self.counting_threshold
        return GenEvalReward(detector, tower, threshold=self.threshold, counting_threshold=counting, name=self.name)


@runtime_checkable
class Embeds(Protocol):
    """What puts pictures and texts into one space, unit vectors, as ``tower.Tower`` does."""

    def image_features(self, images: Sequence[Image.Image]) -> Float32[torch.Tensor, "images width"]: ...

    def text_features(self, texts: Sequence[str]) -> Float32[torch.Tensor, "texts width"]: ...


@final
class GenEvalReward:
    """1 where the picture shows all that its prompt's metadata ask for, 0 where anything is wrong. Higher is better.

    It reads ``tag``, ``include`` and ``exclude`` of the prompt's metadata, as GenEval's evaluation_metadata.jsonl has
    them, and no caption. Rules, thresholds and the naming of colours are as published (``geneval_rules``); the detector
    is another training of the same network, by default, or another one (``detection``).
    """

    def __init__(
        self,
        detector: Detector,
        tower: Embeds,
        *,
        threshold: float = 0.3,
        counting_threshold: float = COUNTING,
        name: str = "geneval",
    ) -> None:
        self.name, self.tower = name, tower
        self._detector, self._threshold, self._counting = detector, threshold, counting_threshold

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """
        Raises:
            UserError: the metadata of a prompt do not say what its picture should show.
        """
        for prompt in prompts:
            wanted(prompt.meta, f"geneval: the prompt '{prompt.id}'")

    def score(self, samples: Sequence[Sample[Image.Image]]) -> Float32[torch.Tensor, " samples"]:
        return torch.tensor([one.score for one in self.explained(samples)])

    def explained(self, samples: Sequence[Sample[Image.Image]]) -> list[Explained]:
        """See ``types.Explains``."""
        verdicts = [self.verdict(sample.media, sample.prompt) for sample in samples]
        return [Explained(float(it.right), it.reasons) for it in verdicts]

    def verdict(self, picture: Image.Image, prompt: Prompt) -> Verdict:
        """Whether one picture is right, and what is wrong with it.

        Raises:
            UserError: as ``check_prompts``, or the detector does not know a class that is asked for.
        """
        asked = wanted(prompt.meta, f"geneval: the prompt '{prompt.id}'")
        image = picture.convert("RGB")
        threshold = self._counting if asked.tag == "counting" else self._threshold
        found = kept(self._detector.detect(image, asked.labels), threshold)
        return judge(asked, found, lambda objects, label: self._colours(image, objects, label))

    def _colours(self, image: Image.Image, objects: Sequence[Detection], label: str) -> list[str]:
        crops = self.tower.image_features([cut(image, one) for one in objects])
        return [COLOURS[place] for place in (crops @ self._names(label).T).argmax(dim=1).tolist()]

    def _names(self, label: str) -> Float32[torch.Tensor, "colours width"]:
        """A direction for each colour of such an object: the mean over the templates."""
        texts = [template.format(colour=colour, label=label) for colour in COLOURS for template in TEMPLATES]
        means = self.tower.text_features(texts).reshape(len(COLOURS), len(TEMPLATES), -1).mean(dim=1)
        return torch.nn.functional.normalize(means, dim=-1)


def cut(image: Image.Image, one: Detection) -> Image.Image:
    """The picture within an object's box, with all that is not of the object grey, where the detector says what is."""
    if one.mask is not None:
        image = Image.composite(image, Image.new("RGB", image.size, GROUND), Image.fromarray(one.mask))
    left, top, right, bottom = map(round, one.box)
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
