"""The loss of a reward model on preference pairs: Bradley-Terry, and what may stand beside it.

    L = mean over pairs of -log sigma(r_c - r_r - margin), smoothed, + centring * (r_c + r_r)^2
        + lm_weight * CE(chosen answers' tokens)
        + contrast.weight * contrast

With contrast each text is read twice, under two dropout masks; the first two lines are then means over both readings.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from raftdiff.llm.data.preferences import Comparison
from raftdiff.llm.model.head import log_probabilities_at
from raftdiff.llm.model.rows import Row, collate
from raftdiff.llm.reward_models.contrast import (
    ContrastConfig,
    NoContrastConfig,
    compared,
    contrast_loss,
    dropped_embeddings,
)
from raftdiff.llm.reward_models.losses import bradley_terry, centring, meta_difference
from raftdiff.llm.reward_models.strength import Annotation
from raftdiff.llm.reward_models.value_model import ValueModel, at_last, value_row

Scalar = Float[Tensor, ""]


class Taught(NamedTuple):
    """A pair as it is trained, after a flip."""

    chosen: Row
    rejected: Row
    margin: float
    smoothing: float


class Whole(NamedTuple):
    """Counts of the whole optimizer step, of which these pairs may be a part: what means are taken over."""

    pairs: int
    tokens: int
    """Of the chosen answers."""


class View(NamedTuple):
    """One reading of some pairs."""

    chosen: Float[Tensor, "pairs width"]
    """The hidden state at the last token of the chosen answer."""
    rejected: Float[Tensor, "pairs width"]
    lm: Scalar
    """The cross-entropy of the chosen answers' tokens, as these pairs' part of the step's mean; 0 where it weighs
    nothing, since it costs a vocabulary of numbers a token."""
    tokens: int
    """That went through the network."""


class Found(NamedTuple):
    """What came of some pairs."""

    loss: Scalar
    """These pairs' part of the step's loss."""
    figures: dict[str, float]
    """Means over these pairs: ``accuracy``, ``difference``, and by choice ``lm_loss`` and ``contrast``."""
    tokens: int
    """That went through the network for it; an answer that is in several pairs goes once."""


@final
@dataclass(frozen=True)
class RewardObjective:
    """What is minimised, on a model in the midst of its training."""

    model: ValueModel
    lm_weight: float
    centring: float
    contrast: ContrastConfig
    prototypes: nn.Linear | None
    """SwAV's, which are learnt."""

    @property
    def readings(self) -> int:
        """How often each text goes through the network: with contrast twice, dropping numbers by chance."""
        return 1 if isinstance(self.contrast, NoContrastConfig) else 2

    def loss(self, taught: Sequence[Taught], whole: Whole) -> Found:
        """These pairs' part of the loss; the parts of a step add up to the step's."""
        contrast = self.contrast
        if isinstance(contrast, NoContrastConfig):
            view = self._view(taught, whole)
            loss, d = self._preference(view, taught, whole)
            figures = self._figures(d, view.lm, len(taught) / whole.pairs)
            return Found(loss + self.lm_weight * view.lm, figures, view.tokens)
        with dropped_embeddings(self.model.lm.model, contrast.dropout):
            one, two = self._view(taught, whole), self._view(taught, whole)
        (loss, d), (again, _) = (self._preference(view, taught, whole) for view in (one, two))
        s, t = (compared(contrast.form, view.chosen, view.rejected) for view in (one, two))
        apart, lm = contrast_loss(contrast, s, t, self.prototypes), (one.lm + two.lm) / 2
        figures = self._figures(d, lm, len(taught) / whole.pairs) | {"contrast": float(apart.detach())}
        loss = (loss + again) / 2 + self.lm_weight * lm + contrast.weight * apart
        return Found(loss, figures, one.tokens + two.tokens)

    def separation(self, shown: Sequence[Sequence[Row]]) -> Scalar:
        """MetaRM's J of some answers to each of some prompts, mean over the prompts; as many answers to each."""
        batch = collate([row for answers in shown for row in answers], self.model.lm.pad)
        with self._computing():
            rewards = self.model.rewards(batch)
        return meta_difference(rewards.view(len(shown), -1))

    def _view(self, taught: Sequence[Taught], whole: Whole) -> View:
        model, pad, pairs = self.model, self.model.lm.pad, len(taught)
        chosen, rejected = [one.chosen for one in taught], [one.rejected for one in taught]
        if not self.lm_weight:
            rows, place = distinct([*chosen, *rejected])
            with self._computing():
                both = model.last(collate(rows, pad))[place]
            nothing = torch.zeros((), device=both.device)
            return View(both[:pairs], both[pairs:], nothing, sum(row.tokens for row in rows))
        batch, (rows, place) = collate(chosen, pad), distinct(rejected)
        with self._computing():
            found = model.reading(batch)
            lm = -log_probabilities_at(found, batch.places, batch.targets).sum() / whole.tokens
            other = model.last(collate(rows, pad))[place]
        tokens = sum(row.tokens for row in (*chosen, *rows))
        return View(at_last(found.hidden, batch.attention), other, lm, tokens)

    def _preference(self, view: View, taught: Sequence[Taught], whole: Whole) -> tuple[Scalar, Float[Tensor, " pairs"]]:
        """These pairs' part of Bradley-Terry and of centring, and the differences r_c - r_r."""
        better, worse = self.model.read(view.chosen), self.model.read(view.rejected)
        margin, smoothing = (
            torch.tensor(told, dtype=torch.float32, device=better.device)
            for told in ([one.margin for one in taught], [one.smoothing for one in taught])
        )
        losses = bradley_terry(better - worse, margin, smoothing)
        if self.centring:
            losses = losses + self.centring * centring(better, worse)
        return losses.sum() / whole.pairs, (better - worse).detach()

    def _figures(self, d: Float[Tensor, " pairs"], lm: Scalar, share: float) -> dict[str, float]:
        right = (d > 0).float().mean() + (d == 0).float().mean() / 2
        figures = {"accuracy": float(right), "difference": float(d.mean())}
        return figures | ({"lm_loss": float(lm.detach()) / share} if self.lm_weight else {})

    def _computing(self) -> AbstractContextManager[None]:
        lm = self.model.lm
        return torch.autocast(lm.device.type, dtype=lm.dtype) if lm.dtype != torch.float32 else nullcontext()


def distinct(rows: Sequence[Row]) -> tuple[list[Row], list[int]]:
    """Each row once, in order of its first place, and where each of ``rows`` stands among them.

    >>> distinct([Row((1,), (2,)), Row((1,), (3,)), Row((1,), (2,))])[1]
    [0, 1, 0]
    """
    place = {row: number for number, row in enumerate(dict.fromkeys(rows))}
    return list(place), [place[row] for row in rows]


def taught(model: ValueModel, pairs: Sequence[Comparison], annotation: Annotation) -> list[Taught]:
    """The pairs as tokens of the model's own, those that are flipped turned round.

    Raises:
        UserError: one is longer than the model can read.
    """
    told = zip(annotation.flipped.tolist(), annotation.margin.tolist(), annotation.smoothing.tolist(), strict=True)
    found = []
    for pair, (flipped, margin, smoothing) in zip(pairs, told, strict=True):
        rows = [value_row(model, pair.prompt, text) for text in (pair.chosen, pair.rejected)]
        chosen, rejected = reversed(rows) if flipped else rows
        found.append(Taught(chosen, rejected, margin, smoothing))
    return found
