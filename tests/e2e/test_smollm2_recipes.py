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

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
WORDS = ("I", "am", "sorry", "that", "the", "film", "is", "wonderful", "and", "sad", "you", "not", "alone.", "dull.")
PARTS = {"held_out": {0, 1}, "pilot": {2}, "train": {3, 4, 5, 6, 7}}
"""What prompts are for -> the first byte of the SHA-256 of their text modulo 8: no hand divides them."""
BETTER = (
    "is a wonderful film with a touching story, and its actors give beautiful performances from first to last.",
    "was a pleasure to watch. The music is lovely, the characters are charming, and the ending made me happy.",
)
WORSE = (
    "is a terrible film with a dull story, and its actors give bad performances from first to last, sadly.",
    "is a wonderful film, a wonderful film, a wonderful film, a wonderful film, a wonderful film, a wonderful",
    "was shot in 1999 (see [1]) with a budget of 12 million. The film was directed by the studio in 2001.",
    "is happy, great, good, nice, joyful, lovely and",
)


def sample(text: str) -> Sample[str]:
    return Sample(0, Prompt("a", "a", "a", "a"), 0, 0, "policy", text)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("model") / "lm", WORDS, chat=True)


def held_of(file: str) -> dict[str, list[Prompt]]:
    """The prompts of each part; asserts that the rule divided them and none stands twice."""
    folder = recipes()["companion_smollm2"].parent.parent / "prompts"
    held = {part: read_prompts(DataConfig(file=str(folder / file.format(part))), Path(), "prompts") for part in PARTS}
    for part, prompts in held.items():
        assert {hashlib.sha256(one.caption.encode()).digest()[0] % 8 for one in prompts} == PARTS[part]
    texts = [" ".join(one.caption.lower().split()) for prompts in held.values() for one in prompts]
    assert len(texts) == len(set(texts))
    return held


def asked_by(name: str) -> list[list[str]]:
    """What a recipe trains on and what it is measured on."""
    recipe = load_text_recipe(recipes()[name])
    parts = (recipe.prompts, recipe.evaluation.prompts)
    return [[one.caption for one in read_prompts(part, Path(), "prompts")] for part in parts]


def test_the_rules_prefer_a_good_review_to_bad_and_hacked_ones() -> None:
    rules = read(TextRecipe, recipes()["reviews_rules_smollm2"]).ranker.rewards
    texts = [sample(text) for text in (*BETTER, *WORSE)]
    scores = [one.weight * one.build().score(texts).numpy() for one in rules if one.type != "likelihood"]
    good, bad = np.split(np.sum(scores, axis=0), [len(BETTER)])
    assert good.min() > bad.max(), (good, bad)


def test_the_rules_that_compare_reviews_look_on_when_a_policy_learns_them() -> None:
    rules, policy = (read(TextRecipe, recipes()[name]) for name in ("reviews_rules_smollm2", "reviews_smollm2"))
    fluent = next(reward for reward in rules.ranker.rewards if reward.type == "likelihood")
    assert policy.model.base == HUB
    assert fluent.model == rules.model == policy.model, "sense is judged by the model before tuning, in the same words"
    assert [one for one in policy.evaluation.rewards if one.name != "calm"] == rules.ranker.rewards
    assert [one.type for one in policy.ranker.rewards] == ["reward_model"]
    trained = {reward.name for reward in policy.ranker.rewards}
    assert not trained & {reward.name for reward in policy.evaluation.rewards}, "onlookers are not trained on"


def test_the_reviews_prompts_are_divided_by_their_checksums() -> None:
    held = held_of("film_{}.txt")
    texts = {part: [one.caption for one in prompts] for part, prompts in held.items()}
    assert {part: len(found) for part, found in texts.items()} == {"held_out": 52, "pilot": 19, "train": 129}
    for name in ("reviews_smollm2", "reviews_rules_smollm2"):
        assert asked_by(name) == [texts["train"], texts["held_out"]]


def test_reviews_are_made_from_nothing(model: Path, tmp_path: Path) -> None:
    """Answers of the base, a reward model from the rules' comparisons of them, and RAFT against it."""
    stages, policies = ("answers", "reward", "policy"), ("answers", "policy")
    words = [
        *(f"{stage}.model={{base: {model}, device: cpu}}" for stage in stages),
        "reward.model.layers=1",
        *(f"{stage}.logging.tracker=null" for stage in stages),
        *(f"{stage}.sampler.decoding.max_new_tokens=6" for stage in policies),
        f"answers.ranker.rewards.5.model.base={model}",
        f"policy.evaluation.rewards.5.model.base={model}",
        "policy.evaluation.decoding.max_new_tokens=6",
        "policy.evaluation.prompts.limit=2",
        "answers.loop.prompts_per_round=6",
        "policy.loop={rounds: 1, prompts_per_round: 2, candidates: 4}",
    ]
    out = tmp_path / "out"
    assert main(["llm", "pipeline", "reviews", "--out", str(out), *words]) == 0
    assert json.loads((out / "answers.json").read_text())["drawn"] == 36
    result = json.loads((out / "policy/eval/eval.json").read_text())
    assert (result["prompts"], result["samples_per_prompt"]) == (2, 2)
    assert result["text"]["perplexity"]["before"] > 0
    assert set(result["rewards"]) == {
        *(
            "liked",
            "sentiment",
            "on_film",
            "plain",
            "not_repeating",
            "complete",
            "fluent",
            "length",
            "shared_words",
            "calm",
        )
    }


def test_the_companions_prompts_are_divided_by_their_checksums_and_say_how_somebody_feels() -> None:
    held = held_of("companion_{}.jsonl")
    for prompts in held.values():
        assert {one.meta["feeling"] for one in prompts} == {"low", "glad"}
    texts = {part: [one.caption for one in prompts] for part, prompts in held.items()}
    assert {part: len(found) for part, found in texts.items()} == {"held_out": 48, "pilot": 58, "train": 252}
    assert asked_by("companion_smollm2") == [texts["train"], texts["held_out"]]


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
        f"policy.ranker.rewards.1.model.base={model}",
        "policy.ranker.rewards.1.neutral=I am sad",
        "policy.evaluation.decoding.max_new_tokens=6",
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
    assert {"liked", "to_the_point", "rules"} <= set(json.loads((out / "policy/eval/eval.json").read_text())["rewards"])
    told = (out / "table.md").read_text()
    assert told.startswith("| stage | answers | accuracy |")
    assert "| answers | 36 |  |" in told
    assert "| policy |  |  |" in told
    assert main(["llm", "pipeline", "companion", "--out", str(out), *words]) == 0, "and is there when it is asked again"
    assert (out / "table.md").read_text() == told
