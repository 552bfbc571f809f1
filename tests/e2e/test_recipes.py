"""Every recipe for pictures that ships, on a tiny random SD 1.5: its parts work together. Those of other families have
tests of their own (``test_families.py``)."""

import json
from pathlib import Path

import pytest

from raftdiff.cli.main import main
from raftdiff.recipes.files import medium_of, recipes

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

SMALL = (
    "model.dtype=float32",
    "model.device=cpu",
    "sampler.height=16",
    "sampler.width=16",
    "sampler.steps=2",
    "ranker.rewards=[{type: jpeg}]",
    "loop.candidates=4",
    "finetuner.steps=2",
    "finetuner.batch_size=2",
    "finetuner.gradient_accumulation=1",
    "finetuner.precision=float32",
    "evaluation.samples_per_prompt=1",
    "logging.tracker=null",
)


OTHERS = ("sdxl", "sd35", "flux", "zimage", "sana")
"""How recipes of other families begin."""
TWICE = ("scene_align", "sd15_256")
"""Of these two rounds are run, the second with what is replayed of the first, and the held-out prompts are drawn in
each: one recipe for the world of scenes and one for SD 1.5."""
OWN = [name for name, path in recipes().items() if medium_of(path) == "image" and not name.startswith(OTHERS)]


@pytest.mark.parametrize("name", OWN)
def test_a_recipe_trains_and_evaluates(name: str, model: Path, tmp_path: Path) -> None:
    few = ("prompts.file=null", "prompts.captions=[a cat, a dog, a bus]", "loop.prompts_per_round=2")
    held_out = ("evaluation.prompts.file=null", "evaluation.prompts.captions=[a cow, an ox]")
    rounds = (f"loop.rounds={1 + (name in TWICE)}", f"evaluation.every_round={int(name in TWICE)}")
    words = [f"model.base={model}", *SMALL, *rounds, *few, *held_out, "evaluation.judge=null"]
    assert main(["train", name, "--out", str(tmp_path / "run"), *words]) == 0
    assert main(["eval", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run/eval/eval.json").read_text())
    assert result["prompts"] == 2
    assert result["diversity"]["vendi"]["before"] > 0, "measured on the pixels, without a CLIP tower"
