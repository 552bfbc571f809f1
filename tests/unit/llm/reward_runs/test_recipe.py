"""Recipes for reward models: what is read, what is refused, and how pairs are held out."""

import json
from pathlib import Path
from typing import Any

import pytest

from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.errors import UserError
from raftdiff.llm.data.preferences import Comparison
from raftdiff.llm.recipe import load_text_recipe
from raftdiff.llm.reward_runs.recipe import divided, load_reward_recipe, split, strengths
from raftdiff.recipes.config import dump, plain
from raftdiff.recipes.files import medium_of, recipes
from raftdiff.types import Prompt

RECIPE = """
media: preferences
name: words
model: {base: review-lm}
pairs: {data: {file: pairs.jsonl}}
held_out_share: 0.25
"""


def pair(prompt: str, place: int, **more: Any) -> Comparison:
    return Comparison(f"{prompt}-{place}", Prompt(prompt, prompt, prompt, prompt), "good", "bad", **more)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    rows = [{"prompt": f"film {n // 2}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(16)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "words.yaml").write_text(RECIPE)
    return tmp_path / "words.yaml"


def test_a_recipe_holds_its_data_s_checksum_and_reads_back(recipe: Path, tmp_path: Path) -> None:
    found = load_reward_recipe(recipe)
    assert found.pairs.data.sha256
    assert found.pairs.data.file == str((tmp_path / "pairs.jsonl").resolve())
    (tmp_path / "again.yaml").write_text(dump(found))
    assert plain(load_reward_recipe(tmp_path / "again.yaml")) == plain(found)


def test_whole_prompts_are_held_out_as_many_as_the_share_asks_for(recipe: Path) -> None:
    trained, held_out = divided(load_reward_recipe(recipe))
    assert len(held_out) == 4
    assert len(trained) == 12
    assert {one.prompt.caption for one in trained}.isdisjoint(one.prompt.caption for one in held_out)


def test_the_split_is_the_seed_s_and_keeps_the_order_of_the_data() -> None:
    pairs = [pair(f"p{n % 30}", n) for n in range(90)]
    one, other = split(pairs, 0.2, 0), split(pairs, 0.2, 1)
    assert one == split(pairs, 0.2, 0)
    assert one != other
    assert one[0] == [kept for kept in pairs if kept in one[0]]
    assert len(one[1]) == 18
    assert split(pairs, 0.0, 0) == (pairs, [])


def test_prompts_that_differ_in_what_was_said_before_are_two() -> None:
    told = [{"role": "user", "content": "hello"}]
    other = Comparison("b", Prompt("b", "so", "so", "so", meta={"history": told}), "good", "bad")
    same = Comparison("a", Prompt("a", "so", "so", "so"), "good", "bad")
    trained, held_out = split([same, other], 0.5, 0)
    assert len(trained) == len(held_out) == 1
    with pytest.raises(UserError, match="all 2 pairs are of one prompt, and whole prompts are held out"):
        split([same, same], 0.5, 0)


def test_a_large_share_leaves_something_to_train_on() -> None:
    trained, held_out = split([pair(f"p{n}", n) for n in range(4)], 0.99, 0)
    assert (len(trained), len(held_out)) == (1, 3)


def test_held_out_pairs_of_their_own_leave_the_others_whole(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "others.jsonl").write_text(json.dumps({"prompt": "q", "chosen": "good", "rejected": "bad"}) + "\n")
    trained, held_out = divided(load_reward_recipe(recipe, ["held_out={data: {file: others.jsonl}}"]))
    assert (len(trained), len(held_out)) == (16, 1)


def test_denoising_without_strength_says_how_to_measure_it(recipe: Path) -> None:
    with pytest.raises(UserError, match=r"denoise: 'flip' needs the strength .* 12 of 12 have none.*rm strength"):
        load_reward_recipe(recipe, ["denoise={type: flip}"])
    load_reward_recipe(recipe, ["denoise={type: smooth}"])


def test_strengths_are_taken_from_the_data_in_its_order(recipe: Path, tmp_path: Path) -> None:
    rows = [
        json.loads(line) | {"mu": n - 3.5} for n, line in enumerate((tmp_path / "pairs.jsonl").read_text().splitlines())
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_reward_recipe(recipe, ["denoise={type: margin}", "held_out_share=0"])
    trained, _ = divided(found)
    mu = strengths(found, trained)
    assert mu is not None
    assert mu.tolist() == [n - 3.5 for n in range(16)]
    rows[3]["mu"] = 1e300
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"denoise: the strength \(mu\) of the pair '.*' is 1e\+300; .*correct"):
        load_reward_recipe(recipe, ["denoise={type: soft_margin}", "held_out_share=0"])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["tuner.meta={}"], "tuner.meta: MetaRM needs answers of the current policy; name them under policy_pool"),
        (["policy_pool={run: runs/a}"], "policy_pool: only tuner.meta learns from these answers"),
        (["tuner.meta={}", "policy_pool={}"], "policy_pool: name one of 'run' .* and 'model'"),
        (["tuner.meta={}", "policy_pool={model: {base: review-lm}}"], "policy_pool.prompts: the model needs prompts"),
        (["tuner.meta={}", "policy_pool={run: nowhere}"], "policy_pool.run: 'nowhere' is not a run on texts"),
        (
            ["tuner.learning_rat=1"],
            r"on the command line: tuner.learning_rat: unknown key. Did you mean 'learning_rate'",
        ),
        (["denoise={type: flap}"], "'flap' is not a denoise. Did you mean 'flip'"),
        (["pairs={data: {file: none.jsonl}}"], r"there is no file 'none\.jsonl'"),
        (["pairs={}"], "name exactly one of data, run and labels"),
        (["model.sharded=true"], "model.sharded: a reward model is trained by one process"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(recipe: Path, overrides: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_reward_recipe(recipe, overrides)


POOL = "tuner.meta={}", "policy_pool={model: {base: review-lm}, prompts: {captions: [film]}}"
OTHERS = ("held_out={data: {captions: [{prompt: film, chosen: good, rejected: bad}]}}",)


@pytest.mark.parametrize(
    ("key", "given"), [("pairs.data", ()), ("held_out.data", OTHERS), ("policy_pool.prompts", POOL)]
)
@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("{file: none.jsonl}", r"^{}.file: there is no file 'none\.jsonl'"),
        ("{captions: [{prompt: a, response: ''}]}", "^{}.captions.0: 'response' is empty .* set {}.broken to skip"),
        ("{captions: [a], columns: {query: prompt}}", "^{}.columns: there is no column 'query' to rename"),
    ],
)
def test_a_mistake_in_data_is_told_under_their_key(
    recipe: Path, key: str, given: tuple[str, ...], data: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence.replace("{}", key)):
        load_reward_recipe(recipe, [*given, f"{key}={data}"])


@pytest.mark.parametrize(("key", "given"), [("pairs", ()), ("held_out", OTHERS)])
def test_pairs_that_do_not_say_which_is_better_are_told_under_their_key(
    recipe: Path, key: str, given: tuple[str, ...]
) -> None:
    unrated = "{captions: [{prompt: a, response: b}]}"
    with pytest.raises(UserError, match=f"^{key}.data: the prompt 'a': .* set {key}.data.broken to skip"):
        load_reward_recipe(recipe, [*given, f"{key}.data={unrated}"])
    with (
        pytest.warns(UserWarning, match=f"^{key}.data: 1 prompts were left out"),
        pytest.raises(UserError, match=f"^{key}.data: there is not one pair of answers"),
    ):
        load_reward_recipe(recipe, [*given, f"{key}.data={unrated}", f"{key}.data.broken=skip"])


def test_a_line_of_the_file_is_named(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("held_out_share", "held_out_shar"))
    with pytest.raises(UserError, match=r"words\.yaml:6: held_out_shar: unknown key"):
        load_reward_recipe(recipe)


def test_each_kind_of_recipe_is_sent_to_its_own_command(recipe: Path) -> None:
    assert medium_of(recipe) == "preferences"
    with pytest.raises(UserError, match="this trains a reward model.*raftdiff llm rm train"):
        load_recipe(str(recipe))
    with pytest.raises(UserError, match="this is a recipe for texts, and this command trains a reward model"):
        load_reward_recipe(recipes()["raft"])
    with pytest.raises(UserError, match="this is a recipe for pictures, and this command trains a reward model"):
        load_reward_recipe(recipes()["demo"])
    with pytest.raises(UserError, match="media"):
        load_text_recipe(recipe)
