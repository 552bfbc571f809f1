"""What a language model can learn from a selection: each objective is a config, and a loss over a batch of answers."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Protocol, TypeAlias, final, runtime_checkable

from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from raftdiff.llm.learning import preference_losses
from raftdiff.llm.learning.hooks import Embedding, NoEmbedding, NoWeighting, Weighting, inputs, row_losses
from raftdiff.llm.learning.policy_gradient import clipped_objective
from raftdiff.llm.learning.rrhf import rrhf
from raftdiff.llm.model.network import Moment, Network
from raftdiff.llm.model.packing import packed_lp
from raftdiff.llm.model.rows import Batch
from raftdiff.llm.model.tokens import Aggregation, aggregate, means, sums
from raftdiff.recipes.config import Config
from raftdiff.types import Requires

Figures = dict[str, float]
WEIGHTED = Requires(kinds=("weighted",))
RANKED = Requires(kinds=("ranked",))
LABELLED = Requires(kinds=("labelled",), reference_model=True)


@final
@dataclass(frozen=True)
class Lesson:
    """Answers to learn from at once: whole items, so that pairs and rankings are never torn apart."""

    batch: Batch
    item: Int[Tensor, " rows"]
    """Whose item each row belongs to; the rows of an item stand together, best first."""
    weight: Float[Tensor, " rows"]
    """The item's weight, label or advantage."""
    score: Float[Tensor, " rows"]
    """Total reward where the selection holds it, else falling with the rank within the item."""
    old: Float[Tensor, "rows targets"] | None = None
    """log p under the policy that sampled."""
    reference: Float[Tensor, "rows targets"] | None = None
    """log p under the base model."""
    reference_point: Float[Tensor, ""] | None = None
    """KTO: how far the policy has come from the base on answers to other prompts, of the whole step."""


class Whole(NamedTuple):
    """Counts of the whole optimizer step, of which a lesson may be a part: what means are taken over."""

    tokens: int
    items: int
    max_tokens: int
    """Of the longest answer that is drawn, which Dr. GRPO divides by."""


@runtime_checkable
class Objective(Protocol):
    """``loss`` of the parts of a step add up to the step's; figures are means over the lesson's items."""

    @property
    def requires(self) -> Requires: ...

    def loss(self, lesson: Lesson, whole: Whole, network: Network, moment: Moment) -> tuple[Tensor, Figures]: ...


class SftConfig(Config):
    """Cross-entropy on the answers' tokens: supervised fine-tuning, and RAFT's last step."""

    type: Literal["sft"] = "sft"
    aggregation: Aggregation = "token_mean"
    """How tokens are averaged: token_mean, seq_mean_token_mean, seq_mean_token_sum, dr_grpo."""
    embedding: Embedding = Field(default_factory=NoEmbedding)
    """What is done to the inputs: none, neftune, scheduled (sampling), trc (IFT's temporal residual connection)."""
    weighting: Weighting = Field(default_factory=NoWeighting)
    """What a token's loss weighs: none, or drp (IFT's dynamic relation propagation), whose rows are then averaged."""
    packing: bool = False
    """Several answers in one sequence, none of which sees another: the same loss with less padding to compute."""

    @model_validator(mode="after")
    def _packs_alone(self) -> "SftConfig":
        if self.packing and not isinstance(self.embedding, NoEmbedding):
            raise ValueError(f"packing and embedding {self.embedding.type} do not go together; leave one out")
        return self

    def build(self) -> "Sft":
        return Sft(self)


@final
@dataclass(frozen=True)
class Sft:
    config: SftConfig
    requires: Requires = WEIGHTED

    def loss(self, lesson: Lesson, whole: Whole, network: Network, moment: Moment) -> tuple[Tensor, Figures]:
        if self.config.packing:
            lp = packed_lp(network, lesson.batch)
        else:
            lp = network.lp(lesson.batch, **inputs(self.config.embedding, lesson.batch, network, moment))
        mask, weight = network.mask(lesson.batch), lesson.weight.to(lp.device)
        if not isinstance(self.config.weighting, NoWeighting):
            losses = row_losses(self.config.weighting, lp, mask)
            return (weight * losses).sum() / whole.items, {}
        loss = aggregate(
            -lp * weight[:, None],
            mask,
            self.config.aggregation,
            max_length=whole.max_tokens,
            total_tokens=whole.tokens,
            sequences=whole.items,
        )
        return loss, {}


