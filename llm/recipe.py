"""Recipes for language models: read, checked against themselves; ``assembly`` makes parts of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from raftdiff import embedded
from raftdiff.errors import UserError
from raftdiff.llm.data.prompts import DataConfig, sealed_prompts
from raftdiff.llm.learning.finetuner import LMFineTunerConfig
from raftdiff.llm.likelihood import KlConfig
from raftdiff.llm.model.lengths import Limits
from raftdiff.llm.model.loading import LMConfig, sources
from raftdiff.llm.model.rows import other_prompt
from raftdiff.llm.ppo.finetuner import PpoConfig
from raftdiff.llm.sampling.generation import DecodingConfig
from raftdiff.llm.sampling.given import DatasetSamplerConfig, FolderSamplerConfig
from raftdiff.llm.sampling.policy import MagicConfig, PolicySamplerConfig, TeacherSamplerConfig
from raftdiff.llm.sampling.served import ServerSamplerConfig
from raftdiff.llm.sampling.vllm import VllmSamplerConfig
from raftdiff.mixing import MixSamplerConfig, parts
from raftdiff.recipes.checks import check_alike, check_fresh, check_kind, weight_of
from raftdiff.recipes.config import Config, Named, check, plain, read
from raftdiff.recipes.files import expect
from raftdiff.recipes.registry import one_of
from raftdiff.records.provenance import fingerprint, fingerprints
from raftdiff.records.run import Run
from raftdiff.selection.mixes import MixName
from raftdiff.stages.parts import LoopConfig
from raftdiff.tracking import LoggingConfig
from raftdiff.types import Prompt

if TYPE_CHECKING:
    TextRewardConfig: TypeAlias = Any
    SelectorConfig: TypeAlias = Any
else:
    TextRewardConfig, SelectorConfig = one_of("text_rewards"), one_of("selectors")

PartSamplerConfig: TypeAlias = Annotated[
    PolicySamplerConfig | TeacherSamplerConfig | ServerSamplerConfig | DatasetSamplerConfig | FolderSamplerConfig,
    Field(discriminator="type"),
]
TextSamplerConfig: TypeAlias = Annotated[
    PolicySamplerConfig
    | TeacherSamplerConfig
    | ServerSamplerConfig
    | DatasetSamplerConfig
    | FolderSamplerConfig
    | VllmSamplerConfig
    | MixSamplerConfig,
    Field(discriminator="type"),
]
TextFineTunerConfig: TypeAlias = Annotated[LMFineTunerConfig | PpoConfig, Field(discriminator="type")]


UNMEASURED = ("given", "labels", "kl")
"""Rewards that say nothing of a model's answers before and after."""


class TextRankerConfig(Config):
    """Rewards with weights and roles, how they are mixed, and what is selected by that."""

    rewards: list[TextRewardConfig] = Field(min_length=1)
    """Every raw score is kept beside the total; a reward of weight 0 is recorded and changes nothing, as with role:
    hold_out."""
    mix: MixName = "weighted_sum"
    """How they become one ranking: weighted_sum; grpo, its z-score within the prompt; gdpo, the weighted sum of each
    reward's own z-score; rank_sum, of its rank; or minimum, of weight times score."""
    selector: SelectorConfig
    """best_of_k, top_fraction, diverse, random, softmax (to be learnt as they are); ranked (RRHF), best_worst (pairs),
    threshold (KTO), advantage (policy gradients), all (PPO)."""


class TextEvaluationConfig(Config):
    """The before/after on held-out prompts."""

    prompts: DataConfig = DataConfig()
    """Held-out prompts; the training prompts when empty. Magic applies only where given here, the system message of the
    training unless one is given here."""
    samples_per_prompt: int = Field(default=4, ge=1)
    """Answers per prompt in ``raftdiff eval``, with the same seeds before and after."""
    every_round: int = Field(default=0, ge=0)
    """Answers per held-out prompt after every round, for the curve and for early stopping; 0 for none."""
    decoding: DecodingConfig | None = None
    """How the tuned model is to be used; as the policy is sampled in training by default."""
    rewards: list[TextRewardConfig] = Field(default_factory=list)
    """Rewards that only look on: those of the training say how well it was learnt, others whether it was worth it."""
    judge: Literal["reviews"] | None = None
    """The text world's grammar as a judge: does a review parse, is it positive, how likely is it in truth?"""
    seed: int = 1000
    """Apart from the loop's seed, so that three training seeds are evaluated on the same draws."""


class TextRecipe(Config):
    """Everything that a run on texts does."""

    media: Literal["text"]
    name: Named
    """Part of the run directory's name."""
    model: LMConfig
    prompts: DataConfig
    sampler: TextSamplerConfig
    ranker: TextRankerConfig
    finetuner: TextFineTunerConfig
    loop: LoopConfig = LoopConfig()
    evaluation: TextEvaluationConfig = TextEvaluationConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="before")
    @classmethod
    def _lm_by_default(cls, data: Any) -> Any:
        """A fine-tuner that does not say its type is the one that there was before PPO."""
        tuner = data.get("finetuner") if isinstance(data, dict) else None
        return {**data, "finetuner": {"type": "lm", **tuner}} if isinstance(tuner, dict) else data


