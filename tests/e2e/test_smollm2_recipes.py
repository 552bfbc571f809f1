"""The two recipes for a real model, on a tiny one: they read, run, and their rewards prefer what they should."""

import json
from pathlib import Path

import numpy as np
import pytest

from raftdiff.cli.main import main
from raftdiff.llm.data.prompts import read_prompts
from raftdiff.llm.model import tiny
from raftdiff.llm.recipe import TextRecipe, load_text_recipe
from raftdiff.recipes.config import read
from raftdiff.recipes.files import recipes
from raftdiff.types import Prompt, Sample

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

NAMES = ("companion_smollm2", "reviews_smollm2")
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
WORDS = ("I", "am", "sorry", "that", "the", "film", "is", "wonderful", "and", "sad", "you", "not", "alone.", "dull.")
BETTER = {
    "companion_smollm2": (
        "I'm so sorry to hear that. It's completely normal to feel sad, and you are not alone. I am here to listen.",
        "I'm sorry to hear that you are sad. It's okay to cry, and I am here for you as long as you need me.",
    ),
    "reviews_smollm2": (
        "is a wonderful film with a touching story, and its actors give beautiful performances from first to last.",
        "was a pleasure to watch. The music is lovely, the characters are charming, and the ending made me happy.",
    ),
}
WORSE = {
    "companion_smollm2": (
        "I'm sorry to hear that, but as an AI language model I do not have feelings. How can I assist you today?",
        "I'm so sorry to hear that you are sad. It's okay. I've been sad since my mother left me, and I",
        "The sentence is grammatically correct. Here is a translation of the phrase that you asked for today.",
        "1. **Rest**: it helps.\n2. **Talk** to a friend.\n3. **Walk** a little every day, and drink enough water.",
        "Sorry sorry sorry! Love love love! Happy happy happy",
    ),
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
    train, held_out = (read_prompts(part, Path()) for part in (recipe.prompts, recipe.evaluation.prompts))
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
