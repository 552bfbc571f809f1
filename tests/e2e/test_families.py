"""The recipes of other families than SD 1.5's, each from end to end on a tiny random model in the exact format."""

from pathlib import Path

import pytest
from safetensors import safe_open

from raftdiff.cli.main import main
from raftdiff.diffusion.models import tiny
from raftdiff.records.run import Run

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

SMALL = (
    "model.device=cpu",
    "model.dtype=float32",
    "sampler.height=16",
    "sampler.width=16",
    "sampler.steps=2",
    "ranker.rewards=[{type: jpeg}]",
    "finetuner.rank=2",
    "finetuner.steps=2",
    "loop.rounds=1",
    "loop.candidates=2",
    "evaluation.steps=2",
    "evaluation.samples_per_prompt=2",
    "logging.tracker=null",
)


RECIPES: dict[str, tuple[tiny.Kind, str]] = {
    "sdxl_align": ("sdxl", "checkpoint"),
    "sdxl_768": ("sdxl", ""),
    "sd35_medium": ("sd3", "kohya"),
    "flux2_klein": ("flux2", "kohya"),
    "zimage": ("zimage", "kohya"),
    "sana_1024": ("sana", ""),
    "flux_dev": ("flux_dev", ""),
}
"""Each with a model, and what it is exported as; of some the training alone is run."""


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_that_ships_trains_evaluates_and_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    monkeypatch.chdir(tmp_path)
    kind, form = RECIPES[recipe]
    folder = tiny.write_folder(tmp_path / "model", kind)
    run = tmp_path / "run"
    assert main(["train", recipe, f"model.base={folder}", *SMALL, "--out", str(run)]) == 0
    (round_,) = Run.open(run).metrics()
    assert round_["candidates"] == 16
    assert round_["tune"]["prediction_drift"] > 0
    if not form:
        return
    assert main(["eval", str(run)]) == 0
    assert (run / "eval" / "report.html").is_file()
    capsys.readouterr()
    assert main(["export", str(run), "--format", form]) == 0
    (file,) = run.glob("export/*.safetensors")
    assert file.name in capsys.readouterr().out
    with safe_open(file, "pt") as held:
        told = held.metadata()
    assert (told["raftdiff.recipe"], told["raftdiff.rewards"]) == (recipe, "jpeg")
    assert told["raftdiff.digest"] == Run.open(run).info()["digest"]
