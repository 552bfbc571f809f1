"""A run on texts from the command line: train, stop, continue, look, export; and what is said of mistakes."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from raftdiff.cli.main import main
from raftdiff.llm.data.prompts import DataConfig, read_prompts
from raftdiff.llm.model import tiny
from raftdiff.records.entries import found
from raftdiff.records.labels import Ballot, candidate_pairs, evaluation_pairs
from raftdiff.records.run import Run

WORDS = ("the", "film", "is", "good", "bad", "dull", "long", "and", "short", "my", "dog", "sleeps")
RECIPE = """
media: text
name: words
model: {{base: {model}}}
prompts: {{captions: [the film, my dog, the dog]}}
sampler: {{type: policy, decoding: {{max_new_tokens: 6}}, batch_size: 4}}
ranker:
  rewards: [{{type: regex, pattern: good, mode: count}}, {{type: kl, weight: 0.01}}]
  selector: {{type: best_of_k}}
finetuner: {{adapter: lora, learning_rate: 1.0e-2, epochs: 3, batch_size: 2}}
loop: {{rounds: 2, candidates: 4, seed: 0}}
evaluation:
  prompts: {{captions: [the long film, the short film]}}
  samples_per_prompt: 3
  every_round: 2
  rewards: [{{type: length, direction: more}}]
logging: {{tracker: null}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("lm") / "lm", WORDS)


