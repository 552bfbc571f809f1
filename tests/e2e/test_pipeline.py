"""A pipeline from the command line, on tiny models: reward model, policy, reward model again, policy again."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file

from raftdiff.cli.main import main
from raftdiff.llm.model import tiny

WORDS = ("the", "film", "is", "good", "bad", "dull", "long", "and", "short", "my", "dog", "sleeps", "fun", "flat")
POLICY = """
media: text
name: tuned
model: {{base: {model}}}
prompts: {{captions: [the film, my dog, the dog]}}
sampler: {{type: policy, decoding: {{max_new_tokens: 4}}, batch_size: 4}}
ranker: {{rewards: [{{type: regex, pattern: good}}], selector: {{type: best_of_k}}}}
finetuner: {{adapter: lora, learning_rate: 1.0e-2, epochs: 2, batch_size: 2}}
loop: {{rounds: 2, candidates: 3}}
evaluation: {{prompts: {{captions: [the long film]}}, samples_per_prompt: 2}}
logging: {{tracker: null}}
"""
REWARD = """
media: preferences
name: liked
model: {{base: {model}}}
pairs: {{data: {{file: pairs.jsonl}}}}
held_out_share: 0.25
tuner: {{adapter: full, learning_rate: 1.0e-3, epochs: 2, batch_size: 4}}
loop: {{rounds: 2}}
logging: {{tracker: null}}
"""
PIPELINE = """
media: pipeline
name: again
stages:
  - id: rm
    recipe: reward.yaml
  - id: policy
    recipe: policy.yaml
    overrides:
      - "ranker.rewards=[{type: reward_model, model: {rm.model}}]"
      - "evaluation.rewards=[{type: regex, pattern: good, mode: count, name: truth}]"
  - id: refreshed
    recipe: reward.yaml
    overrides: ["tuner.meta={answers: 2, batch_size: 2, eta: 1.0e-3}", "policy_pool={run: {policy}}"]
  - id: policy_again
    recipe: policy.yaml
    overrides: ["model.base={policy.model}", "ranker.rewards=[{type: reward_model, model: {refreshed.model}}]"]
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    model = tiny.write(folder / "lm", WORDS)
    asked = [" ".join(words) for words in product(("the", "my"), ("film", "dog"), ("is", "and"))]
    lines = [{"prompt": one, "chosen": "good fun", "rejected": "bad flat"} for one in asked]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "policy.yaml").write_text(POLICY.format(model=model))
    (folder / "reward.yaml").write_text(REWARD.format(model=model))
    (folder / "again.yaml").write_text(PIPELINE)
    return folder / "again.yaml"


class Whole(NamedTuple):
    """A pipeline that was run without a stop."""

    out: Path
    said: str


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Whole:
    out, said = recipe.parent / "whole", io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["llm", "pipeline", str(recipe), "--out", str(out)]) == 0
    return Whole(out, said.getvalue())


def weights(out: Path) -> dict[str, Any]:
    """Of every stage after its last round, and of the models that were passed on."""
    files = [*out.glob("*/rounds/001/state/*.safetensors"), *out.glob("*/model/*.safetensors")]
    return {
        f"{file.relative_to(out)}/{name}": tensor.tolist()
        for file in sorted(files)
        for name, tensor in load_file(file).items()
    }


def test_every_stage_is_run_and_told(whole: Whole) -> None:
    assert [line for line in whole.said.splitlines() if line.startswith("stage ")] == [
        "stage 1 of 4, rm: reward",
        "stage 2 of 4, policy: policy",
        "stage 3 of 4, refreshed: reward",
        "stage 4 of 4, policy_again: policy",
    ]
    text = (whole.out / "table.md").read_text()
    assert text in whole.said
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert head == ["stage", "accuracy", "reward_model, trained on", "truth", "KL"]
    assert [row[0] for row in rows] == ["rm", "policy", "refreshed", "policy_again"]
    assert [bool(row[1]) for row in rows] == [True, False, True, False]
    evaluation = json.loads((whole.out / "policy/eval/eval.json").read_text())
    for name, cell in zip(("reward_model", "truth"), rows[1][2:4], strict=True):
        assert cell == " → ".join(f"{evaluation['rewards'][name][side]['mean']:.3f}" for side in ("before", "after"))
    assert float(rows[1][4]) == round(evaluation["drift"]["kl"], 1)
    assert rows[3][3] == "", "the second policy was not asked for the truth"


