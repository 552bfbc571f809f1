"""Training a value model on preferences, in parts of one training; ``objective`` says what is minimised."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator

from raftdiff.errors import UserError
from raftdiff.llm.data.preferences import Comparison, by_prompt
from raftdiff.llm.learning.steps import AdapterConfig, attach, seeded, training
from raftdiff.llm.model.rows import Row
from raftdiff.llm.reward_models.contrast import ContrastConfig, NoContrastConfig, fresh_prototypes
from raftdiff.llm.reward_models.meta import MetaConfig, meta_gradients
from raftdiff.llm.reward_models.objective import RewardObjective, Taught, Whole, taught
from raftdiff.llm.reward_models.strength import Annotation
from raftdiff.llm.reward_models.value_model import ValueModel, by_length, score_rows, value_row
from raftdiff.seeds import fold
from raftdiff.training import optimizer
from raftdiff.training.course import Course, Tally
from raftdiff.types import Report, State, silent

BETAS = (0.9, 0.999)
ALL_STEPS = 1 << 40
"""No limit on the steps: the epochs decide."""


class RewardTunerConfig(AdapterConfig):
    """How a reward model learns from preferences. Its head is trained entirely, with a LoRA too."""

    learning_rate: float = Field(default=1e-4, gt=0)
    lr_schedule: Literal["constant", "cosine", "linear"] = "constant"
    """How the learning rate falls over the whole training."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps over which the learning rate first rises."""
    epochs: float = Field(default=1.0, gt=0)
    """How often each pair is seen in the whole training. One is usual: more learn the wrong labels by heart too."""
    batch_size: int = Field(default=32, ge=1)
    """Pairs per optimizer step; with ``whole_prompts`` the fewest, but of the last step."""
    whole_prompts: bool = False
    """Each step takes all pairs of a prompt, so that an answer which is in several is read once (arXiv:2203.02155,
    section 3.5): all pairs of six answers cost six readings and not thirty."""
    rows_per_pass: int = Field(default=64, ge=2)
    """Answers through the network at once, two a pair; an optimizer step is cut accordingly, and gives the same but for
    dropout. An answer that is in several pairs of a pass is read once. With contrast it must hold the whole step."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients longer than this are shortened to it."""
    weight_decay: float = Field(default=0.0, ge=0)
    lm_weight: float = Field(default=0.0, ge=0)
    """beta_rm: share of the cross-entropy on the chosen answer's tokens, which keeps a causal model a language model; 1
    in part I of the secrets of RLHF (arXiv:2307.04964)."""
    centring: float = Field(default=0.0, ge=0)
    """Share of (r_c + r_r)^2, which keeps rewards about 0; TRL takes 0.01."""
    contrast: ContrastConfig = Field(default_factory=NoContrastConfig)
    """Contrastive learning on the features: none, simcse, swav."""
    meta: MetaConfig | None = None
    """MetaRM, which needs answers of the current policy; none by default."""

    @model_validator(mode="after")
    def _contrast_sees_the_step(self) -> "RewardTunerConfig":
        if not isinstance(self.contrast, NoContrastConfig) and self.whole_prompts:
            raise ValueError("contrast sets the texts of a step apart, and whole_prompts repeats them; leave one out")
        if not isinstance(self.contrast, NoContrastConfig) and 2 * self.batch_size > self.rows_per_pass:
            raise ValueError(
                f"contrast compares the pairs of a step with each other, so rows_per_pass ({self.rows_per_pass}) must "
                f"hold both answers of all {self.batch_size} of them; make it {2 * self.batch_size} or more"
            )
        return self


