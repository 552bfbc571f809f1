"""Recipes for pictures: read, checked against themselves; ``assembly`` makes parts of them."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import Field, model_validator

from raftdiff.diffusion.models.loading import ModelConfig
from raftdiff.diffusion.probe import Counts, count
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.diffusion.sizes import LONGEST
from raftdiff.embedded.worlds import JudgeName
from raftdiff.mixing import MixSamplerConfig, parts
from raftdiff.recipes.config import Config, Named
from raftdiff.recipes.prompts import PromptsConfig, build
from raftdiff.recipes.registry import one_of
from raftdiff.selection.mixes import MixName
from raftdiff.selection.pruning import PruneConfig
from raftdiff.stages.parts import LoopConfig
from raftdiff.tracking import LoggingConfig

if TYPE_CHECKING:
    RewardConfig: TypeAlias = Any
    SelectorConfig: TypeAlias = Any
    SamplerConfig: TypeAlias = Any
    FineTunerConfig: TypeAlias = Any
else:
    RewardConfig, SelectorConfig = one_of("rewards"), one_of("selectors")
    SamplerConfig, FineTunerConfig = one_of("samplers"), one_of("finetuners")


UNMEASURED = ("given",)
"""Rewards that say nothing of a model's pictures before and after."""
RULED = {
    "sizes": ("height", "width"),
    **{name: (name,) for name in ("height", "width", "guidance", "guidance_rescale")},
}
"""Keys of a sampler, and those of the evaluation that take their place where a model is looked at."""


class RankerConfig(Config):
    """Rewards with weights and roles, how they are mixed, and what is selected by that."""

    rewards: list[RewardConfig] = Field(min_length=1)
    """Every raw score is kept beside the total; a reward of weight 0 is recorded and changes nothing, as with role:
    hold_out."""
    mix: MixName = "weighted_sum"
    """How they become one ranking: weighted_sum; grpo, its z-score within the prompt; gdpo, the weighted sum of each
    reward's own z-score; rank_sum, of its rank; or minimum, of weight times score."""
    selector: SelectorConfig
    """best_of_k (the paper's), top_fraction, diverse, softmax or random (the control) for imitation; best_worst,
    threshold or advantage for the other rules."""
    in_turn: bool = False
    """Keep rewards in main memory, and each on the GPU only while it scores."""


class EvaluationConfig(Config):
    """The before/after on held-out prompts."""

    prompts: PromptsConfig = PromptsConfig()
    """Held-out prompts; the training prompts when empty. Magic and negative prompts apply only where given here."""
    samples_per_prompt: int = Field(default=4, ge=1)
    """Pictures per prompt in ``raftdiff eval``, with the same seeds before and after."""
    every_round: int = Field(default=0, ge=0)
    """Pictures per held-out prompt after every round, for the curve and for early stopping; 0 for none."""
    steps: int | None = Field(default=None, ge=1, le=1000)
    """Sampling steps of ``raftdiff eval``; the sampler's by default."""
    guidance: float | None = Field(default=None, ge=0)
    """Classifier-free guidance of the evaluation and of the held-out curve, which is how the tuned model is to be used;
    the sampler's by default. With a lower one here, the model learns to do without what the sampler had."""
    guidance_rescale: float | None = Field(default=None, ge=0, le=1)
    """As ``sampler.guidance_rescale``, where a model is looked at; the sampler's by default."""
    height: int | None = Field(default=None, ge=8, le=LONGEST)
    """Pixels of what is looked at, in ``raftdiff eval``, the held-out curve and the pages; the sampler's by default."""
    width: int | None = Field(default=None, ge=8, le=LONGEST)
    rewards: list[RewardConfig] = Field(default_factory=list)
    """Rewards that only look on: those of the training say how well it was learnt, others whether it was worth it."""
    judge: JudgeName | None = None
    """A judge that ships and never was a reward, scene-judge; none by default."""
    seed: int = 1000
    """Apart from the loop's seed, so that three training seeds are evaluated on the same pictures."""


class Recipe(Config):
    """Everything that a run does."""

    name: Named
    """Part of the run directory's name."""
    model: ModelConfig
    prompts: PromptsConfig
    sampler: SamplerConfig
    ranker: RankerConfig
    finetuner: FineTunerConfig
    loop: LoopConfig = LoopConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="before")
    @classmethod
    def _policy_by_default(cls, data: Any) -> Any:
        """A sampler that does not say its type is the one that there was before there were others."""
        sampler = data.get("sampler") if isinstance(data, dict) else None
        return {**data, "sampler": {"type": "diffusion", **sampler}} if isinstance(sampler, dict) else data

    @property
    def guidance(self) -> float:
        """With which the tuned model is used: the evaluation's, or that of the sampler."""
        return drawing_of(self).guidance if self.evaluation.guidance is None else self.evaluation.guidance