def load_text_recipe(path: Path, overrides: Sequence[str] = ()) -> TextRecipe:
    """The recipe in a file, its data found and sealed, parts checked against each other.

    Raises:
        UserError: anything wrong in it, in a sentence a line.
    """
    recipe = read(TextRecipe, path, overrides)
    folder = path.parent
    evaluation = recipe.evaluation
    if evaluation.prompts.given:
        evaluation = evaluation.model_copy(
            update={"prompts": sealed_prompts(evaluation.prompts, folder, "evaluation.prompts")}
        )
    sealed = {
        "prompts": sealed_prompts(recipe.prompts, folder, "prompts"),
        "sampler": _sealed(recipe.sampler, folder),
        "finetuner": _sealed(recipe.finetuner, folder),
    }
    recipe = recipe.model_copy(update={**sealed, "evaluation": evaluation})
    _check(recipe)
    return recipe


def text_recipe_of(run: Run) -> TextRecipe:
    """
    Raises:
        UserError: it is a run on pictures, or of a reward model.
    """
    expect(run.path / "recipe.yaml", "text", run.path, "run on")
    return check(TextRecipe, run.recipe(), str(run.path / "recipe.yaml"))


def limits_of(config: DataConfig, where: str) -> Limits:
    """What is said of long rows at this place of a recipe."""
    return Limits(where, config.max_prompt_tokens, config.max_answer_tokens, config.too_long or config.broken)


def weights(recipe: TextRecipe) -> dict[str, str]:
    """A fingerprint of every local model and run that the recipe names, by that name; hub models are left out."""
    models = [getattr(part, "model", None) for part in (recipe, *recipe.ranker.rewards, recipe.sampler)]
    return fingerprints(plain(recipe), embedded.resolve) | beside(models)


def beside(models: Sequence[Any]) -> dict[str, str]:
    """A fingerprint of what the language models among these are read from besides: GGUF files, and bases of a LoRA."""
    names = [name for it in models if isinstance(it, LMConfig) for name in sources(it, embedded.resolve).beside]
    marks = {name: fingerprint(Path(name)) for name in names if Path(name).exists()}
    return {name: mark for name, mark in marks.items() if mark is not None}


def _sealed(config: Any, folder: Path) -> Any:
    """The config of a sampler or a fine-tuner with the checksum of the answers that it reads."""
    if isinstance(config, FolderSamplerConfig):
        return config.sealed(folder)
    if isinstance(config, PpoConfig) and config.ptx is not None:
        ptx = config.ptx.model_copy(update={"data": sealed_prompts(config.ptx.data, folder, "finetuner.ptx.data")})
        return config.model_copy(update={"ptx": ptx})
    if isinstance(config, MixSamplerConfig):
        return config.of([_sealed(part, folder) for part in parts(config, _Part)])
    return config


class _Part(Config):
    sampler: PartSamplerConfig


def samplers(recipe: TextRecipe) -> list[Any]:
    """The configs of the recipe's sampler, or of its parts.

    Raises:
        UserError: a part is not a sampler's.
    """
    return parts(recipe.sampler, _Part)


def _check(recipe: TextRecipe) -> None:
    """What can be known to be wrong before a model is loaded."""
    loop, evaluation = recipe.loop, recipe.evaluation
    check_alike(recipe, held_out=evaluation.prompts.given, onlookers=evaluation.rewards)
    if isinstance(recipe.sampler, VllmSamplerConfig) and recipe.finetuner.adapter != "lora":
        raise UserError(
            "sampler: vLLM takes up a LoRA after each round, and no other weights; use finetuner.adapter: lora."
        )
    counted = [weight_of(reward) for reward in recipe.ranker.rewards if reward.type not in UNMEASURED]
    if not any([*counted, *(reward.weight for reward in evaluation.rewards)]):
        raise UserError(
            "evaluation.rewards: data and people score the answers that they saw alone (ranker.rewards: given, "
            "labels), and a veto measures nothing; name a reward that can score the model's, with a weight."
        )
    if any(isinstance(reward, KlConfig) for reward in evaluation.rewards):
        raise UserError("evaluation.rewards: the distance from the base is measured anyway; leave 'kl' out.")
    if isinstance(recipe.sampler, MixSamplerConfig):
        samplers(recipe)
        recipe.sampler.fit(loop.candidates)
    _check_objective(recipe)


def _check_objective(recipe: TextRecipe) -> None:
    """Whether the fine-tuner can learn from what sampler and selector give it."""
    learner, needs = recipe.finetuner.learner, recipe.finetuner.requires
    check_kind(recipe, learner, needs)
    if not needs.fresh_samples:
        return
    if not isinstance(recipe.sampler, PolicySamplerConfig | VllmSamplerConfig):
        raise UserError(f"sampler: {learner} learns from the policy's own fresh answers; use type: policy.")
    if not recipe.sampler.decoding.exact:
        raise UserError(
            f"sampler.decoding: {learner} needs answers drawn from the model itself: strategy sample, temperature 1, "
            "and no top_p, top_k, repetition_penalty or min_new_tokens."
        )
    check_fresh(recipe, learner, "answers")
    if isinstance(recipe.sampler, PolicySamplerConfig) and recipe.sampler.magic != MagicConfig():
        raise UserError(
            f"sampler.magic: {learner} compares how likely answers were when they were drawn with how likely they are "
            "after the prompt alone, which is another text. Leave it out, or learn by RAFT (objective sft)."
        )
    if recipe.prompts.decouple and any(template != "{prompt}" for template in recipe.prompts.magic):
        raise UserError(other_prompt(learner, "all of them"))


def check_texts(recipe: TextRecipe, prompts: Sequence[Prompt]) -> None:
    """
    Raises:
        UserError: a prompt brings a text of its own for the sampler, and the fine-tuner cannot learn after another.
    """
    if not recipe.finetuner.requires.fresh_samples:
        return
    for prompt in prompts:
        if prompt.sampling != prompt.learning:
            raise UserError(other_prompt(recipe.finetuner.learner, f"'{prompt.id}'"))
