"""Soft-TIFA: how sure is a vision-language model of the right answers to questions that come with the prompt?"""

import math
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Literal, final

import torch
from jaxtyping import Float32
from PIL import Image
from pydantic import Field

from raftdiff.errors import UserError
from raftdiff.recipes.config import RewardConfig
from raftdiff.rewards.questions import Question, Vlm, column
from raftdiff.rewards.vlm import VlmConfig
from raftdiff.types import AsksServer, KeepsReplies, Prompt, Sample

COLUMN = "vqa_list"
"""Of the prompt file, as GenEval 2 names it."""
IN_ONE_WORD = "Answer in one word."


class SoftTifaConfig(VlmConfig, RewardConfig):
    type: Literal["soft_tifa"] = "soft_tifa"
    name: str = "soft_tifa"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "SoftTifaReward":
        """The reward; ``resolve`` turns the name of a shipped model into its folder and leaves other names alone."""
        return SoftTifaReward(self.vlm(device, resolve), name=self.name)


@final
class SoftTifaReward:
    """The geometric mean of P(right answer) over the prompt's questions, 0 to 1. Higher is better.

    The prompt's column ``vqa_list`` holds pairs of a question and its answer, as in GenEval 2's file. Each is asked
    with "Answer in one word." behind it, and the probability is that of the answer's first token over the whole
    vocabulary, its spellings added up: "Yes", "yes", a number in words or digits, with a space before it or none. One
    question with a sure wrong answer takes the whole score to 0. The published benchmark figure is 100 times the mean
    over prompts, with Qwen3-VL-8B-Instruct.

    Departures: only spellings that are one token count, each once, where the authors' script takes the first token of
    every spelling; an answer "No" is looked for as such, where it takes every answer that is no number for "Yes" (all
    of GenEval 2's are).

    Source: Kamath et al. 2025, "GenEval 2", arXiv:2512.16853; https://github.com/facebookresearch/GenEval2. Licence:
    the questions and the script are CC BY-NC 4.0; the weights', the model's.

    Raises:
        UserError: a prompt has no questions, or they are written in another way.
    """

    def __init__(self, vlm: Vlm, *, name: str = "soft_tifa") -> None:
        self.name, self._vlm = name, vlm
        if isinstance(vlm, KeepsReplies):
            self.keep_replies, self.forget = vlm.keep_replies, vlm.forget
        if isinstance(vlm, AsksServer):
            self.check_server = vlm.check_server

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """
        Raises:
            UserError: a prompt has no questions, or they are written in another way.
        """
        for prompt in prompts:
            questions(prompt)

    def score(self, samples: Sequence[Sample[Image.Image]]) -> Float32[torch.Tensor, " samples"]:
        asked = [
            [Question(one.media, f"{text} {IN_ONE_WORD}", answer) for text, answer in questions(one.prompt)]
            for one in samples
        ]
        said = self._vlm.probabilities([question for several in asked for question in several])
        logarithms = iter(said.double().log().tolist())
        means = [math.exp(math.fsum(islice(logarithms, len(several))) / len(several)) for several in asked]
        return torch.tensor(means, dtype=torch.float32)


def questions(prompt: Prompt) -> list[tuple[str, str]]:
    """What is asked of a prompt's pictures, with the answers.

    Raises:
        UserError: nothing, or not in pairs.
    """
    told = column(prompt, COLUMN)
    rows = list(told) if isinstance(told, Sequence) and not isinstance(told, str) else []
    pairs = [tuple(map(_text, row)) for row in rows if isinstance(row, Sequence) and not isinstance(row, str)]
    if not pairs or len(pairs) < len(rows) or any(len(pair) != 2 or not all(pair) for pair in pairs):
        what = "has no questions" if COLUMN not in prompt.meta else f"has questions that cannot be read: {told!r:.80}"
        raise UserError(
            f"soft_tifa: the prompt '{prompt.id}' {what}. The prompt file's column '{COLUMN}' holds pairs of a "
            'question and its answer, as that of GenEval 2: [["How many cats are in the image?", "two"], '
            '["Are the cats black?", "Yes"]].'
        )
    return [(question, answer) for question, answer in pairs]


def _text(cell: Any) -> str:
    """A number that stands for an answer is one; '' for what is no text."""
    if isinstance(cell, int) and not isinstance(cell, bool):
        return str(cell)
    return cell.strip() if isinstance(cell, str) else ""
