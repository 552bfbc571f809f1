"""Fine-tuning a language model on a selection; ``objectives`` says what is minimised."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, final

import torch
from pydantic import Field
from torch import Tensor

from raftdiff.errors import UserError
from raftdiff.llm.learning.objectives import Lesson, Objective, ObjectiveConfig, SftConfig, Whole
from raftdiff.llm.learning.preference_losses import kto_reference_point
from raftdiff.llm.learning.steps import StepsConfig, attach, before_steps, precision_of, sampler_gap, seeded, training
from raftdiff.llm.model.loading import LM
from raftdiff.llm.model.network import Moment, Network
from raftdiff.llm.model.rows import Row, collate, drawn_with, laid_out, row_of, score
from raftdiff.seeds import fold
from raftdiff.training import optimizer, sharded
from raftdiff.training.course import Course, Tally
from raftdiff.types import Item, Key, Report, Requires, Sample, Selection, State


class LMFineTunerConfig(StepsConfig):
    """What is learned from the selected answers, and how."""

    type: Literal["lm"] = "lm"
    objective: ObjectiveConfig = Field(default_factory=SftConfig)
    """What is minimised: sft, rrhf, preference (the DPO family), kto, policy_gradient."""
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    learning_rate: float = Field(default=1e-4, gt=0)
    epochs: float = Field(default=1.0, gt=0)
    """How often each selected item is seen in a round."""
    steps: int = Field(default=10_000, ge=1)
    """At most this many optimizer steps a round."""
    batch_size: int = Field(default=16, ge=1)
    """Items (answers, pairs or rankings) per optimizer step."""
    rows_per_pass: int = Field(default=64, ge=1)
    """Answers through the network at once; an optimizer step is cut accordingly, and gives the same but for dropout."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients longer than this are shortened to it."""

    @property
    def learner(self) -> str:
        """Who learns, in a sentence about a recipe that does not fit."""
        return f"the objective '{self.objective.type}'"

    @property
    def requires(self) -> Requires:
        """What it learns from, known before a model is loaded."""
        return self.objective.build().requires

    def build(self, lm: LM, *, total_rounds: int, max_tokens: int, seed: int) -> "LMFineTuner":
        """The fine-tuner, its weights attached to ``lm`` in place.

        Args:
            total_rounds: how many rounds the learning-rate schedule spans.
            max_tokens: the longest answer that is drawn, which Dr. GRPO divides by.
            seed: of the LoRA's first weights.
        """
        return LMFineTuner(self, lm, total_rounds=total_rounds, max_tokens=max_tokens, seed=seed)


@final
@dataclass(frozen=True, slots=True)
class Taught:
    """An item with the tokens of its answers, and what other models say of them."""

    item: Item
    rows: tuple[Row, ...]
    old: tuple[Tensor, ...] = ()
    reference: tuple[Tensor, ...] = ()

    @property
    def answer_tokens(self) -> int:
        return sum(len(row.answer) for row in self.rows)


