"""DPG-Bench: which of the questions that come with a long prompt does a vision-language model answer with yes?

Source: Hu et al. 2024, "ELLA", arXiv:2403.05135; https://github.com/TencentQQGYLab/ELLA (dpg_bench, Apache-2.0).
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, final

import torch
from jaxtyping import Float32
from PIL import Image
from pydantic import Field

from raftdiff.errors import UserError
from raftdiff.recipes.config import RewardConfig
from raftdiff.rewards.questions import Question, Vlm, column
from raftdiff.rewards.vlm import VlmConfig
from raftdiff.types import AsksServer, KeepsReplies, Prompt, Sample

COLUMN = "questions"
"""Of a prompt: its questions, each with ``id``, ``question`` and ``parents``."""
YES_OR_NO = "Please answer yes or no."
SURE = 0.5


class DpgConfig(VlmConfig, RewardConfig):
    type: Literal["dpg"] = "dpg"
    name: str = "dpg"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "DpgReward":
        """The reward; ``resolve`` turns the name of a shipped model into its folder and leaves other names alone."""
        return DpgReward(self.vlm(device, resolve), name=self.name)


class Asked(NamedTuple):
    """A question of a prompt's graph."""

    id: int
    text: str
    parents: tuple[int, ...]
    """Ids of the questions without whose yes this one counts for nothing."""


@final
class DpgReward:
    """The share of a prompt's questions that are answered with yes, 0 to 1. Higher is better; 100 times its mean over
    pictures is the published figure.

    The prompt's column ``questions`` holds its graph: one that has a parent counts only where every parent is yes, in
    the order of the questions. Departures: the published answers are mPLUG-large's; here any vision-language model is
    asked, with "Please answer yes or no." behind the question, and a yes is a probability of "Yes" above one half.
    Figures of different models are not comparable.

    Source: Hu et al. 2024, arXiv:2403.05135. Licence of the questions: Apache-2.0; of the weights: the model's.

    Raises:
        UserError: a prompt has no questions, or they are written in another way.
    """

    def __init__(self, vlm: Vlm, *, name: str = "dpg") -> None:
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
            graph(prompt)

    def score(self, samples: Sequence[Sample[Image.Image]]) -> Float32[torch.Tensor, " samples"]:
        graphs = [graph(one.prompt) for one in samples]
        asked = [
            Question(one.media, f"{it.text} {YES_OR_NO}", "Yes")
            for one, several in zip(samples, graphs, strict=True)
            for it in several
        ]
        said = iter((self._vlm.probabilities(asked) > SURE).tolist())
        return torch.tensor([share(several, [next(said) for _ in several]) for several in graphs])


def share(asked: Sequence[Asked], said: Sequence[bool]) -> float:
    """The share of questions that count as answered with yes.

    >>> share([Asked(1, "a cat?", ()), Asked(2, "black?", (1,)), Asked(3, "a dog?", ())], [False, True, True])
    0.3333333333333333
    """
    holds: dict[int, bool] = {}
    for one, yes in zip(asked, said, strict=True):
        holds[one.id] = yes
    for one in asked:
        holds[one.id] = holds[one.id] and all(holds[parent] for parent in one.parents)
    return sum(holds.values()) / len(holds)


def graph(prompt: Prompt) -> list[Asked]:
    """The questions of a prompt.

    Raises:
        UserError: there are none, or one is written in another way or has a parent that is not among them.
    """
    told = column(prompt, COLUMN) or ()
    try:
        found = [Asked(int(row["id"]), str(row["question"]), tuple(map(int, row["parents"]))) for row in told]
    except (KeyError, TypeError, ValueError):
        found = []
    known = {one.id for one in found}
    lost = [parent for one in found for parent in one.parents if parent not in known]
    if not found or len(known) < len(found) or lost:
        raise UserError(
            f"dpg: the prompt '{prompt.id}' has no graph of questions that can be read. Its column '{COLUMN}' holds "
            'objects such as {"id": 2, "question": "Is the cat black?", "parents": [1]}, each id once and each parent '
            "among them; raftdiff eval --benchmark dpg makes it of dpg_bench.csv."
        )
    return found
