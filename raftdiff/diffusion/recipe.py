"""The assembly: a recipe file -> the parts, wired. The one module that knows everyone."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, final

import numpy as np
import torch
import yaml
from jaxtyping import Float
from PIL.Image import Image
from pydantic import Field

from raftdiff import embedded
from raftdiff.diffusion.learning.finetuner import DiffusionFineTuner
from raftdiff.diffusion.models import loading
from raftdiff.diffusion.models.loading import ModelConfig
from raftdiff.diffusion.sampler import DiffusionSampler
from raftdiff.embedded.emoji.world import parse
from raftdiff.errors import UserError, nearest
from raftdiff.measures.diversity import PictureFigures
from raftdiff.measures.evaluation import Judge
from raftdiff.ranking import Features, Ranker
from raftdiff.recipes import registry
from raftdiff.recipes.config import Config, check, read
from raftdiff.recipes.prompts import PromptsConfig, build, inline
from raftdiff.records.provenance import fingerprint
from raftdiff.records.run import Run
from raftdiff.reports.images import coarse
from raftdiff.seeds import fold
from raftdiff.stages import LoopConfig, Parts
from raftdiff.types import Reward, Sample


def one_of(group: registry.Group) -> Any:
    """The configs of a group, told apart by their ``type``: ours and those of installed plug-ins."""
    configs = registry.load_all(group)
    union = reduce(operator.or_, configs)
    return Annotated[union, Field(discriminator="type")] if len(configs) > 1 else union


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
    """best_of_k (the paper's), top_fraction, or random (the control)."""


class EvaluationConfig(Config):
    """The before/after on held-out prompts."""

    prompts: PromptsConfig = PromptsConfig()
    """Held-out prompts; the training prompts when empty. Magic and negative prompts apply only where given here."""
    samples_per_prompt: int = Field(default=4, ge=1)
    """Pictures per prompt in ``raftdiff eval``, with the same seeds before and after."""
    every_round: int = Field(default=0, ge=0)
    """Pictures per held-out prompt after every round, for the curve and for early stopping; 0 for none."""
    steps: int | None = Field(default=None, ge=1)
    """Sampling steps of ``raftdiff eval``; the sampler's by default."""
    guidance: float | None = Field(default=None, ge=0)
    """Classifier-free guidance of the evaluation and of the held-out curve, which is how the tuned model is to be used;
    the sampler's by default. With a lower one here, the model learns to do without what the sampler had."""
    judge: Literal["emoji-judge"] | None = None
    """An embedded judge that never was a reward, e.g. "emoji-judge"; none by default."""
    seed: int = 1000
    """Apart from the loop's seed, so that three training seeds are evaluated on the same pictures."""


class LoggingConfig(Config):
    """Where figures go besides the run directory. No part of a run's identity."""

    tracker: str | None = "tensorboard"
    """The name of an accelerate tracker (tensorboard, wandb, mlflow, ...), or null for none."""


class Recipe(Config):
    """Everything that a run does."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Part of the run directory's name."""
    model: ModelConfig
    prompts: PromptsConfig
    sampler: SamplerConfig
    ranker: RankerConfig
    finetuner: FineTunerConfig
    loop: LoopConfig = LoopConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()


def recipes() -> dict[str, Path]:
    """The recipes that ship, by name."""
    folder = Path(str(files("raftdiff"))) / "configs"
    parts = ("", "llm/", "rm/", "pipelines/")
    return {path.stem: path for part in parts for path in sorted(folder.glob(f"{part}*.yaml"))}


def locate(name: str) -> Path:
    """The file of a recipe: itself, or that of the one of this name that ships.

    Raises:
        UserError: there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix or path.parent != Path():
        raise UserError(f"There is no recipe file '{name}'. Recipes that ship: {', '.join(recipes())}.")
    if name not in recipes():
        raise UserError(f"'{name}' is no file and not a recipe that ships. {nearest(name, recipes())}")
    return recipes()[name]


def medium_of(path: Path) -> str:
    """What a recipe file is for, as its ``media`` says: ``text``, ``preferences`` (a reward model), ``pipeline``; a
    recipe for pictures says nothing."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return "image"  # whoever reads it in earnest says what is wrong
    return str(data.get("media", "image")) if isinstance(data, dict) else "image"


def is_text(path: Path) -> bool:
    """Whether a recipe file is one for texts (``media: text``), which ``text_recipe`` reads."""
    return medium_of(path) == "text"


def refuse_preferences(path: Path, name: str | Path) -> None:
    """
    Raises:
        UserError: the recipe at ``path`` trains a reward model or runs a pipeline; ``name`` is what the user called it.
    """
    if medium_of(path) == "pipeline":
        raise UserError(f"{name}: this runs several recipes one after the other, with: raftdiff llm pipeline {name}.")
    if medium_of(path) == "preferences":
        raise UserError(
            f"{name}: this trains a reward model, which has commands of its own: raftdiff llm rm train, eval and "
            "strength; a trained one lies in its run's folder 'model', in the transformers format."
        )


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, or the one of that name that ships; prompts held inline, parts checked against each other.

    Raises:
        UserError: no such recipe, or anything wrong in it, in a sentence a line.
    """
    path = locate(name)
    refuse_preferences(path, name)
    if is_text(path):
        raise UserError(f"{path}: this is a recipe for texts, and this command is for pictures.")
    recipe = read(Recipe, path, overrides)
    prompts = inline(recipe.prompts, path.parent)
    held_out = inline(recipe.evaluation.prompts, path.parent)
    evaluation = recipe.evaluation.model_copy(update={"prompts": held_out})
    recipe = recipe.model_copy(update={"prompts": prompts, "evaluation": evaluation})
    _check(recipe)
    return recipe


def refuse_texts(run: Run) -> None:
    """
    Raises:
        UserError: it is a run on texts, or of a reward model.
    """
    refuse_preferences(run.path / "recipe.yaml", run.path)
    if is_text(run.path / "recipe.yaml"):
        raise UserError(f"{run.path}: this is a run on texts, and this command is for pictures.")


def recipe_of(run: Run) -> Recipe:
    """
    Raises:
        UserError: it is a run on texts.
    """
    refuse_texts(run)
    return check(Recipe, run.recipe(), str(run.path / "recipe.yaml"))


def _check(recipe: Recipe) -> None:
    """What can be known to be wrong before a model is loaded."""
    ids = {prompt.id for prompt in build(recipe.prompts)}
    if recipe.evaluation.prompts.captions:
        _held_out(recipe.evaluation.prompts)
    count = recipe.loop.prompts_per_round
    if count is not None and count > len(ids):
        raise UserError(f"loop.prompts_per_round: {count} prompts a round, but there are only {len(ids)} prompts.")
    check_alike(recipe, held_out=bool(recipe.evaluation.prompts.captions))
    needs, gives = DiffusionFineTuner.requires, DiffusionSampler.provides
    if missing := set(needs.aux) - set(gives):
        raise UserError(f"finetuner: it needs {', '.join(sorted(missing))} with each sample, which this sampler lacks.")
    kind = recipe.ranker.selector.build(seed=0).kind
    if kind not in needs.kinds:
        raise UserError(
            f"ranker.selector: it selects '{kind}', and this fine-tuner learns from {', '.join(needs.kinds)}."
        )


def check_alike(recipe: Any, *, held_out: bool, onlookers: Sequence[Any] | None = None) -> None:
    """What can be wrong in the same way in a recipe for pictures and in one for texts.

    Args:
        held_out: whether it names held-out prompts.
        onlookers: rewards of the evaluation alone; None where there is no such key.

    Raises:
        UserError: two rewards of one name, or none that counts; held-out figures without held-out prompts; stopping by
            a curve that is not drawn; more candidates kept than there are.
    """
    rewards, loop, evaluation = recipe.ranker.rewards, recipe.loop, recipe.evaluation
    names = [reward.name or reward.type for reward in (*rewards, *(onlookers or ()))]
    if twice := {name for name in names if names.count(name) > 1}:
        where = "ranker.rewards" if onlookers is None else "ranker.rewards, evaluation.rewards"
        raise UserError(f"{where}: two are called '{min(twice)}'; give each its own 'name'.")
    if not any(reward.weight for reward in rewards):
        raise UserError("ranker.rewards: every weight is 0, so nothing could be ranked; give one a weight.")
    if evaluation.every_round and not held_out:
        raise UserError("evaluation.every_round: there are no held-out prompts; name a file under evaluation.prompts.")
    if loop.patience is not None and not evaluation.every_round:
        raise UserError("loop.patience: stopping needs a held-out reward; set evaluation.every_round to 1 or more.")
    keep = getattr(recipe.ranker.selector, "keep", 1)
    if keep > loop.candidates:
        raise UserError(f"ranker.selector.keep: {keep} of only {loop.candidates} candidates (loop.candidates).")


def _held_out(config: PromptsConfig) -> None:
    """
    Raises:
        UserError: the held-out prompts are wrong, which a run would find out only at its end.
    """
    try:
        build(config)
    except UserError as error:
        raise UserError(f"evaluation.{error}") from None


def resolve(model: str) -> str:
    """A model's name in a recipe -> what its loader takes: a folder for those that ship, else the name itself."""
    return str(embedded.folder(model)) if model in embedded.names() else model


def weights(recipe: Recipe) -> dict[str, str]:
    """A fingerprint of every local model that the recipe names, by that name; hub models are left out."""
    named = [recipe.model.base, *(getattr(reward, "model", None) for reward in recipe.ranker.rewards)]
    local = {name: Path(resolve(name)).expanduser() for name in named if isinstance(name, str)}
    return {name: fingerprint(path) for name, path in local.items() if path.exists()}


@final
@dataclass(frozen=True)
class Assembly:
    """The parts of a recipe, built and wired: sampler and fine-tuner share one network."""

    recipe: Recipe
    model: loading.Parts
    sampler: DiffusionSampler
    evaluator: DiffusionSampler
    """Another sampler on the same network, with the evaluation's number of steps and guidance."""
    finetuner: DiffusionFineTuner
    ranker: Ranker[Image]
    parts: Parts[Image]
    """What the loop takes."""

    def strange(self, captions: Sequence[str]) -> list[str]:
        """Those of the captions that the held-out judge does not understand; none where the recipe names no judge."""
        if self.recipe.evaluation.judge is None:
            return []
        return [caption for caption in captions if parse(caption) is None]

    def judge(self, captions: Sequence[str]) -> Judge | None:
        """The held-out judge that the recipe names, if there is one and it understands all of these captions."""
        if self.recipe.evaluation.judge is None or self.strange(captions):
            return None
        from raftdiff.embedded.emoji.judge import EmojiJudge

        return EmojiJudge(embedded.folder(self.recipe.evaluation.judge)).judge


def assemble(recipe: Recipe) -> Assembly:
    """Load the model and the rewards, and wire them.

    Raises:
        UserError: a model or a reward cannot be loaded.
    """
    # Keeps a CPU off its slow path for denormal numbers, which optimizers are full of.
    torch.set_flush_denormal(True)
    model = loading.load(recipe.model, resolve)
    sampler = recipe.sampler.build(model)
    evaluation = recipe.evaluation
    guidance = recipe.sampler.guidance if evaluation.guidance is None else evaluation.guidance
    used = recipe.sampler.model_copy(update={"guidance": guidance})
    evaluator = used.model_copy(update={"steps": evaluation.steps or used.steps}).build(model)
    finetuner = recipe.finetuner.build(
        model,
        total_rounds=recipe.loop.rounds,
        guidance=guidance,
        seed=fold(recipe.loop.seed, "finetuner"),
    )
    ranker = build_ranker(recipe, device=str(model.device))
    held_out = build(evaluation.prompts) if evaluation.prompts.captions and evaluation.every_round else []
    parts = Parts(
        sampler=sampler,
        ranker=ranker,
        finetuner=finetuner,
        prompts=build(recipe.prompts),
        held_out=held_out,
        held_out_sampler=used.build(model) if guidance != recipe.sampler.guidance else sampler,
        held_out_candidates=max(1, evaluation.every_round),
        loop=recipe.loop,
    )
    return Assembly(recipe, model, sampler, evaluator, finetuner, ranker, parts)


def build_ranker(recipe: Recipe, *, device: str) -> Ranker[Image]:
    """The rewards, the selector, and what a round says of its pictures."""
    rewards: list[tuple[Reward[Image], float]] = [
        (config.build(device=device, resolve=resolve), config.weight) for config in recipe.ranker.rewards
    ]
    selector = recipe.ranker.selector.build(seed=fold(recipe.loop.seed, "select"))
    return Ranker(rewards, selector, PictureFigures(features(rewards)))


def features(rewards: Sequence[tuple[Reward[Image], float]]) -> Features:
    """What diversity is measured on: the first CLIP tower among the rewards, or, without one, the pixels."""
    towers = [reward.tower for reward, _ in rewards if hasattr(reward, "tower")]
    return towers[0].image_features if towers else pixels


def pixels(samples: Sequence[Sample[Image]]) -> Float[torch.Tensor, "samples features"]:
    """What diversity is measured on where no reward has a CLIP tower: the pictures themselves, small."""
    return torch.from_numpy(np.stack([coarse(sample.media) for sample in samples]))