class _Part(Config):
    sampler: SamplerConfig


def parts_of(sampler: Config) -> list[Any]:
    """The configs of a sampler's parts; of one that has none its own.

    Raises:
        UserError: a part is not a sampler's.
    """
    return parts(sampler, _Part)


def samplers(recipe: Recipe) -> list[Any]:
    """The configs of the recipe's sampler, or of its parts.

    Raises:
        UserError: a part is not a sampler's.
    """
    return parts_of(recipe.sampler)


def drawing_of(recipe: Recipe) -> DiffusionSamplerConfig:
    """How the policy draws: as the training samples it, else as what it learns from was drawn."""
    held = samplers(recipe)
    own = [one for one in held if isinstance(one, DiffusionSamplerConfig)]
    like = [one.drawing for one in held if isinstance(getattr(one, "drawing", None), DiffusionSamplerConfig)]
    return next(iter([*own, *like]), DiffusionSamplerConfig())


def looking_of(recipe: Recipe) -> DiffusionSamplerConfig:
    """How a model is looked at, but for the steps of ``raftdiff eval``: as ``drawing_of``, by the whole network, with
    the evaluation's guidance, its rescaling and size."""
    own, evaluation = drawing_of(recipe).main, recipe.evaluation
    size = {"height": evaluation.height or own.height, "width": evaluation.width or own.width}
    rescale = own.guidance_rescale if evaluation.guidance_rescale is None else evaluation.guidance_rescale
    return own.model_copy(update={"guidance": recipe.guidance, "guidance_rescale": rescale, **size})


def unheeded(recipe: Recipe, changed: Iterable[str]) -> list[str]:
    """Of the keys that were changed to look at a model those that change nothing, in a sentence each: the evaluation
    has its own word."""
    found = {}
    for key in changed:
        head, *names = key.split(".")
        name = next((one for one in names if one in RULED), None) if head == "sampler" else None
        said = {one: getattr(recipe.evaluation, one) for one in RULED[name]} if name else {}
        if name and None not in said.values():
            told = " and ".join(f"evaluation.{one}={value:g}" for one, value in said.items())
            whole = ".".join([head, *names[: names.index(name) + 1]])
            found[whole] = f"{whole}: this changes nothing here: models are looked at with {told}. Change that instead."
    return [*found.values()]


def shares(recipe: Recipe) -> list[int]:
    """How many of a prompt's candidates each of the ``samplers`` gives."""
    parts = recipe.sampler.parts if isinstance(recipe.sampler, MixSamplerConfig) else None
    return [part.share for part in parts] if parts else [recipe.loop.candidates]


def evaluations_of(recipe: Recipe) -> int:
    """Of the network, for all the candidates of a prompt; without the rows that fill pruned batches up."""
    return sum(_evaluations(one, share) for one, share in zip(samplers(recipe), shares(recipe), strict=True))


def _evaluations(config: Any, share: int) -> int:
    cost: int = getattr(config, "evaluations", 0)
    prune: PruneConfig | None = getattr(config, "prune", None)
    return share * cost if prune is None else prune.steps(config.steps, share) * (cost // config.steps)


def drawn_of(recipe: Recipe) -> int:
    """How many of a prompt's candidates are drawn to the end."""
    pruned = [getattr(one, "prune", None) for one in samplers(recipe)]
    each = zip(samplers(recipe), pruned, shares(recipe), strict=True)
    return sum(share if prune is None else prune.looks(it.steps, share)[-1].kept for it, prune, share in each)


def work(recipe: Recipe) -> Counts:
    """The work of one of a recipe's rounds, at most: one that draws candidates, with as many replayed selections as the
    last has."""
    loop = recipe.loop
    prompts = loop.prompts_per_round or len(build(recipe.prompts))
    chosen = recipe.ranker.selector.count(prompts, loop.candidates)
    counts = count(
        drawing_of(recipe),
        recipe.finetuner,
        prompts=prompts,
        per_prompt=loop.candidates,
        selected=chosen * (1 + min(loop.replay_rounds, loop.rounds - 1)),
        guidance=recipe.guidance,
    )
    return replace(counts, images=prompts * drawn_of(recipe), sampling_evaluations=prompts * evaluations_of(recipe))
