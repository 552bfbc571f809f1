"""Recipes for pictures: read, checked against themselves; ``assembly`` makes parts of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import Field, model_validator

from raftdiff import embedded
from raftdiff.diffusion.learning.reward_gradient import without_gradient
from raftdiff.diffusion.learning.rules import Draft, Refl
from raftdiff.diffusion.models.blocks import demand_fit
from raftdiff.diffusion.models.loading import ModelConfig
from raftdiff.diffusion.probe import Counts, count
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.diffusion.sampling.given import FolderSamplerConfig
from raftdiff.embedded.worlds import JudgeName
from raftdiff.errors import UserError
from raftdiff.mixing import MixSamplerConfig, parts
from raftdiff.recipes.checks import check_alike, check_fresh, check_kind, has_say, lacks_gradient, weight_of
from raftdiff.recipes.config import Config, Named, check, plain, read
from raftdiff.recipes.files import expect, locate, refuse_preferences
from raftdiff.recipes.prompts import PromptsConfig, build, inline
from raftdiff.recipes.registry import one_of
from raftdiff.records.provenance import fingerprints
from raftdiff.records.run import Run
from raftdiff.selection.mixes import MixName
from raftdiff.selection.pruning import PruneConfig
from raftdiff.stages import LoopConfig
from raftdiff.tracking import LoggingConfig
from raftdiff.training.devices import DTYPES

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


UNSEEN = (*UNMEASURED, "labels")
"""Those that say nothing of a preview."""
TAKES_BEST = ("best_of_k", "diverse", "top_fraction")
"""Selectors that have no use for the worst."""


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


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, or the one of that name that ships; prompts held inline, parts checked against each other.

    Raises:
        UserError: no such recipe, or anything wrong in it, in a sentence a line.
    """
    path = locate(name)
    refuse_preferences(path, name)
    expect(path, "image", path)
    recipe = read(Recipe, path, overrides)
    recipe = recipe.model_copy(update={"sampler": _sealed(recipe.sampler, path.parent)})
    prompts = inline(recipe.prompts, path.parent)
    if not prompts.captions and (known := [one for it in samplers(recipe) for one in _own_prompts(it)]):
        prompts = prompts.model_copy(update={"captions": list({str(one): one for one in known}.values())})
    held_out = inline(recipe.evaluation.prompts, path.parent, "evaluation.prompts")
    evaluation = recipe.evaluation.model_copy(update={"prompts": held_out})
    recipe = recipe.model_copy(update={"prompts": prompts, "evaluation": evaluation})
    _check(recipe)
    return recipe


def samplers(recipe: Recipe) -> list[Any]:
    """The configs of the recipe's sampler, or of its parts.

    Raises:
        UserError: a part is not a sampler's.
    """
    return parts(recipe.sampler, _Part)


def drawing_of(recipe: Recipe) -> DiffusionSamplerConfig:
    """How the policy draws: as the training samples it, else as what it learns from was drawn."""
    held = samplers(recipe)
    own = [one for one in held if isinstance(one, DiffusionSamplerConfig)]
    like = [one.drawing for one in held if isinstance(getattr(one, "drawing", None), DiffusionSamplerConfig)]
    return next(iter([*own, *like]), DiffusionSamplerConfig())


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


def _sealed(config: Any, folder: Path) -> Any:
    """A sampler's config with the checksum of the pictures that it reads."""
    if isinstance(config, FolderSamplerConfig):
        return config.sealed(folder)
    if isinstance(config, MixSamplerConfig):
        return config.of([_sealed(part, folder) for part in parts(config, _Part)])
    return config


def _own_prompts(config: Any) -> list[dict[str, str]]:
    return config.prompts() if isinstance(config, FolderSamplerConfig) else []


def recipe_of(run: Run) -> Recipe:
    """
    Raises:
        UserError: it is a run on texts, or of a reward model.
    """
    refuse_other(run)
    return check(Recipe, run.recipe(), str(run.path / "recipe.yaml"))


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


def refuse_other(run: Run) -> None:
    """
    Raises:
        UserError: the run is not one on pictures.
    """
    expect(run.path / "recipe.yaml", "image", run.path, "run on")


