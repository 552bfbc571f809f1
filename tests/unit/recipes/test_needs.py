"""Everything that a recipe lacks is said at once, before anything is loaded."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from raftdiff.diffusion.recipe import Recipe
from raftdiff.embedded import resolve
from raftdiff.errors import UserError
from raftdiff.llm.model.loading import LMConfig
from raftdiff.recipes.config import check
from raftdiff.recipes.needs import needs, ready
from raftdiff.rewards import sentiment, texts

RECIPE = {
    "name": "mine",
    "model": {"base": "emoji-sd", "device": "cpu"},
    "prompts": {"captions": ["a cat"]},
    "sampler": {"type": "diffusion"},
    "ranker": {"rewards": [{"type": "clip", "model": "emoji-clip"}], "selector": {"type": "best_of_k"}},
    "finetuner": {"type": "diffusion"},
}


def recipe(model: dict[str, str] | None = None, rewards: list[dict[str, object]] | None = None) -> Recipe:
    ranker = {**RECIPE["ranker"], **({"rewards": rewards} if rewards else {})}  # type: ignore[dict-item]
    return check(Recipe, {**RECIPE, "model": {**RECIPE["model"], **(model or {})}, "ranker": ranker}, "mine.yaml")  # type: ignore[dict-item]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    return tmp_path / "hub"


def test_what_ships_needs_nothing() -> None:
    assert needs(recipe(), resolve) == []


def test_all_that_is_missing_is_named_at_once_with_its_key() -> None:
    lacking = recipe(
        {"base": "path/to/sd15", "dtype": "float16", "attention": "xformers"},
        [
            {"type": "aesthetic", "head": "nowhere.pth", "name": "beauty", "model": "emoji-clip"},
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


def test_texts_say_the_same() -> None:
    (base, device) = needs(LMConfig(base="no/such/folder", device="tpu"), resolve, "model.")
    assert base.key == "model.base"
    assert "no folder or file 'no/such/folder'" in base.sentence
    assert device.sentence.startswith("'tpu' is not a device")


def test_an_extra_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "find_spec", lambda name: None)
    (need,) = needs(sentiment.SentimentConfig(), resolve)
    assert need.sentence == "it needs vaderSentiment: pip install 'raftdiff[llm]'."