def test_a_later_stage_begins_with_what_an_earlier_one_made(whole: Whole) -> None:
    assert (whole.out / "pipeline.yaml").read_text().count("{policy.model}") == 1
    assert len((whole.out / "refreshed/pool.jsonl").read_text().splitlines()) == 3, (
        "the policy's answers to its prompts"
    )
    assert not (whole.out / "policy_again/model").exists(), "nobody asked for it"
    merged, base = (load_file(folder / "model.safetensors") for folder in (whole.out / "policy/model", _lm(whole)))
    assert set(merged) == set(base)
    assert any(not merged[name].equal(base[name]) for name in base), "it holds what the first policy learnt"
    before = [json.loads(line) for line in (whole.out / "policy_again/eval/answers.jsonl").read_text().splitlines()]
    after = [json.loads(line) for line in (whole.out / "policy/eval/answers.jsonl").read_text().splitlines()]
    assert [one["before"] for one in before] == [one["after"] for one in after], "the same seeds, the same model"


def test_a_model_that_a_finished_stage_did_not_write_is_written(recipe: Path, whole: Whole, tmp_path: Path) -> None:
    model = whole.out / "policy/model"
    shutil.move(model, tmp_path / "kept")  # as where nobody had asked for it
    assert main(["llm", "pipeline", str(recipe), "--out", str(whole.out)]) == 0
    kept, again = (load_file(folder / "model.safetensors") for folder in (tmp_path / "kept", model))
    assert all(kept[name].equal(again[name]) for name in kept)


def _lm(whole: Whole) -> Path:
    return whole.out.parent / "lm"


def test_a_finished_pipeline_is_told_again_and_a_changed_one_refused(
    recipe: Path, whole: Whole, capsys: pytest.CaptureFixture[str]
) -> None:
    stamps = {file: file.stat().st_mtime_ns for file in whole.out.glob("*/**/*.safetensors")}
    assert main(["llm", "pipeline", str(recipe), "--out", str(whole.out)]) == 0
    again = capsys.readouterr().out
    assert "round" not in again, "finished stages are passed over"
    assert again.splitlines()[-6:] == whole.said.splitlines()[-6:]
    assert {file: file.stat().st_mtime_ns for file in whole.out.glob("*/**/*.safetensors")} == stamps

    assert main(["llm", "pipeline", str(recipe), "policy.loop.rounds=3", "--out", str(whole.out)]) == 2
    assert "these keys differ: policy.loop.rounds" in capsys.readouterr().err
    new = recipe.parent / "new"
    assert main(["llm", "pipeline", str(recipe), "policy_again.loop.rond=3", "--out", str(new)]) == 2
    assert "Did you mean 'rounds'?" in capsys.readouterr().err
    assert not new.exists(), "nothing is begun before everything was read"
    assert main(["train", str(recipe)]) == 2
    assert "raftdiff llm pipeline" in capsys.readouterr().err