def _check(recipe: Recipe) -> None:
    """What can be known to be wrong before a model is loaded."""
    ids = {prompt.id for prompt in build(recipe.prompts)}
    if recipe.evaluation.prompts.captions:
        _held_out(recipe.evaluation.prompts)
    hand = recipe.loop.prompts_per_round
    if hand is not None and hand > len(ids):
        raise UserError(f"loop.prompts_per_round: {hand} prompts a round, but there are only {len(ids)} prompts.")
    evaluation = recipe.evaluation
    check_alike(recipe, held_out=bool(evaluation.prompts.captions), onlookers=evaluation.rewards)
    if any(reward.type in UNMEASURED for reward in evaluation.rewards):
        raise UserError("evaluation.rewards: 'given' knows the pictures of a folder alone, not what a model draws.")
    counted = [weight_of(reward) for reward in recipe.ranker.rewards if reward.type not in UNMEASURED]
    if not any([*counted, *(reward.weight for reward in evaluation.rewards)]):
        raise UserError(
            "evaluation.rewards: data score their own pictures alone (ranker.rewards: given), so the tuned model's "
            "pictures would have no reward; name one here that looks on, such as clip, with a weight."
        )
    drawn = [one for one in samplers(recipe) if not isinstance(one, FolderSamplerConfig)]
    if drawn and any(reward.type in UNMEASURED and has_say(reward) for reward in recipe.ranker.rewards):
        raise UserError(
            "ranker.rewards: 'given' is the data's word on its own pictures, so nothing that a model draws could be "
            "selected; take sampler type: folder alone, or give 'given' role: hold_out."
        )
    if isinstance(recipe.sampler, MixSamplerConfig):
        if any(isinstance(part, MixSamplerConfig) for part in samplers(recipe)):
            raise UserError("sampler.parts: a mixture within a mixture; name its parts beside the others.")
        recipe.sampler.fit(recipe.loop.candidates)
    if recipe.model.offload == "blocks":
        tuner = recipe.finetuner
        dtypes = {DTYPES[recipe.model.dtype], DTYPES[tuner.precision or recipe.model.dtype]}
        demand_fit(tuner.adapter, tuner.gradient_checkpointing, dtypes)
    needs, learner = recipe.finetuner.requires, f"learning: {recipe.finetuner.learning.type}"
    for one, share in zip(samplers(recipe), shares(recipe), strict=True):
        _check_pruned(recipe, one, share, learner)
    if recipe.finetuner.learning.type in ("draft", "refl"):
        _check_gradient(recipe, learner)
    check_kind(recipe, learner, needs)
    if "path" in needs.aux:
        _check_path(recipe, learner)
    if needs.fresh_samples:
        _check_chain(recipe, learner)


def _check_pruned(recipe: Recipe, config: Any, share: int, learner: str) -> None:
    """
    Args:
        config: of one of its samplers, that gives ``share`` candidates of a prompt.

    Raises:
        UserError: candidates are pruned that are needed, that nothing is saved on, or that nobody could compare.
    """
    if getattr(getattr(config, "drawing", None), "prune", None):
        raise UserError("sampler.drawing.prune: only what the policy draws to learn from is pruned; leave it out.")
    prune: PruneConfig | None = getattr(config, "prune", None)
    if prune is None:
        return
    selector, ranks = recipe.ranker.selector, list(filter(has_say, recipe.ranker.rewards))
    if "path" in recipe.finetuner.requires.aux:
        raise UserError(f"sampler.prune: {learner} learns from how each candidate was drawn; leave it out.")
    if selector.type not in TAKES_BEST:
        raise UserError(
            f"sampler.prune: the selector '{selector.type}' takes candidates that lost too, and these are not drawn; "
            f"use {', '.join(TAKES_BEST)}, or leave it out."
        )
    named = [it.name or it.type for it in ranks]
    if strange := [name for name in prune.rewards or () if name not in named]:
        raise UserError(
            f"sampler.prune.rewards: '{strange[0]}' is none of the ranker's rewards that rank, veto or constrain: "
            f"{', '.join(named)}."
        )
    looking = [it for it in ranks if prune.rewards is None or (it.name or it.type) in prune.rewards]
    if blind := next((it for it in looking if it.type in UNSEEN), None):
        raise UserError(
            f"sampler.prune.rewards: '{blind.name or blind.type}' knows finished pictures alone, and no previews; "
            "name others of the ranker's."
        )
    if not any(weight_of(it) for it in looking):
        raise UserError("sampler.prune.rewards: none of these ranks; name one with a weight.")
    prune.check(config.steps, share)
    prompts = recipe.loop.prompts_per_round or len(build(recipe.prompts))
    if selector.count(prompts, recipe.loop.candidates) > prompts * drawn_of(recipe):
        raise UserError(
            f"sampler.prune.keep: {drawn_of(recipe)} of a prompt's {recipe.loop.candidates} candidates are left, and "
            f"the selector '{selector.type}' takes more; keep more, or select fewer."
        )


