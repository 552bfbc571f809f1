"""Name -> class, imported only when it is asked for. Third parties add rewards by entry point."""

import importlib
import operator
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, reduce
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from raftdiff.errors import UserError, nearest
from raftdiff.recipes.config import Config

Group = Literal["rewards", "text_rewards", "selectors", "samplers", "finetuners"]

BUILT_IN: Mapping[Group, Mapping[str, str]] = {
    "rewards": {
        "clip": "raftdiff.rewards.clip:ClipConfig",
        "aesthetic": "raftdiff.rewards.aesthetic:AestheticConfig",
        "pickscore": "raftdiff.rewards.pickscore:PickScoreConfig",
        "hps": "raftdiff.rewards.hps:HpsConfig",
        "hpsv3": "raftdiff.rewards.hpsv3:HpsV3Config",
        "image_reward": "raftdiff.rewards.image_reward:ImageRewardConfig",
        "geneval": "raftdiff.rewards.geneval:GenEvalConfig",
        "vqa": "raftdiff.rewards.vqa:VqaConfig",
        "soft_tifa": "raftdiff.rewards.soft_tifa:SoftTifaConfig",
        "dpg": "raftdiff.rewards.dpg:DpgConfig",
        "ocr": "raftdiff.rewards.ocr:OcrConfig",
        "nsfw": "raftdiff.rewards.nsfw:NsfwConfig",
        "jpeg": "raftdiff.rewards.jpeg:JpegConfig",
        "callable": "raftdiff.rewards.callable:CallableConfig",
        "sharpness": "raftdiff.rewards.signals:SharpnessConfig",
        "exposure": "raftdiff.rewards.signals:ExposureConfig",
        "saturation": "raftdiff.rewards.signals:SaturationConfig",
        "edge_density": "raftdiff.rewards.signals:EdgeDensityConfig",
        "colour_entropy": "raftdiff.rewards.signals:ColourEntropyConfig",
        "duplicates": "raftdiff.rewards.duplicates:DuplicatesConfig",
        "remote": "raftdiff.rewards.remote:RemoteConfig",
        "labels": "raftdiff.rewards.labels:LabelsConfig",
        "given": "raftdiff.rewards.given:GivenConfig",
        "reward_model": "raftdiff.llm.reward_models.reward:CaptionRewardConfig",
    },
    "text_rewards": {
        "sentiment": "raftdiff.rewards.sentiment:SentimentConfig",
        "length": "raftdiff.rewards.length:LengthConfig",
        "regex": "raftdiff.rewards.regex:RegexConfig",
        "json": "raftdiff.rewards.json_valid:JsonConfig",
        "code": "raftdiff.rewards.code:CodeConfig",
        "companion": "raftdiff.rewards.companion:CompanionConfig",
        "shared_words": "raftdiff.rewards.shared_words:SharedWordsConfig",
        "translation": "raftdiff.rewards.translation:TranslationConfig",
        "classifier": "raftdiff.rewards.classifier:ClassifierConfig",
        "duplicates": "raftdiff.rewards.duplicates:DuplicateTextsConfig",
        "given": "raftdiff.rewards.given:GivenConfig",
        "server": "raftdiff.rewards.server_judge:ServerConfig",
        "remote": "raftdiff.rewards.remote:RemoteConfig",
        "callable": "raftdiff.rewards.callable:CallableConfig",
        "labels": "raftdiff.rewards.labels:LabelsConfig",
        "kl": "raftdiff.llm.likelihood:KlConfig",
        "likelihood": "raftdiff.llm.likelihood:LikelihoodConfig",
        "mutual_information": "raftdiff.llm.likelihood:MutualInformationConfig",
        "reward_model": "raftdiff.llm.reward_models.reward:RewardModelConfig",
        "review": "raftdiff.embedded.reviews.reward:ReviewConfig",
        "rendering": "raftdiff.embedded.translation.reward:RenderingConfig",
    },
    "selectors": {
        "best_of_k": "raftdiff.selection.best:BestOfKConfig",
        "top_fraction": "raftdiff.selection.best:TopFractionConfig",
        "random": "raftdiff.selection.best:RandomConfig",
        "diverse": "raftdiff.selection.diverse:DiverseConfig",
        "ranked": "raftdiff.selection.lessons:RankedConfig",
        "best_worst": "raftdiff.selection.lessons:BestWorstConfig",
        "threshold": "raftdiff.selection.lessons:ThresholdConfig",
        "softmax": "raftdiff.selection.lessons:SoftmaxConfig",
        "advantage": "raftdiff.selection.lessons:AdvantageConfig",
        "all": "raftdiff.selection.lessons:AllConfig",
    },
    "samplers": {
        "diffusion": "raftdiff.diffusion.sampler:DiffusionSamplerConfig",
        "teacher": "raftdiff.diffusion.sampling.teacher:TeacherSamplerConfig",
        "folder": "raftdiff.diffusion.sampling.given:FolderSamplerConfig",
        "mix": "raftdiff.mixing:MixSamplerConfig",
    },
    "finetuners": {
        "diffusion": "raftdiff.diffusion.learning.finetuner:DiffusionFineTunerConfig",
    },
}


