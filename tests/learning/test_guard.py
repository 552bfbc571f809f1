"""A reward that is hacked in the toy world is told and gone back from; an honest one is not."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raftdiff.cli.train import round_to_show
from raftdiff.errors import UserError
from raftdiff.measures.diversity import HeldOutDrift, HeldOutFigures
from raftdiff.raft import raft
from raftdiff.ranking import Ranker
from raftdiff.recipes.config import Config
from raftdiff.records.changes import go_on_with
from raftdiff.records.rounds import Draft
from raftdiff.records.run import Run, finished
from raftdiff.records.watching import alarms, best_round, new_warnings, snapshot, warnings, went_back
from raftdiff.seeds import fold
from raftdiff.selection.best import BestOfK
from raftdiff.stages import verbs
from raftdiff.stages.ending import guarded, until_alarm
from raftdiff.stages.parts import LoopConfig, Parts
from raftdiff.testing.toy import ToyReward, toy_features, toy_prompts, toy_world
from raftdiff.types import Round, Sample


class Dark:
    """Says how dark a picture is, whatever its caption: a reward that is no measure of what is wanted."""

    name = "dark"

    def score(self, samples: Sequence[Sample[Any]]) -> torch.Tensor:
        return torch.tensor([-sum(sample.media.getpixel((0, 0))) / 255 for sample in samples], dtype=torch.float32)


class Wanted:
    """How near a picture is to the colour that its caption stands for, another for each. Higher is better, to 0."""

    name = "wanted"

    def score(self, samples: Sequence[Sample[Any]]) -> torch.Tensor:
        return torch.tensor([-float((colour(sample) - wanted(sample.prompt.caption)).norm()) for sample in samples])


def colour(sample: Sample[Any]) -> torch.Tensor:
    return torch.tensor(sample.media.getpixel((0, 0)), dtype=torch.float32) / 255


def wanted(caption: str) -> torch.Tensor:
    return 0.2 + 0.6 * torch.rand(3, generator=torch.Generator().manual_seed(fold(1, caption)))


class Asked(Config):
    captions: tuple[str, ...] = ("red",)


class Learning(Config):
    rate: float = 0.3


class Looked(Config):
    guidance: float = 1.0


class Recipe(Config):
    name: str = "toy"
    loop: LoopConfig = LoopConfig()
    prompts: Asked = Asked()
    finetuner: Learning = Learning()
    evaluation: Looked = Looked()


def parts(reward: Any, **loop: Any) -> Parts:
    """Trained for ``reward``, while the toy's own looks on."""
    sampler, _, finetuner = toy_world()
    prompts, world = toy_prompts(12), torch.Generator().manual_seed(0)
    # a base whose pictures differ, so that there is a yardstick
    sampler.policy.learnt = {prompt.caption: 0.2 + 0.6 * torch.rand(3, generator=world) for prompt in prompts}
    return Parts(
        sampler=sampler,
        ranker=Ranker([(reward, 1.0)], BestOfK(1)),
        finetuner=finetuner,
        prompts=prompts,
        held_out=prompts,
        held_out_ranker=Ranker([(reward, 1.0), (ToyReward(), 0.0)], BestOfK(1)),
        held_out_candidates=4,
        examine=HeldOutFigures(toy_features),
        loop=LoopConfig(**{"rounds": 4, "candidates": 8, **loop}),
    )


def finish(path: Path, made: Parts) -> list[Round]:
    recipe = Recipe(loop=made.loop)
    run = Run.create(path, recipe, seed=0) if not path.exists() else Run.open(path)
    if run.differing(recipe):
        go_on_with(run, recipe)
    return list(until_alarm(raft(run, made), run, made.loop))


