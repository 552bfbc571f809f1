"""The recipes that learn from what Python says of a program, on the model that ships: tiny, in the real sandbox."""

import json
import sys
from pathlib import Path

import pytest

from raftdiff.cli.main import main
from raftdiff.llm.recipe import load_text_recipe
from raftdiff.recipes.files import locate
from raftdiff.records.disk import read_json_lines
from raftdiff.rewards import sandbox

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or sandbox._missing() is not None, reason="programs of a model cannot be shut in here"
)
TINY = ("loop.rounds=1", "loop.prompts_per_round=2", "loop.candidates=4", "logging.tracker=null")
HELD_OUT = ("evaluation.prompts.limit=2", "evaluation.every_round=1", "sampler.decoding.max_new_tokens=48")


def test_what_python_says_is_learnt_from_and_hidden_tests_look_on(tmp_path: Path) -> None:
    assert main(["train", "code_raft", "--out", str(tmp_path / "run"), *TINY, *HELD_OUT]) == 0
    rows = list(read_json_lines(tmp_path / "run/rounds/000/samples/metadata.jsonl"))
    assert len(rows) == 8
    assert {0.1, 0.2} & {round(row["reward_code"], 3) for row in rows} or any(row["reward_code"] > 0.2 for row in rows)
    assert all(row["reward_code"] == 0 or row["text"].startswith("def f") for row in rows)
    metrics = json.loads((tmp_path / "run/rounds/000/metrics.json").read_text())
    assert metrics["tune"]["grad_norm"] > 0, "it learnt something"
    assert "hidden" in json.dumps(metrics), "the curve has the hidden tests"


@pytest.mark.parametrize("name", ["code_raft", "code_grpo", "code_ppo_max"])
def test_they_draw_equally_many_answers_and_the_reward_never_sees_the_hidden_tests(name: str) -> None:
    recipe = load_text_recipe(locate(name))
    assert recipe.loop.rounds * recipe.loop.prompts_per_round * recipe.loop.candidates == 4096
    assert [(one.column, one.grades) for one in recipe.ranker.rewards] == [("tests", "steps")]
    assert [(one.column, one.grades) for one in recipe.evaluation.rewards] == [("hidden", "all")]
    assert load_text_recipe(locate(name), ["ranker.rewards.0.grades=all"]).ranker.rewards[0].grades == "all"