@pytest.fixture
def recipe(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.yaml").write_text(RECIPE.format(model=model))
    return tmp_path / "words.yaml"


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the recipe; not to be written to."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "words.yaml").write_text(RECIPE.format(model=model))
    assert main(["train", str(folder / "words.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def said(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main([str(word) for word in words])
    return status, *capsys.readouterr()


def states(run: Path) -> dict[str, Any]:
    return {
        f"{file.parent.parent.name}/{file.stem}/{name}": tensor.tolist()
        for file in sorted(run.glob("rounds/*/state/*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def answers(run: Path) -> list[str]:
    files = sorted(run.glob("rounds/*/samples/metadata.jsonl"))
    return [json.loads(line)["text"] for file in files for line in file.read_text().splitlines()]


def test_train_evaluate_reply_judge_export(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = said(capsys, "train", recipe, "--out", "run")
    assert status == 0
    assert "round 1/1 | reward" in out
    assert len(answers(Path("run"))) == 24
    metrics = json.loads(Path("run/rounds/001/metrics.json").read_text())
    assert metrics["candidates"] == 12
    assert metrics["held_out_figures"]["kl"] != 0, "it has left the base"
    assert metrics["diversity_selected"]["distinct_1"] > 0

    status, out, _ = said(capsys, "eval", "run")
    assert status == 0
    assert "KL to the base" in out
    assert "  before" in out.splitlines()[2], "some answers stand side by side above the figures"
    evaluation = json.loads(Path("run/eval/eval.json").read_text())
    assert set(evaluation["rewards"]) == {"regex", "length"}
    assert evaluation["drift"]["kl"] != 0, "it has left the base"
    lines = [json.loads(line) for line in Path("run/eval/answers.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert lines[0]["before_scores"]["regex"] == lines[0]["before"].count("good")
    page = Path("run/eval/report.html").read_text()
    assert lines[0]["after"] in page
    assert "2 held-out prompts, 3 answers each" in page

    status, out, _ = said(capsys, "llm", "reply", "run", "the film", "--best-of", "4", "--before")
    assert status == 0
    assert out.splitlines()[0] == "the film"
    assert [line.split(":")[0].strip() for line in out.splitlines()[1:]] == ["before", "after"]

    status, out, _ = said(capsys, "llm", "judge", "run", "--reward", "length", "direction=more")
    assert status == 0
    assert "2 prompts:" in out
    assert "judged alike in both orders: 100%" in out

    status, out, _ = said(capsys, "export", "run")
    assert status == 0
    assert Path("run/export/peft/adapter_config.json").is_file()
    assert said(capsys, "export", "run", "--format", "merged")[0] == 0
    assert Path("run/export/merged/config.json").is_file()


def test_the_stages_one_at_a_time_give_what_train_gives(
    recipe: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(recipe), "--out", "parts"]) == 0
    for stage in ("score", "select", "tune", "sample", "score", "select", "tune"):
        assert main([stage, "parts"]) == 0
    assert states(Path("parts")) == states(finished)
    assert answers(Path("parts")) == answers(finished)
    status, _, err = said(capsys, "sample", "parts")
    assert status == 2
    assert "all 2 rounds are complete" in err


def test_a_finished_round_is_scored_again_into_a_new_run(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    change = "ranker.rewards=[{type: regex, pattern: bad, mode: count}]"
    assert main(["score", str(finished), "--round", "1", "--out", "again", change]) == 0
    assert main(["select", "again"]) == 0
    assert main(["tune", "again"]) == 0
    assert answers(Path("again")) == answers(finished)
    assert states(Path("again")) != states(finished)


def test_answers_that_differ_are_selected_from_a_finished_round(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(recipe), "--out", "run", "loop.rounds=1", "loop.candidates=6"]) == 0
    diverse = "ranker.selector={type: diverse, keep: 2, penalty: 1000}"
    assert main(["score", "run", "--round", "0", "--out", "again", diverse]) == 0
    assert main(["select", "again"]) == 0
    selection, told = Run(Path("again")).unfinished(0).selection(), Run(Path("run")).round(0).rows()
    words = {(row["prompt_id"], row["index"]): set(row["text"].split()) for row in told}
    chosen: dict[str, list[int]] = {}
    for item in selection.items:
        chosen.setdefault(item.keys[0].prompt, []).append(item.keys[0].index)
    for prompt, (one, other) in chosen.items():
        rest = [it for (of, index), it in words.items() if of == prompt and index not in (one, other)]
        shared = len(words[prompt, one] & words[prompt, other])
        assert shared <= min(max(len(words[prompt, k] & it) for k in (one, other)) for it in rest)
    assert main(["tune", "again"]) == 0


def test_what_people_chose_ranks_a_round_again_and_comes_out_as_pairs(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A veto of the answer that was learnt from, and a choice: what is learnt from follows them."""
    asked = "prompts={captions: [{prompt: the film, system: is good}, my dog]}"
    assert main(["train", str(recipe), "--out", "run", asked, "loop.rounds=1"]) == 0
    run = Run(Path("run"))
    ballot, pairs = Ballot(run, "ada"), candidate_pairs(run, 0, per_prompt=1, seed=0)
    learnt = {item.keys[0].prompt: item.keys[0].index for item in run.round(0).selection().items}
    ballot.veto(f"rounds/000/samples/my-dog-{learnt['my-dog']:03d}")
    (film,) = (pair for pair in pairs if pair.caption == "the film")
    ballot.choose(film, "right")

    status, out, _ = said(capsys, "labels", "run", "--pairs", "pairs.jsonl")
    assert status == 0
    assert "ada" not in out, "one rater needs no line apart"
    assert "all: 1 choice, of them 0 ties; 1 vetoed." in out
    assert "pairs.jsonl: 1 preference\n" in out
    (line,) = [json.loads(one) for one in Path("pairs.jsonl").read_text().splitlines()]
    texts = {f"{row['prompt_id']}-{row['index']:03d}": row["text"] for row in run.round(0).rows()}
    assert (line["prompt"], line["system"]) == ("the film", "is good")
    assert line["chosen"] == texts[film.right.rpartition("/")[2]]
    (prompt,) = read_prompts(DataConfig(file="pairs.jsonl"), Path(), "prompts")
    assert [answer["text"] for answer in prompt.meta["answers"]] == [line["chosen"], line["rejected"]]

    changed = "ranker.rewards=[{type: labels, run: run}]"
    assert main(["score", "run", "--round", "0", "--out", "again", changed]) == 0
    assert main(["select", "again"]) == 0
    chosen = {item.keys[0].prompt: item.keys[0].index for item in Run(Path("again")).unfinished(0).selection().items}
    assert f"the-film-{chosen['the-film']:03d}" == film.right.rpartition("/")[2]
    assert chosen["my-dog"] == min({0, 1, 2, 3} - {learnt["my-dog"]})


def test_an_evaluation_of_texts_can_be_labelled(recipe: Path) -> None:
    history = [{"role": "user", "content": "my dog"}, {"role": "assistant", "content": "good"}]
    asked = json.dumps({"captions": [{"prompt": "the dog", "history": history}]})
    assert main(["train", str(recipe), "--out", "run", f"evaluation.prompts={asked}", "loop.rounds=1"]) == 0
    assert main(["eval", "run", "--name", "mine"]) == 0
    run = Run(Path("run"))
    pairs = evaluation_pairs(run, "mine", seed=0)
    assert {name for pair in pairs for name in pair.names} == {
        f"eval/mine/{side}/the-dog-{index:03d}" for side in ("before", "after") for index in range(3)
    }
    rows = [json.loads(line) for line in Path("run/eval/mine/answers.jsonl").read_text().splitlines()]
    entries = found(run, pairs[0].names)
    index = int(pairs[0].left[-3:])
    assert entries[f"eval/mine/before/the-dog-{index:03d}"].media == rows[index]["before"]
    assert entries[f"eval/mine/after/the-dog-{index:03d}"].media == rows[index]["after"]
    assert rows[0]["history"] == entries[pairs[0].left].prompt.meta["history"] == history


def test_a_killed_run_continues_to_the_same_bits(
    recipe: Path, finished: Path, killed: Callable[..., None], in_sampling: Callable[[int], str]
) -> None:
    words = ["train", str(recipe), "--out", "killed"]
    killed(in_sampling(5), *words)
    kept = Path("killed/rounds/000.partial/samples/metadata.jsonl")
    assert 0 < len(kept.read_text().splitlines()) < 12, "the kill came in the middle of sampling"
    assert main(words) == 0
    assert answers(Path("killed")) == answers(finished)
    assert states(Path("killed")) == states(finished)


def test_methods_side_by_side(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = recipe.read_text()
    Path("pairs.yaml").write_text(
        text.replace("name: words", "name: pairs")
        .replace("{type: best_of_k}", "{type: best_worst}")
        .replace("adapter: lora,", "adapter: lora, objective: {type: preference},")
    )
    words = (
        "llm",
        "compare",
        "--methods",
        "words.yaml,pairs.yaml",
        "--rounds",
        "1",
        "--prompts",
        "3",
        "--candidates",
        "3",
    )
    status, out, _ = said(capsys, *words, "--seeds", "2", "--out", "side")
    assert status == 0
    lines = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")]
    assert lines == ["method", "---", "base", "best of 3, base", "words", "pairs"]
    rewards = [line.split("|")[2] for line in out.splitlines()[2:4] if line.startswith("|")]
    assert float(rewards[1].split("±")[0]) > float(rewards[0].split("±")[0]), "the best of several, by the reward"
    assert Path("side/table.md").read_text().splitlines()[4] in out
    measured = {file: file.stat().st_mtime_ns for file in Path("side").glob("*/outcome.json")}
    assert said(capsys, *words, "--seeds", "2", "--out", "side")[1] == out
    assert len(measured) == 4
    assert {file: file.stat().st_mtime_ns for file in measured} == measured, "measured runs are not made again"
    status, _, err = said(capsys, *words, "--out", "other", "--reward", "regexp")
    assert status == 2
    assert "its answers are not scored by 'regexp'" in err
    assert "Did you mean 'regex'?" in err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            "ranker.selector={type: best_worst}",
            "it selects pairs, the better first, and the objective 'sft' learns from candidates",
        ),
        ("finetuner.objective={type: rrhf}", "the objective 'rrhf' learns from rankings"),
        ("ranker.rewards.1.weight=x", "ranker.rewards.1"),
        ("ranker.rewards.0.type=sentimant", "'sentimant' is not a reward. Did you mean 'sentiment'?"),
        ("finetuner.learing_rate=1", "Did you mean 'learning_rate'?"),
        ("prompts.captions=[]", "prompts"),
        ("prompts.captions=[' ']", "prompts"),
        ("prompts.magic=[warm]", "prompts.magic: the template 'warm' lacks {prompt}"),
        ("evaluation.prompts.max_prompt_tokens=1", "Nothing is left"),
        ("evaluation.every_round=0 evaluation.prompts.max_prompt_tokens=1", "Nothing is left"),
        ("evaluation.every_round=0 evaluation.rewards=[{type: review}]", "is no prompt of the text world"),
        ("evaluation.every_round=0 evaluation.judge=reviews", "is no prompt of the text world"),
        (
            "evaluation.every_round=0 evaluation.decoding={max_new_tokens: 100000}",
            "evaluation.decoding.max_new_tokens: '",
        ),
        ("evaluation.prompts={} evaluation.every_round=0 evaluation.judge=reviews", "is no prompt of the text world"),
        ("sampler.decoding.max_new_tokens=100000", "raftdiff: sampler.decoding.max_new_tokens: '"),
        ("loop.patience=2 evaluation.every_round=0", "stopping needs a held-out reward"),
        ("loop.guard=stop evaluation.every_round=0", "to stop takes held-out figures"),
        ("model.base=./nowhere", "there is no folder or file './nowhere'"),
        ("model.template=chat", "has no chat template; use plain or alpaca"),
        ("model.max_prompt_tokens=2", "more than model.max_prompt_tokens"),
        ("sampler={type: dataset}", "has an answer in the data"),
        ("ranker.rewards=[{type: given}] evaluation.rewards=[]", "name a reward that can score the model's"),
        ("ranker.rewards=[{type: labels, run: run}] evaluation.rewards=[]", "name a reward that can score the model's"),
        (
            "sampler={type: mix, parts: [{share: 2, sampler: {type: policy}}]}",
            "the shares add up to 2 candidates, and loop.candidates is 4",
        ),
        (
            "ranker.selector={type: advantage} finetuner.objective={type: policy_gradient} "
            "sampler.decoding.temperature=0.8",
            "needs answers drawn from the model itself",
        ),
        (
            "ranker.selector={type: advantage} finetuner.objective={type: policy_gradient} loop.replay_rounds=1",
            "learns from fresh answers; make it 0",
        ),
        (
            "ranker.selector={type: advantage} finetuner.objective={type: policy_gradient} sampler={type: dataset}",
            "learns from the policy's own fresh answers",
        ),
    ],
)
def test_mistakes_get_a_sentence(change: str, sentence: str, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = said(capsys, "train", recipe, "--out", "run", *_overrides(change))
    assert status == 2
    assert sentence in err
    assert not Path("run").exists()


def _overrides(text: str) -> list[str]:
    """Overrides apart: a space begins a new one where a dotted key and "=" follow it."""
    return re.split(r" (?=[a-z_.0-9]+=)", text)


def test_commands_for_pictures_say_so(recipe: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["draw", finished, "a cat"], ["compare", finished]):
        status, _, err = said(capsys, *words)
        assert status == 2
        assert "this is a run on texts, and this command is for pictures" in err
    status, _, err = said(capsys, "plan", recipe)
    assert status == 2
    assert "this is a recipe for texts" in err
    status, _, err = said(capsys, "export", finished, "--format", "kohya")
    assert status == 2
    assert "exported as peft or merged" in err
    status, _, err = said(capsys, "eval", finished, "--steps", "3")
    assert status == 2
    assert "--steps is for pictures" in err
    status, _, err = said(capsys, "llm", "judge", finished, "--reward", "length")
    assert status == 2
    assert f"no evaluation is here; run: raftdiff eval {finished}" in err


def test_other_data_do_not_continue_a_run(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("asked.jsonl").write_text('{"prompt": "the film"}\n{"prompt": "my dog"}\n')
    words = ("train", recipe, "--out", "run", "prompts={file: asked.jsonl}", "loop.rounds=1")
    assert said(capsys, *words)[0] == 0
    assert said(capsys, "train", "run")[0] == 0
    Path("asked.jsonl").write_text('{"prompt": "the film"}\n{"prompt": "the dog"}\n')
    status, _, err = said(capsys, "eval", "run", "--prompts", "training")
    assert status == 2
    assert "is not what the run began with" in err


def test_a_round_without_a_pair_teaches_nothing_and_the_run_goes_on(recipe: Path) -> None:
    alike = "ranker.rewards=[{type: regex, pattern: nowhere, mode: count}]"
    pairs = ["ranker.selector={type: best_worst}", "finetuner.objective={type: preference}"]
    assert main(["train", str(recipe), "--out", "run", alike, *pairs]) == 0
    metrics = json.loads(Path("run/rounds/001/metrics.json").read_text())
    assert (metrics["selected"], metrics["tune"]) == (0, {"steps": 0.0})
