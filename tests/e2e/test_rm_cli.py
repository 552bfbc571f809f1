"""A reward model from the command line: train, kill, continue, look, measure; and what is said of mistakes."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from raftdiff.cli.main import main
from raftdiff.llm.model import tiny
from raftdiff.records.labels import Ballot, Pair
from raftdiff.records.run import Run
from raftdiff.testing.toy import TOY_PAIR_WORDS, toy_pairs

WORDS = (*TOY_PAIR_WORDS, "my", "long", "and", "short", "sleeps")
POLICY = """
media: text
name: policy
model: {{base: {model}, device: cpu}}
prompts: {{captions: [the film, my dog, the dog]}}
sampler: {{type: policy, decoding: {{max_new_tokens: 6}}, batch_size: 4}}
ranker:
  rewards: [{{type: regex, pattern: good, mode: count}}]
  selector: {{type: best_of_k}}
finetuner: {{adapter: full, learning_rate: 1.0e-2, batch_size: 2}}
loop: {{rounds: 1, candidates: 8}}
logging: {{tracker: null}}
"""
RECIPE = """
media: preferences
name: words
model: {{base: {model}, device: cpu}}
pairs: {{data: {{file: pairs.jsonl}}}}
held_out_share: 0.25
tuner: {{adapter: full, learning_rate: 3.0e-3, epochs: 3, batch_size: 4}}
loop: {{rounds: 3}}
logging: {{tracker: null}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("lm") / "lm", WORDS)


@pytest.fixture
def recipe(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy_pairs(24)))
    (tmp_path / "words.yaml").write_text(RECIPE.format(model=model))
    (tmp_path / "policy.yaml").write_text(POLICY.format(model=model))
    return tmp_path / "words.yaml"


