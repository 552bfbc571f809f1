"""The assembly for language models: a text recipe -> the parts, wired. ``recipe`` is its twin for pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, final

import torch
from pydantic import Field

from raftdiff.config import Config, check, plain, read
from raftdiff.embedded import review_reward
from raftdiff.errors import UserError
from raftdiff.evaluate import Judge
from raftdiff.llm import data
from raftdiff.llm.data import DataConfig
from raftdiff.llm.figures import Base, Distances, describe
from raftdiff.llm.finetuner import LMFineTuner, LMFineTunerConfig
from raftdiff.llm.generation import DecodingConfig
from raftdiff.llm.given import DatasetSamplerConfig, FolderSamplerConfig
from raftdiff.llm.likelihood import KlConfig
from raftdiff.llm.loading import LM, LMConfig, load
from raftdiff.llm.mix import MixSamplerConfig
from raftdiff.llm.sampler import LMSampler, PolicySamplerConfig, TeacherSamplerConfig
from raftdiff.llm.served import ServerSamplerConfig
from raftdiff.llm.vllm import Following, VllmSamplerConfig
from raftdiff.provenance import fingerprint
from raftdiff.ranking import Ranker
from raftdiff.recipe import LoggingConfig, is_text, one_of, resolve
from raftdiff.runs import Run
from raftdiff.seeds import fold
from raftdiff.stages import LoopConfig, Parts
from raftdiff.types import Prompt, Reward, Sampler

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


class TextRankerConfig(Config):
    """Rewards with weights, and what is selected by their weighted sum."""

    rewards: list[TextRewardConfig] = Field(min_length=1)
    """Every raw score is kept beside the total; a reward of weight 0 is recorded and changes nothing."""
    selector: SelectorConfig
    """best_of_k, top_fraction, random, softmax (to be learnt as they are); ranked (RRHF), best_worst (pairs), threshold
    (KTO), advantage (policy gradients)."""


class TextEvaluationConfig(Config):
    """The before/after on held-out prompts."""

    prompts: DataConfig = DataConfig()
    """Held-out prompts; the training prompts when empty. Magic applies only where given here."""
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
    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Part of the run directory's name."""
    model: LMConfig
    prompts: DataConfig
    sampler: TextSamplerConfig
    ranker: TextRankerConfig
    finetuner: LMFineTunerConfig
    loop: LoopConfig = LoopConfig()
    evaluation: TextEvaluationConfig = TextEvaluationConfig()
    logging: LoggingConfig = LoggingConfig()


def load_text_recipe(path: Path, overrides: Sequence[str] = ()) -> TextRecipe:
    """The recipe in a file, its data found and sealed, parts checked against each other.

    Raises:
        UserError: anything wrong in it, in a sentence a line.
    """
    recipe = read(TextRecipe, path, overrides)
    folder = path.parent
    evaluation = recipe.evaluation
    if evaluation.prompts.given:
        evaluation = evaluation.model_copy(update={"prompts": data.sealed(evaluation.prompts, folder)})
    sealed = {"prompts": data.sealed(recipe.prompts, folder), "sampler": _sealed(recipe.sampler, folder)}
    recipe = recipe.model_copy(update={**sealed, "evaluation": evaluation})
    _check(recipe)
    return recipe


def text_recipe_of(run: Run) -> TextRecipe:
    """
    Raises:
        UserError: it is a run on pictures.
    """
    if not is_text(run.path / "recipe.yaml"):
        raise UserError(f"{run.path}: this is a run on pictures, and this command is for texts.")
    return check(TextRecipe, run.recipe(), str(run.path / "recipe.yaml"))


def weights(recipe: TextRecipe) -> dict[str, str]:
    """A fingerprint of every local model that the recipe names, by that name; hub models are left out."""
    named: list[Any] = [recipe.model.base]
    for part in (*recipe.ranker.rewards, recipe.sampler):
        model = getattr(part, "model", None)
        named.append(model.base if isinstance(model, LMConfig) else model)
    local = {name: Path(resolve(name)).expanduser() for name in named if isinstance(name, str)}
    return {name: fingerprint(path) for name, path in local.items() if path.exists()}


