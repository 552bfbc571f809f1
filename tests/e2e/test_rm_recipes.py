"""Every recipe for reward models that ships, on a tiny random model: its parts work together."""

import json
from pathlib import Path

import pytest

from raftdiff.cli.main import main
from raftdiff.embedded.reviews import world
from raftdiff.llm.model import tiny
from raftdiff.recipes.files import medium_of, recipes

PAIRS = Path(__file__).parents[2] / "configs" / "prompts" / "reviews_noisy_pairs.jsonl"
NAMES = [name for name, path in recipes().items() if medium_of(path) == "preferences"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("model") / "lm", world.vocabulary())


STEPS = {"rm_chitchat_smollm2": 3, "rm_reviews_smollm2": 6}
"""In which 32 pairs are gone through one and a half times, by batches of 16 and of 8; of the others there are 2."""


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_and_evaluates(name: str, model: Path, tmp_path: Path) -> None:
    few = [f"model={{base: {model}, device: cpu}}", "loop.rounds=2", "tuner.epochs=1.5", "tuner.warmup_steps=0"]
    few += [
        f"pairs={{data: {{file: {PAIRS}}}, limit: 40}}",
        "held_out=null",
        "held_out_share=0.2",
        "logging.tracker=null",
    ]
    if "policy_pool:" in recipes()[name].read_text():
        few += [
            f"policy_pool.model.base={model}",
            "policy_pool.prompts.limit=4",
            "policy_pool.decoding.max_new_tokens=8",
        ]
    run = tmp_path / "run"
    assert main(["llm", "rm", "train", name, "--out", str(run), *few]) == 0
    metrics = [json.loads((run / f"rounds/{t:03d}/metrics.json").read_text()) for t in range(2)]
    assert sum(one["tune"]["steps"] for one in metrics) == STEPS.get(name, 2)
    assert main(["llm", "rm", "eval", str(run)]) == 0
    found = json.loads((run / "eval/eval.json").read_text())
    assert found["loss"] == pytest.approx(metrics[1]["held_out_pairs"]["loss"], rel=1e-3)
    assert (run / "eval/report.html").stat().st_size > 10_000