class RrhfConfig(Config):
    """Rank responses to align human feedback (arXiv:2304.05302): the likelier of two answers should be the better."""

    type: Literal["rrhf"] = "rrhf"
    rank_weight: float = Field(default=1.0, ge=0)
    """Of L_rank; the paper found 10 and 100 worse."""
    ft: Literal["sum", "mean"] = "sum"
    """L_ft of the best answer: the paper's sum over tokens, or their mean."""
    compat_official: bool = False
    """Do what the released code does, which does not normalise by length."""

    def build(self) -> "Rrhf":
        return Rrhf(self)


@final
@dataclass(frozen=True)
class Rrhf:
    config: RrhfConfig
    requires: Requires = RANKED

    def loss(self, lesson: Lesson, whole: Whole, network: Network, moment: Moment) -> tuple[Tensor, Figures]:
        del moment
        lp = network.lp(lesson.batch)
        found = rrhf(
            lp,
            network.mask(lesson.batch),
            lesson.item.to(lp.device),
            lesson.score.to(lp.device),
            rank_weight=self.config.rank_weight,
            ft=self.config.ft,
            queries=whole.items,
            compat_official=self.config.compat_official,
        )
        share = whole.items / len(set(lesson.item.tolist()))
        return found.total, {
            "rank_loss": float(found.rank.detach()) * share,
            "ft_loss": float(found.ft.detach()) * share,
        }


PairLoss = Literal["dpo", "cdpo", "robust", "ipo", "hinge", "simpo", "orpo"]
REFERENCE_FREE = ("simpo", "orpo")


class PreferenceConfig(Config):
    """The better of two answers over the worse: DPO (arXiv:2305.18290) and its relatives."""

    type: Literal["preference"] = "preference"
    loss: PairLoss = "dpo"
    """dpo, cdpo, robust, ipo, hinge; and without a reference model simpo, orpo."""
    beta: float = Field(default=0.1, gt=0)
    """How far the policy may leave the base: smaller is further. SimPO's beta too, there 2 to 10."""
    smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """cdpo and robust: how many labels are thought wrong."""
    gamma: float = Field(default=1.0, ge=0)
    """SimPO's target margin."""
    orpo_weight: float = Field(default=0.1, ge=0)
    """ORPO's lambda."""
    ipo_average: bool = True
    """IPO on token averages, as TRL has it; the paper's sums otherwise."""

    def build(self) -> "Preference":
        return Preference(self, Requires(kinds=("pairs",), reference_model=self.loss not in REFERENCE_FREE))


