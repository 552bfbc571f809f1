"""Fine-tuning a diffusion model on its own selected samples, straight on their latents."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal, final

import torch
from PIL.Image import Image
from pydantic import Field, model_validator
from torch import Tensor

from raftdiff.diffusion.families.texts import Texts
from raftdiff.diffusion.learning import losses
from raftdiff.diffusion.learning.batches import Policies, part_of
from raftdiff.diffusion.learning.descent import Descent
from raftdiff.diffusion.learning.drift import drift
from raftdiff.diffusion.learning.groups import Group, grouped, held, passes, rows_of, shapes
from raftdiff.diffusion.learning.lessons import Endings, Lesson, Noised, Steps
from raftdiff.diffusion.learning.policy_gradient import Chain
from raftdiff.diffusion.learning.resident import Resident
from raftdiff.diffusion.learning.reward_gradient import graded
from raftdiff.diffusion.learning.rules import Ddpo, PathRule, RuleConfig, SftConfig
from raftdiff.diffusion.learning.trainable import attach
from raftdiff.diffusion.models.blocks import blocks_wait, demand_fit
from raftdiff.diffusion.models.loaded import Parts
from raftdiff.diffusion.sizes import Size, alike, filled
from raftdiff.errors import Need, UserError
from raftdiff.recipes.config import Config
from raftdiff.seeds import fold
from raftdiff.training import optimizer, quantised, sharded
from raftdiff.training.course import Course, Tally
from raftdiff.training.devices import DTYPES, DType, convolves_slowly
from raftdiff.types import Key, Report, Requires, Reward, Sample, Selection, State

DRIFT_ROWS = 16
"""Pictures on which the drift from the base is measured after each round."""


class DiffusionFineTunerConfig(Config):
    """What is learned from the selected pictures, and how."""

    type: Literal["diffusion"] = "diffusion"
    learning: RuleConfig = Field(default_factory=SftConfig)
    """What is learned from what was selected: sft imitates it; the others learn from differences."""
    adapter: Literal["lora", "full"] = "lora"
    """Low-rank updates (arXiv:2106.09685), or every weight of the denoiser."""
    rank: int = Field(default=8, ge=1)
    """Rank of the LoRA."""
    alpha: float | None = Field(default=None, gt=0)
    """The LoRA's scale is alpha / rank; None takes alpha = rank."""
    target_modules: Literal["attention", "all", "all-linear"] | tuple[str, ...] = "attention"
    """Layers that get a LoRA: attention projections; those, convolutions and feed-forward layers; of these all that are
    linear; or names."""
    train_text_encoder: bool = False
    """Train the text encoder too; of several all."""
    learning_rate: float = Field(default=1e-4, gt=0)
    lr_schedule: Literal["constant", "cosine", "linear"] = "constant"
    """How the learning rate falls over all the rounds of the recipe."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps over which the learning rate first rises, counted over all rounds."""
    steps: int = Field(default=100, ge=0)
    """At most this many optimizer steps a round."""
    exposures: float | None = Field(default=4.0, gt=0)
    """At most this many times is each selected picture seen in a round; None sets no limit."""
    batch_size: int = Field(default=8, ge=1)
    """Pictures through the network at once, of one size; a pair is never torn apart."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Batches per optimizer step."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: slower, and a good deal less memory."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients longer than this are shortened to it."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw_8bit keeps its moments in 8 bits: 2 bytes a trained weight instead of 8. It needs raftdiff[quantised]."""
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    loss_on: Literal["conditional", "guided"] = "conditional"
    """Whether the prediction for the caption learns the pictures, or the guided prediction that the sampler follows."""
    guidance: float | None = Field(default=None, ge=1)
    """w of the guided loss; None takes what the tuned model is to be used with: the evaluation's, or the sampler's."""
    min_snr_gamma: float | None = Field(default=None, gt=0)
    """Min-SNR-gamma weighting, 5 in the paper (arXiv:2303.09556). It ignores the last step of a zero-SNR schedule."""
    caption_dropout: float = Field(default=0.0, ge=0, le=1)
    """Share of the rows trained on the empty caption, which guidance leans on."""
    offset_noise: float = Field(default=0.0, ge=0)
    """Strength of a random constant in each channel's noise, for models that cannot leave mean grey: 0.05 to 0.1."""
    pure_noise_steps: int = Field(default=0, ge=0)
    """At this many of the last training timesteps (of usually 1000) the network learns to start from pure noise."""
    timesteps: Literal["uniform", "stratified", "logit_normal"] = "stratified"
    """How training timesteps are drawn; with ddpo and refl the step of its path that a picture is shown at."""
    anchor: float = Field(default=0.0, ge=0)
    """Weight of the squared distance between the tuned model's predictions and the base model's."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of a moving average of the weights, which is then what samples and what is exported."""
    precision: DType | None = None
    """What training computes in; None takes the model's dtype. Trained weights and their state are float32 always."""
    channels_last: bool = False
    """Hold the convolutions in channels-last order while training."""

    @model_validator(mode="after")
    def _imitates(self) -> "DiffusionFineTunerConfig":
        if not isinstance(self.learning, SftConfig):
            if self.loss_on == "guided":
                raise ValueError(f"loss_on: guided is for learning: sft alone; {self.learning.type} has no need of it")
            if self.train_text_encoder:
                move = f"what {self.learning.type} compares with would move too"
                raise ValueError(f"train_text_encoder is for learning: sft alone; {move}")
            if self.min_snr_gamma is not None:
                raise ValueError(f"min_snr_gamma is for learning: sft alone, not for {self.learning.type}")
        for name in ("caption_dropout", "offset_noise", "pure_noise_steps") if "path" in self.requires.aux else ():
            if getattr(self, name):
                steps = f"{self.learning.type} learns from steps as they were drawn"
                raise ValueError(f"{name} is for pictures under noise; {steps}")
        return self

    def needs(self, resolve: Callable[[str], str]) -> Iterator[Need]:
        """What is not on this machine; see ``recipes.needs``."""
        del resolve
        if self.optimizer == "adamw_8bit":
            yield from quantised.needs("optimizer")

    @property
    def requires(self) -> Requires:
        """What its rule learns from."""
        rule = self.learning.build()
        aux = ("latent", "path") if isinstance(rule, PathRule) else ("latent",)
        fresh = isinstance(rule, Ddpo)
        return Requires((rule.kind,), aux, reference_model=rule.reference == "base", fresh_samples=fresh)

    @property
    def pictures_an_item(self) -> int:
        """Two of a pair, else one."""
        return 2 if self.learning.build().kind == "pairs" else 1

    @property
    def items_at_once(self) -> int:
        """Items whose pictures make up a batch."""
        return max(1, self.batch_size // self.pictures_an_item)

    def build(
        self,
        parts: Parts,
        *,
        total_rounds: int,
        guidance: float,
        seed: int,
        chains: Mapping[Size, Chain] = MappingProxyType({}),
        rewards: Sequence[tuple[Reward[Image], float]] = (),
    ) -> "DiffusionFineTuner":
        """The fine-tuner, its weights attached to ``parts`` in place.

        Args:
            total_rounds: how many rounds the learning-rate schedule spans.
            guidance: what the tuned model is to be used with, for the guided loss.
            seed: of the LoRA's first weights.
            chains: the steps by which the sampler draws, for a rule that learns from them, by rows and columns of the
                latents: flows take other steps at other sizes.
            rewards: with their weights, for a rule that follows their gradient.
        """
        lesson = _lesson(self, parts, guidance, next(iter(chains.values()), None), rewards)
        return DiffusionFineTuner(self, parts, lesson, chains=chains, total_rounds=total_rounds, seed=seed)


@final
class DiffusionFineTuner:
    """RAFT's last verb for pictures: fine-tuning on what was selected; ``losses`` and ``rules`` say what is minimised.

    Departures from the reference implementations of arXiv:2304.06767: it learns from the sampler's own latents, not
    from pictures encoded again; steps are limited by how often each picture is seen; the loss can be on the guided
    prediction that the sampler follows; weights can be averaged, and anchored to the base.
    """

    def __init__(
        self,
        config: DiffusionFineTunerConfig,
        parts: Parts,
        lesson: Lesson[Any],
        *,
        chains: Mapping[Size, Chain],
        total_rounds: int,
        seed: int,
    ) -> None:
        self.config = config
        self.requires = config.requires
        self.parts = parts
        self.lesson, self._chains = lesson, chains
        self.precision = DTYPES[config.precision] if config.precision else parts.dtype
        if self.precision == torch.float16 and parts.device.type == "cpu":
            raise UserError("finetuner.precision: float16 needs a GPU; use bfloat16 or float32 on the CPU.")
        if blocks_wait(parts.denoiser):
            demand_fit(config.adapter, config.gradient_checkpointing, {parts.dtype, self.precision})
        sharded.demand_fit(parts.denoiser, config.adapter, parts.dtype, self.precision)
        self.trainable = attach(
            parts,
            adapter=config.adapter,
            rank=config.rank,
            alpha=config.alpha if config.alpha is not None else float(config.rank),
            targets=config.target_modules,
            text_encoders=config.train_text_encoder,
            channels_last=config.channels_last or convolves_slowly(self.precision, parts.device),
            merge_half="path"
            not in self.requires.aux,  # whose ratios are to what drew, and rounding would show in them
            seed=seed,
        )
        made = optimizer.adamw if config.optimizer == "adamw" else optimizer.adamw_8bit
        by = made(self.trainable.parameters, config.learning_rate, config.betas, config.weight_decay)
        self.course = Course(config, self.trainable, by, total_rounds=total_rounds)
        self.descent = Descent(self.course, parts.device, self.precision, config.ema)
        self.policies = Policies(parts, self.trainable, self.precision)

    def fit(
        self, selection: Selection, samples: Mapping[Key, Sample[Image]], *, seed: int, report: Report
    ) -> Mapping[str, float]:
        """Learn from the selected samples by the rule.

        A batch is of pictures of one size. Items wait until there are enough of their size, so that sizes come as often
        as they have items, and steps are as many and as large as with one size.

        Several processes that do so together must be given the same selection; each takes its share of every step.

        Raises:
            UserError: a sample lacks what is learnt from, an item's pictures are of several sizes, or the loss is no
                longer a number.
        """
        chosen = [samples[key] for item in selection.items for key in item.keys]
        for name in self.requires.aux:
            held(chosen, name)  # raises before anything is learnt
        sizes, latents = shapes(selection, samples), held(chosen, "latent")
        shown, embed = self._brought(chosen)
        weights = torch.tensor([item.weight for item in selection.items for _ in item.keys], dtype=torch.float32)
        pictures, at_once = self.config.pictures_an_item, self.config.items_at_once
        items_a_step = at_once * self.config.gradient_accumulation
        plan = optimizer.exposure_plan(
            len(selection.items), self.config.steps, items_a_step, self.config.exposures, seed
        )
        order = filled([item for step in plan for item in step], sizes, at_once)
        tally = Tally()
        with self._training():
            for index in range(len(plan)):
                items = order[index * items_a_step : (index + 1) * items_a_step]
                generator = torch.Generator().manual_seed(fold(seed, "step", index))
                groups = []
                for same in alike(items, sizes):
                    rows = rows_of(same, pictures)
                    lesson, these = self._lesson_for(sizes[same[0]]), [chosen[row] for row in rows]
                    these_shown = [shown[row] for row in rows]
                    groups.append(
                        grouped(lesson, these, these_shown, weights[rows], pictures=pictures, generator=generator)
                    )
                rate = self.course.rate(self.course.progress(index / len(plan)))
                self._step(groups, embed, rate=rate, tally=tally)
                self.course.look(tally)
                report(index + 1, len(plan))
        self.course.read(tally)
        tally.gather()
        self.course.finish()
        captions = [sample.prompt.learning for sample in chosen[:DRIFT_ROWS]]
        moved = drift(self.parts, self.base_weights, latents[:DRIFT_ROWS], captions, batch_size=self.config.batch_size)
        return _figures(tally, latents, pictures) | {"prediction_drift": moved}

    def state_dict(self) -> State:
        """Everything that the next round depends on, on the CPU."""
        return self.descent.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Continue from ``state``, to the bit on the CPU.

        Raises:
            UserError: the state is of another model or another fine-tuner.
        """
        self.descent.load_state_dict(state)
        self.trainable.rest(self.descent.average)

    def base_weights(self) -> AbstractContextManager[None]:
        """Within, the shared network is the base model: what samples is the model before any tuning."""
        return self.trainable.base_weights()

    def parameter_count(self) -> int:
        """How many numbers are trained."""
        return self.trainable.count()

    def _lesson_for(self, latent: torch.Size) -> Lesson[Any]:
        """Of pictures of this size: on paths, by the steps that were taken at it."""
        if not self._chains:
            return self.lesson
        return replace(self.lesson, chain=self._chains[latent[-2], latent[-1]])  # type: ignore[type-var]

    def _brought(self, chosen: Sequence[Sample[Image]]) -> tuple[list[Tensor], Callable[[Sequence[str]], Texts]]:
        """What is learnt from, on the device where it fits: what is shown of each picture, and who embeds texts."""
        near, prompts, lesson = Resident(self.parts.device), self.parts.prompts, self.lesson
        shown = near.tensors(held(chosen, lesson.aux))
        if self.config.train_text_encoder:
            return shown, self._encode
        texts = [text for it in chosen for text in (it.prompt.learning, lesson.against(it.prompt)) if text is not None]
        near.take(prompts, texts)
        return shown, lambda texts: near.texts(prompts, texts).to(dtype=torch.float32)

    def _step(
        self, groups: Sequence[Group], embed: Callable[[Sequence[str]], Texts], *, rate: float, tally: Tally
    ) -> None:
        """One optimizer step, this process taking every so-manieth item of each size."""
        pictures, at_once = self.config.pictures_an_item, self.config.items_at_once
        count, networks = sum(len(group.shown) for group in groups) // pictures, self.policies.networks()
        for group in groups:
            for items, counts in passes(len(group.shown) // pictures, at_once):
                terms = group.lesson.terms(part_of(group, items, pictures, embed), networks)
                anchor = terms.anchor / pictures
                self.descent.backward((terms.loss + anchor) / count * counts)
                if not counts:
                    continue
                for name, value in {"loss": terms.loss, "anchor": anchor, **terms.figures}.items():
                    tally.add(name, value)
                tally.evaluations += terms.evaluations
        tally.took(count, norm=self.descent.step(rate), rate=rate)

    def _encode(self, captions: Sequence[str]) -> Texts:
        """What a text encoder that is trained says of them now, with gradient."""
        with torch.autocast(self.parts.device.type, dtype=self.precision, enabled=self.precision != torch.float32):
            return self.parts.prompts.encode(captions).to(dtype=torch.float32)

    @contextmanager
    def _training(self) -> Iterator[None]:
        """Within, the network holds the live weights, in training precision and layout; afterwards the policy again."""
        # the decoder too, where the gradient goes through it: at 512 pixels it is the largest part
        kept_small = [self.parts.denoiser, *([self.parts.vae] if isinstance(self.lesson, Endings) else [])]
        # under autocast the frozen weights stay as they are; without it all must be float32 to be used together
        self.trainable.wake(torch.float32 if self.precision == torch.float32 else self.parts.dtype)
        if self.config.learning.build().reference == "old":
            self.policies.before = {name: weight.clone() for name, weight in self.descent.policy.items()}
        if self.config.gradient_checkpointing:
            for module in kept_small:
                module.enable_gradient_checkpointing()
        try:
            with self.parts.idle.fetched(*kept_small[1:]):
                yield
        finally:
            if self.config.gradient_checkpointing:
                for module in kept_small:
                    module.disable_gradient_checkpointing()
            self.policies.before = {}
            self.trainable.rest(self.descent.average)


def _lesson(
    config: DiffusionFineTunerConfig,
    parts: Parts,
    guidance: float,
    chain: Chain | None,
    rewards: Sequence[tuple[Reward[Image], float]],
) -> Lesson[Any]:
    """What the rule is taught on."""
    rule, process = config.learning.build(), parts.process
    if isinstance(rule, PathRule):
        if chain is None:
            raise ValueError(f"learning: {config.learning.type} needs the chain of the sampler's steps")
        if isinstance(rule, Ddpo):
            chain.random()  # raises where there is nothing to learn from
            return Steps(chain, rule, process.predicts, config.timesteps, config.anchor)
        said = graded(parts, rewards, config.learning.type)
        walk = rule.walk(len(chain.timesteps))
        return Endings(chain, walk, said, process.predicts, config.timesteps, config.anchor)
    if config.pure_noise_steps > len(process):
        raise UserError(
            f"finetuner.pure_noise_steps: {config.pure_noise_steps} is more than the model's {len(process)} timesteps."
        )
    scale = (config.guidance or guidance) if config.loss_on == "guided" else 1.0
    parts.check_guidance("finetuner.guidance", scale)
    objective = losses.Objective(
        guidance=scale,
        min_snr_gamma=config.min_snr_gamma,
        pure_noise_steps=config.pure_noise_steps,
        anchor=config.anchor,
        rule=rule,
    )
    return Noised(objective, process.to(parts.device), config.timesteps, config.offset_noise, config.caption_dropout)


def _figures(tally: Tally, latents: Sequence[Tensor], pictures: int) -> dict[str, float]:
    found = {"loss": 0.0, "anchor": 0.0, **tally.figures()}
    return {
        **found,
        "exposures_mean": tally.items * pictures / max(1, len(latents)),
        "network_evaluations": found["network_evaluations"] + 2 * min(DRIFT_ROWS, len(latents)),
        "latent_std": float(torch.cat([one.flatten() for one in latents]).std()) if latents else 0.0,
    }
