"""The recipes for a real model, on a tiny one: they read, run, and their rewards prefer what they should."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from raftdiff.cli.main import main
from raftdiff.llm.data.prompts import DataConfig, read_prompts
from raftdiff.llm.model import tiny
from raftdiff.llm.recipe import TextRecipe, load_text_recipe
from raftdiff.recipes.config import read
from raftdiff.recipes.files import recipes
from raftdiff.types import Prompt, Sample

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

NAMES = ("reviews_smollm2",)
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
WORDS = ("I", "am", "sorry", "that", "the", "film", "is", "wonderful", "and", "sad", "you", "not", "alone.", "dull.")
PARTS = {"held_out": {0, 1}, "pilot": {2}, "train": {3, 4, 5, 6, 7}}
"""What a companion's prompts are for -> the first byte of the SHA-256 of their text modulo 8: no hand divides them."""
BETTER = {
    "reviews_smollm2": (
        "is a wonderful film with a touching story, and its actors give beautiful performances from first to last.",
        "was a pleasure to watch. The music is lovely, the characters are charming, and the ending made me happy.",
    ),
}
WORSE = {
    "reviews_smollm2": (
        "is a terrible film with a dull story, and its actors give bad performances from first to last, sadly.",
        "is a wonderful film, a wonderful film, a wonderful film, a wonderful film, a wonderful film, a wonderful",
        "was shot in 1999 (see [1]) with a budget of 12 million. The film was directed by the studio in 2001.",
        "is happy, great, good, nice, joyful, lovely and",
    ),
}


def folder_of(name: str) -> Path:
    return recipes()[name].parent


def sample(text: str) -> Sample[str]:
    return Sample(0, Prompt("a", "a", "a", "a"), 0, 0, "policy", text)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("model") / "lm", WORDS, chat=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_names_the_model_and_two_sets_of_prompts_that_share_none(name: str) -> None:
    recipe = load_text_recipe(recipes()[name])
    assert recipe.model.base == HUB
    fluent = next(reward for reward in recipe.ranker.rewards if reward.type == "likelihood")
    assert fluent.model == recipe.model, "sense is judged by the model before tuning, in the same words"
    train, held_out = (read_prompts(part, Path(), "prompts") for part in (recipe.prompts, recipe.evaluation.prompts))
    texts = [{" ".join(one.caption.lower().split()) for one in part} for part in (train, held_out)]
    assert (len(texts[0]), len(texts[1])) == (len(train), len(held_out)) == (96, 40), "none twice"
    assert not texts[0] & texts[1]
    trained = {reward.name for reward in recipe.ranker.rewards}
    assert not trained & {reward.name for reward in recipe.evaluation.rewards}, "onlookers are not trained on"


@pytest.mark.parametrize("name", NAMES)
def test_its_rewards_prefer_a_good_answer_to_bad_and_hacked_ones(name: str) -> None:
    rewards = [one for one in read(TextRecipe, recipes()[name]).ranker.rewards if one.type != "likelihood"]
    texts = [sample(text) for text in (*BETTER[name], *WORSE[name])]
    totals = np.sum([one.weight * one.build().score(texts).numpy() for one in rewards], axis=0)
    good, bad = np.split(totals, [len(BETTER[name])])
    assert good.min() > bad.max(), totals


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_and_evaluates(name: str, model: Path, tmp_path: Path) -> None:
    rewards = read(TextRecipe, recipes()[name]).ranker.rewards
    fluent = next(place for place, reward in enumerate(rewards) if reward.type == "likelihood")
    words = [
        f"model.base={model}",
        f"ranker.rewards.{fluent}.model.base={model}",
        "model.device=cpu",
        "prompts.limit=3",
        "sampler.decoding.max_new_tokens=8",
        "loop={rounds: 1, prompts_per_round: 2, candidates: 4}",
        "evaluation.prompts.limit=2",
        "logging.tracker=null",
    ]
    assert main(["train", name, "--out", str(tmp_path / "run"), *words]) == 0
    assert main(["eval", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run/eval/eval.json").read_text())
    assert (result["prompts"], result["samples_per_prompt"]) == (2, 2)
    assert result["text"]["perplexity"]["before"] > 0
    names = {reward.name for reward in (*rewards, *read(TextRecipe, recipes()[name]).evaluation.rewards)}
    assert set(result["rewards"]) == names


def test_the_companions_prompts_are_divided_by_their_checksums_and_say_how_somebody_feels() -> None:
    folder = recipes()["companion_smollm2"].parent.parent / "prompts"
    held = {
        part: read_prompts(DataConfig(file=str(folder / f"companion_{part}.jsonl")), Path(), "prompts")
        for part in PARTS
    }
    for part, prompts in held.items():
        assert {hashlib.sha256(one.caption.encode()).digest()[0] % 8 for one in prompts} == PARTS[part]
        assert {one.meta["feeling"] for one in prompts} == {"low", "glad"}
    texts = [" ".join(one.caption.lower().split()) for prompts in held.values() for one in prompts]
    assert len(texts) == len(set(texts)) == 192
    recipe = load_text_recipe(recipes()["companion_smollm2"])
    asked = [len(read_prompts(part, Path(), "prompts")) for part in (recipe.prompts, recipe.evaluation.prompts)]
    assert asked == [len(held["train"]), len(held["held_out"])]


def test_the_companion_is_made_from_nothing(model: Path, tmp_path: Path) -> None:
    """Answers of the base, a reward model from the rules' comparisons of them, and RAFT against it."""
    short = [
        f"{stage}.sampler.parts.{part}.sampler.decoding.max_new_tokens=6"
        for stage in ("answers", "policy")
        for part in (0, 1)
    ]
    words = [
        *(f"{stage}.model.base={model}" for stage in ("answers", "reward", "policy")),
        *short,
        "answers.loop.prompts_per_round=6",
        "reward.model.layers=1",
        "policy.prompts.limit=2",
        "policy.loop.rounds=1",
        "policy.loop.prompts_per_round=2",
        "policy.evaluation.prompts.limit=2",
        *(f"{stage}.logging.tracker=null" for stage in ("answers", "reward", "policy")),
    ]
    out = tmp_path / "out"
    assert main(["llm", "pipeline", "companion", "--out", str(out), *words]) == 0
    assert json.loads((out / "answers.json").read_text())["drawn"] == 36
    assert not list((out / "answers/rounds").glob("000")), "nothing was learnt there"
    trained = json.loads((out / "reward/rounds/000/metrics.json").read_text())
    assert trained["tune"]["loss"] > 0
    assert {"liked", "rules"} <= set(json.loads((out / "policy/eval/eval.json").read_text())["rewards"])
    told = (out / "table.md").read_text()
    assert "| policy |" in told
    assert main(["llm", "pipeline", "companion", "--out", str(out), *words]) == 0, "and is there when it is asked again"
    assert (out / "table.md").read_text() == told