@pytest.fixture(scope="module")
def hacked(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("guard") / "hacked"
    finish(path, parts(Dark(), guard="rollback", rounds=8))
    return Run.open(path)


def test_a_hacked_reward_is_told_and_gone_back_from(hacked: Run) -> None:
    last = hacked.rounds_done() - 1
    assert last < 7, "it stopped"
    found = {alarm.what for alarm in alarms(hacked.metrics())}
    assert "signal brightness" in found
    assert hacked.rollbacks().keys() == {last}
    assert (to := hacked.rollbacks()[last]) is None or to < last
    assert any("brightness of the held-out pictures fell" in told for told in warnings(hacked.metrics()))
    assert snapshot(hacked).warnings[0].startswith(f"After round {last} the guard went back to ")
    logged = [json.loads(line) for line in (hacked.path / "log.jsonl").read_text().splitlines()]
    assert [(it["round"], it["to"]) for it in logged if it["event"] == "rollback"] == [(last, to)]


def test_an_honest_reward_raises_no_alarm_and_is_let_on(tmp_path: Path) -> None:
    """Each prompt's pictures go their own way, and the mean stays."""
    rounds = finish(tmp_path / "run", parts(Wanted(), guard="rollback"))
    run = Run.open(tmp_path / "run")
    assert [one.index for one in rounds] == [0, 1, 2, 3]
    assert rounds[-1].metrics["held_out"] > rounds[0].metrics["held_out_base"] + 0.1
    assert run.rollbacks() == {}


def test_a_guard_that_warns_lets_all_rounds_be_made(tmp_path: Path) -> None:
    assert len(finish(tmp_path / "run", parts(Dark(), rounds=4))) == 4
    run = Run.open(tmp_path / "run")
    assert alarms(run.metrics())
    before = {it.what for it in alarms(run.metrics()[:-1])}
    again = {it.told for it in alarms(run.metrics()) if it.what in before}
    assert again
    assert not {*new_warnings(run.metrics())} & again


def test_a_run_that_stopped_stays_stopped_until_the_guard_or_the_rounds_to_come_are_changed(tmp_path: Path) -> None:
    first = finish(tmp_path / "run", parts(Dark(), guard="stop"))
    assert first
    assert len(first) < 4
    assert finish(tmp_path / "run", parts(Dark(), guard="stop")) == []
    assert finish(tmp_path / "run", parts(Dark(), guard="stop", rounds=5)) == [], "more rounds are no other ones"
    run = Run.open(tmp_path / "run")
    assert run.rollbacks() == {}
    recipe = Recipe(loop=LoopConfig(rounds=5, candidates=8, guard="stop"), finetuner=Learning(rate=0.1))
    go_on_with(run, recipe)
    assert not guarded(run, recipe.loop)
    assert len(finish(tmp_path / "run", parts(Dark(), rounds=5, guard="warn"))) == 5 - len(first)


def test_a_run_that_went_back_goes_on_from_there(tmp_path: Path) -> None:
    """What is used after the alarm is to the bit what was there after the round that was gone back to."""
    run = Run.create(tmp_path / "run", Recipe(loop=LoopConfig(rounds=3, candidates=8)), seed=0)
    made = parts(Dark(), rounds=3)
    list(raft(run, made))
    run.go_back(2, 0)
    assert finished(run, None).index == 0
    assert finished(run, 2).index == 2
    assert round_to_show(run) is None
    used, first = run.state() or {}, run.round(0).state()
    assert all(torch.equal(used[stem][name], it) for stem, part in first.items() for name, it in part.items())
    assert verbs._lineage(run, 3) == [0]
    run.go_back(2, None)
    assert run.state() is None
    assert round_to_show(run) == 2, "of the base beside itself nothing is seen"
    assert "A continued run begins from it" in str(went_back(run))
    with pytest.raises(UserError, match=r"went back to the base model, before any tuning.*--round"):
        finished(run, None)
    more = list(raft(run, parts(Dark(), rounds=4)))
    assert [one.index for one in more] == [3]
    base, fresh = run.round(0).metrics(), run.round(3).metrics()
    assert fresh["mean"] == pytest.approx(base["mean"], abs=0.05), "drawn from the base again"
    assert run.origin(4) == 3, "and what comes after goes on from it"


def test_a_guard_that_is_set_later_goes_back_at_once(tmp_path: Path) -> None:
    finish(tmp_path / "run", parts(Dark(), rounds=4))
    assert finish(tmp_path / "run", parts(Dark(), rounds=5, guard="rollback")) == []
    run = Run.open(tmp_path / "run")
    assert run.rollbacks() == {3: best_round(run.metrics())}


def test_what_left_the_base_is_told_by_its_pictures_also_in_another_process(tmp_path: Path) -> None:
    """The base's pictures are on the disk; the yardstick is the base's, the same in every round."""
    for rounds in (1, 2, 4):
        finish(tmp_path / "run", replace(parts(Dark(), rounds=rounds), moved=HeldOutDrift(toy_features)))
    found = [it["held_out_drift"] for it in Run.open(tmp_path / "run").metrics()]
    shares = [np.mean(it["each"]) / np.mean(it["apart"]) for it in found]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]
    assert all(it["apart"] == pytest.approx(found[0]["apart"]) for it in found)
    once = replace(parts(Dark(), rounds=4), moved=HeldOutDrift(toy_features))
    (*_, last) = finish(tmp_path / "once", once)
    assert last.metrics["held_out_drift"] == found[-1]


def test_nothing_is_compared_with_a_base_that_was_drawn_in_another_way(tmp_path: Path) -> None:
    path, made = tmp_path / "run", replace(parts(Dark(), rounds=2), moved=HeldOutDrift(toy_features))
    finish(path, made)
    run = Run.open(path)
    go_on_with(run, Recipe(loop=LoopConfig(rounds=3, candidates=8), evaluation=Looked(guidance=2.0)))
    (more,) = raft(run, replace(made, loop=LoopConfig(rounds=3, candidates=8)))
    assert "held_out_drift" not in more.metrics
    assert "held_out_drift" in run.round(1).metrics()


@pytest.mark.parametrize(("place", "name"), [(Run, "go_back"), (Draft, "commit")])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_process_killed_as_it_goes_back_leaves_what_the_next_ends(
    hacked: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, place: Any, name: str, when: str
) -> None:
    last, do, calls = hacked.rounds_done() - 1, getattr(place, name), []

    def dying(*words: Any, **named: Any) -> Any:
        calls.append(name)
        fatal = len(calls) == (1 if name == "go_back" else last + 1)
        if fatal and when == "before":
            raise KeyboardInterrupt
        done = do(*words, **named)
        if fatal:
            raise KeyboardInterrupt
        return done

    path, how = tmp_path / "run", {"guard": "rollback", "rounds": 8}
    with monkeypatch.context() as patch:
        patch.setattr(place, name, dying)
        with pytest.raises(KeyboardInterrupt):
            finish(path, parts(Dark(), **how))
    finish(path, parts(Dark(), **how))
    run = Run.open(path)
    assert (run.rounds_done(), run.rollbacks()) == (last + 1, hacked.rollbacks())
    logged = [json.loads(line)["event"] for line in (path / "log.jsonl").read_text().splitlines()]
    assert logged.count("rollback") == 1


def test_a_record_that_leads_forward_is_damaged(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", Recipe(), seed=0)
    run.know(rollbacks={"001": 1})
    with pytest.raises(UserError, match="'rollbacks' names a round that is not before"):
        Run.open(run.path)
