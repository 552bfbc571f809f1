"""Every recipe for texts that ships, on a tiny random model: its parts work together.

They say three things of their evaluation, and one recipe of each is evaluated.
"""

import json
from pathlib import Path

import pytest

from raftdiff.cli.main import main
from raftdiff.embedded.reviews import world
from raftdiff.embedded.translation import world as translation
from raftdiff.llm.model import tiny
from raftdiff.recipes.files import medium_of, recipes

ELSEWHERE = {"wombat", "wombat_smollm2", "wombat_reviews", "companion_smollm2", "chitchat_smollm2"}
ELSEWHERE |= {"reviews_smollm2", "reviews_rules_smollm2"}
ELSEWHERE |= {"code_raft", "code_grpo", "code_ppo_max"}
"""Recipes for models and data that are not here; they have tests of their own."""
ALIKE = {"translate_ppo_max"}
"""Recipes whose parts are those of others."""
SMALL = (
    "model.dtype=float32",
    "prompts.limit=3",
    "loop.rounds=1",
    "loop.prompts_per_round=2",
    "finetuner.learning_rate=1e-3",
    "finetuner.epochs=1",
    "evaluation.prompts.limit=2",
    "evaluation.samples_per_prompt=2",
    "logging.tracker=null",
)
EVALUATED = {"raft", "sft", "ppo"}
NAMES = [name for name, path in recipes().items() if medium_of(path) == "text" and name not in ELSEWHERE | ALIKE]


def _more() -> list[str]:
    """Words of the world of translation that the text world has not."""
    return sorted({*translation.vocabulary()} - {*world.vocabulary()})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("model") / "lm", (*world.vocabulary(), *_more()))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains(name: str, model: Path, tmp_path: Path) -> None:
    few = [f"model.base={model}", *SMALL, "evaluation.decoding={max_new_tokens: 8}"]
    few += [f"evaluation.every_round={int(name in EVALUATED)}"]
    if "dataset" not in recipes()[name].read_text().split("ranker:")[0]:
        few += ["sampler.decoding.max_new_tokens=8", "loop.candidates=4"]
    # random reviews never parse, so that the grammar scores all of them alike and pairs have nothing to show
    few += (
        []
        if "given" in recipes()[name].read_text()
        else ["ranker.rewards.0={type: review, fluency: false, name: proxy}"]
    )
    assert main(["train", name, "--out", str(tmp_path / "run"), *few]) == 0
    tune = json.loads((tmp_path / "run/rounds/000/metrics.json").read_text())["tune"]
    assert tune["grad_norm"] > 0, "it learnt something"
    assert tune["learning_rate"] > 0
    if name not in EVALUATED:
        return
    assert main(["eval", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run/eval/eval.json").read_text())
    assert result["prompts"] == 2
    assert result["drift"]["kl"] != 0, "it learnt something"
    assert (tmp_path / "run/eval/report.html").stat().st_size > 10_000