@final
class LMFineTuner:
    """The last verb for text: gradient steps of one objective on what was selected.

    A step is cut into passes of whole items, and means are taken over the whole step, so how it is cut does not matter,
    but for the LoRA's dropout.
    Items whose advantage is zero are counted and not computed.
    """

    def __init__(self, config: LMFineTunerConfig, lm: LM, *, total_rounds: int, max_tokens: int, seed: int) -> None:
        self.config, self.lm, self.max_tokens = config, lm, max_tokens
        self.objective: Objective = config.objective.build()
        self.precision = precision_of(config, lm)
        sharded.demand_fit(lm.model, config.adapter, lm.dtype, self.precision)
        self.trainable = attach(config, lm, seed=seed)
        parameters = self.trainable.parameters
        by: torch.optim.Optimizer = (
            optimizer.adamw(parameters, config.learning_rate, config.betas, config.weight_decay)
            if config.optimizer == "adamw"
            else optimizer.rmsprop(parameters, config.learning_rate, config.weight_decay)
        )
        self.course = Course(config, self.trainable, by, total_rounds=total_rounds)
        self.network = Network(lm, self.precision)

    @property
    def requires(self) -> Requires:
        return self.objective.requires

    def fit(
        self, selection: Selection, samples: Mapping[Key, Sample[str]], *, seed: int, report: Report
    ) -> Mapping[str, float]:
        config, tally = self.config, Tally()
        plan = optimizer.exposure_plan(len(selection.items), config.steps, config.batch_size, config.epochs, seed)
        with self._training():
            taught, known = self._taught(selection, samples)
            for index, places in enumerate(plan):
                rate = self.course.rate(self.course.progress(index / len(plan)))
                step = [taught[place] for place in places]
                point = self._reference_point(step, taught) if self.requires.kinds == ("labelled",) else None
                self._step(step, index / len(plan), fold(seed, index), rate, tally, point=point)
                self.course.look(tally)
                report(index + 1, len(plan))
        self.course.read(tally)
        self.course.finish()
        return {"loss": 0.0, **tally.figures(), **known, "items": float(tally.items)}

    def state_dict(self) -> State:
        """Everything that the next round depends on, on the CPU."""
        return self.course.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Continue from ``state``, to the bit on the CPU.

        Raises:
            UserError: the state is of another model or another fine-tuner.
        """
        self.course.load_state_dict(state)
        self.trainable.rest(None)

    def base_weights(self) -> AbstractContextManager[None]:
        """Within, the shared network is the base model: what samples is the model before any tuning."""
        return self.trainable.base_weights()

    def parameter_count(self) -> int:
        """How many numbers are trained."""
        return self.trainable.count()

    def _taught(
        self, selection: Selection, samples: Mapping[Key, Sample[str]]
    ) -> tuple[list[Taught], dict[str, float]]:
        """The items as tokens; where the objective asks for it, with the old and the base model's log-probabilities.
        And what can be told of them before the first step.

        Both compute as the training does, so that a policy that has not moved equals them.
        """
        keys = list(dict.fromkeys(key for item in selection.items for key in item.keys))
        rows = {key: row_of(self.lm, samples[key], learning=True) for key in keys}
        needs, size = self.requires, self.config.rows_per_pass
        old: dict[Key, Tensor] = {}
        figures: dict[str, float] = {}
        if "logprobs" in needs.aux and keys:
            drawn = [drawn_with(samples[key], rows[key]) for key in keys]
            old = dict(zip(keys, before_steps(self.network, list(rows.values()), batch_size=size), strict=True))
            figures = {"sampler_gap": sampler_gap(drawn, list(old.values()))}
        reference: dict[Key, Tensor] = {}
        if needs.reference_model:
            with self.trainable.passed_by(), self.network.computing():
                found = score(self.lm, list(rows.values()), batch_size=size)
            reference = dict(zip(rows, found, strict=True))
        taught = [
            Taught(
                item,
                tuple(rows[key] for key in item.keys),
                tuple(old[key] for key in item.keys) if old else (),
                tuple(reference[key] for key in item.keys) if reference else (),
            )
            for item in selection.items
        ]
        return taught, figures

    def _reference_point(self, step: Sequence[Taught], everything: Sequence[Taught]) -> Tensor:
        """KTO's, of a whole step: the drift from the base on its prompts with answers to others."""
        rows, pool = ([row for one in taught for row in one.rows] for taught in (step, everything))
        pairs, size = mismatched(rows, pool), self.config.rows_per_pass
        now = before_steps(self.network, pairs, batch_size=size)
        with self.trainable.passed_by():
            base = before_steps(self.network, pairs, batch_size=size)
        return kto_reference_point(torch.stack([(p - q).sum() for p, q in zip(now, base, strict=True)]))

    def _step(
        self, taught: Sequence[Taught], through: float, seed: int, rate: float, tally: Tally, *, point: Tensor | None
    ) -> None:
        """One optimizer step on these items; ``point``: KTO's reference point."""
        whole = Whole(sum(one.answer_tokens for one in taught), len(taught), self.max_tokens)
        moment = Moment(self.course.steps, self.course.progress(through), seed)
        for place, part in enumerate(_passes(self._computed(taught), self.config.rows_per_pass)):
            lesson = _lesson(part, self.lm.pad, point)
            with seeded(fold(seed, "dropout", place), self.lm.device, self.config.dropout > 0):
                loss, figures = self.objective.loss(lesson, whole, self.network, moment)
                torch.autograd.backward(loss)
            moment = moment._replace(first=moment.first + len(lesson.weight))
            tally.add("loss", loss, whole.items)
            tally.evaluations += int(lesson.batch.attention.sum())
            for name, value in figures.items():
                tally.add(name, value, len(part))
        tally.took(whole.items, norm=self._update(rate), rate=rate)

    def _computed(self, taught: Sequence[Taught]) -> list[Taught]:
        """Those with anything to learn from: no advantage, no gradient, but for that of a KL in the loss."""
        if self.requires.kinds != ("advantages",) or self.requires.reference_model:
            return list(taught)
        return [one for one in taught if one.item.weight != 0]

    def _update(self, rate: float) -> Tensor | float:
        """Let the gradients act: clipped, stepped. Returns their norm before clipping, unread."""
        if all(parameter.grad is None for parameter in self.trainable.parameters.values()):
            return 0.0
        return self.course.step(rate)

    def _training(self) -> AbstractContextManager[None]:
        """Within, the network holds the live weights, in training precision; afterwards the policy again."""
        frozen = torch.float32 if self.precision == torch.float32 else self.lm.dtype
        return training(self.trainable, self.lm.model, frozen, checkpointing=self.config.gradient_checkpointing)