@final
@dataclass(frozen=True)
class TextAssembly:
    """The parts of a text recipe, built and wired: sampler and fine-tuner share one network."""

    recipe: TextRecipe
    lm: LM
    evaluator: LMSampler
    """Answers as the tuned model is to be used."""
    finetuner: LMFineTuner
    ranker: Ranker[str]
    measures: Ranker[str]
    """The rewards that an evaluation looks at, those that only look on with weight 1 where nothing else is known."""
    distances: Distances
    parts: Parts[str]
    """What the loop takes."""

    @property
    def judge(self) -> Judge | None:
        """The held-out judge that the recipe names."""
        return review_reward.judge if self.recipe.evaluation.judge else None


def assemble_text(recipe: TextRecipe) -> TextAssembly:
    """Load the models and the rewards, and wire them.

    Raises:
        UserError: a model or a reward cannot be loaded, or a prompt is too long.
    """
    # Keeps a CPU off its slow path for denormal numbers, which optimizers are full of.
    torch.set_flush_denormal(True)
    lm = load(recipe.model, resolve)
    prompts, evaluation = data.build(recipe.prompts, Path()), recipe.evaluation
    held_out = data.build(evaluation.prompts, Path()) if evaluation.prompts.given and evaluation.every_round else []
    decoding = _decoding(recipe)
    finetuner = recipe.finetuner.build(
        lm,
        total_rounds=recipe.loop.rounds,
        max_tokens=decoding.max_new_tokens,
        seed=fold(recipe.loop.seed, "finetuner"),
    )
    rows = recipe.finetuner.rows_per_pass
    batch_size = getattr(recipe.sampler, "batch_size", rows)
    evaluator = LMSampler(lm, decoding, batch_size, "policy")
    sampler = _sampler(recipe.sampler, lm, prompts)
    for prompt in (*prompts, *held_out):
        lm.prompt_ids(prompt, prompt.sampling)  # too long is found now, not in round 7
    distances = Distances(lm, finetuner.base_weights, rows)
    ranker = build_text_ranker(recipe, lm, finetuner.base_weights)
    measures = _measures(recipe, ranker, device=str(lm.device))
    parts = Parts(
        sampler=sampler,
        ranker=ranker,
        finetuner=finetuner,
        prompts=prompts,
        held_out=held_out,
        held_out_sampler=evaluator,
        held_out_ranker=measures,
        held_out_candidates=max(1, evaluation.every_round),
        examine=distances,
        loop=recipe.loop,
    )
    return TextAssembly(recipe, lm, evaluator, finetuner, ranker, measures, distances, parts)


def build_text_ranker(recipe: TextRecipe, lm: LM, base: Base) -> Ranker[str]:
    """The rewards, the selector, and what a round says of its answers."""
    rewards: list[tuple[Reward[str], float]] = [
        (
            config.build_on(lm, base)
            if isinstance(config, KlConfig)
            else config.build(device=str(lm.device), resolve=resolve),
            config.weight,
        )
        for config in recipe.ranker.rewards
    ]
    return Ranker(rewards, recipe.ranker.selector.build(seed=fold(recipe.loop.seed, "select")), describe)


def _measures(recipe: TextRecipe, ranker: Ranker[str], *, device: str) -> Ranker[str]:
    """The training's rewards and those that only look on, which count for the held-out curve only where there is
    nothing else. Left out are scores that data gave to their own answers, and the distance from the base, which is
    measured for itself: as a reward it would judge the base's answers by the tuned model."""
    configs = recipe.ranker.rewards
    kept = [pair for pair, config in zip(ranker.rewards, configs, strict=True) if config.type not in ("given", "kl")]
    weight = 0.0 if kept else 1.0
    onlookers = [(one.build(device=device, resolve=resolve), weight) for one in recipe.evaluation.rewards]
    return Ranker([*kept, *onlookers], ranker.selector)


def _sampler(config: Any, lm: LM, prompts: Sequence[Prompt]) -> Sampler[str]:
    match config:
        case PolicySamplerConfig():
            return config.build(lm)
        case TeacherSamplerConfig():
            return config.build(resolve)
        case MixSamplerConfig():
            return config.build([_sampler(part, lm, prompts) for part in _parts(config)])
        case VllmSamplerConfig():
            return Following(config.build(resolve(lm.name), lambda one: lm.prompt_ids(one, one.sampling)), lm)
        case DatasetSamplerConfig() | FolderSamplerConfig():
            collected = config.build() if isinstance(config, DatasetSamplerConfig) else config.build(Path())
            collected.check(prompts)
            return collected
        case _:
            built: Sampler[str] = config.build()
            return built


