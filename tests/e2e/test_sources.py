"""Candidates that the policy did not draw, through the command line, on a random model of a few thousand weights."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from raftdiff.cli.main import main
from raftdiff.diffusion.models import tiny
from raftdiff.records.disk import read_json, read_json_lines
from raftdiff.records.run import Run

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
DRAWING = {"steps": 2, "guidance": 2.0, "batch_size": 4}
Train = Callable[..., Path]


@pytest.fixture
def train(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Write a recipe with these parts changed, and train it."""
    monkeypatch.chdir(tmp_path)

    def trained(*overrides: str, **parts: Mapping[str, Any]) -> Path:
        recipe = {
            "name": "tiny",
            "model": {"base": str(model), "device": "cpu"},
            "prompts": {"captions": ["a cat", "a dog"]},
            "ranker": {"rewards": [{"type": "jpeg"}], "selector": {"type": "best_of_k"}},
            "finetuner": {"type": "diffusion", "rank": 2, "steps": 2, "batch_size": 2},
            "loop": {"rounds": 2, "candidates": 3, "sample_every": 2},
            "evaluation": {"prompts": {"captions": ["a bus"]}, "samples_per_prompt": 1, "every_round": 1},
            "logging": {"tracker": None},
            **parts,
        }
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
        assert main(["train", "tiny.yaml", "--out", "run", *overrides]) == 0
        return tmp_path / "run"

    return trained


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A picture of a cat, two of a dog."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for place, name in enumerate(("cat", "dog-1", "dog-2")):
        noise = np.random.default_rng(place).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {name.split('-')[0]}")
    return folder


def rows(run: Path, round: int) -> list[dict[str, Any]]:
    return read_json_lines(run / f"rounds/{round:03d}/samples/metadata.jsonl")


def metrics(run: Path, round: int) -> dict[str, Any]:
    return dict(read_json(run / f"rounds/{round:03d}/metrics.json"))


MIXED = {
    "type": "mix",
    "parts": [
        {"share": 1, "sampler": {"type": "diffusion", **DRAWING}},
        {"share": 1, "sampler": {"type": "teacher", "drawing": DRAWING}},
        {"share": 1, "sampler": {"type": "folder", "path": "pictures"}},
    ],
}


def test_a_mixture_of_policy_teacher_and_folder(train: Train, pictures: Path, model: Path) -> None:
    run = train(sampler=MIXED)
    for t in (0, 1):
        assert sorted((row["prompt_id"], row["index"], row["source"]) for row in rows(run, t)) == [
            (prompt, index, source)
            for prompt in ("a-cat", "a-dog")
            for index, source in enumerate(("policy", "teacher", "dataset"))
        ]
    assert [metrics(run, t)["network_evaluations"]["sample"] for t in (0, 1)] == [2 * 2 * 4, 0]
    assert metrics(run, 0)["network_evaluations"]["validate"] == 2 * 4  # drawn as the policy is
    assert main(["eval", "run"]) == 0
    assert main(["train", "run", "loop.rounds=3"]) == 0  # continues, and finds the folder as it was


def test_a_mixture_killed_within_its_second_part_ends_in_the_same_bits(
    train: Train, pictures: Path, killed: Callable[..., None], in_sampling: Callable[[int], str]
) -> None:
    run = train(sampler=MIXED, loop={"rounds": 1, "candidates": 3}, evaluation={})
    words = ["train", "tiny.yaml", "--out", "killed"]
    killed(in_sampling(3), *words)
    assert len(read_json_lines(Path("killed/rounds/000.partial/samples/metadata.jsonl"))) == 3
    assert main(words) == 0
    assert rows(Path("killed"), 0) == rows(run, 0)
    states = [Run.open(one).round(0).state() for one in (run, Path("killed"))]
    assert [sorted(one) for one in states] == [sorted(states[0])] * 2
    assert all(torch.equal(it, states[1][stem][name]) for stem, part in states[0].items() for name, it in part.items())


