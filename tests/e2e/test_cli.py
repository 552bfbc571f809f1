"""The command line, on a random model of a few thousand weights: every command, and what it says when it is misused."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from raftdiff.cli.main import main
from raftdiff.diffusion.families.tiny.clip import TOKENS
from raftdiff.diffusion.models import tiny
from raftdiff.measures.pictures import coarse, opened

RECIPE = {
    "name": "tiny",
    "model": {"base": "MODEL", "device": "cpu"},
    "prompts": {"captions": ["a cat", "a dog", "a red car"], "magic": ["{caption}, sharp"]},
    "sampler": {"type": "diffusion", "steps": 2, "guidance": 2.0, "batch_size": 4},
    "ranker": {"rewards": [{"type": "jpeg"}], "selector": {"type": "best_of_k"}},
    "finetuner": {"type": "diffusion", "rank": 2, "steps": 2, "batch_size": 2},
    "loop": {"rounds": 2, "candidates": 3},
    "evaluation": {"prompts": {"captions": ["a bus"]}, "samples_per_prompt": 2, "every_round": 1},
    "logging": {"tracker": None},
}
LEFT = ("state/adapter", "state/optimizer")
"""What a round leaves to the next, with this recipe."""

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture
def recipe(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE).replace("MODEL", str(model)))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A finished run; not to be written to."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE).replace("MODEL", str(model)))
    assert main(["train", str(folder / "tiny.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


def states(run: Path) -> dict[str, bytes]:
    last = sorted((run / "rounds").iterdir())[-1]
    return {path.name: path.read_bytes() for path in sorted((last / "state").iterdir())}


def pictures(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.glob("rounds/*/samples/*.png"))}


def test_train_finishes_the_rounds_and_says_what_next(finished: Path) -> None:
    assert sorted(path.name for path in (finished / "rounds").iterdir()) == ["000", "001"]
    metrics = json.loads((finished / "rounds/001/metrics.json").read_text())
    assert metrics["candidates"] == 9
    assert metrics["network_evaluations"]["sample"] == 9 * 2 * 2
    row = json.loads((finished / "rounds/000/samples/metadata.jsonl").read_text().splitlines()[0])
    assert (row["caption"], row["sampling"], row["learning"]) == ("a cat", "a cat, sharp", "a cat")
    assert {"reward_jpeg", "total", "selected", "seed", "source"} <= row.keys()


def test_words_that_nobody_reads_are_told_before_a_run_begins(recipe: Path, tmp_path: Path) -> None:
    long = " ".join(["red"] * 80)
    words = [f"prompts.captions=[{long}, 'a <lora:x:1>']", "evaluation.prompts.captions=['a cat --ar 1:2']"]
    with pytest.warns(UserWarning) as warned:  # noqa: PT030  (several warnings, each looked at below)
        assert main(["sample", str(recipe), *words, "loop.candidates=1", "--out", str(tmp_path / "run")]) == 0
    told = "\n".join(str(one.message) for one in warned)
    assert f"the sampler reads {TOKENS} tokens, and 2 of 2 prompts are longer: of 'red red" in told
    assert f"the fine-tuner reads {TOKENS} tokens, and 1 of 2 prompts is longer: of 'red red" in told
    assert "the sampler reads NONE OF THE MAGIC WORDS of 1 of these" in told
    assert "'<lora:x:1>', a model to load elsewhere, in 1 of 2 prompts" in told
    assert "evaluation.prompts: what is or may be a sign in other programs" in told
    assert told.count("<lora") == 1


def test_the_same_command_again_does_nothing_new(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = states(finished)
    status, out, _ = said(capsys, "train", finished)
    assert status == 0
    assert f"all 2 rounds are done. For two more: raftdiff train {finished} loop.rounds=4" in out
    assert states(finished) == before


def test_a_finished_run_goes_on_with_more_rounds_and_another_reward(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    status, out, err = said(capsys, "train", run, "loop.rounds=3", "ranker.rewards.0.direction=incompressible")
    assert (status, err) == (0, err)
    assert f"{run}: from round 2 on with another loop.rounds, ranker.rewards.0.direction" in out
    assert "continuing with round 2, the last is round 2" in out
    assert "round 2/2 | reward" in out
    for t in range(2):
        told = (f"rounds/{t:03d}/metrics.json", f"rounds/{t:03d}/selection.json")
        assert all((run / name).read_bytes() == (finished / name).read_bytes() for name in told)
    _, out, _ = said(capsys, "show", run)
    lines = out.splitlines()
    at = next(place for place, line in enumerate(lines) if line.startswith("  round 2: reward"))
    assert lines[at - 1] == "  from here on with another loop.rounds, ranker.rewards.0.direction"


def test_the_stages_one_at_a_time_give_the_same_weights_as_the_loop(
    recipe: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The candidates of the second round in shards."""
    run = recipe.parent / "staged"
    assert said(capsys, "sample", recipe, "--out", run)[0] == 0
    for again in (["sample", run, "--shard", "2/2"], ["sample", run, "--shard", "1/2"], ["merge", run]), ():
        for stage in ("score", "select", "tune"):
            status, out, err = said(capsys, stage, run)
            assert (status, err) == (0, err), out
        assert [status for status, _, _ in (said(capsys, *words) for words in again)] == [0] * len(again)
    assert states(run) == states(finished)
    assert pictures(run) == pictures(finished)
    for words in ([], ["--shard", "1/2"]):
        status, _, err = said(capsys, "sample", run, *words)
        assert status == 2
        assert "all 2 rounds are complete" in err
    assert not (run / "rounds/002.partial").exists()


