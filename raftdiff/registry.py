"""Name -> class, imported only when it is asked for. Third parties add rewards by entry point."""

import importlib
import warnings
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal

from raftdiff.config import Config
from raftdiff.errors import UserError, nearest

Group = Literal["rewards", "text_rewards", "selectors", "samplers", "finetuners"]

BUILT_IN: Mapping[Group, Mapping[str, str]] = {
    "rewards": {
        "clip": "raftdiff.rewards.clip:ClipConfig",
        "aesthetic": "raftdiff.rewards.aesthetic:AestheticConfig",
        "jpeg": "raftdiff.rewards.jpeg:JpegConfig",
        "callable": "raftdiff.rewards.callable:CallableConfig",
        "labels": "raftdiff.rewards.labels:LabelsConfig",
    },
    "text_rewards": {
        "sentiment": "raftdiff.rewards.sentiment:SentimentConfig",
        "length": "raftdiff.rewards.length:LengthConfig",
        "regex": "raftdiff.rewards.regex:RegexConfig",
        "json": "raftdiff.rewards.json_valid:JsonConfig",
        "code": "raftdiff.rewards.code:CodeConfig",
        "translation": "raftdiff.rewards.translation:TranslationConfig",
        "classifier": "raftdiff.rewards.classifier:ClassifierConfig",
        "given": "raftdiff.rewards.given:GivenConfig",
        "server": "raftdiff.rewards.server_judge:ServerConfig",
        "callable": "raftdiff.rewards.callable:CallableConfig",
        "kl": "raftdiff.llm.likelihood:KlConfig",
        "likelihood": "raftdiff.llm.likelihood:LikelihoodConfig",
        "review": "raftdiff.embedded.review_reward:ReviewConfig",
    },
    "selectors": {
        "best_of_k": "raftdiff.selection:BestOfKConfig",
        "top_fraction": "raftdiff.selection:TopFractionConfig",
        "random": "raftdiff.selection:RandomConfig",
        "ranked": "raftdiff.lessons:RankedConfig",
        "best_worst": "raftdiff.lessons:BestWorstConfig",
        "threshold": "raftdiff.lessons:ThresholdConfig",
        "softmax": "raftdiff.lessons:SoftmaxConfig",
        "advantage": "raftdiff.lessons:AdvantageConfig",
    },
    "samplers": {
        "diffusion": "raftdiff.diffusion.sampler:DiffusionSamplerConfig",
    },
    "finetuners": {
        "diffusion": "raftdiff.diffusion.finetuner:DiffusionFineTunerConfig",
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
        raise UserError(
            f"{what}: cannot import '{module_name}' ({error}). Is it installed, or in this folder?"
        ) from error
    if not hasattr(module, attribute):
        raise UserError(f"{what}: the module '{module_name}' has no '{attribute}'.")
    return getattr(module, attribute)
