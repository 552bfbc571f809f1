"""VQAScore: how sure is a vision-language model that the picture shows its caption?"""

from collections.abc import Callable, Sequence
from typing import Literal, final

import torch
from jaxtyping import Float32
from PIL import Image
from pydantic import Field, model_validator

from raftdiff.chat.asking import require_slots
from raftdiff.chat.dialogue import fill
from raftdiff.recipes.config import RewardConfig
from raftdiff.rewards.questions import Question, Vlm
from raftdiff.rewards.vlm import VlmConfig
from raftdiff.types import AsksServer, KeepsReplies, Sample

QUESTION = 'Does this figure show "{caption}"? Please answer yes or no.'


class VqaConfig(VlmConfig, RewardConfig):
    type: Literal["vqa"] = "vqa"
    name: str = "vqa"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    question: str = QUESTION
    """What is asked of each picture, with {caption}; the published words by default."""
    answer: str = Field(default="Yes", pattern=r"\S")
    """The answer whose probability is the score: one that is a single token, such as yes or no."""

    @model_validator(mode="after")
    def _names_the_caption(self) -> "VqaConfig":
        require_slots(self.question, ("caption",))
        return self

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "VqaReward":
        """The reward; ``resolve`` turns the name of a shipped model into its folder and leaves other names alone."""
        return VqaReward(self.vlm(device, resolve), question=self.question, answer=self.answer, name=self.name)


@final
class VqaReward:
    """P("Yes") to 'Does this figure show "{caption}"? Please answer yes or no.', 0 to 1. Higher is better.

    The probability that the model's answer begins with "Yes", over its whole vocabulary: not divided by that of "Yes"
    and "No" together, as the paper does not either. Departure: the spellings "Yes", "yes" and both with a space before
    them are added up, as GenEval 2's evaluation does, because chat templates differ in where the space stands; the
    paper's own model has one spelling, and averages over the end of the answer too. Scores of different models are not
    comparable.

    Source: Lin et al. 2024, "Evaluating Text-to-Visual Generation with Image-to-Text Generation", arXiv:2404.01291;
    https://github.com/linzhiqiu/t2v_metrics (Apache-2.0). The licence of the weights is the model's.
    """

    def __init__(self, vlm: Vlm, *, question: str = QUESTION, answer: str = "Yes", name: str = "vqa") -> None:
        self.name = name
        self._vlm, self._question, self._answer = vlm, question, answer
        if isinstance(vlm, KeepsReplies):
            self.keep_replies, self.forget = vlm.keep_replies, vlm.forget
        if isinstance(vlm, AsksServer):
            self.check_server = vlm.check_server

    def score(self, samples: Sequence[Sample[Image.Image]]) -> Float32[torch.Tensor, " samples"]:
        texts = [fill(self._question, {"caption": sample.prompt.caption}) for sample in samples]
        asked = [Question(one.media, text, self._answer) for one, text in zip(samples, texts, strict=True)]
        return self._vlm.probabilities(asked)