def test_a_finished_round_is_scored_again_with_another_reward_without_sampling(
    recipe: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = recipe.parent / "other"
    status, out, _ = said(
        capsys, "score", finished, "--round", 0, "--out", new, "ranker.rewards.0.direction=incompressible"
    )
    assert status == 0
    assert f"next: raftdiff select {new}" in out
    assert said(capsys, "select", new)[0] == 0

    def chosen(run: Path, name: str) -> set[str]:
        rows = (run / "rounds" / name / "samples/metadata.jsonl").read_text().splitlines()
        return {row["file_name"] for row in map(json.loads, rows) if row["selected"]}

    assert not chosen(new, "000.partial") & chosen(finished, "000")
    assert json.loads((new / "run.json").read_text())["parent"] == "run"


def test_a_finished_round_is_selected_from_again_by_how_alike_its_pictures_are(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of three pictures a prompt the best, and the one that is farther from it."""
    diverse = "ranker.selector={type: diverse, keep: 2, penalty: 1000}"
    assert said(capsys, "score", finished, "--round", 0, "--out", tmp_path / "new", diverse)[0] == 0
    status, out, _ = said(capsys, "select", tmp_path / "new")
    assert (status, out.splitlines()[0].startswith("6 selected")) == (0, True)
    held: dict[str, list[dict[str, Any]]] = {}
    for line in (tmp_path / "new/rounds/000.partial/samples/metadata.jsonl").read_text().splitlines():
        held.setdefault((row := json.loads(line))["prompt_id"], []).append(row)
    for rows in held.values():
        best, *others = sorted(rows, key=lambda row: row["total"], reverse=True)
        seen = {row["index"]: coarse(opened(finished / "rounds/000/samples" / row["file_name"])) for row in rows}
        far = min(others, key=lambda row: float(seen[row["index"]] @ seen[best["index"]]))
        assert {row["index"] for row in rows if row["selected"]} == {best["index"], far["index"]}


def test_a_selector_that_is_told_nonsense_is_a_sentence_before_anything_is_loaded(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for told, sentence in (
        ("{type: diverse, keep: 4}", "ranker.selector.keep: 4 of only 3 candidates (loop.candidates)."),
        ("{type: diverse, keep: 1}", "ranker.selector.keep: this should be at least 2"),
        ("{type: diverse, keep: 2, penalty: -1}", "ranker.selector.penalty: this should be at least 0"),
        ("{type: divers}", "Did you mean 'diverse'?"),
    ):
        status, _, err = said(capsys, "train", recipe, f"ranker.selector={told}", "model.base=nowhere")
        assert (status, sentence in err) == (2, True), err


def test_a_fork_to_a_rule_on_paths_is_refused_where_no_path_was_recorded(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = ["finetuner.learning={type: draft}", "ranker.rewards=[{type: clip, model: scene-clip}]"]
    status, _, err = said(capsys, "score", finished, "--round", 0, "--out", tmp_path / "x", *rule)
    assert (status, (tmp_path / "x").exists()) == (2, False)
    assert "round 0 was drawn without its path, which this recipe's fine-tuner learns from; begin a new run." in err


def test_a_fork_keeps_what_made_the_samples(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = said(capsys, "score", finished, "--round", 0, "--out", tmp_path / "x", "loop.candidates=2")
    assert (status, "with another loop.candidates the samples would be others" in err) == (2, True)
    status, _, err = said(
        capsys, "score", finished, "--round", 0, "--out", tmp_path / "x", "ranker.rewards.0.type=clap"
    )
    assert (status, "Did you mean 'clip'?" in err) == (2, True)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("stage", ["select", "tune", "score"])
def test_a_stage_does_not_silently_ignore_what_it_is_told(
    finished: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = said(capsys, stage, finished, "finetuner.learning_rate=1")
    assert (status, "these keys would change: finetuner.learning_rate" in err) == (2, True)


def test_eval_writes_what_it_prints(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = said(capsys, "eval", finished, "--json", "--name", "printed")
    assert status == 0
    printed = json.loads(out)
    assert printed == json.loads((finished / "eval/printed/eval.json").read_text())
    assert (printed["prompts"], printed["samples_per_prompt"]) == (1, 2)
    assert set(printed["rewards"]["jpeg"]) >= {"before", "after", "win_rate"}
    assert set(printed["rewards"]["jpeg"]["before"]) >= {"mean", "std", "ci95"}
    assert printed["network_evaluations"] == 2 * 2 * 2 * 2
    assert printed["drift"]["prediction"] > 0
    assert (finished / "eval/printed/report.html").stat().st_size > 5000
    assert len(list((finished / "eval/printed/before").glob("*.png"))) == 2


def test_eval_on_a_file_and_on_the_training_prompts(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("a tree\na house\n")
    assert main(["eval", str(finished), "--prompts", str(tmp_path / "own.txt"), "--name", "own", "--samples", "1"]) == 0
    assert main(["eval", str(finished), "--prompts", "training", "--name", "training", "--round", "0"]) == 0
    assert json.loads((finished / "eval/own/eval.json").read_text())["prompts"] == 2
    assert json.loads((finished / "eval/training/eval.json").read_text())["prompts"] == 3


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["sampler.height=24", "evaluation.height=32"], ["sampler.height: * with evaluation.height=32. Change"]),
        (["sampler.guidance=3", "evaluation.guidance=1.5"], ["sampler.guidance: * with evaluation.guidance=1.5."]),
        (
            ["sampler.sizes=[[24, 24], [16, 32]]", "evaluation.height=16", "evaluation.width=16"],
            ["sampler.sizes: * with evaluation.height=16 and evaluation.width=16."],
        ),
        (
            ["sampler.height=24", "sampler.width=24", "evaluation.height=16", "evaluation.width=32"],
            ["sampler.height: * with evaluation.height=16.", "sampler.width: * with evaluation.width=32."],
        ),
    ],
)
def test_eval_says_what_the_evaluation_has_its_own_word_on(
    finished: Path, overrides: Sequence[str], told: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = said(capsys, "eval", finished, *overrides, "--name", "other")
    assert status == 2
    assert err.count("this changes nothing here") == len(told)
    for one in told:
        assert one.replace("*", "this changes nothing here: models are looked at") in err
    assert not (finished / "eval/other").exists()


def test_eval_takes_a_size_of_the_samplers_where_the_evaluation_has_none(finished: Path) -> None:
    assert main(["eval", str(finished), "sampler.height=24", "evaluation.width=32", "--name", "low"]) == 0
    (drawn, *_) = (finished / "eval/low/before").glob("*.png")
    assert opened(drawn).size == (32, 24)


def test_eval_over_guidance_compares_each_model_at_its_best(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = said(capsys, "eval", finished, "--guidance", "2,1,3", "--name", "over")
    assert status == 0
    found = json.loads((finished / "eval/over/eval.json").read_text())
    curve, best = found["guidance"]["curve"], found["guidance"]["best"]
    assert [(it["guidance"], it["evaluations"]) for it in curve] == [(1.0, 2), (2.0, 4), (3.0, 4)]
    each = {side: {it["guidance"]: it["figures"]["reward.jpeg"][side] for it in curve} for side in best}
    for side, strength in best.items():
        assert each[side][strength] == max(each[side].values()) == found["rewards"]["jpeg"][side]["mean"]
    assert found["network_evaluations"] == sum(2 * 2 * it["evaluations"] for it in curve)
    assert f"the base at {best['before']:g} (" in out
    assert "guidance  evaluations  jpeg, before  jpeg, after" in out
    page = (finished / "eval/over/report.html").read_text()
    assert "Over guidance" in page
    assert f"the tuned model at {best['after']:g}" in page
    status, _, _ = said(capsys, "eval", finished, "evaluation.guidance=2", "--name", "alone")
    alone = json.loads((finished / "eval/alone/eval.json").read_text())
    assert alone["rewards"]["jpeg"]["after"]["mean"] == pytest.approx(each["after"][2.0])
    assert "Over guidance" not in (finished / "eval/alone/report.html").read_text()
    status, _, _ = said(capsys, "eval", finished, "--guidance", "1,1e38", "--name", "beyond")
    assert status == 0
    assert len(json.loads((finished / "eval/beyond/eval.json").read_text())["guidance"]["curve"]) == 1
    status, _, err = said(capsys, "eval", finished, "--guidance", "1e37,1e38", "--name", "none")
    assert (status, "With guidance 1e+38: All 2 pictures are blank" in err) == (2, True)
    for wrong in ("1,x", "-1", "nan", ",", ""):
        status, _, err = said(capsys, "eval", finished, f"--guidance={wrong}")
        assert (status, "give strengths from 0 on with commas between" in err) == (2, True)


def test_what_was_selected_for_another_rule_is_not_replayed(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, rule = recipe.parent / "run", "finetuner.learning={type: dpo}"
    assert main(["train", str(recipe), "--out", str(run), "loop.rounds=1", "loop.replay_rounds=1"]) == 0
    asked = ["train", str(run), "loop.rounds=2", rule, "ranker.selector={type: best_worst}"]
    status, _, err = said(capsys, *asked)
    assert status == 0, err
    told = json.loads((run / "rounds/001/metrics.json").read_text())
    assert (told["not_replayed"], told["not_replayed_kind"]) == (1, "weighted")
    assert "1 earlier round selected 'weighted'" in said(capsys, "show", run)[1]


@pytest.mark.parametrize("kind", ["diffusers", "kohya", "merged"])
def test_export(finished: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / ("lora.safetensors" if kind == "kohya" else kind)
    status, printed, _ = said(capsys, "export", finished, "--format", kind, "--out", out)
    assert status == 0
    assert out.exists()
    assert str(out) in printed


def test_a_file_in_the_place_of_what_is_exported_is_told_before_the_model_is_loaded(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raftdiff.cli.export.prepared", lambda run, recipe: pytest.fail("the model was loaded"))
    (tmp_path / "file").touch()
    for out in ("file", "file/lora", "file/lora.safetensors"):
        status, _, err = said(capsys, "export", finished, "--out", tmp_path / out)
        assert status == 2
        assert f"{tmp_path / 'file'} is a file, and a folder goes there; give another name." in err


def test_plan_counts_what_the_run_then_does(recipe: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = said(capsys, "plan", recipe, "--json", "--machines", "2,64")
    assert status == 0
    plan, metrics = json.loads(out), json.loads((finished / "rounds/000/metrics.json").read_text())
    assert plan["per_round"]["images"] == metrics["candidates"]
    assert plan["per_round"]["sampling_evaluations"] == metrics["network_evaluations"]["sample"]
    assert plan["per_round"]["tuning_steps"] == metrics["tune"]["steps"]
    assert plan["measured"]["trained_parameters"] > 0
    assert [plan["machines"][machines]["at_work"] for machines in ("2", "64")] == [2, 3]
    assert plan["machines"]["64"]["seconds"] < plan["machines"]["2"]["seconds"] < plan["seconds_per_round"]
    held = {file: load_file(finished / f"rounds/000/{file}.safetensors") for file in ("latents", *LEFT)}
    numbers = {file: sum(tensor.nbytes for tensor in tensors.values() if tensor.ndim) for file, tensors in held.items()}
    assert plan["traffic"]["to_each"] == sum(numbers[file] for file in LEFT)
    shown = [opened(file) for file in (finished / "rounds/000/samples").glob("*.png")]
    assert plan["traffic"]["from_all"] == numbers["latents"] + sum(3 * one.width * one.height for one in shown)
    rows = [{"caption": f"cat {n}", "tag": tag} for n, tag in enumerate(("counting", "colors", "colors") * 2)]
    Path("tagged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, out, _ = said(capsys, "plan", recipe, "prompts.captions=null", "prompts.file=tagged.jsonl")
    assert "prompts by tag         colors 4, counting 2" in out
    assert "parameters trained" in out
    assert "time for all rounds" in out


def test_check_reward_on_a_good_and_on_a_bad_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "check_me.py").write_text(
        "import random\n"
        "def redness(images, prompts):\n    return [sum(i.resize((1, 1)).getpixel((0, 0))[:1]) / 255 for i in images]\n"
        "def moody(images, prompts):\n    return [random.random() for _ in images]\n"
        "def short(images, prompts):\n    return [1.0]\n"
    )
    assert said(capsys, "check-reward", "jpeg")[0] == 0
    assert said(capsys, "check-reward", "check_me:redness")[0] == 0
    assert said(capsys, "check-reward", "check_me:moody")[0] == 1
    status, _, err = said(capsys, "check-reward", "jpg")
    assert (status, "'jpg' is not a reward. Did you mean 'jpeg'?" in err) == (2, True)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["finetuner.learing_rate=1"], "finetuner.learing_rate: unknown key. Did you mean 'learning_rate'?"),
        (["ranker.rewards.0.type=aesthetik"], "'aesthetik' is not a reward. Did you mean 'aesthetic'?"),
        (["model.base=/nowhere/model"], "there is no folder or file '/nowhere/model' here"),
        (["prompts.captions=[]"], "there is no prompt"),
        (["prompts.captions=[{caption: a, id: x}, {caption: b, id: x}]"], "have the same id 'x'"),
        (["evaluation.prompts.captions=[{id: x}]"], "evaluation.prompts: prompt 1 has no caption"),
        (["evaluation.prompts.magic=[high quality]"], "evaluation.prompts"),
        (["loop.prompts_per_round=9"], "9 prompts a round, but there are only 3 prompts"),
        (["ranker.rewards.0.weight=0"], "every weight is 0"),
        (["evaluation.judge=scene-juge"], "evaluation.judge: this should be 'scene-judge' or null"),
        (["evaluation.judge=emoji-judge"], "'emoji-judge' is gone since 0.1; 'scene-judge' takes its place."),
        (["model.base=emoji-sd"], "'emoji-sd' is gone since 0.1; 'scene-sd' takes its place."),
        (["ranker.selector.keep=4"], "4 of only 3 candidates"),
        (
            ["loop.candidates=1", "finetuner.learning={type: dpo}", "ranker.selector={type: best_worst}"],
            "loop.candidates: a pair takes two candidates of a prompt",
        ),
        (
            ["loop.candidates=1", "finetuner.learning={type: kto}", "ranker.selector={type: threshold}"],
            "loop.candidates: the selector 'threshold' compares the candidates of a prompt",
        ),
        (["loop.patience=2", "evaluation.every_round=0"], "stopping needs a held-out reward"),
        (["loop.guard=rollback", "evaluation.every_round=0"], "to rollback takes held-out figures"),
        (["logging.tracker=tensorbored"], "'tensorbored' is not a tracker. Did you mean 'tensorboard'?"),
        (["model.attention=xformers"], "pip install 'raftdiff[xformers]'"),
        (["sampler.height=17"], "must be multiples of"),
        (["finetuner.target_modules=[nothing]"], "nothing"),
    ],
)
def test_bad_input_gets_a_sentence(
    recipe: Path, overrides: Sequence[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = said(capsys, "train", recipe, *overrides)
    assert status == 2
    assert sentence in err
    assert "Traceback" not in err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        ("[1.0]", "a list of 1 items (float). It should return 9 numbers"),
        ("[float('nan')] * len(images)", "is NaN (discard) for all 9 candidates"),
    ],
)
def test_a_reward_that_cannot_be_ranked_by_is_a_sentence_and_the_samples_stay(
    recipe: Path, returned: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"short_reward_{len(returned)}"
    (recipe.parent / f"{name}.py").write_text(f"def mine(images, prompts):\n    return {returned}\n")
    rewards = f"ranker.rewards=[{{type: callable, function: '{name}:mine'}}]"
    changes = ("evaluation.every_round=0", "evaluation.prompts.captions=[]", "--out", "run")
    status, _, err = said(capsys, "train", recipe, rewards, *changes)
    assert status == 2
    assert sentence in err
    assert len(list(Path("run/rounds/000.partial/samples").glob("*.png"))) == 9


def test_a_run_of_another_recipe_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "train", recipe, "--out", "run", "loop.rounds=1")[0] == 0
    status, _, err = said(capsys, "train", recipe, "--out", "run", "loop.rounds=1", "finetuner.rank=3")
    assert status == 2
    assert "begun with another recipe; these keys differ: finetuner.rank" in err
    status, _, err = said(capsys, "train", "run", "finetuner.rank=3")
    assert "its weights were begun with this finetuner.rank; for another begin a new run" in err


def test_a_reward_that_ends_the_program_is_not_taken_for_success(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path.cwd() / "leaving.py").write_text("import sys\n\n\ndef score(images, prompts):\n    sys.exit(0)\n")
    status, _, err = said(
        capsys, "train", recipe, "--out", "new", 'ranker.rewards=[{type: callable, function: "leaving:score"}]'
    )
    assert status == 2
    assert "leaving.py:5: the program was ended here (sys.exit), before the command was done" in err


def test_what_is_missing_is_told_before_a_run_is_begun(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = ("model.base=path/to/sd15", "model.dtype=float16", "model.device=cpu")
    for command in (("train", recipe, "--out", "new"), ("sample", recipe, "--out", "new"), ("plan", recipe)):
        status, _, err = said(capsys, *command, *missing)
        assert status == 2
        assert "model.base: there is no folder or file 'path/to/sd15' here" in err
        assert "model.dtype: float16 needs a GPU" in err
        assert not Path("new").exists()


def test_a_run_of_a_world_that_is_gone_can_be_looked_at_and_says_what_took_its_place(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    told = (run / "recipe.yaml").read_text().replace("judge: null", "judge: emoji-judge")
    (run / "recipe.yaml").write_text(told)
    assert said(capsys, "show", run)[0] == 0
    status, _, err = said(capsys, "eval", run)
    assert (status, "'emoji-judge' is gone since 0.1; 'scene-judge' takes its place." in err) == (2, True)


def test_a_run_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = said(capsys, "eval", tmp_path / "none")
    assert (status, "not a run directory" in err) == (2, True)
    status, _, err = said(capsys, "train", "demmo")
    assert "The nearest that ship: demo, " in err


def test_a_full_disk_is_a_sentence(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    status, _, err = said(capsys, "train", recipe)
    assert status == 3
    assert "the disk is full" in err


def test_a_killed_process_continues_to_the_same_bits(
    recipe: Path, finished: Path, killed: Callable[..., None], in_sampling: Callable[[int], str]
) -> None:
    run = recipe.parent / "killed"
    words = ["train", str(recipe), "--out", str(run)]
    killed(in_sampling(4), *words)
    rows = (run / "rounds/000.partial/samples/metadata.jsonl").read_text().splitlines()
    assert 0 < len(rows) < 9, "the kill came in the middle of sampling"
    assert main(words) == 0
    assert states(run) == states(finished)
    assert pictures(run) == pictures(finished)


def test_a_second_command_cannot_change_the_recipe_of_a_run_that_is_starting(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from raftdiff.diffusion.recipe_files import load_recipe
    from raftdiff.records.run import Run

    run = Run.create(recipe.parent / "run", load_recipe(str(recipe)), seed=0)
    before = (run.path / "recipe.yaml").read_bytes()
    with run.locked():
        status, _, err = said(capsys, "train", recipe, "--out", run.path, "finetuner.rank=3")
    assert status == 2
    assert "another raftdiff process is working on this run" in err
    assert (run.path / "recipe.yaml").read_bytes() == before


def test_other_weights_under_the_same_name_do_not_continue_a_run(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.write_folder(recipe.parent / "mine", "sd15")
    words = ("train", recipe, "--out", "run", f"model.base={model}", "loop.rounds=1")
    assert said(capsys, *words)[0] == 0
    tiny.write_folder(model, "sd15", seed=1)
    for command in (words, ("eval", "run")):
        status, _, err = said(capsys, *command)
        assert status == 2
        assert f"begun with other weights of {model}" in err


def test_ctrl_c_leaves_a_run_that_continues(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from raftdiff.diffusion import sampler

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sampler, "decode", interrupted)
        status, _, err = said(capsys, "train", recipe, "--out", "run", "loop.rounds=1")
        assert status == 130
        assert "the same command continues" in err
    assert said(capsys, "train", recipe, "--out", "run", "loop.rounds=1")[0] == 0


def test_help_loads_no_library_that_takes_its_time() -> None:
    program = (
        "import sys; import raftdiff; from raftdiff.cli.main import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit:\n    print(*(name for name in sys.modules if '.' not in name), file=sys.stderr)"
    )
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert "usage: raftdiff" in told.stdout
    slow = {"torch", "numpy", "pydantic", "yaml", "PIL", "diffusers", "transformers", "peft", "open_clip", "gradio"}
    assert not slow & set(told.stderr.split())


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    for command in ("train", "demo", "eval", "sample", "score", "select", "tune", "export", "plan", "check-reward"):
        assert f"\n    {command} " in out or f"\n    {command}\n" in out
