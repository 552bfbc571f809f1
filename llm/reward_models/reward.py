"""Trained reward models as rewards: of answers, and of what pictures are called or are said to show."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, final

import torch
from jaxtyping import Float32
from PIL import Image
from pydantic import Field

from raftdiff.errors import UserError, command
from raftdiff.llm.model.lengths import check_asked, warn_of_long
from raftdiff.llm.model.loading import LMConfig
from raftdiff.llm.model.rows import Row
from raftdiff.llm.reward_models.value_model import (
    HEAD,
    ValueModel,
    load_value_model,
    positions,
    readable_rows,
    score_rows,
)
from raftdiff.recipes.config import RewardConfig
from raftdiff.recipes.registry import resolve_function
from raftdiff.types import Prompt, Sample

MODEL = "model"
"""Where a run of a reward model keeps it."""


class RewardModelConfig(RewardConfig):
    type: Literal["reward_model"] = "reward_model"
    name: str = "reward_model"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    model: str
    """A run of ``raftdiff llm rm train``, or the folder of a reward model, such as RUN/model."""
    batch_size: int = Field(default=64, ge=1)
    """Answers through the network at once; changes no score."""
    too_long: Literal["discard", "cut"] = "discard"
    """An answer that is longer than the model can read with its prompt is discarded (NaN), or read without its end."""

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "RewardModel":
        model, cut = _opened(self.model, device, resolve), self.too_long == "cut"
        return RewardModel(model, batch_size=self.batch_size, name=self.name, cut=cut)


@final
class RewardModel:
    """r = w . h_last + b of a model trained on preferences; unbounded, in logits, higher is better.

    A difference d of two answers to one prompt says that the first is preferred with probability sigmoid(d). Rewards of
    different prompts were never compared in the training, and neither was an answer that is unlike its pairs: a policy
    finds those. Prompt and answer are read with the model's own tokenizer, earlier turns included, and the answer ends.

    NaN for what is longer than the model can read.

    Source: Ouyang et al. 2022, arXiv:2203.02155, section 3.5. Licence: that of the model it was trained from.
    """

    def __init__(
        self, model: ValueModel, *, batch_size: int = 64, name: str = "reward_model", cut: bool = False
    ) -> None:
        """``cut``: an answer that is too long is read without its end, and not discarded."""
        self.name = name
        self._model, self._batch_size, self._cut = model, batch_size, cut

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """
        Raises:
            UserError: a prompt is longer than the model can read.
        """
        check_asked(self.name, self._model.lm, prompts, positions=positions(self._model.lm))

    def score(self, samples: Sequence[Sample[str]]) -> Float32[torch.Tensor, " samples"]:
        rows = readable_rows(self._model, [(one.prompt, one.media) for one in samples], cut=self._cut)
        warn_of_long(self.name, rows.count(None), len(rows), "too_long: cut has it read their beginnings")
        return _scored(self._model, rows, self._batch_size)


class CaptionRewardConfig(RewardConfig):
    type: Literal["reward_model"] = "reward_model"
    name: str = "reward_model"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    model: str
    """A run of ``raftdiff llm rm train``, or the folder of a reward model, such as RUN/model."""
    captioner: str | None = None
    """module:function, installed or in the current folder, that says what pictures show: called as function(images), it
    returns a text for each. By default the prompt's own caption is scored, which is the same for all its candidates."""
    batch_size: int = Field(default=64, ge=1)
    """Texts through the network at once; changes no score."""

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "CaptionReward":
        say = resolve_function(self.captioner, "reward_model.captioner", noun="captioner") if self.captioner else None
        model = _opened(self.model, device, resolve)
        return CaptionReward(model, say, captioner=self.captioner or "", batch_size=self.batch_size, name=self.name)


@final
class CaptionReward:
    """The reward model's score of a picture's caption, as the answer to the prompt's caption; higher is better.

    Unbounded, in logits, as ``RewardModel``'s. With a captioner the caption is what that says of the picture, so that
    its candidates differ; without one it is the prompt's own, and the reward tells prompts apart and no pictures.
    """

    def __init__(
        self,
        model: ValueModel,
        say: Callable[..., Any] | None,
        *,
        captioner: str = "",
        batch_size: int = 64,
        name: str = "reward_model",
    ) -> None:
        self.name = name
        self._model, self._say, self._captioner, self._batch_size = model, say, captioner, batch_size

    def score(self, samples: Sequence[Sample[Image.Image]]) -> Float32[torch.Tensor, " samples"]:
        texts = [one.prompt.caption for one in samples] if self._say is None else self._said(samples)
        asked = [(one.prompt, text) for one, text in zip(samples, texts, strict=True)]
        rows = readable_rows(self._model, asked, cut=False)
        warn_of_long(self.name, rows.count(None), len(rows), "have the captioner say less")
        return _scored(self._model, rows, self._batch_size)

    def _said(self, samples: Sequence[Sample[Image.Image]]) -> list[str]:
        """What the captioner says of each picture; it gets copies."""
        assert self._say is not None
        try:
            told = self._say([one.media.copy() for one in samples])
        except Exception as error:
            error.add_note(f"This was raised by the captioner '{self._captioner}'.")
            raise
        texts = list(told) if isinstance(told, Sequence) and not isinstance(told, str) else []
        if len(texts) != len(samples) or not all(isinstance(text, str) for text in texts):
            raise UserError(
                f"The captioner '{self._captioner}' should return a list of {len(samples)} texts, one for each picture."
            )
        return texts


def _scored(model: ValueModel, rows: Sequence[Row | None], batch_size: int) -> Float32[torch.Tensor, " rows"]:
    """The reward of each row, NaN where there is none since it was too long."""
    found = torch.full((len(rows),), torch.nan)
    read = [place for place, row in enumerate(rows) if row is not None]
    found[read] = score_rows(model, [row for row in rows if row is not None], batch_size=batch_size)
    return found


def _opened(model: str, device: str, resolve: Callable[[str], str]) -> ValueModel:
    """
    Raises:
        UserError: there is no reward model.
    """
    try:
        folder = reward_folder(Path(resolve(model)).expanduser())
    except UserError as error:
        raise UserError(f"reward_model: {error}") from None
    return load_value_model(LMConfig(base=str(folder), device=device), str)


def reward_folder(path: Path) -> Path:
    """The folder of a reward model: a run's ``model``, or the folder itself.

    Raises:
        UserError: there is none, the run is not finished, or it is something else.
    """
    if not path.is_dir():
        raise UserError(f"there is no folder '{path}'; name a run of raftdiff llm rm train.")
    if (path / HEAD).is_file():
        return path
    if (path / MODEL / HEAD).is_file():
        return path / MODEL
    if (path / "run.json").is_file():
        raise UserError(
            f"the run '{path}' holds no reward model; if it is to train one, finish it: "
            f"{command('llm', 'rm', 'train', path)}"
        )
    raise UserError(f"'{path}' is no reward model: it has no {HEAD}.")