@final
@dataclass(frozen=True)
class Preference:
    config: PreferenceConfig
    requires: Requires

    def loss(self, lesson: Lesson, whole: Whole, network: Network, moment: Moment) -> tuple[Tensor, Figures]:
        del moment
        config, lp, mask = self.config, network.lp(lesson.batch), network.mask(lesson.batch)
        averages = config.loss in REFERENCE_FREE or (config.loss == "ipo" and config.ipo_average)
        measure = means if averages else sums
        chosen, rejected = measure(lp, mask).reshape(-1, 2).unbind(1)
        if config.loss == "simpo":
            losses, margin = preference_losses.simpo(chosen, rejected, config.beta, config.gamma), chosen - rejected
        elif config.loss == "orpo":
            losses, margin = preference_losses.orpo(chosen, rejected, config.orpo_weight), chosen - rejected
        else:
            assert lesson.reference is not None
            base = measure(lesson.reference.to(lp.device), mask).reshape(-1, 2).unbind(1)
            margin = preference_losses.reference_margin(chosen, base[0], rejected, base[1])
            losses = self._with_reference(margin)
        figures = {"accuracy": float((margin > 0).float().mean()), "margin": float(margin.detach().mean())}
        return losses.sum() / whole.items, figures

    def _with_reference(self, h: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
        config = self.config
        match config.loss:
            case "cdpo":
                return preference_losses.dpo(h, config.beta, config.smoothing)
            case "robust":
                return preference_losses.robust_dpo(h, config.beta, config.smoothing)
            case "ipo":
                return preference_losses.ipo(h, config.beta)
            case "hinge":
                return preference_losses.hinge(h, config.beta)
            case _:
                return preference_losses.dpo(h, config.beta)


class KtoConfig(Config):
    """Answers labelled good or bad, each on its own (arXiv:2402.01306)."""

    type: Literal["kto"] = "kto"
    beta: float = Field(default=0.1, gt=0)
    desirable_weight: float = Field(default=1.0, gt=0)
    undesirable_weight: float = Field(default=1.0, gt=0)

    def build(self) -> "Kto":
        return Kto(self)


@final
@dataclass(frozen=True)
class Kto:
    config: KtoConfig
    requires: Requires = LABELLED

    def loss(self, lesson: Lesson, whole: Whole, network: Network, moment: Moment) -> tuple[Tensor, Figures]:
        del moment
        assert lesson.reference is not None
        assert lesson.reference_point is not None
        lp, mask = network.lp(lesson.batch), network.mask(lesson.batch)
        h = sums(lp, mask) - sums(lesson.reference.to(lp.device), mask)
        z, good = lesson.reference_point.to(lp.device), lesson.weight.to(lp.device) > 0
        losses = preference_losses.kto(
            h,
            good,
            z,
            self.config.beta,
            desirable_weight=self.config.desirable_weight,
            undesirable_weight=self.config.undesirable_weight,
        )
        right = (h > z) == good
        return losses.sum() / whole.items, {"accuracy": float(right.float().mean()), "reference_point": float(z)}


class PolicyGradientConfig(Config):
    """Clipped policy gradient on each answer's advantage: GRPO, RLOO and others, as the ``advantage`` selector says."""

    type: Literal["policy_gradient"] = "policy_gradient"
    clip_low: float | None = Field(default=0.2, ge=0)
    """The ratio to the policy that sampled is clipped at 1 - clip_low and 1 + clip_high; null leaves it unclipped."""
    clip_high: float | None = Field(default=0.2, ge=0)
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL to the base (k3 estimate) in the loss, as GRPO has it."""
    aggregation: Aggregation = "token_mean"
    """seq_mean_token_mean is GRPO's as published, token_mean DAPO's, dr_grpo Dr. GRPO's, seq_mean_token_sum RLOO's."""

    def build(self) -> "PolicyGradient":
        requires = Requires(kinds=("advantages",), aux=("logprobs",), reference_model=self.beta > 0, fresh_samples=True)
        return PolicyGradient(self, requires)


@final
@dataclass(frozen=True)
class PolicyGradient:
    config: PolicyGradientConfig
    requires: Requires

    def loss(self, lesson: Lesson, whole: Whole, network: Network, moment: Moment) -> tuple[Tensor, Figures]:
        del moment
        assert lesson.old is not None
        config, lp, mask = self.config, network.lp(lesson.batch), network.mask(lesson.batch)
        found = clipped_objective(
            lp,
            lesson.old.to(lp.device),
            lesson.weight.to(lp.device),
            mask,
            clip_low=math.inf if config.clip_low is None else config.clip_low,
            clip_high=math.inf if config.clip_high is None else config.clip_high,
            reference=None if lesson.reference is None else lesson.reference.to(lp.device),
            beta=config.beta,
        )
        loss = aggregate(
            found.losses,
            mask,
            config.aggregation,
            max_length=whole.max_tokens,
            total_tokens=whole.tokens,
            sequences=whole.items,
        )
        # shares of the step's tokens, as figures are summed by items
        share = lesson.batch.answer_tokens / whole.tokens * whole.items / len(lesson.weight)
        return loss, {
            "clip_fraction": float(found.clip_fraction) * share,
            "approx_kl": float(found.approx_kl) * share,
        }


ObjectiveConfig: TypeAlias = Annotated[
    SftConfig | RrhfConfig | PreferenceConfig | KtoConfig | PolicyGradientConfig, Field(discriminator="type")
]
