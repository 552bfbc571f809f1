"""Recipes for pictures: read, checked against themselves; ``assembly`` makes parts of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import Field

from raftdiff import embedded
from raftdiff.diffusion.models.loading import ModelConfig
from raftdiff.diffusion.probe import Counts, count
from raftdiff.diffusion.sampler import DiffusionSampler
from raftdiff.embedded.worlds import JudgeName
from raftdiff.errors import UserError
from raftdiff.recipes.checks import check_alike, check_kind
from raftdiff.recipes.config import Config, Named, check, plain, read
from raftdiff.recipes.files import expect, locate, refuse_preferences
from raftdiff.recipes.prompts import PromptsConfig, build, inline
from raftdiff.recipes.registry import one_of
from raftdiff.records.provenance import fingerprints
from raftdiff.records.run import Run
from raftdiff.stages import LoopConfig
from raftdiff.tracking import LoggingConfig

if TYPE_CHECKING:
    RewardConfig: TypeAlias = Any
    SelectorConfig: TypeAlias = Any
    SamplerConfig: TypeAlias = Any
    FineTunerConfig: TypeAlias = Any
else:
    RewardConfig, SelectorConfig = one_of("rewards"), one_of("selectors")
    SamplerConfig, FineTunerConfig = one_of("samplers"), one_of("finetuners")


class RankerConfig(Config):
    """Rewards with weights, and what is selected by their weighted sum."""

    rewards: list[RewardConfig] = Field(min_length=1)
    """Every raw score is kept beside the total; a reward of weight 0 is recorded and changes nothing."""
    selector: SelectorConfig
    """best_of_k (the paper's), top_fraction, diverse, softmax or random (the control) for imitation; best_worst,
    threshold or advantage for the other rules."""


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

    @property
    def guidance(self) -> float:
        """With which the tuned model is used: the evaluation's, or the sampler's."""
        return self.sampler.guidance if self.evaluation.guidance is None else self.evaluation.guidance


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, or the one of that name that ships; prompts held inline, parts checked against each other.

    Raises:
        UserError: no such recipe, or anything wrong in it, in a sentence a line.
    """
    path = locate(name)
    refuse_preferences(path, name)
    expect(path, "image", path)
    recipe = read(Recipe, path, overrides)
    prompts = inline(recipe.prompts, path.parent)
    held_out = inline(recipe.evaluation.prompts, path.parent)
    evaluation = recipe.evaluation.model_copy(update={"prompts": held_out})
    recipe = recipe.model_copy(update={"prompts": prompts, "evaluation": evaluation})
    _check(recipe)
    return recipe


def recipe_of(run: Run) -> Recipe:
    """
    Raises:
        UserError: it is a run on texts, or of a reward model.
    """
    refuse_other(run)
    return check(Recipe, run.recipe(), str(run.path / "recipe.yaml"))


def work(recipe: Recipe) -> Counts:
    """The work of one of a recipe's rounds, at most: with as many replayed selections as its last has."""
    loop = recipe.loop
    prompts = loop.prompts_per_round or len(build(recipe.prompts))
    chosen = recipe.ranker.selector.count(prompts, loop.candidates)
    return count(
        recipe.sampler,
        recipe.finetuner,
        prompts=prompts,
        per_prompt=loop.candidates,
        selected=chosen * (1 + min(loop.replay_rounds, loop.rounds - 1)),
        guidance=recipe.guidance,
    )


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
    check_alike(recipe, held_out=bool(recipe.evaluation.prompts.captions))
    needs, gives = recipe.finetuner.requires, DiffusionSampler.provides
    if missing := set(needs.aux) - set(gives):
        raise UserError(f"finetuner: it needs {', '.join(sorted(missing))} with each sample, which this sampler lacks.")
    check_kind(recipe, f"learning: {recipe.finetuner.learning.type}", needs)


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
