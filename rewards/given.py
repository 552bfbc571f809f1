"""The score that the data itself gives to an answer or a picture: human ratings, or those of another model."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, final

import torch
from jaxtyping import Float32
from pydantic import Field

from raftdiff.errors import UserError
from raftdiff.recipes.config import RewardConfig
from raftdiff.types import Sample


class GivenConfig(RewardConfig):
    type: Literal["given"] = "given"
    name: str = "given"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "GivenReward":
        del device, resolve  # no model here
        return GivenReward(name=self.name)


@final
class GivenReward:
    """The "score" in ``prompt.meta["answers"]`` of the answer with this text; of a picture ``aux["score"]``, which its
    folder said. NaN for none. Higher is better.

    Unit and range are the data's own. An answer is known by its text, not by its number: in a mixture of samplers, the
    dataset's answers are numbered anew. Of several with one text, the one with the sample's own index counts, else the
    first that has a score. What a model wrote gets NaN, unless the data holds just that text. A prompt's only answer
    is *the* answer: where it is unrated it scores 1, as a chosen one does.

    Raises:
        UserError: an answer's score is not a finite number.
    """

    def __init__(self, *, name: str = "given") -> None:
        self.name = name

    def demand_sent(self, kind: Literal["picture", "text"]) -> None:
        """
        Raises:
            UserError: what is said of pictures is not sent to a server of this reward; of answers it is.
        """
        if kind == "picture":
            raise UserError(
                f"The reward '{self.name}' is what a folder or table says of its own pictures, and that is not sent to "
                "a server; name it in the recipe that reads them."
            )

    def score(self, samples: Sequence[Sample[Any]]) -> Float32[torch.Tensor, " samples"]:
        return torch.tensor([given(sample) for sample in samples], dtype=torch.float32)


def given(sample: Sample[Any]) -> float:
    """The score of one sample; NaN for none."""
    if not isinstance(sample.media, str):
        return float(sample.aux.get("score", math.nan))
    answers: Sequence[Mapping[str, Any]] = sample.prompt.meta.get("answers") or ()
    own = [answers[sample.index]] if sample.index < len(answers) else []
    same = [answer for answer in [*own, *answers] if answer.get("text") == sample.media]
    scores = (_number(answer, sample) for answer in same)
    unrated = 1.0 if same and len(answers) == 1 else math.nan
    return next((score for score in scores if not math.isnan(score)), unrated)


def _number(answer: Mapping[str, Any], sample: Sample[Any]) -> float:
    score = answer.get("score")
    if score is None:
        return math.nan
    if isinstance(score, bool) or not isinstance(score, int | float) or math.isinf(score):
        raise UserError(f"prompt '{sample.prompt.id}': the score {score!r} of an answer is not a finite number.")
    return float(score)