def _sealed(config: Any, folder: Path) -> Any:
    """A sampler's config with the checksum of the answers that it reads."""
    if isinstance(config, FolderSamplerConfig):
        return config.sealed(folder)
    if isinstance(config, MixSamplerConfig):
        parts = [
            part.model_copy(update={"sampler": plain(_sealed(known, folder))})
            for part, known in zip(config.parts, _parts(config), strict=True)
        ]
        return config.model_copy(update={"parts": parts})
    return config


class _Part(Config):
    sampler: PartSamplerConfig


def _parts(config: MixSamplerConfig) -> list[Any]:
    """The configs of a mixture's parts.

    Raises:
        UserError: one is not a sampler's.
    """
    return [
        check(_Part, {"sampler": part.sampler}, f"sampler.parts.{place}").sampler
        for place, part in enumerate(config.parts)
    ]


def _decoding(recipe: TextRecipe) -> DecodingConfig:
    """How the tuned model is used: as the evaluation says, or as the training samples the policy."""
    if recipe.evaluation.decoding is not None:
        return recipe.evaluation.decoding
    configs = _parts(recipe.sampler) if isinstance(recipe.sampler, MixSamplerConfig) else [recipe.sampler]
    policies = [one for one in configs if isinstance(one, PolicySamplerConfig | VllmSamplerConfig)]
    return policies[0].decoding if policies else DecodingConfig()


def _check(recipe: TextRecipe) -> None:
    """What can be known to be wrong before a model is loaded."""
    names = [reward.name or reward.type for reward in recipe.ranker.rewards]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"ranker.rewards: two are called '{min(twice)}'; give each its own 'name'.")
    if not any(reward.weight for reward in recipe.ranker.rewards):
        raise UserError("ranker.rewards: every weight is 0, so nothing could be ranked; give one a weight.")
    loop, evaluation = recipe.loop, recipe.evaluation
    if evaluation.every_round and not evaluation.prompts.given:
        raise UserError("evaluation.every_round: there are no held-out prompts; name a file under evaluation.prompts.")
    if loop.patience is not None and not evaluation.every_round:
        raise UserError("loop.patience: stopping needs a held-out reward; set evaluation.every_round to 1 or more.")
    if isinstance(recipe.sampler, VllmSamplerConfig) and recipe.finetuner.adapter != "lora":
        raise UserError(
            "sampler: vLLM takes up a LoRA after each round, and no other weights; use finetuner.adapter: lora."
        )
    if not evaluation.rewards and all(reward.type in ("given", "kl") for reward in recipe.ranker.rewards):
        raise UserError(
            "evaluation.rewards: the data score their own answers alone (ranker.rewards: given); name a reward that "
            "can score the model's."
        )
    if any(isinstance(reward, KlConfig) for reward in evaluation.rewards):
        raise UserError("evaluation.rewards: the distance from the base is measured anyway; leave 'kl' out.")
    keep = getattr(recipe.ranker.selector, "keep", 1)
    if keep > loop.candidates:
        raise UserError(f"ranker.selector.keep: {keep} of only {loop.candidates} candidates (loop.candidates).")
    if isinstance(recipe.sampler, MixSamplerConfig):
        _parts(recipe.sampler)
        if recipe.sampler.candidates != loop.candidates:
            raise UserError(
                f"sampler.parts: the shares add up to {recipe.sampler.candidates} candidates, and loop.candidates is "
                f"{loop.candidates}; make them equal."
            )
    _check_objective(recipe)


def _check_objective(recipe: TextRecipe) -> None:
    """Whether the fine-tuner can learn from what sampler and selector give it."""
    objective, kind = recipe.finetuner.objective, recipe.ranker.selector.build(seed=0).kind
    needs = objective.build(max_tokens=1).requires
    if kind not in needs.kinds:
        raise UserError(
            f"ranker.selector: it selects '{kind}', and the objective '{objective.type}' learns from "
            f"{', '.join(needs.kinds)}."
        )
    if not needs.fresh_samples:
        return
    if not isinstance(recipe.sampler, PolicySamplerConfig | VllmSamplerConfig):
        raise UserError(
            f"sampler: the objective '{objective.type}' learns from the policy's own fresh answers; use type: policy."
        )
    if not recipe.sampler.decoding.exact:
        raise UserError(
            f"sampler.decoding: the objective '{objective.type}' needs answers drawn from the model itself: strategy "
            "sample, temperature 1, and no top_p, top_k, repetition_penalty or min_new_tokens."
        )
    if recipe.loop.replay_rounds:
        raise UserError(f"loop.replay_rounds: the objective '{objective.type}' learns from fresh answers; make it 0.")