def _check_gradient(recipe: Recipe, learner: str) -> None:
    """
    Raises:
        UserError: the rewards are mixed or bounded in a way that has no gradient, or one of them has none.
    """
    if recipe.ranker.mix != "weighted_sum":
        raise UserError(
            f"ranker.mix: {learner} climbs the weighted sum of the rewards, and ranks nothing; use mix: weighted_sum."
        )
    if bound := next((it for it in recipe.ranker.rewards if getattr(it, "role", "train") == "constraint"), None):
        raise UserError(
            f"ranker.rewards: {learner} climbs the rewards' gradient and ranks nothing, so that the constraint "
            f"'{bound.name or bound.type}' would do nothing; give it role: train, veto or hold_out."
        )
    if recipe.ranker.in_turn:
        raise UserError(
            f"ranker.in_turn: {learner} follows the rewards' gradient while it learns, so that they stay on the GPU; "
            "leave it out."
        )
    if flat := next((it for it in recipe.ranker.rewards if weight_of(it) and lacks_gradient(it)), None):
        raise UserError(without_gradient(recipe.finetuner.learning.type, flat.name or flat.type))


def _check_path(recipe: Recipe, learner: str) -> None:
    """
    Raises:
        UserError: the pictures have no path that the fine-tuner could learn from.
    """
    if not isinstance(recipe.sampler, DiffusionSamplerConfig):
        raise UserError(
            f"sampler: {learner} learns from the path on which a picture was drawn, and only the policy's own sampler "
            "records it; use type: diffusion."
        )
    if "path" not in recipe.sampler.can_provide:
        raise UserError(
            f"sampler: {learner} learns from steps between pictures under noise of a known level; use scheduler: ddim, "
            "dpm++, euler, euler_a, lcm or tcd, or with a model of flow euler or euler_a."
        )
    if isinstance(rule := recipe.finetuner.learning.build(), Draft | Refl):
        rule.walk(recipe.sampler.steps)


def _check_chain(recipe: Recipe, learner: str) -> None:
    """
    Raises:
        UserError: what the fine-tuner would learn from are not draws of known probability, fresh and for the same text.
    """
    drawn = recipe.sampler.scheduler
    if drawn not in ("euler_a", "lcm") and not (drawn in ("ddim", "tcd") and recipe.sampler.eta):
        raise UserError(
            f"sampler: {learner} learns from steps that draw noise, with a probability that is known; use "
            "scheduler: euler_a, or ddim with an eta above 0, such as eta: 1; with a model distilled for them lcm, or "
            "tcd with an eta."
        )
    check_fresh(recipe, learner, "pictures")
    for prompt in build(recipe.prompts):
        if prompt.sampling != prompt.learning:
            raise UserError(
                f"prompts: {learner} learns from steps that were drawn for the text that is learnt, and "
                f"'{prompt.id}' is drawn for another; leave the magic prompt out, or set prompts.decouple: false."
            )


def _held_out(config: PromptsConfig) -> None:
    """
    Raises:
        UserError: the held-out prompts are wrong, which a run would find out only at its end.
    """
    try:
        build(config)
    except UserError as error:
        raise UserError(f"evaluation.{error}") from None


def weights(recipe: Recipe) -> dict[str, str]:
    """A fingerprint of every local model and run that the recipe names, by that name; hub models are left out."""
    return fingerprints(plain(recipe), embedded.resolve)
