"""The recipes of other families than SD 1.5's, each from end to end on a tiny random model in the exact format."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from raftdiff.cli.main import main
from raftdiff.diffusion.models import tiny
from raftdiff.records.run import Run

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

SMALL = (
    "prompts.captions=[a cat, a dog]",
    "evaluation.prompts.captions=[a cow, an ox]",
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
    "sdxl_turbo": ("sdxl_turbo", ""),
    "sd35_medium": ("sd3", "kohya"),
    "flux2_klein": ("flux2", ""),
    "zimage": ("zimage", ""),
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
    looked = f"evaluation.every_round={int(bool(form))}"
    assert main(["train", recipe, f"model.base={folder}", *SMALL, looked, "--out", str(run)]) == 0
    (round_,) = Run.open(run).metrics()
    assert round_["candidates"] == 4
    assert round_["tune"]["prediction_drift"] > 0
    if not form:
        return
    assert main(["eval", str(run)]) == 0
    assert (run / "eval" / "report.html").is_file()
    capsys.readouterr()
    assert main(["export", str(run), "--format", form]) == 0
    (file,) = run.glob("export/*.safetensors")
    said = capsys.readouterr().out
    assert file.name in said
    assert ("A1111" in said) == (kind == "sdxl")  # which knows no flow but the first
    with safe_open(file, "pt") as held:
        told = held.metadata()
    assert (told["raftdiff.recipe"], told["raftdiff.rewards"]) == (recipe, "jpeg")
    assert told["raftdiff.digest"] == Run.open(run).info()["digest"]


def test_a_run_from_a_lora_and_a_word_says_so_and_holds_on_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    tiny.write_folder(tmp_path / "model", "sdxl")
    halves = {"lora_down": torch.ones(2, 80), "lora_up": torch.ones(64, 2)}
    layer = "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k"
    save_file({f"{layer}.{half}.weight": it for half, it in halves.items()}, "mine/style.safetensors")
    save_file({"clip_l": torch.ones(2, 32), "clip_g": torch.ones(2, 48)}, "toy.safetensors")
    started = [
        "model.loras=[{path: mine/style.safetensors, weight: -0.5}]",
        "model.embeddings=[{path: toy.safetensors}]",
    ]
    asked = [
        "evaluation.every_round=0",
        "prompts.captions=[cat]",
        "prompts.magic=['{caption}, a toy']",
        "evaluation.prompts=null",
    ]
    given = ["model.base=model", *SMALL, *started, *asked]
    assert main(["train", "sdxl_768", *given, "--out", "run"]) == 0
    assert {"mine/style.safetensors", "toy.safetensors"} <= Run.open(Path("run")).info()["weights"].keys()
    capsys.readouterr()
    assert main(["export", "run", "--format", "kohya"]) == 0
    assert "the new training alone: use it beside mine/style.safetensors at -0.5" in capsys.readouterr().out
    with safe_open("run/export/kohya.safetensors", "pt") as held:
        assert held.metadata()["raftdiff.loras"] == "style.safetensors at -0.5"
    save_file({f"{layer}.{half}.weight": 2 * it for half, it in halves.items()}, "mine/style.safetensors")
    assert main(["train", "run"]) == 2
    assert "begun with other weights of mine/style.safetensors" in capsys.readouterr().err
