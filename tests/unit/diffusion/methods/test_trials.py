"""Runs of methods: what they spend is what was planned, each is looked at once, and one that was stopped goes on."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raftdiff.diffusion.assembly import assemble
from raftdiff.diffusion.before_after.comparison import compare, evaluation_prompts
from raftdiff.diffusion.learning.finetuner import DRIFT_ROWS
from raftdiff.diffusion.methods import trials
from raftdiff.diffusion.methods.changes import Trial, planned
from raftdiff.diffusion.methods.trials import Outcome, Yardstick, baselines, best_in_place, looked_at, run_trial
from raftdiff.diffusion.models import tiny
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.errors import UserError
from raftdiff.records.run import Run, load_round
from raftdiff.types import Prompt, Report, Sample, silent

# diffusers asks numpy for an array in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
MAIN = ("held_out", "2")
NAMES = ("raft", "dpo")


def compared(file: str, *overrides: str, strengths: tuple[float, ...] = ()) -> tuple[dict[str, Trial], Yardstick]:
    recipe = load_recipe(file, overrides)
    found = planned(NAMES, recipe, file, overrides)
    return {one.name: one for one in found}, Yardstick(recipe, strengths)


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is loaded from here on."""

    def refuse(recipe: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(trials, "assemble", refuse)


def test_what_a_run_spends_is_what_was_planned_and_it_is_looked_at_once(
    recipe_file: Callable[..., str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    methods, yardstick = compared(recipe_file())
    root = tmp_path / "compared"
    begun: list[str] = []
    found = {
        name: run_trial(one, 3, root, yardstick, begin=lambda run, assembly: begun.append(run.path.name))
        for name, one in methods.items()
    }
    assert begun == ["raft-3", "dpo-3"]
    for name, one in methods.items():
        run, outcome = Run.open(root / f"{name}-3"), found[name]
        recorded = [it["network_evaluations"]["sample"] + it["network_evaluations"]["tune"] for it in run.metrics()]
        drift = [2 * min(DRIFT_ROWS, 3 * one.recipe.finetuner.pictures_an_item)] * 2
        assert [*np.diff([0, *outcome.spent])] == [
            all_of - looking for all_of, looking in zip(recorded, drift, strict=True)
        ]
        assert outcome.spent[-1] == one.cost.total
        assert outcome.steps == 2 * one.recipe.finetuner.steps
        assert run.recipe()["loop"]["seed"] == outcome.seed == 3
        assert outcome.seconds > 0
        assert {t: {where: [*looks] for where, looks in it.items()} for t, it in outcome.looks.items()} == {
            0: {"held_out": ["2"]},
            1: {"held_out": ["2"]},
        }
    assert found["raft"].exposures == pytest.approx(2 * 2 / 3)

    request.getfixturevalue("never")
    assert {name: run_trial(one, 3, root, yardstick) for name, one in methods.items()} == found


def test_a_look_is_what_eval_says(recipe_file: Callable[..., str], tmp_path: Path) -> None:
    methods, yardstick = compared(recipe_file(), "loop.rounds=1")
    outcome, trial = run_trial(methods["raft"], 0, tmp_path, yardstick), methods["raft"]
    base = baselines(tmp_path, yardstick)
    assembly = assemble(trial.of_seed(0))
    load_round(Run.open(tmp_path / "raft-0"), assembly.finetuner, None)
    prompts = evaluation_prompts(trial.recipe, None)
    told = compare(assembly, prompts, per_prompt=2, seed=trial.recipe.evaluation.seed)
    reward, diversity = told.evaluation["rewards"]["jpeg"], told.evaluation["diversity"]
    assert diversity
    for look, side, samples in ((base.base, "before", told.before), (outcome.end, "after", told.after)):
        at = look["held_out"]["2"]
        assert at.figures["reward.jpeg"] == pytest.approx(reward[side]["mean"])  # type: ignore[literal-required]
        assert at.figures["diversity.vendi_within"] == pytest.approx(diversity["vendi_within"][side])  # type: ignore[literal-required]
        latents = np.stack([sample.aux["latent"].numpy() for sample in samples])
        assert at.figures["spread"] == pytest.approx(float(latents.std(ddof=1)), rel=1e-4)
        low, high = reward[side]["ci95"]  # type: ignore[literal-required]
        assert at.halves["reward.jpeg"] == pytest.approx((high - low) / 2)
    assert outcome.end["held_out"]["2"].figures["drift.prediction"] == pytest.approx(
        told.evaluation["drift"]["prediction"]
    )
    assert outcome.end["held_out"]["2"].figures["gain.reward.jpeg"] == pytest.approx(reward["difference"]["mean"])
    low, high = reward["difference"]["ci95"] or (0.0, 0.0)
    assert outcome.end["held_out"]["2"].halves["gain.reward.jpeg"] == pytest.approx((high - low) / 2)
    best = base.best["held_out"]["2"].figures["reward.jpeg"]
    assert best > base.base["held_out"]["2"].figures["reward.jpeg"], "the base's own pictures are among the candidates"


def test_models_are_measured_at_the_first_of_several_sizes(recipe_file: Callable[..., str]) -> None:
    """One batch holds the pictures of all prompts, and their latents are set side by side."""
    _, yardstick = compared(recipe_file(), "sampler.sizes=[[24, 16], [16, 16]]", strengths=(1.0,))
    assert [(way.width, way.height, way.sizes) for way in yardstick.ways.values()] == [(24, 16, None)] * 2


def test_another_strength_is_looked_at_without_training_again(
    recipe_file: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = recipe_file()
    methods, yardstick = compared(file, "loop.rounds=1")
    first = run_trial(methods["raft"], 0, tmp_path, yardstick)
    monkeypatch.setattr(trials, "raft", lambda *_: [])
    _, wider = compared(file, "loop.rounds=1", strengths=(1.0, 2.0))
    assert wider.places == [MAIN, ("held_out", "1")], "the evaluation's own comes first, once"
    looked: list[tuple[str, str]] = []
    look = Yardstick.look

    def noted(self: Yardstick, assembly: Any, where: str, strength: str, report: Report = silent) -> Any:
        looked.append((where, strength))
        return look(self, assembly, where, strength, report)

    monkeypatch.setattr(Yardstick, "look", noted)
    second = run_trial(methods["raft"], 0, tmp_path, wider)
    assert looked == [("held_out", "1")]
    assert second.end["held_out"]["2"] == first.end["held_out"]["2"]
    assert second.spent == first.spent
    assert set(baselines(tmp_path, wider).best["held_out"]) == {"1", "2"}
    told = json.loads((tmp_path / "raft-0" / "outcome.json").read_text())
    assert Outcome.model_validate(told) == second


def test_one_that_was_stopped_goes_on_to_the_same_end(recipe_file: Callable[..., str], tmp_path: Path) -> None:
    file = recipe_file()
    methods, yardstick = compared(file)

    class Stopped:
        """Ctrl-C while the second round learns."""

        def stage(self, round: int, stage: str) -> Report:
            if (round, stage) == (1, "tune"):
                raise KeyboardInterrupt
            return silent

    with pytest.raises(KeyboardInterrupt):
        run_trial(methods["dpo"], 0, tmp_path / "stopped", yardstick, progress=Stopped())
    assert Run.open(tmp_path / "stopped" / "dpo-0").rounds_done() == 1
    assert not (tmp_path / "stopped" / "dpo-0" / "outcome.json").exists()
    went_on = run_trial(methods["dpo"], 0, tmp_path / "stopped", yardstick)
    straight = run_trial(methods["dpo"], 0, tmp_path / "straight", compared(file)[1])
    assert went_on.looks == straight.looks
    assert went_on.spent == straight.spent
    assert baselines(tmp_path / "stopped", yardstick) == baselines(tmp_path / "straight", yardstick)


def test_a_folder_holds_runs_of_one_recipe(recipe_file: Callable[..., str], tmp_path: Path) -> None:
    file = recipe_file()
    methods, yardstick = compared(file, "loop.rounds=1")
    run_trial(methods["raft"], 0, tmp_path, yardstick)
    others, other = compared(file, "loop.rounds=1", "finetuner.learning_rate=1e-3", "evaluation.seed=7")
    with pytest.raises(
        UserError, match=r"raft-0: this run was begun with another recipe; these keys differ: .*learning_rate"
    ):
        run_trial(others["raft"], 0, tmp_path, other)
    assert not baselines(tmp_path, yardstick).lacks(yardstick)
    assert baselines(tmp_path, other).lacks(other), "pictures of other seeds are measured anew"


def test_the_training_prompts_are_looked_at_where_asked_for_or_where_there_are_no_others(
    recipe_file: Callable[..., str],
) -> None:
    both = Yardstick(load_recipe(recipe_file()), (1.0,), training=True)
    assert both.places == [("held_out", "2"), ("held_out", "1"), ("training", "2"), ("training", "1")]
    assert [prompt.caption for prompt in both.prompts["training"]] == ["a cat", "a dog", "a red car"]
    assert all(prompt.sampling == prompt.caption for prompt in both.prompts["training"])
    alone = Yardstick(load_recipe(recipe_file("alone", evaluation={"samples_per_prompt": 2})))
    assert alone.places == [("training", "2")]


def test_the_rounds_that_are_looked_at_lie_evenly_and_end_with_the_last() -> None:
    for rounds in range(1, 30):
        found = looked_at(rounds)
        assert found[-1] == rounds - 1
        assert len(found) == min(rounds, trials.CHECKPOINTS)
        gaps = np.diff([-1, *found])
        assert max(gaps) - min(gaps) <= 1


def test_the_best_of_each_place_keeps_its_number_and_a_discard_is_never_it() -> None:
    prompt, nan = Prompt("a", "a", "a", "a"), float("nan")
    drawn = [Sample(0, prompt, k, 100 + k, "policy", Image.new("L", (1, 1), k)) for k in range(6)]
    found = best_in_place(drawn, np.array([1.0, 5.0, 2.0, nan, nan, 4.0]), 2)
    assert [(one.index, one.seed, one.media.getpixel((0, 0))) for one in found] == [(0, 100, 2), (1, 101, 1)]
    none = best_in_place(drawn, np.full(6, nan), 3)
    assert none == [replace(one) for one in drawn[:3]], "where all are discarded each stays"


def test_what_was_measured_of_another_model_or_on_other_prompts_does_not_count(
    recipe_file: Callable[..., str], tmp_path: Path, models: Any
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(models["sd15"], copy)
    file = recipe_file(model={"base": str(copy), "device": "cpu"})

    def how(*overrides: str, training: bool = False) -> str:
        return Yardstick(load_recipe(file, overrides), training=training).how

    first, asked = how(), how(training=True)
    assert how() == first
    assert how("prompts.captions=[a cat]") == first, "they are not looked at"
    assert how("prompts.captions=[a cat]", training=True) != asked
    shutil.copytree(tiny.write_folder(tmp_path / "other", "sd15", seed=1), copy, dirs_exist_ok=True)
    assert how() != first
