"""The table of methods: one reward that all are compared by, further ones beside it, runs measured once."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raftdiff.embedded.reviews import world
from raftdiff.errors import UserError
from raftdiff.llm.methods import Outcome, best_of_each, check_comparison, rounds_of, run_method, table
from raftdiff.llm.model import tiny
from raftdiff.llm.recipe import load_text_recipe
from raftdiff.recipes.files import locate

SIX = ("raft", "rrhf", "dpo", "grpo", "ppo", "ppo_max")
AGAINST = ("ranker.rewards=[{type: reward_model, model: some/folder}]", "evaluation.rewards=[{type: review}]")


def outcome(method: str, seed: int, reward: float, **other: Any) -> Outcome:
    cost: dict[str, Any] = {"tokens": 100, "steps": 8, "seconds": 1.0}
    return Outcome(method, seed, reward, 2.0, 0.5, 1.0, 20.0, **cost, **other)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_further_rewards_stand_beside_the_one_that_all_are_compared_by() -> None:
    text = table(
        [
            outcome("raft", 0, 1.0, others={"review": 0.5, "kl": 3.0}),
            outcome("raft", 1, 2.0, others={"review": 0.7, "kl": 3.0}),
            outcome("ppo", 0, 4.0, others={"review": 0.25}),
        ]
    )
    head, _, raft, ppo = text.splitlines()
    assert cells(head)[:5] == ["method", "reward", "review", "kl", "perplexity"]
    assert cells(head).count("kl") == 1, "a reward called kl is not the distance, whose column is KL"
    assert cells(raft)[1].startswith("1.500 ±")
    assert cells(raft)[2].startswith("0.600 ±")
    assert cells(raft)[3] == "3.000"
    assert cells(ppo)[1:4] == ["4.000", "0.250", ""], "it was not scored by kl"


def test_outcomes_from_before_there_were_others_are_read() -> None:
    kept = outcome("raft", 0, 1.0)._asdict()
    del kept["others"]
    read = Outcome(**json.loads(json.dumps(kept)))
    assert read.others == {}
    assert cells(table([read]).splitlines()[0])[1:3] == ["reward", "perplexity"]


@pytest.mark.parametrize("method", SIX)
def test_every_method_takes_a_trained_reward_by_override_and_a_true_one_beside_it(method: str) -> None:
    recipe = load_text_recipe(locate(method), AGAINST)
    (trained,), (looking_on,) = recipe.ranker.rewards, recipe.evaluation.rewards
    assert (trained.type, trained.model) == ("reward_model", "some/folder")
    assert looking_on.type == "review"


@pytest.mark.parametrize(("method", "rounds"), [("raft", 4), ("ppo", 4), ("ppo_max", 16)])
def test_the_same_number_of_answers_in_rounds_of_each_recipes_size(method: str, rounds: int) -> None:
    assert rounds_of(method, 2048) == rounds_of(method, 2060) == rounds
    assert rounds_of(method, 1000, ["loop.prompts_per_round=null", "prompts.limit=3"]) == 1000 // (3 * 8)
    with pytest.raises(UserError, match=f"{method}: one round draws"):
        rounds_of(method, 100)


RECIPE = """
media: text
name: small
model: {{base: {model}}}
prompts: {{captions: ["comedy about robots :", "western about ghosts :"]}}
sampler: {{type: policy, decoding: {{max_new_tokens: 6}}, batch_size: 8}}
ranker:
  rewards: [{{type: regex, pattern: "[aeiou]", mode: count, name: vowels}}]
  selector: {{type: best_of_k}}
finetuner: {{adapter: full, learning_rate: 1.0e-2, epochs: 2, batch_size: 2}}
loop: {{rounds: 2, candidates: 4}}
evaluation: {{samples_per_prompt: 3, rewards: [{{type: regex, pattern: t, mode: count, name: ts}}]}}
logging: {{tracker: null}}
"""


def test_a_run_is_measured_by_every_reward_and_again_when_another_is_asked_for(tmp_path: Path) -> None:
    model = tiny.write(tmp_path / "lm", world.vocabulary())
    file = tmp_path / "small.yaml"
    file.write_text(RECIPE.format(model=model))
    base, best, tuned = run_method(str(file), 0, tmp_path, [], reward="vowels")
    assert [set(one.others) for one in (base, best, tuned)] == [{"ts"}] * 3
    assert best.reward > base.reward
    assert min(one.interval for one in (base, best, tuned)) > 0
    assert {one.perplexity_of for one in (base, best, tuned)} == {"base"}
    assert all(math.isfinite(one.perplexity) for one in (base, best, tuned))
    assert best.tokens > 2 * 3 * 4, "as many answers as the others have, each of four draws"
    assert best.seconds > 0
    assert run_method(str(file), 0, tmp_path, [], reward="vowels", baselines=False) == [tuned]
    assert all(math.isfinite(one.others["ts"]) for one in (base, best, tuned))
    told = tmp_path / "small-0" / "outcome.json"
    stamp = told.stat().st_mtime_ns
    assert run_method(str(file), 0, tmp_path, [], reward="vowels")[2] == tuned
    assert told.stat().st_mtime_ns == stamp, "it was not measured again"
    swapped = run_method(str(file), 0, tmp_path, [], reward="ts")
    assert swapped[2].reward == tuned.others["ts"]
    assert swapped[2].others == {"vowels": tuned.reward}

    before = json.loads(told.read_text())
    del before["reward"]
    for one in before["outcomes"]:
        del one["others"]
    told.write_text(json.dumps(before))
    assert run_method(str(file), 0, tmp_path, [], reward="ts")[2].others == {}, "kept as it was told"


def test_a_discarded_answer_is_never_the_best() -> None:
    nan = math.nan
    assert best_of_each(np.array([nan, 5.0, 1.0, 2.0, nan, 2.0]), 3) == [1, 3]
    assert best_of_each(np.array([nan, nan, 4.0, nan]), 2) == [2], "a prompt without any is left out"


def test_a_single_seed_has_the_interval_over_its_prompts() -> None:
    text = table(
        [
            outcome("raft", 0, 1.0, interval=0.125, perplexity_of="grammar"),
            outcome("dpo", 0, 2.0, perplexity_of="grammar"),
        ]
    )
    head, _, raft, dpo = text.splitlines()
    assert cells(raft)[1] == "1.000 ± 0.125"
    assert cells(dpo)[1] == "2.000"
    assert "perplexity (grammar)" in cells(head)


def test_what_cannot_be_compared_is_found_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing"):
        check_comparison({"raft": [], "nothing": []}, "review")
    with pytest.raises(UserError, match="raft: its answers are not scored by 'nope'"):
        check_comparison({"raft": [], "sft": []}, "nope")
    with pytest.raises(UserError, match="sft: its answers are not scored by 'own'"):
        check_comparison({"raft": ["ranker.rewards.0.name=own"], "sft": []}, "own")
    check_comparison({"raft": [], "sft": [], "grpo": []}, "review")


@pytest.mark.parametrize("wrong", [["--methods", "raft,nothing"], ["--methods", "raft", "--reward", "nope"]])
def test_the_command_trains_nothing_that_it_cannot_compare(wrong: list[str], tmp_path: Path) -> None:
    from raftdiff.cli.main import main

    root = tmp_path / "compared"
    assert main(["llm", "compare", *wrong, "--out", str(root)]) == 2
    assert not root.exists()