def mismatched(rows: Sequence[Row], pool: Sequence[Row]) -> list[Row]:
    """Each row's prompt with the answer of the nearest row before it, going round, that answers another prompt; of
    ``rows`` themselves, or of the ``pool`` where these have one prompt alone.

    Raises:
        UserError: there is no other prompt.
    """
    among = rows if len({row.prompt for row in rows}) > 1 else pool
    if len({row.prompt for row in (*rows, *among)}) < 2:
        raise UserError(
            "KTO's reference point pairs prompts with answers to others, and everything that was selected answers one "
            "prompt; ask more in a round (prompts, loop.prompts_per_round)."
        )
    found = []
    for place, row in enumerate(rows):
        before = (among[(place - back) % len(among)] for back in range(1, len(among) + 1))
        found.append(Row(row.prompt, next(other.answer for other in before if other.prompt != row.prompt)))
    return found


def _passes(taught: Sequence[Taught], rows: int) -> Iterator[list[Taught]]:
    """The items in parts of at most so many rows, but whole."""
    part: list[Taught] = []
    for one in taught:
        if part and sum(len(held.rows) for held in part) + len(one.rows) > rows:
            yield part
            part = []
        part.append(one)
    if part:
        yield part


def _lesson(taught: Sequence[Taught], pad: int, point: Tensor | None) -> Lesson:
    rows = [row for one in taught for row in one.rows]
    batch = collate(rows, pad)
    counts = torch.tensor([len(one.rows) for one in taught])
    scores = [score for one in taught for score in (one.item.scores or range(len(one.rows), 0, -1))]
    weights = torch.tensor([one.item.weight for one in taught])
    old = [values for one in taught for values in one.old]
    reference = [values for one in taught for values in one.reference]
    return Lesson(
        batch,
        torch.arange(len(taught)).repeat_interleave(counts),
        weights.repeat_interleave(counts),
        torch.tensor(scores, dtype=torch.float32),
        laid_out(old, batch.mask) if old else None,
        laid_out(reference, batch.mask) if reference else None,
        point,
    )
