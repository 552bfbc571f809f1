"""A run whose recipe changes between two rounds."""

import os
from pathlib import Path

import pytest

from raftdiff.errors import UserError
from raftdiff.recipes.config import Config
from raftdiff.records.beginning import at_work, fork
from raftdiff.records.changes import alike, go_on_with
from raftdiff.records.run import Run
from raftdiff.stages.ending import stalled


class Loop(Config):
    rounds: int = 2
    candidates: int = 4
    seed: int = 3


class Tuner(Config):
    rank: int = 8
    rate: float = 0.1


class Toy(Config):
    name: str = "toy"
    ranker: str = "clip"
    loop: Loop = Loop()
    finetuner: Tuner = Tuner()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.create(tmp_path / "run", Toy(), seed=3)
    for value in (70.0, 72.0):
        finish(run, value)
    return run


def finish(run: Run, held_out: float) -> None:
    draft = run.draft(run.rounds_done())
    draft.note(mean=1.0, held_out=held_out)
    draft.commit({})


def test_more_rounds_and_another_reward_are_on_record_beside_what_was(run: Run) -> None:
    before = (run.path / "recipe.yaml").read_text()
    assert go_on_with(run, Toy(loop=Loop(rounds=4))) == ["loop.rounds"]
    assert go_on_with(run, Toy(loop=Loop(rounds=4), ranker="aesthetic")) == ["ranker"]
    assert run.recipe() == {**Toy(ranker="aesthetic").model_dump(), "loop": {"rounds": 4, "candidates": 4, "seed": 3}}
    assert [path.name for path in run.kept_recipes()] == ["before-002.yaml"]
    assert run.kept_recipes()[0].read_text() == before
    assert run.changes() == {2: ["loop.rounds", "ranker"]}
    finish(run, 5.0)
    assert [it.get("changed") for it in run.metrics()] == [None, None, ["loop.rounds", "ranker"]]
    assert [it["round"] for it in alike(run.metrics())] == [2]
    assert go_on_with(run, Toy(loop=Loop(rounds=4), ranker="aesthetic")) == []


def refuse(recipe: Toy) -> str:
    raise UserError("there is no prompt")


def marks(recipe: Toy) -> dict[str, str]:
    return {recipe.ranker: "weights"}


def test_a_run_begins_when_its_parts_are_there(tmp_path: Path) -> None:
    new = Run.at(tmp_path / "runs" / "new", Toy())
    with pytest.raises(UserError, match="there is no prompt"), at_work(new, Toy(), marks, refuse):
        raise AssertionError
    assert [*tmp_path.iterdir()] == []
    with at_work(new, Toy(), marks, lambda recipe: recipe.name) as parts:
        assert (parts, new.recipe(), new.info()["weights"]) == ("toy", Toy().model_dump(), {"clip": "weights"})
        with pytest.raises(UserError, match="another raftdiff process"), at_work(new, Toy(), marks, refuse):
            raise AssertionError
    with at_work(Run.at(new.path, Toy(name="other")), Toy(name="other"), marks, lambda recipe: recipe.name):
        assert new.recipe()["name"] == "other", "nothing was made by the first"


def test_a_run_that_is_there_is_held_before_its_parts_are_made(run: Run) -> None:
    with at_work(run, Toy(), marks, lambda recipe: recipe.name):
        pass
    with (
        pytest.raises(UserError, match="begun with other weights"),
        at_work(run, Toy(), lambda _: {"clip": "others"}, refuse),
    ):
        raise AssertionError
    with pytest.raises(UserError, match="begun with another recipe"):
        Run.at(run.path, Toy(name="other"))


@pytest.mark.parametrize(
    ("place", "error", "told"),
    [("file/run", UserError, "/file is a file, and a folder goes there"), ("shut/a/run", PermissionError, "shut")],
)
def test_a_place_that_no_run_can_begin_in_is_told_before_its_parts_are_made(
    place: str, error: type[Exception], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "shut").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "shut")  # root may write anywhere
    with pytest.raises(error, match=told):
        Run.at(tmp_path / place, Toy())


def test_patience_does_not_compare_two_rewards(run: Run) -> None:
    go_on_with(run, Toy(ranker="aesthetic", loop=Loop(rounds=4)))
    finish(run, 5.0)
    finish(run, 5.5)
    assert stalled(run.metrics(), 2)
    assert not stalled(alike(run.metrics()), 2)


def test_a_fork_of_a_changed_run_knows_each_recipe(run: Run, tmp_path: Path) -> None:
    go_on_with(run, Toy(loop=Loop(rounds=4)))
    finish(run, 5.0)
    go_on_with(run, Toy(loop=Loop(rounds=4), name="other"))
    finish(run, 6.0)
    late = fork(run, Toy(loop=Loop(rounds=4), ranker="mine"), tmp_path / "late", round=3, seed=3)
    assert late.changes() == {2: ["loop.rounds"], 3: ["ranker"]}
    early = fork(run, Toy(ranker="mine"), tmp_path / "early", round=1, seed=3)
    assert early.changes() == {1: ["ranker"]}


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        (Toy(loop=Loop(candidates=8)), "all rounds of a run share loop.candidates"),
        (Toy(finetuner=Tuner(rank=4)), "its weights were begun with this finetuner.rank"),
        (Toy(loop=Loop(rounds=1)), "2 rounds are done, so loop.rounds cannot be 1"),
    ],
)
def test_what_cannot_change_is_a_sentence_and_changes_nothing(run: Run, recipe: Toy, sentence: str) -> None:
    before = (run.path / "recipe.yaml").read_text()
    with pytest.raises(UserError, match=sentence):
        go_on_with(run, recipe)
    assert (run.path / "recipe.yaml").read_text() == before
    assert not run.changes()


def test_a_round_that_is_half_made_is_finished_as_it_was_begun(run: Run) -> None:
    run.draft(2)
    with pytest.raises(UserError, match="round 2 is half made, and finetuner.rate would change in it"):
        go_on_with(run, Toy(finetuner=Tuner(rate=0.2)))
    assert go_on_with(run, Toy(loop=Loop(rounds=5))) == ["loop.rounds"]