def test_what_another_model_drew_once_is_learnt_from_in_every_round(train: Train, tmp_path: Path) -> None:
    teacher = tiny.write_folder(tmp_path / "teacher", "sd15", seed=1)
    run = train(sampler={"type": "teacher", "model": {"base": str(teacher), "device": "cpu"}, "drawing": DRAWING})
    assert {row["source"] for row in rows(run, 1)} == {"teacher"}
    assert [row["seed"] for row in rows(run, 1)] == [row["seed"] for row in rows(run, 0)]
    assert str(teacher) in read_json(run / "run.json")["weights"]


def test_pairs_that_people_compared(train: Train, tmp_path: Path, pictures: Path) -> None:
    lines = [
        {"prompt": "a dog", "chosen": "dog-1.png", "rejected": "dog-2.png"},
        {"prompt": "a dog", "chosen": "dog-2.png", "rejected": "cat.png"},
    ]
    (pictures / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = train(
        prompts={},
        sampler={"type": "folder", "path": "pictures/pairs.jsonl", "source": "human", "drawing": DRAWING},
        ranker={"rewards": [{"type": "given"}], "selector": {"type": "best_worst"}},
        finetuner={"type": "diffusion", "rank": 2, "steps": 2, "batch_size": 2, "learning": {"type": "dpo"}},
        loop={"rounds": 1, "candidates": 2},
        evaluation={"rewards": [{"type": "jpeg"}], "prompts": {"captions": ["a bus"]}, "every_round": 1},
    )
    assert {(row["caption"], row["source"]) for row in rows(run, 0)} == {("a dog", "human")}
    assert [(row["reward_given"], row["selected"]) for row in rows(run, 0)] == [(1.0, True), (0.0, True)] * 2
    assert metrics(run, 0)["selected"] == 2
    assert metrics(run, 0)["held_out_rewards"].keys() == {"jpeg"}
    assert main(["eval", "run"]) == 0
    assert read_json(run / "eval/eval.json")["rewards"].keys() == {"jpeg"}


def test_a_folder_that_changed_is_not_learnt_from(
    train: Train, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("loop.rounds=1", sampler={"type": "folder", "path": "pictures", "drawing": DRAWING})
    Image.new("RGB", (24, 24), "green").save(pictures / "cat.png")
    capsys.readouterr()
    assert main(["train", "run", "loop.rounds=2"]) == 2
    assert "are not those that the run began with. Put the old ones back" in capsys.readouterr().err
    pictures.rename(pictures.with_name("gone"))  # what was learnt needs them no more
    assert main(["eval", "run"]) == 0
    assert main(["score", "run", "--round", "0", "--out", "again", "ranker.selector={type: random}"]) == 0


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["ranker.rewards=[{type: given}]"], "evaluation.rewards: data score their own pictures alone"),
        (["evaluation.rewards=[{type: given}]"], "evaluation.rewards: 'given' knows the pictures of a folder alone"),
        (["evaluation.rewards=[{type: jpeg}]"], "ranker.rewards, evaluation.rewards: two are called 'jpeg'"),
        (["sampler={type: folder, path: nowhere}"], "sampler.path: there is no file or folder 'nowhere'"),
        (
            ["sampler={type: mix, parts: [{share: 2, sampler: {type: teacher}}]}"],
            "the shares add up to 2 candidates, and loop.candidates is 10",
        ),
        (
            ["loop.candidates=1", "sampler={type: mix, parts: [{share: 1, sampler: {type: mix, parts: []}}]}"],
            "sampler.parts.0",
        ),
        (["sampler.type=techer"], "'techer'"),
    ],
)
def test_what_does_not_fit_is_a_sentence(
    model: Path, tmp_path: Path, overrides: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {
        "name": "tiny",
        "model": {"base": str(model), "device": "cpu"},
        "prompts": {"captions": ["a cat"]},
        "sampler": {"type": "diffusion"},
        "ranker": {"rewards": [{"type": "jpeg"}], "selector": {"type": "best_of_k"}},
        "finetuner": {"type": "diffusion"},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run"), *overrides]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