def said(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main([str(word) for word in words])
    return status, *capsys.readouterr()


def weights(run: Path) -> dict[str, Any]:
    files = [*run.glob("rounds/*/state/*.safetensors"), *run.glob("model/*.safetensors")]
    return {
        f"{file.relative_to(run)}/{name}": tensor.tolist() for file in files for name, tensor in load_file(file).items()
    }


def test_train_look_and_use(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = said(capsys, "llm", "rm", "train", recipe, "--out", "run")
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == "run: 3 parts, 16 pairs, 8 held out"
    assert lines[1].startswith("trained: ")
    (first,) = (line for line in lines if line.startswith("part 0/2 | loss "))
    assert "% right in training | held-out " in first
    assert first.endswith(" left")
    assert "as a reward: {type: reward_model, model: run}" in out

    status, out, _ = said(capsys, "show", "run")
    assert status == 0
    assert "words: 3 of 3 parts done" in out
    assert "the model: run/model" in out

    status, out, _ = said(capsys, "llm", "rm", "eval", "run")
    assert status == 0
    assert "accuracy ↑" in out
    found = json.loads(Path("run/eval/eval.json").read_text())
    assert (found["pairs"], found["trained_on"], found["accuracy"]) == (8, 0, 1.0)
    assert Path("run/eval/report.html").stat().st_size > 10_000

    status, out, _ = said(capsys, "llm", "rm", "eval", "run/model", "--pairs", "pairs.jsonl", "--out", "look", "--json")
    assert status == 0
    assert json.loads(out)["pairs"] == 24

    broken = json.dumps({"prompt": "film", "chosen": "good", "rejected": ""})
    Path("one_broken.jsonl").write_text(Path("pairs.jsonl").read_text().rstrip() + f"\n{broken}\n")
    look = ("llm", "rm", "eval", "run/model", "--pairs", "one_broken.jsonl", "--out", "look_again", "--json")
    with pytest.warns(UserWarning, match=r"^--pairs: 1 of 25 rows were left out \(the first: "):
        status, out, _ = said(capsys, *look)
    assert (status, json.loads(out)["pairs"]) == (0, 24)

    rewarded = ["ranker.rewards=[{type: reward_model, model: run}]", "--out", "rewarded"]
    status, _, err = said(capsys, "train", "policy.yaml", *rewarded)
    assert status == 0, err
    totals = [
        json.loads(line)["total"]
        for line in Path("rewarded/rounds/000/samples/metadata.jsonl").read_text().splitlines()
    ]
    assert len(set(totals)) > 5


def test_two_models_on_the_same_pairs(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, contrast in (("plain", "none"), ("apart", "simcse")):
        words = ["--out", name, f"tuner.contrast={{type: {contrast}}}", "loop.rounds=1"]
        assert said(capsys, "train", recipe, *words)[0] == 0, "the same as llm rm train"
    status, out, _ = said(capsys, "llm", "rm", "eval", "apart", "--before", "plain", "--pairs", "pairs.jsonl")
    assert status == 0
    assert out.splitlines()[0].split() == ["plain", "apart"]
    found = json.loads(Path("apart/eval/eval.json").read_text())
    assert found["trained_on"] == 16
    assert found["before"]["features"]["mixing"] != found["features"]["mixing"]


IN_THE_SECOND_PART = """
import raftdiff.llm.reward_runs.training as runs
say, said = runs._validated, []
def saying(parts, report):
    said.append(parts)
    if len(said) == 2:
        die()
    return say(parts, report)
runs._validated = saying
"""


def test_a_killed_training_continues_to_the_same_bits(recipe: Path, killed: Callable[..., None]) -> None:
    words = ["llm", "rm", "train", str(recipe), "--out"]
    assert main([*words, "finished"]) == 0
    killed(IN_THE_SECOND_PART, *words, "killed")
    assert Run(Path("killed")).rounds_done() == 1, "the kill came in the middle of the second part"
    assert main([*words, "killed"]) == 0
    assert weights(Path("killed")) == weights(Path("finished"))


def test_strength_goes_into_the_data_and_out_again(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = ["llm", "rm", "strength", recipe, "--models", "2", "--out", "strong.jsonl", "loop.rounds=1"]
    status, out, _ = said(capsys, *measured)
    assert status == 0
    assert "model 2/2 agrees with " in out
    lines = [json.loads(line) for line in Path("strong.jsonl").read_text().splitlines()]
    assert len(lines) == 24
    assert all(line["sigma"] > 0 for line in lines)
    assert Path("strong.html").is_file()
    _, _, *words = shlex.split(out.splitlines()[-1].split(": ", 1)[1])
    assert words == [
        "rm",
        "train",
        str(recipe),
        "loop.rounds=1",
        "pairs={data: {file: strong.jsonl}}",
        "denoise={type: flip}",
    ]
    again = said(capsys, *measured)
    assert again[0] == 0
    assert [json.loads(line) for line in Path("strong.jsonl").read_text().splitlines()] == lines

    flipped = ["pairs.data.file=strong.jsonl", "denoise={type: flip, share: 1.0}", "loop.rounds=1", "--out", "flipped"]
    assert said(capsys, "llm", "rm", "train", recipe, *flipped)[0] == 0
    assert json.loads(Path("flipped/rounds/000/metrics.json").read_text())["held_out_pairs"]["accuracy"] == 0.0
    other = [*measured[:4], "--models", "1", "--out", "strong.jsonl", "tuner.epochs=1"]
    assert said(capsys, *other)[0] == 2, "members of another recipe"


def test_pairs_of_a_run_and_of_its_labels_train_a_model(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "train", "policy.yaml", "--out", "policy")[0] == 0
    status, out, _ = said(capsys, "llm", "rm", "pairs", "policy", "--out", "found.jsonl")
    assert status == 0
    rows = [json.loads(line) for line in Path("found.jsonl").read_text().splitlines()]
    assert out.startswith(f"found.jsonl: {len(rows)} pairs")
    assert 0 < len(rows) <= 3
    assert all(row["chosen"].count("good") > row["rejected"].count("good") for row in rows)

    of_run = recipe.with_name("of_run.yaml")
    of_run.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), "pairs": {"run": "policy"}}))
    then = shlex.split(out.splitlines()[1].removeprefix("next: raftdiff "))
    words = [str(of_run) if word == "RECIPE" else word for word in then]
    status, out, err = said(capsys, *words, "held_out_share=0", "loop.rounds=1", "--out", "of_rounds")
    assert status == 0, err
    assert "none held out" in out
    assert "next: raftdiff llm rm eval of_rounds --pairs FILE\n" in out

    assert "nobody" not in out
    assert said(capsys, "llm", "rm", "pairs", "policy", "--labels", "--out", "l.jsonl")[2].endswith(
        "label some with: raftdiff label policy.\n"
    )
    drawn = [f"rounds/000/samples/my-dog-{index:03d}" for index in range(8)]
    texts = [json.loads(line) for line in Path("policy/rounds/000/samples/metadata.jsonl").read_text().splitlines()]
    mine = [row["text"] for row in texts if row["prompt_id"] == "my-dog"]
    other = next(index for index in range(1, 8) if mine[index] and mine[0] and mine[index] != mine[0])
    Ballot(Run(Path("policy")), "ada").choose(Pair("my dog", drawn[0], drawn[other]), "right")
    status, _, err = said(capsys, "llm", "rm", "pairs", "policy", "--labels", "--out", "l.jsonl")
    assert status == 0, err
    (row,) = [json.loads(line) for line in Path("l.jsonl").read_text().splitlines()]
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("my dog", mine[other], mine[0])

    pool = ["tuner.meta={answers: 2}", "policy_pool={run: policy}", "loop.rounds=1", "--out", "meta"]
    status, _, err = said(capsys, "llm", "rm", "train", recipe, *pool)
    assert status == 0, err
    assert len(Path("meta/pool.jsonl").read_text().splitlines()) == 3