def test_all_that_the_stages_lack_is_told_before_anything_is_made(
    recipe: Path, whole: Whole, capsys: pytest.CaptureFixture[str]
) -> None:
    new = recipe.parent / "lacking"
    lacking = [
        "policy.evaluation.rewards=[{type: likelihood, model: {base: nobody/nothing}}]",
        "policy_again.ranker.rewards=[{type: likelihood, model: {base: nobody/else}}]",
    ]
    assert main(["llm", "pipeline", str(recipe), *lacking, "--out", str(new)]) == 2
    told = capsys.readouterr().err
    assert "policy: evaluation.rewards.0.model.base: 'nobody/nothing' is not in the hub's cache here" in told
    assert "policy_again: ranker.rewards.0.model.base: 'nobody/else' is not in the hub's cache here" in told
    assert not new.exists()
    shutil.copytree(whole.out, new)
    (new / "policy_again.json").unlink()
    shutil.rmtree(new / "policy_again")
    assert main(["llm", "pipeline", str(recipe), lacking[1], "--out", str(new)]) == 2
    assert "policy_again: ranker.rewards.0.model.base" in capsys.readouterr().err
    corrected = "policy_again.ranker.rewards=[{type: regex, pattern: good}]"
    assert main(["llm", "pipeline", str(recipe), corrected, "--out", str(new)]) == 0, "only what began is held to"
    assert "policy_again: regex" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["refreshed/rounds/000", "policy/model.partial"])
def test_a_killed_pipeline_continues_to_the_same_bits(
    where: str, recipe: Path, whole: Whole, killed: Callable[..., None]
) -> None:
    out = recipe.parent / f"killed-{where.replace('/', '-')}"
    patch = f"""
from pathlib import Path
import raftdiff.cli.llm.pipeline as pipeline, raftdiff.records.rounds as rounds
commit, sync = rounds.Draft.commit, pipeline.sync_all
def die_there(made):
    if Path({str(out / where)!r}).exists():
        die()
    return made
rounds.Draft.commit = lambda *held: die_there(commit(*held))
pipeline.sync_all = lambda folder: die_there(sync(folder))
"""
    killed(patch, "llm", "pipeline", recipe, "--out", out)
    assert (out / where).exists(), "the kill came in the middle of a stage"
    assert not (out / f"{where.partition('/')[0]}.json").exists()
    assert main(["llm", "pipeline", str(recipe), "--out", str(out)]) == 0
    assert weights(out) == weights(whole.out)
    assert (out / "table.md").read_text() == (whole.out / "table.md").read_text()


def test_a_stage_that_draws_answers_alone_is_complete_and_whoever_goes_on_with_it_spoils_nothing(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = recipe.with_name("drawn.yaml"), recipe.parent / "drawn"
    score = "ranker.rewards=[{type: length, direction: more}]"
    file.write_text(f"""
media: pipeline
name: drawn
stages:
  - {{id: answers, recipe: policy.yaml, until: scores, overrides: ["{score}"]}}
  - {{id: reward, recipe: reward.yaml, overrides: ["pairs={{run: {{answers}}, per_prompt: all}}"]}}
""")
    words, answers = ["llm", "pipeline", str(file), "--out", str(out)], str(out / "answers")
    assert main(words) == 0
    table = (out / "table.md").read_text()
    told = json.loads((out / "reward/rounds/000/metrics.json").read_text())["tune"]
    capsys.readouterr()
    assert main(["show", answers]) == 0
    assert "round 0 is drawn and scored, 9 candidates: all that was asked (until: scores)" in capsys.readouterr().out
    for command in (["eval", answers], ["llm", "reply", answers, "the film"]):
        assert main(command) == 2
        err = capsys.readouterr().err
        assert "it drew and scored answers, all that was asked of it (until: scores)" in err
        assert "raftdiff train" not in err
    assert main(["label", answers, "--no-browser"]) == 2
    assert f"finish the first with: raftdiff train {answers} loop.rounds=1" in capsys.readouterr().err

    for rounds in (1, 3):
        assert main(["train", answers, f"loop.rounds={rounds}"]) == 0, "by whoever does so all the same"
    assert main(["llm", "rm", "eval", str(out / "reward"), "--json"]) == 0, "its pairs are what they were"
    (out / "reward.json").unlink()
    shutil.rmtree(out / "reward")
    (out / "answers.json").unlink()
    assert main(words) == 0
    assert not (out / "answers/rounds/000.partial").exists(), "the answers that are there are not drawn again"
    assert json.loads((out / "reward/rounds/000/metrics.json").read_text())["tune"] == told
    assert (out / "table.md").read_text() == table