@cache
def sources(group: Group) -> Mapping[str, str]:
    """Name -> ``module:Class`` of every part of a group: ours, then those of installed plug-ins."""
    plugins = {entry.name: entry.value for entry in entry_points(group=f"raftdiff.{group}")}
    return {**plugins, **BUILT_IN[group]}


def noun(group: Group) -> str:
    """One of the group, in words."""
    return group.removesuffix("s").replace("_", " ")


def load(group: Group, name: str) -> type[Config]:
    """The config class registered under ``name``; its ``build`` makes the part.

    Raises:
        UserError: no such name, or the plug-in behind it cannot be imported.
    """
    if name not in sources(group):
        raise UserError(f"'{name}' is not a {noun(group)}. {nearest(name, sources(group))}")
    found: Any = resolve(sources(group)[name], f"the {noun(group)} '{name}'")
    if not (isinstance(found, type) and issubclass(found, Config)):
        raise UserError(f"The {noun(group)} '{name}' names {sources(group)[name]}, which is not a Config.")
    return found


def load_all(group: Group) -> list[type[Config]]:
    """Every config of a group. A plug-in that is broken is left out with a warning, so that it breaks nothing else."""
    found = []
    for name in sources(group):
        try:
            config = load(group, name)
            if missing := {"type", "name", "weight"} - set(config.model_fields) if group.endswith("rewards") else set():
                raise UserError(f"The reward '{name}' lacks the field '{min(missing)}'.")
            found.append(config)
        except UserError as error:
            if name in BUILT_IN[group]:
                raise
            warnings.warn(f"left out: {error}", stacklevel=2)
    return found


def one_of(group: Group) -> Any:
    """The configs of a group, told apart by their ``type``: ours and those of installed plug-ins."""
    configs = load_all(group)
    union = reduce(operator.or_, configs)
    return Annotated[union, Field(discriminator="type")] if len(configs) > 1 else union


def resolve(target: str, what: str) -> Any:
    """The object that ``module:name`` names; ``what`` says in the error whose it is.

    Raises:
        UserError: the text has another form, the module does not import, or it has no such name.
    """
    module_name, colon, attribute = target.partition(":")
    if not (colon and module_name and attribute):
        raise UserError(f"{what}: '{target}' should be written module:name, for example my_rewards:redness.")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        asked = (error.name or "").split(".")[0]
        hint = "Is it installed, or in this folder?"
        if asked == "raftdiff" != module_name.split(".")[0]:  # it is there, and was written for another version
            hint = (
                "raftdiff's modules are listed in docs/architecture.md; a config derives from raftdiff.recipes.config."
            )
        raise UserError(f"{what}: cannot import '{module_name}' ({error}). {hint}") from error
    if not hasattr(module, attribute):
        raise UserError(f"{what}: the module '{module_name}' has no '{attribute}'.")
    return getattr(module, attribute)


def resolve_function(target: str, what: str, *, noun: str = "function") -> Callable[..., Any]:
    """The function that ``module:function`` names in a recipe, installed or in the current folder.

    That folder is searched after everything installed, and only while the module is being imported: a module that lies
    there imports what it needs at its top. ``what`` says in the error whose function it is, ``noun`` what it is called.

    Raises:
        UserError: no such module or name, or what it names cannot be called.
    """
    with _current_folder_importable():
        found = resolve(target, what)
    if not callable(found):
        raise UserError(f"The {noun} '{target}' is a {type(found).__name__}, which cannot be called.")
    return found  # type: ignore[no-any-return]  # callable() leaves Any


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """Last on the path, so that a stray file here cannot stand in for an installed package."""
    folder = str(Path.cwd())
    importlib.invalidate_caches()
    sys.path.append(folder)
    try:
        yield
    finally:
        # The last one is ours: the module itself may have added the same folder, and that is its own affair.
        for place in range(len(sys.path) - 1, -1, -1):
            if sys.path[place] == folder:
                del sys.path[place]
                break