@final
class RewardTuner:
    """Gradient steps on preference pairs.

    The order of all pairs over all epochs is drawn once, from the seed of the first part, and cut into the parts: every
    pair is seen as often as ``epochs`` says, in however many parts, and another seed is another order and nothing else.
    A step is cut into passes of whole pairs, and means are taken over the whole step.
    """

    def __init__(self, config: RewardTunerConfig, model: ValueModel, *, total_rounds: int, seed: int) -> None:
        """
        Args:
            total_rounds: in how many parts the training is cut, each a call of ``fit``.
            seed: of the first weights of the LoRA and of SwAV's prototypes.

        Raises:
            UserError: the model cannot learn what the config asks for, or is being tuned already.
        """
        self.config, self.model = config, model
        _check_model(config, model)
        prototypes = fresh_prototypes(
            config.contrast, model.head.in_features, model.lm.device, fold(seed, "prototypes")
        )
        self.objective = RewardObjective(model, config.lm_weight, config.centring, config.contrast, prototypes)
        heads = {"head": model.head, **({} if prototypes is None else {"prototypes": prototypes})}
        with _in_the_words_of_this_recipe():
            self.trainable = attach(config, model.lm, seed=seed, heads=heads)
        by = optimizer.adamw(self.trainable.parameters, config.learning_rate, BETAS, config.weight_decay)
        self.course = Course(config, self.trainable, by, total_rounds=total_rounds)
        self.seed: int | None = None
        """Of the order of the whole training; the first part brings it."""

    def fit(
        self,
        pairs: Sequence[Comparison],
        annotation: Annotation,
        *,
        pool: Sequence[Sequence[Row]] = (),
        seed: int,
        report: Report,
    ) -> Mapping[str, float]:
        """The next part of the training.

        Args:
            annotation: what the denoising says of each pair.
            pool: for MetaRM, answers of the current policy to each of some prompts, as ``value_row`` makes them.
            seed: of the order of the pairs and of every other draw; that of the first part holds for all.

        Returns:
            Means over the pairs of this part, as they were seen: ``loss`` (all of it, lower is better), ``accuracy``
            (share of the pairs as trained whose chosen answer scored higher), ``difference`` (r_c - r_r), and by choice
            ``lm_loss``, ``contrast``, ``separation`` (MetaRM's J) and ``ascent`` (how far it moved the weights up J
            before a gradient was taken). And ``steps``, ``grad_norm``, ``learning_rate``.

        Raises:
            UserError: the training is over, or what was given does not belong together.
        """
        self._check(pairs, annotation, pool)
        self.seed = seed if self.seed is None else self.seed
        rows, tally = taught(self.model, pairs, annotation), Tally()
        plan = self._plan(pairs, fold(self.seed, "pairs"))
        part = range(*(len(plan) * (self.course.rounds + end) // self.course.total_rounds for end in (0, 1)))
        asked = self._asked(len(pool), len(plan), self.seed)
        with self._training():
            for done, step in enumerate(part, 1):
                shown = [pool[place] for place in asked[step]] if asked else []
                drawn = fold(self.seed, "step", step)
                self._step([rows[place] for place in plan[step]], shown, step / len(plan), drawn, tally)
                report(done, len(part))
        with _in_the_words_of_this_recipe():
            self.course.read(tally)
            figures = tally.figures()
            self.course.finish(loss=figures.get("loss", 0.0))
        return {**figures, "pairs": float(tally.items)}

    def state_dict(self) -> State:
        """Everything that the next part depends on, on the CPU."""
        state = self.course.state_dict()
        seed = {} if self.seed is None else {"seed": torch.tensor(self.seed)}
        return {**state, "schedule": {**state["schedule"], **seed}}

    def load_state_dict(self, state: State) -> None:
        """Continue from ``state``, to the bit on the CPU.

        Raises:
            UserError: the state is of another model or another tuner.
        """
        with _in_the_words_of_this_recipe():
            self.course.load_state_dict(state)
        counts = state.get("schedule", {})
        self.seed = int(counts["seed"]) if "seed" in counts else None
        self.trainable.rest(None)

    def parameter_count(self) -> int:
        """How many numbers are trained."""
        return self.trainable.count()

    def _check(self, pairs: Sequence[Comparison], annotation: Annotation, pool: Sequence[Sequence[Row]]) -> None:
        if self.course.rounds >= self.course.total_rounds:
            raise UserError(f"tuner: all {self.course.total_rounds} parts of the training are done; begin a new run.")
        if not pairs or len(annotation.flipped) != len(pairs):
            raise UserError(f"tuner: {len(pairs)} pairs with {len(annotation.flipped)} annotations; give one for each.")
        if self.config.meta is None:
            return
        if not pool:
            raise UserError("tuner.meta: MetaRM needs answers of the current policy; name them under policy_pool.")
        if (fewest := min(len(answers) for answers in pool)) < self.config.meta.answers:
            raise UserError(
                f"tuner.meta: {self.config.meta.answers} answers to each prompt are needed, and one has {fewest}."
            )

    def _plan(self, pairs: Sequence[Comparison], seed: int) -> list[list[int]]:
        """Which pairs each step of the whole training sees."""
        config = self.config
        if config.whole_prompts:
            return whole_steps(by_prompt(pairs), config.batch_size, config.epochs, seed)
        return optimizer.exposure_plan(len(pairs), ALL_STEPS, config.batch_size, config.epochs, seed)

    def _asked(self, prompts: int, steps: int, seed: int) -> list[list[int]]:
        """Which of the policy's prompts each step of the whole training sees; nothing without MetaRM."""
        if self.config.meta is None:
            return []
        rows = min(self.config.meta.batch_size, prompts)
        return optimizer.exposure_plan(prompts, steps, rows, None, fold(seed, "policy"))

    def _step(
        self, pairs: Sequence[Taught], shown: Sequence[Sequence[Row]], progress: float, seed: int, tally: Tally
    ) -> None:
        """One optimizer step on these pairs."""
        config = self.config
        if config.meta is None:
            self._descend(pairs, seed, tally)
        else:
            answers = [known[: config.meta.answers] for known in shown]
            ascent = meta_gradients(
                list(self.trainable.parameters.values()),
                lambda: self._ascend(answers, len(pairs), seed, tally),
                lambda: self._descend(pairs, seed, tally),
                config.meta.eta,
            )
            tally.add("ascent", ascent, len(pairs))
        rate = self.course.rate(progress)
        with _in_the_words_of_this_recipe():
            tally.took(len(pairs), norm=self.course.step(rate), rate=rate)
            self.course.look(tally)

    def _descend(self, pairs: Sequence[Taught], seed: int, tally: Tally) -> None:
        """Add the gradient of the loss of these pairs to ``.grad``."""
        whole = Whole(len(pairs), sum(len(one.chosen.answer) for one in pairs))
        size = self.config.rows_per_pass // 2
        for place in range(0, len(pairs), size):
            part = pairs[place : place + size]
            with self._drawing(fold(seed, "dropout", place)):
                found = self.objective.loss(part, whole)
                torch.autograd.backward(found.loss)
            tally.add("loss", found.loss, whole.pairs)
            for name, value in found.figures.items():
                tally.add(name, value, len(part))
            tally.evaluations += found.tokens

    def _ascend(self, shown: Sequence[Sequence[Row]], pairs: int, seed: int, tally: Tally) -> None:
        """Add the gradient of J on these answers of the policy to ``.grad``."""
        size = max(1, self.config.rows_per_pass // len(shown[0]))
        for place in range(0, len(shown), size):
            part = shown[place : place + size]
            with self._drawing(fold(seed, "policy", place)):
                j = self.objective.separation(part) * (len(part) / len(shown))
                torch.autograd.backward(j)
            tally.add("separation", j, pairs)
            tally.evaluations += sum(row.tokens for answers in part for row in answers)

    def _training(self) -> AbstractContextManager[None]:
        """Within, the network holds the live weights, in the model's precision; afterwards the tuned model rests."""
        return training(self.trainable, self.model.lm.model, self.model.lm.dtype, checkpointing=False)

    def _drawing(self, seed: int) -> AbstractContextManager[None]:
        """Within, dropout draws from a generator of its own."""
        return seeded(seed, self.model.lm.device, self.config.dropout > 0 or self.objective.readings > 1)


def whole_steps(groups: Sequence[Sequence[int]], least: int, exposures: float, seed: int) -> list[list[int]]:
    """Which items each optimizer step sees, all those of a group in one step: a shuffle of the groups, then another,
    cut into steps as soon as they hold ``least`` items. Each group is seen ``exposures`` times on average.

    >>> sorted(map(sorted, whole_steps([[0, 2], [1], [3]], 2, 1.0, seed=0)))
    [[0, 2], [1, 3]]
    """
    steps: list[list[int]] = []
    for (drawn,) in optimizer.exposure_plan(len(groups), ALL_STEPS, 1, exposures, seed):
        if not steps or len(steps[-1]) >= least:
            steps.append([])
        steps[-1] += groups[drawn]
    return steps


def differences(
    model: ValueModel, pairs: Sequence[Comparison], *, batch_size: int, report: Report = silent
) -> Float[np.ndarray, " pairs"]:
    """r_c - r_r of each pair as the model stands, in logits: above 0 it agrees with the label. An answer that is in
    several pairs is read once.

    Raises:
        UserError: a pair is longer than the model can read.
    """
    rows, chosen, rejected = _answers(model, pairs)
    found = score_rows(model, rows, batch_size=batch_size, report=report).double()
    return np.asarray(found[chosen] - found[rejected])


@torch.no_grad()
def features(
    model: ValueModel, pairs: Sequence[Comparison], *, batch_size: int, report: Report = silent
) -> tuple[Float[np.ndarray, "pairs width"], Float[np.ndarray, "pairs width"]]:
    """The hidden states at the last token, which the reward is read from: of the chosen answers, of the rejected ones.
    An answer that is in several pairs is read once.

    Raises:
        UserError: a pair is longer than the model can read.
    """
    rows, chosen, rejected = _answers(model, pairs)
    found = torch.zeros(len(rows), model.head.in_features)
    for places, batch in by_length(model, rows, batch_size, report):
        found[places] = model.last(batch).float().cpu()
    return found[chosen].numpy(), found[rejected].numpy()


def _answers(model: ValueModel, pairs: Sequence[Comparison]) -> tuple[list[Row], list[int], list[int]]:
    """Every answer to its prompt once, and where those stand that are the chosen and the rejected ones of the pairs."""
    texts = [*((one.prompt, one.chosen) for one in pairs), *((one.prompt, one.rejected) for one in pairs)]
    places: dict[Row, int] = {}
    found = [places.setdefault(value_row(model, prompt, text), len(places)) for prompt, text in texts]
    return list(places), found[: len(pairs)], found[len(pairs) :]


def _check_model(config: RewardTunerConfig, model: ValueModel) -> None:
    if model.lm.dtype == torch.float16:
        raise UserError("model.dtype: float16 needs its gradients scaled; use bfloat16 or float32.")
    if config.lm_weight and not model.causal:
        raise UserError(
            f"tuner.lm_weight: '{model.lm.name}' is an encoder, which does not predict the next token; set it to 0."
        )


@contextmanager
def _in_the_words_of_this_recipe() -> Iterator[None]:
    """What other recipes call ``finetuner`` is the ``tuner`` here, and the model says the precision."""
    try:
        yield
    except UserError as error:
        raise UserError(
            str(error).replace("finetuner.precision", "model.dtype").replace("finetuner", "tuner")
        ) from None