def test_mistakes_are_sentences(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "llm", "rm", "train", recipe, "--out", "run", "loop.rounds=1", "held_out_share=0")[0] == 0
    short = "model.max_prompt_tokens=1"
    for words, sentence in (
        (("llm", "rm", "train", "run", "tuner.epochs=9"), "these keys would change: tuner.epochs"),
        (("llm", "rm", "train", "run", "--out", "x"), "is a run and stays where it is"),
        (("llm", "rm", "train", "raft"), "this is a recipe for texts, and this command trains a reward model"),
        (("llm", "rm", "train", "rm_review"), "The nearest that ship: rm_reviews, "),
        (("llm", "rm", "eval", "run"), "held out no pairs; name others: --pairs FILE"),
        (("llm", "rm", "eval", "run/model"), "a model without its run, so name the pairs"),
        (("llm", "rm", "eval", "nowhere", "--pairs", "pairs.jsonl"), "there is no folder"),
        (("llm", "rm", "strength", recipe, "--out", "a.csv"), "name a file that ends in .jsonl"),
        (("llm", "rm", "strength", recipe, "--out", "new.jsonl", short), "pairs.data.too_long: skip"),
        (("llm", "rm", "train", recipe, "--out", "new", short), "pairs.data.too_long: skip"),
        (("llm", "rm", "pairs", "run", "--out", "a.jsonl"), "this is no run on texts"),
        (
            ("llm", "rm", "pairs", "run", "--labels", "--per-prompt", "ALL", "--out", "a"),
            "--per-prompt: of people's lab",
        ),
        (("eval", "run"), "this trains a reward model, which has commands of its own"),
        (("export", "run"), "its run's folder 'model', in the transformers format"),
        (("sample", recipe), "this trains a reward model"),
        (("llm", "reply", "run", "hello"), "this trains a reward model"),
    ):
        status, _, err = said(capsys, *words)
        assert status == 2, words
        assert sentence in err, words
    assert not [*Path().glob("new*")], "what is refused begins nothing"
    with pytest.raises(SystemExit):
        said(capsys, "llm", "rm", "pairs", "run", "--per-prompt", "every", "--out", "a.jsonl")
    assert "--per-prompt: 'every' is neither a number from 1 nor 'all'" in capsys.readouterr().err


def test_the_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = said(capsys, "recipes")
    assert any(line.startswith("  rm_reviews ") for line in out.splitlines())
