"""``raftdiff methods`` on a random model of a few thousand weights."""

import json
from pathlib import Path

import pytest
import yaml

from raftdiff.cli.main import main
from raftdiff.diffusion.models import tiny

RECIPE = {
    "name": "tiny",
    "model": {"base": "MODEL", "device": "cpu"},
    "prompts": {"captions": ["a cat", "a <lora:x:1>"]},
    "sampler": {"type": "diffusion", "steps": 2, "guidance": 2.0, "batch_size": 4},
    "ranker": {"rewards": [{"type": "jpeg"}], "selector": {"type": "best_of_k"}},
    "finetuner": {"type": "diffusion", "rank": 2, "steps": 2, "batch_size": 2},
    "loop": {"rounds": 1, "candidates": 2},
    "evaluation": {"prompts": {"captions": ["a bus"]}, "samples_per_prompt": 2},
    "logging": {"tracker": None},
}

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE).replace("MODEL", str(tiny.write_folder(tmp_path / "sd15", "sd15"))))
    return path


def test_methods_side_by_side_and_again_without_any_work(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["methods", str(recipe), "--methods", "raft,nft", "--seeds", "2", "--guidance", "1", "loop.seed=4"]
    with pytest.warns(UserWarning) as warned:  # noqa: PT030  (one of several, looked at below)
        assert main(asked) == 0
    assert sum("'<lora:x:1>', a model to load elsewhere" in str(one.message) for one in warned) == 1
    out = capsys.readouterr().out
    (root,) = (recipe.parent / "runs").iterdir()
    assert root.name.startswith("methods-tiny-")
    runs = {path.name for path in root.iterdir() if path.is_dir()}
    assert runs == {"raft-4", "raft-5", "nft-4", "nft-5"}
    assert "  raft: 1 round of 2 steps; 20 network evaluations, 16 of them to draw" in out
    assert "  nft: 1 round of 1 step; 20 network evaluations, 16 of them to draw" in out
    assert (root / "table.md").read_text() in out
    assert "| base |" in out
    assert "| best of 2, base |" in out
    found = json.loads((root / "methods.json").read_text())
    assert {one["spent"][-1] for one in found["outcomes"]} == {20}
    assert (root / "methods.svg").read_text().startswith("<svg")

    stamps = {path: path.stat().st_mtime_ns for path in root.glob("*/*.json")}
    assert main(asked) == 0
    shared = ["methods", str(recipe), "--methods", "nft", "--seeds", "1", "--out", str(root), "loop.seed=5"]
    assert main(shared) == 0, "one seed of it, as another process may do it"
    assert {path: path.stat().st_mtime_ns for path in root.glob("*/*.json")} == stamps
    assert main(["eval", str(root / "raft-4"), "--json"]) == 0


def test_what_cannot_be_compared_leaves_no_folder(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, told in (
        (["--methods", "raft,dpoo"], "'dpoo' is not a method. Did you mean 'dpo'?"),
        (["--evaluations", "3"], "raft draws for 16 in all"),
        (["--guidance", "1,x"], "give strengths from 0 on"),
        (["finetuner.loss_on=guided"], "So 'awm' does not fit this recipe"),
    ):
        assert main(["methods", str(recipe), *wrong]) == 2
        assert told in capsys.readouterr().err
    assert not (recipe.parent / "runs").exists()


def test_a_change_alone_is_of_the_recipe_that_ships(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "loop.round=3", "--methods", "raft"]) == 2
    assert "loop.round: unknown key. Did you mean 'rounds'?" in capsys.readouterr().err


def test_one_that_fails_does_not_end_the_others(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = yaml.safe_load(recipe.read_text())
    bad["finetuner"] |= {"learning_rate": 1e30, "max_grad_norm": None, "target_modules": "all"}
    (recipe.parent / "bad.yaml").write_text(yaml.safe_dump(bad))
    asked = ["methods", str(recipe), "--methods", "bad.yaml,raft", "--seeds", "1", "loop.rounds=2", "--out", "compared"]
    with pytest.warns(UserWarning, match="a model to load elsewhere"):
        status = main([*asked, "--evaluations", "200"])
    out, err = capsys.readouterr()
    assert status == 2
    assert "Not all runs came to their end:\nbad with seed 0: " in err
    assert "| raft |" in (recipe.parent / "compared/table.md").read_text()
    assert "compared: table.md, methods.svg" in out
