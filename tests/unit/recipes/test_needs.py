"""Everything that a recipe lacks is said at once, before anything is loaded."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from raftdiff.diffusion.models import checkpoints
from raftdiff.diffusion.recipe import Recipe
from raftdiff.embedded import resolve
from raftdiff.errors import Need, UserError
from raftdiff.llm.model.loading import LMConfig
from raftdiff.llm.model.loading import load as load_lm
from raftdiff.recipes import needs as recipe_needs
from raftdiff.recipes.config import check
from raftdiff.recipes.needs import demand, model_at, needs, ready
from raftdiff.rewards import classifier, sentiment, texts
from raftdiff.rewards.aesthetic import AestheticConfig
from raftdiff.rewards.hps import HpsConfig
from raftdiff.rewards.image_reward import ImageRewardConfig
from raftdiff.rewards.tower import open_tower

RECIPE = {
    "name": "mine",
    "model": {"base": "scene-sd", "device": "cpu"},
    "prompts": {"captions": ["a cat"]},
    "sampler": {"type": "diffusion"},
    "ranker": {"rewards": [{"type": "clip", "model": "scene-clip"}], "selector": {"type": "best_of_k"}},
    "finetuner": {"type": "diffusion"},
}


def recipe(model: dict[str, str] | None = None, rewards: list[dict[str, object]] | None = None) -> Recipe:
    ranker = {**RECIPE["ranker"], **({"rewards": rewards} if rewards else {})}  # type: ignore[dict-item]
    return check(Recipe, {**RECIPE, "model": {**RECIPE["model"], **(model or {})}, "ranker": ranker}, "mine.yaml")  # type: ignore[dict-item]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(recipe_needs, "_silent", "")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    return tmp_path / "hub"


def test_what_ships_needs_nothing() -> None:
    assert needs(recipe(), resolve) == []


def test_all_that_is_missing_is_named_at_once_with_its_key() -> None:
    lacking = recipe(
        {"base": "path/to/sd15", "dtype": "float16", "attention": "xformers"},
        [
            {"type": "aesthetic", "head": "nowhere.pth", "name": "beauty", "model": "scene-clip"},
            {"type": "clip", "model": "ViT-L-14", "pretrained": "openia"},
        ],
    )
    with pytest.raises(UserError) as told:
        ready(lacking, resolve)
    lines = str(told.value).splitlines()
    keys = [line.partition(": ")[0] for line in lines]
    assert keys == ["model.base", "model.dtype", "model.attention", "ranker.rewards.0.head", "ranker.rewards.1.model"]
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in lines[0]
    assert "github.com/LAION-AI/aesthetic-predictor" in lines[3]
    assert "Did you mean 'openai'?" in lines[4]


def test_what_the_hub_has_is_fetched_or_missing_where_the_hub_is_forbidden(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_hub = recipe({"base": "owner/name"}, [{"type": "clip", "model": "ViT-L-14", "pretrained": "openai"}])
    clip = "timm/vit_large_patch14_clip_224.openai"
    assert ready(from_hub, resolve) == [
        "model.base: 'owner/name' is not here yet and will be fetched from the hub.",
        f"ranker.rewards.0.model: '{clip}' is not here yet and will be fetched from the hub.",
    ]
    cached = empty_cache / "models--owner--name" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    (cached / "model_index.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=f"ranker.rewards.0.model: '{clip}' is not in the hub's cache") as told:
        ready(from_hub, resolve)
    assert "model.base" not in str(told.value)


def test_whoever_loads_waits_for_what_is_fetched_and_for_nothing_else() -> None:
    fetched, lost = Need("model", "it will be fetched.", fetched=True), Need("model", "it is not here.")
    demand("The model 'x'", [fetched])
    with pytest.raises(UserError, match=r"^The model 'x': it is not here\.$"):
        demand("The model 'x'", [fetched, lost])


def test_texts_say_the_same() -> None:
    (base, device) = needs(LMConfig(base="no/such/folder", device="tpu"), resolve, "model.")
    assert base.key == "model.base"
    assert "no folder or file 'no/such/folder'" in base.sentence
    assert device.sentence.startswith("'tpu' is not a device")


def test_an_extra_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "find_spec", lambda name: None)
    (need,) = needs(sentiment.SentimentConfig(), resolve)
    assert need.sentence == "it needs vaderSentiment: pip install 'raftdiff[llm]'."


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hub does not answer; holds how often it was asked."""
    times: list[str] = []

    def ask() -> str:
        times.append("asked")
        return "the hub cannot be reached (no such host)"

    monkeypatch.setattr(recipe_needs, "_asked", ask)
    monkeypatch.setattr(recipe_needs, "_silent", None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    return times


def test_without_a_network_the_hub_is_asked_once_and_its_libraries_are_kept_from_trying(
    asked: list[str], empty_cache: Path
) -> None:
    (empty_cache / "models--owner--here" / "snapshots" / "abc").mkdir(parents=True)
    (empty_cache / "models--owner--here" / "snapshots" / "abc" / "config.json").write_text("{}")
    lacking = [*model_at("base", "owner/name"), *model_at("vae", "owner/other"), *model_at("model", "owner/here")]
    assert [(need.key, need.fetched) for need in lacking] == [("base", False), ("vae", False)]
    said = "'owner/name' is not in the hub's cache here, and the hub cannot be reached (no such host)."
    assert lacking[0].sentence == f"{said} Fetch it where there is a network, and give its folder in place of the name."
    assert asked == ["asked"]
    assert constants.is_offline_mode()
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_nobody_asks_the_hub_for_what_is_a_path_or_here(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "sd15").mkdir(parents=True)
    assert list(model_at("base", "models/sd15")) == []
    for name, hint in (
        ("models/sd51", "Did you mean 'models/sd15'?"),
        ("modles/sd15/unet", "Did you mean 'models'?"),
        ("./models/sd51", "Did you mean 'models/sd15'?"),
        ("models\\sd15", "Did you mean 'models/sd15'?"),
        (str(tmp_path / "model" / "sd15"), f"Did you mean '{tmp_path / 'models'}'?"),
        ("~nobody-of-this-name/sd15", ""),
        ("x" * 5000, ""),
        ("", ""),
    ):
        (need,) = model_at("base", name)
        assert need.sentence == f"there is no folder or file '{name}' here.{' ' * bool(hint)}{hint}"
    assert asked == []


@pytest.mark.parametrize("load", ["texts", "clip", "classifier"])
def test_every_loader_says_it_in_a_sentence(load: str, asked: list[str], tmp_path: Path) -> None:
    loaders: dict[str, Callable[[], object]] = {
        "texts": lambda: load_lm(LMConfig(base="owner/name"), str),
        "clip": lambda: open_tower("hf-hub:owner/name"),
        "classifier": lambda: classifier.ClassifierConfig(model="owner/name").build(),
    }
    with pytest.raises(UserError, match=r"'owner/name' is not in the hub's cache here, and the hub cannot be reached"):
        loaders[load]()
    assert asked == ["asked"]


def test_a_diffusion_model_and_its_vae_are_not_looked_for_again_and_again(asked: list[str]) -> None:
    for load, key in ((checkpoints.hub_folder, "model.base"), (checkpoints.hub_vae, "model.vae")):
        with pytest.raises(UserError, match=f"{key}: there is no folder 'owner/name' here, and .* .no such host"):
            load("owner/name")
    assert asked == ["asked"]


def test_a_local_file_that_is_wrong_is_told_before_what_a_hub_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe_needs, "unreachable", lambda: "the hub is silent")
    (tmp_path / "x.pt").write_text("no weights")
    head = AestheticConfig(head=tmp_path / "x.pt", model="hf-hub:nobody/nothing")
    rating = ImageRewardConfig(checkpoint=tmp_path / "x.pt", tokenizer="nobody/nothing")
    for config, first in ((head, "is not a PyTorch file"), (rating, "The ImageReward checkpoint '.*' ")):
        own, hub = needs(config, str)
        assert re.search(first, own.sentence)
        assert hub.sentence.startswith("'nobody/nothing' is not in the hub's cache here, and the hub is silent")


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("", r"'\.' is a folder, and 'checkpoint' names the HPS checkpoint itself, a file, such as x\.pt\. HPS_v2\.1"),
        (
            "y.pt",
            r"There is no HPS checkpoint 'y\.pt'\. Did you mean 'x\.pt'\? HPS_v2\.1.*; give the path of the file as",
        ),
    ],
)
def test_a_folder_in_place_of_a_file_is_no_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.pt").write_text("")
    (need,) = needs(HpsConfig(checkpoint=Path(path)), str)
    assert re.match(sentence, need.sentence)
