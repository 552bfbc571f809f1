"""A run that an earlier version began is continued by this one, and gives what that version would have given."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from raftdiff.cli.main import main
from raftdiff.records.run import Run

BEGUN = Path(__file__).parent / "begun"
COMMANDS = {"picture": ("train",), "text": ("train",), "preferences": ("llm", "rm", "train")}


@pytest.fixture(params=COMMANDS)
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In a folder as it was, with the models beside it, for recipes name them by where they lie."""
    shutil.copytree(BEGUN, tmp_path / "begun")
    monkeypatch.chdir(tmp_path / "begun")
    return Path(request.param)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("**/*.safetensors"))
    return {f"{file.stem}/{name}": value for file in files for name, value in load_file(file).items()}


def test_the_second_round_is_the_one_that_the_earlier_version_made(run: Path) -> None:
    before = tensors(run / "rounds" / "001")
    selected = run / "rounds" / "001" / "selection.json"
    learnt_from = json.loads(selected.read_text()) if selected.is_file() else None
    shutil.rmtree(run / "rounds" / "001")
    assert main([*COMMANDS[run.name], str(run)]) == 0
    assert Run.open(run).rounds_done() == 2
    assert (json.loads(selected.read_text()) if selected.is_file() else None) == learnt_from
    after = tensors(run / "rounds" / "001")
    assert after.keys() == before.keys()
    for name, value in before.items():  # processors differ in the last bits, and Adam's first steps enlarge them
        torch.testing.assert_close(
            after[name], value, rtol=1e-3, atol=1e-4, msg=lambda told, name=name: f"{name}: {told}"
        )


def test_its_recipe_is_known_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same recipe with the same folder goes on; another is refused with the keys that differ."""
    recipe = f"{run.name}.yaml"
    assert main([*COMMANDS[run.name], recipe, "--out", str(run)]) == 0
    assert main([*COMMANDS[run.name], recipe, "--out", str(run), "loop.seed=7"]) == 2
    assert "loop.seed" in capsys.readouterr().err


@pytest.mark.parametrize("run", ["picture", "text"], indirect=True)  # the recipe of a reward model never changes
def test_a_change_names_no_key_that_was_yet_to_come(run: Path) -> None:
    assert main([*COMMANDS[run.name], str(run), "loop.rounds=3"]) == 0
    assert Run.open(run).changes() == {2: ["loop.rounds"]}


def test_what_it_came_to_can_be_looked_at(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(run)]) == 0
    assert "2" in capsys.readouterr().out
