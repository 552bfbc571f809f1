"""Every reward that is registered, ours or a plug-in's, keeps the contract and builds in the same way."""

import importlib.metadata
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import open_clip
import pytest
import torch
from open_clip import factory
from PIL import Image
from safetensors.torch import save_file

from raftdiff.embedded.reviews import world
from raftdiff.embedded.translation.data import sources
from raftdiff.embedded.translation.world import references
from raftdiff.errors import UserError
from raftdiff.llm.model import tiny as tiny_lm
from raftdiff.llm.model.loading import LMConfig
from raftdiff.llm.reward_models.value_model import load_value_model, save_value_model
from raftdiff.recipes import registry
from raftdiff.recipes.checks import lacks_gradient
from raftdiff.recipes.config import Config, check
from raftdiff.records.run import Run
from raftdiff.rewards import tiny
from raftdiff.testing.conformance import check_reward
from raftdiff.testing.examples import ANSWERS, answer_samples, reward_samples
from raftdiff.types import Prompt, Sample

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def redness(images: list[Any], prompts: list[str]) -> list[float]:
    return [float(image.resize((1, 1)).getpixel((0, 0))[0]) for image in images]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        weights = {name: tensor.contiguous() for name, tensor in open_clip.CLIP(**TINY).state_dict().items()}
        torch.save(torch.nn.Linear(16, 1).state_dict(), folder / "head.pth")
    save_file(weights, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    tiny.write_pickscore(folder / "pickscore")
    tiny.write_hps(folder / "hps.pt")
    tiny.write_image_reward(folder)
    tiny.write_smolvlm(folder / "vlm")
    tiny.write_image_classifier(folder / "nsfw", ["normal", "nsfw"])
    Run.create(folder / "run", Config(), seed=0)
    reward_model(folder / "rm", sorted({word for one in reward_samples() for word in one.prompt.caption.split()}))
    return folder


def reward_model(folder: Path, words: Sequence[str]) -> Path:
    """A random one that knows these words."""
    lm = tiny_lm.write(folder.with_name(f"{folder.name}-lm"), words)
    save_value_model(folder, load_value_model(LMConfig(base=str(lm), device="cpu"), str), {})
    return folder


def needs(name: str, folder: Path) -> dict[str, Any]:
    """What a recipe must say beside the type."""
    return {
        "clip": {"model": str(folder)},
        "aesthetic": {"model": str(folder), "head": str(folder / "head.pth")},
        "pickscore": {"model": str(folder / "pickscore")},
        "hps": {"checkpoint": str(folder / "hps.pt")},
        "image_reward": {"checkpoint": str(folder / "ImageReward.pt"), "tokenizer": str(folder / "tokenizer")},
        "nsfw": {"model": str(folder / "nsfw")},
        "vqa": {"model": str(folder / "vlm")},
        "soft_tifa": {"model": str(folder / "vlm")},
        "callable": {"function": "contract_reward:redness"},
        "labels": {"run": str(folder / "run")},
        "reward_model": {"model": str(folder / "rm")},
    }.get(name, {})


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """``redness`` under a name that a recipe can say, wherever pytest imported this file from; HPS's model is small."""
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-H-14", dict(tiny.CLIP))
    module = type(importlib)("contract_reward")
    module.redness = redness  # type: ignore[attr-defined]
    monkeypatch.setitem(importlib.import_module("sys").modules, "contract_reward", module)


ELSEWHERE = {"kl", "classifier", "server", "remote", "geneval", "dpg", "ocr", "hpsv3"}
"""Made of the policy, a trained classifier, a server, prompts that say more; or slow. Their own tests do it."""


@pytest.mark.parametrize("name", sorted({*registry.BUILT_IN["rewards"]} - ELSEWHERE))
def test_every_reward_of_ours_keeps_the_contract(name: str, folder: Path) -> None:
    config: Any = check(registry.load("rewards", name), {"type": name, "weight": 0.5, **needs(name, folder)})
    assert (config.type, config.name, config.weight) == (name, name, 0.5)
    reward = config.build(device="cpu", resolve=str)
    assert reward.name == name
    samples = [replace(one, aux={"score": torch.tensor(float(i))}) for i, one in enumerate(reward_samples(count=5))]
    report = check_reward(reward, samples, direction=type(reward).__doc__)
    told_apart = name != "labels"  # nobody labelled these
    assert all(found.passed for found in report.checks if told_apart or found.name != "varied"), str(report)
    graded = name in ("clip", "aesthetic", "pickscore", "hps", "image_reward")
    assert any(found.name == "gradient" for found in report.checks) == graded
    assert lacks_gradient(config) != graded  # as is known from the recipe alone


@pytest.mark.parametrize("name", sorted({*registry.BUILT_IN["rewards"]} - ELSEWHERE))
def test_every_reward_of_ours_takes_another_name(name: str, folder: Path) -> None:
    config: Any = check(registry.load("rewards", name), {"name": "other", **needs(name, folder)})
    assert config.build(device="cpu").name == "other"


class WidthReward:
    """The width of the picture in pixels; higher is better."""

    name = "width"

    def score(self, samples: Sequence[Sample[Image.Image]]) -> torch.Tensor:
        return torch.tensor([float(sample.media.width) for sample in samples])


class WidthConfig(Config):
    type: Literal["width"] = "width"
    name: str = "width"
    weight: float = 1.0

    def build(self, *, device: str, resolve: Callable[[str], str] = str) -> WidthReward:
        return WidthReward()


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution that is installed and adds a reward, and one whose module is missing."""
    group = "raftdiff.rewards"
    entries = importlib.metadata.EntryPoints(
        [
            importlib.metadata.EntryPoint("width", "width_plugin:WidthConfig", group),
            importlib.metadata.EntryPoint("broken", "no_such_module:Config", group),
        ]
    )
    module = type(importlib)("width_plugin")
    module.WidthConfig = WidthConfig  # type: ignore[attr-defined]
    monkeypatch.setitem(importlib.import_module("sys").modules, "width_plugin", module)
    monkeypatch.setattr(registry, "entry_points", lambda group: entries.select(group=group))
    registry.sources.cache_clear()
    yield
    registry.sources.cache_clear()


@pytest.mark.usefixtures("plugin")
def test_a_plug_in_is_found_by_its_entry_point() -> None:
    assert {"width", "clip"} <= set(registry.sources("rewards"))
    config: Any = check(registry.load("rewards", "width"), {"type": "width"})
    assert check_reward(config.build(device="cpu"), reward_samples(count=4)).passed


@pytest.mark.usefixtures("plugin")
def test_a_broken_plug_in_gets_a_sentence() -> None:
    with pytest.raises(UserError, match="the reward 'broken': cannot import 'no_such_module'"):
        registry.load("rewards", "broken")


@pytest.mark.usefixtures("plugin")
def test_a_misspelt_reward_gets_a_sentence() -> None:
    with pytest.raises(UserError, match=r"'aesthetik' is not a reward\. Did you mean 'aesthetic'\?"):
        registry.load("rewards", "aesthetik")


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = sorted({word for text in ANSWERS for word in text.split()})
    folder = tmp_path_factory.mktemp("lm")
    reward_model(folder / "rm", words)
    return tiny_lm.write(folder / "lm", words)


def shortness(texts: list[str], prompts: list[str]) -> list[float]:
    return [-float(len(text)) for text in texts]


def text_needs(name: str, lm: Path) -> dict[str, Any]:
    """What a recipe must say beside the type."""
    return {
        "length": {"direction": "more"},
        "regex": {"pattern": "film"},
        "likelihood": {"model": {"base": str(lm)}},
        "mutual_information": {"model": {"base": str(lm)}, "neutral": "film"},
        "callable": {"function": "contract_reward:shortness"},
        "reward_model": {"model": str(lm.with_name("rm"))},
        "labels": {"run": str(Run.create(lm.parent / "run", Config(), seed=0).path)},
    }.get(name, {})


@pytest.mark.parametrize("name", sorted({*registry.BUILT_IN["text_rewards"]} - ELSEWHERE))
def test_every_reward_on_text_keeps_the_contract(name: str, lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("contract_reward"), "shortness", shortness, raising=False)
    config: Any = check(registry.load("text_rewards", name), {"type": name, "name": "other", **text_needs(name, lm)})
    reward = config.build(device="cpu", resolve=str)
    assert reward.name == "other"
    samples = {"review": film_reviews, "rendering": translated}.get(name, answer_samples)()
    report = check_reward(reward, samples, direction=type(reward).__doc__)
    told_apart = name != "labels"  # nobody labelled these
    assert all(found.passed for found in report.checks if told_apart or found.name != "varied"), str(report)


def film_reviews() -> list[Sample[str]]:
    """The text world's reward knows its own prompts alone."""
    generator, asked = np.random.default_rng(0), world.prompts()[:6]
    prompts = [Prompt(f"review-{place}", text, text, text) for place, text in enumerate(asked)]
    return [Sample(0, one, 0, 0, "dataset", world.sample(one.caption, generator)) for one in prompts]


def translated() -> list[Sample[str]]:
    """So does that of the world of translation."""
    asked = [row["prompt"] for row in itertools.islice(sources(), 6)]
    prompts = [Prompt(f"source-{place}", text, text, text) for place, text in enumerate(asked)]
    return [Sample(0, one, 0, 0, "dataset", references(one.caption)[place % 2]) for place, one in enumerate(prompts)]
