"""The recipes that ship, and their schema."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from raftdiff.cli.main import main
from raftdiff.diffusion.recipe import Recipe
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.embedded.scenes.world import is_held_out, parse
from raftdiff.errors import UserError
from raftdiff.llm.data.prompts import read_prompts
from raftdiff.llm.pipeline import check, load_pipeline
from raftdiff.llm.recipe import load_text_recipe
from raftdiff.llm.reward_runs.recipe import divided, load_reward_recipe
from raftdiff.recipes.config import dump, plain
from raftdiff.recipes.files import locate, medium_of, recipes
from raftdiff.recipes.prompts import build

CONFIGS = Path(__file__).parents[3] / "configs"
NOT_HERE = ("wombat", "rm_hh", "rm_chitchat_smollm2", "rm_companion_smollm2", "rm_reviews_smollm2")
"""Recipes whose data lie elsewhere."""


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("**/*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads_and_says_what_it_is(path: Path) -> None:
    if medium_of(path) == "preferences":
        elsewhere = [
            "pairs={data: {captions: [{prompt: a, chosen: b, rejected: c}, {prompt: d, chosen: e, rejected: f}]}}"
        ]
        recipe: Any = load_reward_recipe(path, [*elsewhere, "held_out=null"] if path.stem in NOT_HERE else [])
        assert all(divided(recipe))
    elif medium_of(path) == "pipeline":
        recipe = load_pipeline(path)
        assert check(recipe, path)
    elif medium_of(path) == "text":
        elsewhere = ["prompts={captions: [What is rain]}", "sampler={type: policy}"] if path.stem in NOT_HERE else []
        recipe = load_text_recipe(path, elsewhere)
        assert read_prompts(recipe.prompts, path.parent, "prompts")
    else:
        recipe = load_recipe(str(path))
        assert build(recipe.prompts)
    assert recipe.name == path.stem
    schema, purpose, next_line = path.read_text().splitlines()[:3]
    assert schema == "# yaml-language-server: $schema=recipe.schema.json"
    assert len(purpose) > 20
    # it stands alone in lists and above --help, which ends it
    assert purpose[-1] != "."
    assert not next_line[2:3].islower()


def test_the_recipes_that_ship_are_those_in_the_folder() -> None:
    assert set(recipes()) == {path.stem for path in CONFIGS.glob("**/*.yaml")}
    pictures = {
        "demo",
        "scene_align",
        "scene_small",
        "sd15_256",
        "sd15_align",
        "sdxl_align",
        "sdxl_768",
        "sdxl_turbo",
        "sd35_medium",
        "zimage",
        "sana_1024",
        "flux_dev",
        "flux2_klein",
    }
    assert pictures | {"raft", "rrhf", "dpo", "rm_reviews"} <= set(recipes())


@pytest.mark.parametrize(
    ("media", "folder"), [("image", "."), ("text", "llm"), ("preferences", "rm"), ("pipeline", "pipelines")]
)
def test_the_schema_is_fresh(media: str, folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["schema", media])
    fresh = json.loads(capsys.readouterr().out)
    assert json.loads((CONFIGS / folder / "recipe.schema.json").read_text()) == fresh, "run: make schema"


@pytest.mark.parametrize("name", ["emoji_align", "configs/emoji_align.yaml"])
def test_a_recipe_that_is_gone_is_told_by_whatever_name(name: str) -> None:
    with pytest.raises(UserError, match="'emoji_align' is gone since 0.1; 'scene_align' takes its place"):
        load_recipe(name)


def test_a_recipe_for_texts_is_not_one_for_pictures() -> None:
    with pytest.raises(UserError, match="this is a recipe for texts"):
        load_recipe("raft")


def test_a_resolved_recipe_needs_no_other_file_and_reads_back(tmp_path: Path) -> None:
    recipe = load_recipe("sd15_256")
    assert recipe.prompts.file is None
    assert len(recipe.prompts.captions) == 10
    assert len(recipe.evaluation.prompts.captions) == 100
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    assert plain(load_recipe(str(tmp_path / "recipe.yaml"))) == plain(recipe)


def test_the_paper_s_job_is_the_paper_s_budget() -> None:
    recipe = load_recipe("sd15_256")
    assert (recipe.loop.candidates, recipe.sampler.height, recipe.finetuner.adapter) == (20, 256, "lora")


def test_two_rewards_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="two are called 'clip'"):
        load_recipe("sd15_256", ["ranker.rewards.0={type: clip, model: x}"])


def test_a_recipe_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="The nearest that ship: sd15_256"):
        load_recipe("sd15_265")
    with pytest.raises(UserError, match=r"There is no recipe file 'my/own\.yaml'"):
        load_recipe("my/own.yaml")


def test_descriptions_stand_in_the_schema() -> None:
    described = Recipe.model_json_schema()["$defs"]["LoopConfig"]["properties"]["candidates"]
    assert "Candidates per prompt" in described["description"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("iterated_rlhf", "iterated_rlhf: .* with: raftdiff llm pipeline iterated_rlhf."),
        ("rm_reviews", "rm_reviews: this trains a reward model, .*: raftdiff llm rm train"),
        ("raft", "raft.yaml: this is a recipe for texts, and this command is for pictures."),
    ],
)
def test_a_recipe_of_another_kind_is_refused_by_the_name_that_was_given(name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=f"^.*{sentence}") as caught:
        load_recipe(name)
    assert name == "raft" or str(caught.value).startswith(f"{name}: ")


def test_an_unknown_medium_is_told_with_file_and_line(tmp_path: Path) -> None:
    for word in ("video", "image"):
        (tmp_path / "odd.yaml").write_text((CONFIGS / "demo.yaml").read_text() + f"media: {word}\n")
        sentence = (
            rf"odd\.yaml:\d+: media: '{word}' is none of text, preferences, pipeline; a recipe for pictures has no"
        )
        with pytest.raises(UserError, match=sentence):
            load_recipe(str(tmp_path / "odd.yaml"))


def test_an_unknown_recipe_gets_the_three_nearest_names() -> None:
    with pytest.raises(UserError, match="no recipe file 'my/scene_alin.yaml'. The nearest that ship: scene_align,"):
        locate("my/scene_alin.yaml")
    with pytest.raises(
        UserError, match="'zzz' is no file and not a recipe that ships. The nearest that ship: "
    ) as caught:
        locate("zzz")
    assert len(str(caught.value)) < 200


def test_a_run_that_is_not_there_is_told_with_those_that_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"^There is no run 'runs/nope' \(no run.json\). If you meant a recipe, its file"
    ):
        locate("runs/nope")
    for age, name in enumerate(("cats", "dogs", "owls", "a", "b", "c")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text("{}")
        os.utime(tmp_path / "runs" / name / "run.json", (1e9 - age, 1e9 - age))
    (tmp_path / "runs/notes").mkdir()
    there = r"Runs there are: runs/cats, runs/dogs, runs/owls, runs/a, runs/b and 1 more\."
    for name in ("runs/zzz", "elsewhere/zzz", "exp.v2/zzz"):
        with pytest.raises(UserError, match=rf"^There is no run '{name}' \(no run.json\)\. {there}$"):
            locate(name)
    for name in ("runs", "runs/notes"):
        with pytest.raises(UserError, match=rf"^'{name}' is a folder without a run in it \(no run.json\)\. {there}$"):
            locate(name)
    with pytest.raises(UserError, match=r"Did you mean 'runs/owls'\? Runs there are: runs/owls, runs/cats"):
        locate("runs/owl")
    with pytest.raises(UserError, match=r"'owls' is no file and not a recipe .* Did you mean the run 'runs/owls'"):
        locate("owls")


def test_a_recipe_that_is_not_called_by_its_name_is_told_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "cats.yaml").write_text("name: cats\n")
    for name in ("my/cats", "my/cats.json"):
        with pytest.raises(
            UserError, match=rf"^There is no run '{name}' .*\. Did you mean the recipe 'my/cats.yaml'\?$"
        ):
            locate(name)
    with pytest.raises(UserError, match=r"The recipe 'demo' that ships is named without a folder\.$"):
        locate("configs/demo")
    for name in ("my/recipe.json", "my", "elsewhere/scene_alin"):
        with pytest.raises(UserError, match=r"its file ends in \.yaml\. The nearest that ship: .* raftdiff recipes"):
            locate(name)


def test_recipes_are_listed_by_what_they_are_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    groups = [group.splitlines() for group in capsys.readouterr().out.split("\n\n")]
    assert [group[0] for group in groups] == ["pictures:", "texts:", "reward models:", "pipelines:"]
    assert sorted(line.split()[0] for group in groups for line in group[1:]) == sorted(recipes())
    starts = {len(line) - len(line[2:].lstrip().partition(" ")[2].lstrip()) for group in groups for line in group[1:]}
    assert len(starts) == 1, "the descriptions stand under each other"


def test_the_scenes_to_align_are_ones_that_the_model_never_saw_and_no_two_are_the_same() -> None:
    recipe = load_recipe("scene_align")
    learnt, held_out = build(recipe.prompts), build(recipe.evaluation.prompts)
    captions = [prompt.caption for prompt in (*learnt, *held_out)]
    assert len(set(captions)) == len(captions) == 128
    scenes = [parse(caption) for caption in captions]
    assert all(scene is not None and is_held_out(scene) for scene in scenes)
    demo = load_recipe("demo")
    seen, other = (
        [parse(prompt.caption) for prompt in build(part)] for part in (demo.prompts, demo.evaluation.prompts)
    )
    assert None not in [*seen, *other]
    assert (len(set(seen)), len(set(other))) == (20, 24)
    assert not set(seen) & set(other)
    assert [sum(is_held_out(scene) for scene in part if scene) for part in (seen, other)] == [0, 12]
