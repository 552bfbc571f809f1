"""Pipelines: everything that can be known to be wrong is said before anything is trained."""

import json
from pathlib import Path

import pytest
import yaml

from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.embedded.reviews import world
from raftdiff.errors import UserError
from raftdiff.llm.pipeline import PipelineRecipe, check, filled, load_pipeline, stages
from raftdiff.llm.pipeline_folder import BEGUN, begin
from raftdiff.llm.recipe import TextRecipe
from raftdiff.recipes.config import read
from raftdiff.recipes.files import locate
from raftdiff.records.run import Run

POLICY = """
media: text
name: tuned
model: {base: review-lm}
prompts: {captions: ["comedy about robots :", "western about ghosts :"]}
sampler: {type: policy, decoding: {max_new_tokens: 6}}
ranker: {rewards: [{type: review}], selector: {type: best_of_k}}
finetuner: {adapter: full}
loop: {rounds: 2, candidates: 4}
"""
REWARD = """
media: preferences
name: liked
model: {base: review-lm}
pairs: {data: {file: pairs.jsonl}}
held_out_share: 0.25
loop: {rounds: 2}
"""
PIPELINE = """media: pipeline
name: again
stages:
  - id: rm
    recipe: reward.yaml
  - id: policy
    recipe: policy.yaml
    overrides:
      - "ranker.rewards=[{type: reward_model, model: {rm.model}}]"
      - prompts.magic=["{prompt} well"]
  - id: rm2
    recipe: reward.yaml
    overrides: ["tuner.meta={answers: 3}", "policy_pool={run: {policy}}", "loop.seed=1"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "reward.yaml").write_text(REWARD)
    pair = {"chosen": "it is charming .", "rejected": "it is awful ."}
    lines = [json.dumps({"prompt": f"{genre} about robots :", **pair}) for genre in world.GENRES]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    (tmp_path / "again.yaml").write_text(PIPELINE)
    return tmp_path / "again.yaml"


def refused(file: Path, old: str = "", new: str = "", *overrides: str) -> str:
    file.write_text(PIPELINE.replace(old, new))
    with pytest.raises(UserError) as caught:
        check(load_pipeline(file, overrides), file)
    return str(caught.value).replace(f"{file.parent}/", "")


def test_a_later_stage_is_given_the_folders_of_earlier_ones(file: Path, tmp_path: Path) -> None:
    rm, policy, rm2 = stages(load_pipeline(file), tmp_path, tmp_path / "out, [1]")
    assert rm.path == tmp_path / "out, [1]" / "rm"
    assert (rm.asked_for_model, policy.asked_for_model) == (True, False), "only the policy's run folder is used"
    assert (rm.of_policy, policy.of_policy) == (False, True)
    tuned = read(TextRecipe, policy.source, policy.overrides)
    assert tuned.ranker.rewards[0].model == str(rm.path / "model"), "whatever the folder's name"
    assert tuned.prompts.magic == ["{prompt} well"], "a recipe's own {prompt} is left alone"
    assert rm2.overrides[1] == f"policy_pool={{run: '{policy.path}'}}"
    assert rm2.overrides[2] == "loop.seed=1"


@pytest.mark.parametrize("folder", ["plain", "a, b", "x: y #z", "it's", "ünder", "[1]", "null", "12"])
def test_a_folder_may_be_called_anything(folder: str, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY)
    for text in ("model.base={a}", "model={base: {a}, template: '{a}/x {prompt}'}"):
        recipe = read(TextRecipe, tmp_path / "policy.yaml", [filled(text, {"a": Path(folder), "b": Path("other")})])
        assert recipe.model.base == folder
        assert recipe.model.template in ("auto", f"{folder}/x {{prompt}}")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "{rm.model}",
            "{rn.model}",
            "again.yaml:9: stages.1.overrides.0: '{rn.model}' names no stage. Did you mean 'rm'?",
        ),
        (
            "recipe: reward.yaml\n  -",
            "recipe: reward.yaml\n    overrides: ['loop.seed={x}']\n  -",
            "No stage is before",
        ),
        ("{rm.model}", "{rm2.model}", "again.yaml:9: stages.1.overrides.0: '{rm2.model}' comes later; a stage can use"),
        ("{rm.model}", "{policy.model}", "'{policy.model}' is this stage itself"),
        ("{rm.model}", "{rm.weights}", "there is {rm}, the run folder, and {rm.model}, the model's folder"),
        ("id: rm2", "id: rm", "again.yaml:11: stages.2.id: two stages are called 'rm'"),
        ("id: rm2", "id: prompt", "'prompt' means something else already"),
        ("id: rm2", "id: ../rm", "again.yaml:11: stages.2.id"),
        ("{prompt} well", "well", "the stage 'policy': prompts.magic: the template 'well' lacks {prompt}"),
        ("recipe: policy", "recipe: polcy", "the stage 'policy': There is no recipe file 'polcy.yaml'"),
        ("recipe: policy.yaml", "recipe: demo", "demo.yaml is neither for texts nor of a reward model"),
        ("media: pipeline", "media: text", "this is a recipe for texts, and this command runs a pipeline"),
        ("overrides: [", "overides: [", "Did you mean 'overrides'?"),
        (
            "loop.seed=1",
            "loop.sed=1",
            "again.yaml:11: the stage 'rm2': in its overrides: loop.sed: unknown key.",
        ),
        ("policy_pool={run: {policy}}", "policy_pool={run: {rm}}", "is not a run on texts"),
        ("reward_model, model", "reward_model, modle", "ranker.rewards.0.modle: unknown key"),
    ],
)
def test_mistakes_get_a_sentence_before_anything_is_trained(old: str, new: str, sentence: str, file: Path) -> None:
    assert sentence in refused(file, old, new)
    assert {path.name for path in file.parent.iterdir()} == {"again.yaml", "policy.yaml", "reward.yaml", "pairs.jsonl"}


def test_a_stage_is_changed_by_its_name(file: Path) -> None:
    changed = check(load_pipeline(file, ["policy.loop.rounds=7", "stages.2.id=last", "name=other"]), file)
    assert list(changed) == ["rm", "policy", "last"]
    assert changed["policy"]["loop"]["rounds"] == 7
    assert "'polizy' is no stage of this pipeline and no key of it. Did you mean 'policy'?" in refused(
        file, "", "", "polizy.loop.rounds=7"
    )


def test_what_is_run_of_a_stage_is_changed_by_its_name_too(file: Path) -> None:
    file.write_text(PIPELINE.replace("recipe: policy.yaml", "recipe: policy.yaml\n    until: scores"))
    assert stages(load_pipeline(file), file.parent, file.parent)[1].until == "scores"
    changed = load_pipeline(
        file, ["policy.until=end", "policy.loop.rounds=7", "stages.2.id=last", "last.recipe=reward"]
    )
    assert (changed.stages[1].until, changed.stages[2].recipe) == ("end", "reward")
    assert changed.stages[1].overrides[-1] == "loop.rounds=7"
    assert "stages.1.until: " in refused(file, "", "", "policy.until=never")
    assert "'polizy' is no stage of this pipeline" in refused(file, "", "", "polizy.until=end")
    assert "'policy': an override is written key.path=value" in refused(file, "", "", "policy")


def test_a_pipeline_that_began_before_a_key_was_known_goes_on(file: Path, tmp_path: Path) -> None:
    recipe = load_pipeline(file)
    now, out = check(recipe, file), tmp_path / "out"
    begin(out, recipe.name, now)
    old = yaml.safe_load((out / BEGUN).read_text())
    del old["policy"]["loop"]["sample_every"]
    (out / BEGUN).write_text(yaml.safe_dump(old))
    begin(out, recipe.name, now)
    (out / "policy.json").write_text("{}")
    old["policy"]["loop"]["candidates"] = 77
    (out / BEGUN).write_text(yaml.safe_dump(old))
    with pytest.raises(UserError, match=r"another pipeline began this folder; these keys differ: policy\.loop\.cand"):
        begin(out, recipe.name, now)


def test_what_a_pipeline_is_names_no_folder_of_the_moment(file: Path) -> None:
    found = check(load_pipeline(file), file)
    assert found == check(load_pipeline(file), file)
    assert found["policy"]["ranker"]["rewards"][0]["model"] == "{rm.model}"
    assert found["rm2"]["policy_pool"]["run"] == "{policy}"


def test_a_stage_whose_id_begins_like_another_keeps_its_own_folder(file: Path) -> None:
    change = "ranker.rewards=[{type: reward_model, model: {rm2.model}}]"
    more = f"  - {{id: last, recipe: policy.yaml, overrides: ['{change}']}}\n"
    file.write_text(PIPELINE + more)
    found = check(load_pipeline(file), file)
    assert found["last"]["ranker"]["rewards"][0]["model"] == "{rm2.model}"


def test_pairs_that_an_earlier_stage_makes_are_read_when_they_are_there(file: Path) -> None:
    file.write_text(
        PIPELINE.replace('"tuner.meta={answers: 3}", "policy_pool={run: {policy}}"', '"pairs={run: {policy}}"')
    )
    found = check(load_pipeline(file), file)
    assert found["rm2"]["pairs"]["run"] == "{policy}", "and they are part of what the pipeline is"
    changed = check(load_pipeline(file, ["rm2.pairs.per_prompt=2"]), file)["rm2"]["pairs"]
    assert changed == {**found["rm2"]["pairs"], "per_prompt": 2}
    with pytest.raises(UserError, match=r"the stage 'rm2': in its overrides: pairs\.per_promt: unknown key"):
        check(load_pipeline(file, ["rm2.pairs.per_promt=2"]), file)


LATER = '"tuner.meta={answers: 3}", "policy_pool={run: {policy}}"', '"pairs={run: {policy}}"'


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("pairs={data: {file: nosuch.jsonl}}", "pairs.data.file: there is no file 'nosuch.jsonl'"),
        (
            "pairs={run: nosuch}",
            "pairs.run: 'nosuch' is not a run directory (it has no run.json). It is to be a run on",
        ),
        ("pairs={run: {rm}}", "pairs.run: {rm} trains a reward model, which answers nothing"),
        ("pairs.rounds=[0, 2]", "pairs.rounds: {policy} has 2 rounds, and the first is 0; there is no round 2."),
        ("held_out={data: {file: nosuch.jsonl}}", "held_out.data.file: there is no file 'nosuch.jsonl'"),
    ],
)
def test_pairs_that_no_earlier_stage_makes_are_read_at_once(change: str, sentence: str, file: Path) -> None:
    said = refused(file, *LATER, f"rm2.{change}")
    assert "again.yaml:11: the stage 'rm2': " in said
    assert sentence in said
    (file.parent / "nosuch.jsonl").write_text((file.parent / "pairs.jsonl").read_text())
    if "data" in change:
        check(load_pipeline(file, [f"rm2.{change}"]), file)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("pairs={labels: {policy}}", "pairs.labels: {policy} draws answers alone (until: scores), and people compare"),
        ("pairs.rounds=[1]", "pairs.rounds: {policy} has 1 round, and the first is 0; there is no round 1."),
    ],
)
def test_answers_that_are_drawn_alone_have_one_round_and_no_labels(change: str, sentence: str, file: Path) -> None:
    file.write_text(PIPELINE.replace(*LATER).replace("recipe: policy.yaml", "recipe: policy.yaml\n    until: scores"))
    with pytest.raises(UserError) as caught:
        check(load_pipeline(file, [f"rm2.{change}"]), file)
    assert sentence in str(caught.value)
    (pinned,) = (one for one in stages(load_pipeline(file), file.parent, file.parent / "out") if one.id == "rm2")
    assert pinned.read().pairs.rounds == [0]  # type: ignore[attr-defined]
    pinned.path.mkdir(parents=True)
    (pinned.path / "run.json").write_text("{}")
    (pinned.path / "recipe.yaml").write_text("pairs: {run: somewhere, rounds: null}")
    assert pinned.read().pairs.rounds is None, "an earlier version began it without"  # type: ignore[attr-defined]


def test_a_folder_whose_pairs_were_written_down_as_overrides_goes_on(file: Path, tmp_path: Path) -> None:
    file.write_text(PIPELINE.replace(*LATER))
    now, out = check(load_pipeline(file), file), tmp_path / "out"
    begin(out, "again", now)
    (out / "rm2.json").write_text("{}")
    stand_in = {"data": {"captions": ["a"]}}
    old = {**now, "rm2": {**now["rm2"], "pairs": stand_in, "read later": ["pairs={run: {policy}}"]}}
    (out / BEGUN).write_text(yaml.safe_dump({"name": "again", "order": [*now], **old}))
    begin(out, "again", now)


def test_a_stage_may_draw_answers_alone_for_a_later_ones_pairs(file: Path) -> None:
    alone = PIPELINE.replace("recipe: policy.yaml", "recipe: policy.yaml\n    until: scores").replace(
        '"tuner.meta={answers: 3}", "policy_pool={run: {policy}}"', '"pairs={run: {policy}, per_prompt: 2}"'
    )
    file.write_text(alone)
    found = check(load_pipeline(file), file)
    assert found["policy"]["until"] == "scores"
    assert "until" not in found["rm"]
    begin(file.parent / "out", "again", found)
    begin(file.parent / "out", "again", found)
    file.write_text(alone.replace("{run: {policy}, per_prompt: 2}", "{run: {policy.model}}"))
    with pytest.raises(UserError, match=r"'policy': until: scores: it learns nothing, so there is no {policy.model}"):
        check(load_pipeline(file), file)
    file.write_text(PIPELINE.replace("recipe: reward.yaml", "recipe: reward.yaml\n    until: scores", 1))
    with pytest.raises(UserError, match="'rm': until: scores is for recipes on texts, which draw answers"):
        check(load_pipeline(file), file)


def test_the_folder_belongs_to_one_pipeline(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    recipe = load_pipeline(file)
    begin(out, recipe.name, check(recipe, file))
    begin(out, recipe.name, check(recipe, file))
    Run.create(out / "policy", stages(recipe, tmp_path, out)[1].read(), seed=0)
    (out / "policy/rounds/000.partial").mkdir()
    other = load_pipeline(file, ["policy.finetuner.learning_rate=1", "policy.logging.tracker=null"])
    with pytest.raises(UserError, match="these keys differ: policy.finetuner.learning_rate. Change them back"):
        begin(out, other.name, check(other, file))
    (tmp_path / "policy.yaml").write_text(POLICY.replace("candidates: 4", "candidates: 5"))
    with pytest.raises(UserError, match="these keys differ: policy.loop.candidates"):
        begin(out, recipe.name, check(recipe, file))
    with pytest.raises(
        UserError, match=r"this is the folder of the pipeline 'again', and this one is 'other'; name an"
    ):
        begin(out, "other", check(recipe, file))
    with pytest.raises(UserError, match="no pipeline's folder and not empty"):
        begin(tmp_path, recipe.name, {})
    aside = tmp_path / "aside"
    aside.mkdir()
    (aside / "pipeline.yaml.tmp").write_text("half of")  # a kill while it was begun
    begin(aside, recipe.name, {})


def test_what_is_yet_to_begin_may_be_another(file: Path, tmp_path: Path) -> None:
    out, recipe = tmp_path / "out", load_pipeline(file)
    begin(out, recipe.name, check(recipe, file))
    corrected = load_pipeline(file, ["policy.finetuner.learning_rate=1", "rm.loop.rounds=3"])
    begin(out, corrected.name, now := check(corrected, file))
    assert yaml.safe_load((out / BEGUN).read_text())["policy"]["finetuner"]["learning_rate"] == 1
    (out / "policy.json").write_text("{}")
    last = load_pipeline(file, ["policy.finetuner.learning_rate=1", "rm.loop.rounds=3", "rm2.loop.rounds=9"])
    begin(out, last.name, check(last, file))
    assert yaml.safe_load((out / BEGUN).read_text())["rm2"]["loop"]["rounds"] == 9
    with pytest.raises(
        UserError, match=r"these keys differ: policy\.finetuner\.learning_rate, rm\.loop\.rounds\. Chan"
    ):
        begin(out, recipe.name, check(recipe, file))  # the first is held too: the second was made of it
    (out / "rm2.json").write_text("{}")
    with pytest.raises(UserError, match=r"these keys differ: rm2\.loop\.rounds"):
        begin(out, corrected.name, now)


def test_other_commands_name_the_one_for_pipelines(file: Path) -> None:
    with pytest.raises(UserError, match="raftdiff llm pipeline"):
        load_recipe(str(file))


def test_the_pipeline_that_ships(tmp_path: Path) -> None:
    path = locate("iterated_rlhf")
    recipe = load_pipeline(path)
    found = check(recipe, path)
    assert [one["media"] for one in found.values()] == ["preferences", "text", "preferences", "text"]
    assert found["policy_again"]["model"]["base"] == "{policy.model}"
    assert isinstance(recipe, PipelineRecipe)
