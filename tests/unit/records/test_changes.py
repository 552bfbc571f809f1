"""A run whose recipe changes between two rounds."""

from pathlib import Path

import pytest

from raftdiff.errors import UserError
from raftdiff.raft import stalled
from raftdiff.recipes.config import Config
from raftdiff.records.changes import alike, go_on_with
from raftdiff.records.run import Run, fork


class Loop(Config):
    rounds: int = 2
    candidates: int = 4


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
    assert run.recipe() == {**Toy(ranker="aesthetic").model_dump(), "loop": {"rounds": 4, "candidates": 4}}
    assert [path.name for path in run.kept_recipes()] == ["before-002.yaml"]
    assert run.kept_recipes()[0].read_text() == before
    assert run.changes() == {2: ["loop.rounds", "ranker"]}
    finish(run, 5.0)
    assert [it.get("changed") for it in run.metrics()] == [None, None, ["loop.rounds", "ranker"]]
    assert [it["round"] for it in alike(run.metrics())] == [2]
    assert go_on_with(run, Toy(loop=Loop(rounds=4), ranker="aesthetic")) == []


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
