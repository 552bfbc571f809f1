"""The loop learns, in a toy world where a picture is one colour; and a killed run gives the same to the bit."""

import gc
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raftdiff.errors import UserError
from raftdiff.measures.diversity import PictureFigures, PictureSimilarity
from raftdiff.raft import raft
from raftdiff.ranking import Bound, Ranker, Unfit
from raftdiff.recipes.config import Config
from raftdiff.records import integrity, rounds
from raftdiff.records.checking import check
from raftdiff.records.media import previews
from raftdiff.records.rounds import Draft
from raftdiff.records.run import Run
from raftdiff.rewards.duplicates import DuplicatesReward, by_features
from raftdiff.selection.best import BestOfK, Random
from raftdiff.selection.diverse import Diverse
from raftdiff.selection.mixes import MIXES
from raftdiff.stages import verbs
from raftdiff.stages.ending import until_no_gain
from raftdiff.stages.parts import LoopConfig, Parts, asked
from raftdiff.testing.toy import ToyFineTuner, toy_features, toy_prompts, toy_world
from raftdiff.types import Preview, Round, Sample, Selector

ALIKE = PictureSimilarity(toy_features)


class Same:
    """Says 1 of everything. Higher is better."""

    nothing_at_first = False

    def __init__(self, name: str = "same") -> None:
        self.name = name

    def score(self, samples: Sequence[Sample[Any]]) -> torch.Tensor:
        return torch.ones(len(samples))


class ToyRecipe(Config):
    name: str = "toy"
    seed: int = 0


def toy_parts(selector: Selector | None = None, *, magic: bool = False, decouple: bool = True, **loop: Any) -> Parts:
    sampler, reward, finetuner = toy_world()
    return Parts(
        sampler=sampler,
        ranker=Ranker([(reward, 1.0)], selector or BestOfK(1), PictureFigures(toy_features), None, ALIKE),
        finetuner=finetuner,
        prompts=toy_prompts(6, magic=magic, decouple=decouple),
        held_out=toy_prompts(3),
        held_out_candidates=8,
        loop=LoopConfig(**{"rounds": 5, "candidates": 8, **loop}),
    )


def finish(path: Path, parts: Parts) -> list[Round]:
    return list(raft(Run.create(path, ToyRecipe(), seed=0), parts))


def states(path: Path) -> dict[str, torch.Tensor]:
    return {f"{stem}/{name}": t for stem, part in (Run.open(path).state() or {}).items() for name, t in part.items()}


def test_the_reward_rises_and_the_held_out_reward_with_it(tmp_path: Path) -> None:
    rounds = finish(tmp_path / "run", toy_parts())
    curve = [finished.metrics["first_sample_mean"] for finished in rounds]
    # One round of best-of-8 moves the mean towards the selected by most of 1.42 x 1.225 x 0.08 = 0.14.
    assert curve[-1] - curve[0] > 4 * 0.07
    assert rounds[-1].metrics["held_out"] > rounds[0].metrics["held_out_base"] + 0.3


def test_ranking_is_what_makes_it_rise(tmp_path: Path) -> None:
    best = finish(tmp_path / "best", toy_parts())[-1].metrics["held_out"]
    random = finish(tmp_path / "random", toy_parts(Random(1, seed=0)))[-1].metrics["held_out"]
    assert best > random + 0.25


def test_what_the_magic_prompt_gave_the_plain_caption_gives_afterwards(tmp_path: Path) -> None:
    decoupled = finish(tmp_path / "a", toy_parts(magic=True, rounds=1))[0].metrics
    coupled = finish(tmp_path / "b", toy_parts(magic=True, decouple=False, rounds=1))[0].metrics
    assert decoupled["held_out"] > coupled["held_out"] + 0.1


def test_a_round_reports_what_the_readme_promises(tmp_path: Path) -> None:
    metrics = finish(tmp_path / "run", toy_parts(rounds=1))[0].metrics
    assert metrics["selected_mean"] == metrics["best_of_k"] > metrics["random_mean"]
    assert metrics["random_mean"] == pytest.approx(metrics["mean"])
    assert metrics["candidates"] == 48
    assert metrics["selected"] == 6
    assert metrics["network_evaluations"] == {"validate": 48, "sample": 48, "score": 0, "select": 0, "tune": 12}
    assert set(metrics["seconds"]) == {"validate", "sample", "score", "select", "tune"}
    assert all(1 < metrics[f"diversity_{of}"]["vendi"] < 3 for of in ("all", "selected"))
    assert metrics["discard_rate"] == 0


class HalfDrawn:
    """The toy's own candidates, of which every second is drawn no further than its third step."""

    source, provides = "policy", ("latent",)

    def __init__(self, whole: Any) -> None:
        self.whole, self.tell = whole, None

    def kept(self, per_prompt: int) -> int:
        return per_prompt // 2

    def on_previews(self, tell: Any) -> None:
        self.tell = tell

    def sample(self, prompts: Any, **how: Any) -> Iterator[Sample[Any]]:
        drawn = list(self.whole.sample(prompts, **how))
        self.tell([Preview(it.prompt.id, it.index, 3, float(it.index), it.index % 2 == 1) for it in drawn])
        yield from drawn[1::2]

    def network_evaluations(self) -> int:
        return int(self.whole.network_evaluations())


def test_what_a_sampler_dropped_on_the_way_is_on_record_and_no_discard(tmp_path: Path) -> None:
    parts = toy_parts(rounds=2, sample_every=2)
    pruned = replace(parts, sampler=HalfDrawn(parts.sampler), held_out=())
    finished = finish(tmp_path / "run", pruned)
    for one in finished:  # the second takes the candidates of the first over
        assert one.metrics["pruned"] == [{"step": 3, "seen": 48, "kept": 24, "total": 3.5, "total_kept": 4.0}]
        assert (one.metrics["candidates"], one.metrics["discard_rate"]) == (24, 0)
        assert one.metrics["first_sample_mean"] is None
        assert one.metrics["preview_agreement"]["3"] == pytest.approx(0.5, abs=0.25)
    run = Run.open(tmp_path / "run")
    seen = previews(run.round(1).path)
    assert len(seen) == 48
    assert {(it.prompt, it.index) for it in seen if it.kept} == {s.key[1:] for s in run.round(0).samples()}


def told(path: Path, parts: Parts, *, source: str = "policy") -> tuple[int, int, list[str]]:
    """The prompts of a round, those that nothing told apart, and the rewards that told nothing apart."""
    parts.sampler.source = source
    metrics = finish(path, parts)[0].metrics
    return metrics["prompts"], metrics["undecided"], metrics["constant"]


def test_a_round_says_where_the_rewards_told_nothing_apart(tmp_path: Path) -> None:
    same = Ranker([(Same(), 1.0)], BestOfK(1))
    both = Ranker([*toy_parts().ranker.rewards, (Same(), 1.0), (Same("onlooker"), 0.0)], BestOfK(1))
    assert told(tmp_path / "toy", toy_parts(rounds=1)) == (6, 0, [])
    assert told(tmp_path / "same", replace(toy_parts(rounds=1), ranker=same)) == (6, 6, ["same"])
    assert told(tmp_path / "both", replace(toy_parts(rounds=1), ranker=both)) == (6, 0, ["same"])
    first = Same()
    first.nothing_at_first = True  # as the distance from a base that nothing was learnt on yet
    early = Ranker([*toy_parts().ranker.rewards, (first, 1.0)], BestOfK(1))
    assert told(tmp_path / "early", replace(toy_parts(rounds=1), ranker=early)) == (6, 0, [])
    assert told(tmp_path / "random", toy_parts(Random(1, seed=0), rounds=1)) == (6, 0, [])


class Hundreds:
    """A hundred times how red a picture is. Higher is better."""

    name = "hundreds"

    def score(self, samples: Sequence[Sample[Any]]) -> torch.Tensor:
        return torch.tensor([100.0 * sample.media.getpixel((0, 0))[0] for sample in samples])


def mixed(path: Path, mix: Any, **bounds: Bound) -> list[Round]:
    """Two rounds by the toy's reward, of about -0.3 to 0.3, and one that is a hundred thousand times as large."""
    parts = toy_parts(rounds=2)
    rewards = [*parts.ranker.rewards, (Hundreds(), 0.5), (Same(), 0.0)]
    return finish(path, replace(parts, ranker=Ranker(rewards, BestOfK(1), mix=MIXES[mix], bounds=bounds)))


def test_a_round_says_what_each_reward_had_in_the_choice(tmp_path: Path) -> None:
    summed = mixed(tmp_path / "sum", "weighted_sum")[0].metrics["mixing"]
    assert summed["contribution"] == {"toy": pytest.approx(0, abs=1e-3), "hundreds": pytest.approx(1, abs=1e-3)}
    assert summed["roles"] == {"toy": "train", "hundreds": "train", "same": "hold_out"}
    assert summed["told_nothing"] == {"toy": 0, "hundreds": 0, "same": 1}
    assert summed["chosen_above"]["hundreds"] > 1 > summed["chosen_above"]["toy"]
    scaled = mixed(tmp_path / "gdpo", "gdpo")[0].metrics["mixing"]
    assert scaled["contribution"]["toy"] > scaled["contribution"]["hundreds"]
    assert scaled["chosen_above"]["toy"] > summed["chosen_above"]["toy"]


def test_curves_of_a_mix_without_units_count_the_spreads_of_the_first_round(tmp_path: Path) -> None:
    """Totals that are z-scores have the mean 0 in every round, of which nothing could be read."""
    first, second = (finished.metrics for finished in mixed(tmp_path / "run", "gdpo"))
    assert first["units"] == second["units"]
    for metrics in (first, second):
        expected = sum(
            w * metrics["rewards"][name] / first["units"][name] for name, w in (("toy", 1), ("hundreds", 0.5))
        )
        assert metrics["mean"] == pytest.approx(expected)
    assert first["held_out_base"] == pytest.approx(first["mean"], abs=0.5)
    assert second["held_out"] > first["held_out_base"] + 0.5


def test_what_is_vetoed_is_not_chosen_and_counts_on_held_out_prompts_all_the_same(tmp_path: Path) -> None:
    free = mixed(tmp_path / "free", "weighted_sum")[0].metrics
    rounds = mixed(tmp_path / "run", "weighted_sum", toy=Bound("veto", 0.0))
    metrics = rounds[0].metrics
    folder = Run.open(tmp_path / "run").round(0)
    chosen = [row["reward_toy"] for row in folder.rows() if row["selected"]]
    assert len(chosen) == 6
    assert min(chosen) >= 0
    assert metrics["discard_rate"] == pytest.approx(metrics["mixing"]["vetoed"]["toy"] / 48)
    assert 0.2 < metrics["discard_rate"] < 0.8
    assert metrics["held_out_base"] == free["held_out_base"]
    assert metrics["held_out_roles"] == {"toy": "veto", "hundreds": "train", "same": "hold_out"}


@pytest.mark.parametrize(("source", "undecided"), [("policy", 6), ("teacher", 0), ("dataset", 0), ("human", 0)])
def test_one_candidate_a_prompt_is_a_choice_of_the_policys_alone(tmp_path: Path, source: str, undecided: int) -> None:
    """Answers of data, and of a teacher that is asked once, are learnt for their own sake."""
    assert told(tmp_path / "run", toy_parts(rounds=1, candidates=1), source=source) == (6, undecided, [])


class Twice:
    """The toy sampler, which paints every picture twice."""

    def __init__(self, sampler: Any) -> None:
        self.source, self.provides, self.network_evaluations = "policy", ("latent",), sampler.network_evaluations
        self._sampler = sampler

    def sample(self, prompts: Sequence[Any], *, per_prompt: int, done: Any, **told: Any) -> Iterator[Sample[Any]]:
        for one in self._sampler.sample(prompts, per_prompt=(per_prompt + 1) // 2, done=set(), **told):
            own = [{"latent": one.aux["latent"].clone()} for _ in range(2)]
            twins = [replace(one, index=2 * one.index + k, seed=one.seed + k, aux=own[k]) for k in range(2)]
            yield from (it for it in twins if it.index < per_prompt and (it.prompt.id, it.index) not in done)


def test_where_every_candidate_has_a_twin_the_best_are_one_picture_twice_and_diverse_takes_two(tmp_path: Path) -> None:
    found = {}
    for name, selector in (("best", BestOfK(2)), ("none", Diverse(2, 0.0)), ("some", Diverse(2, 1.0))):
        parts = toy_parts(selector, rounds=2)
        finished = finish(tmp_path / name, replace(parts, sampler=Twice(parts.sampler)))
        found[name] = [it.metrics for it in finished]
        folder = Run.open(tmp_path / name).round(1)  # as another process would select, in other batches
        assert parts.ranker.select(folder.scores(), folder.batches(5)) == folder.selection()
    apart = {name: [it["diversity_selected"]["pairwise_distance"] for it in metrics] for name, metrics in found.items()}
    assert apart["best"] == apart["none"] == pytest.approx([0, 0], abs=1e-6)
    assert all(distance > 1e-3 for distance in apart["some"])
    first = {name: metrics[0] for name, metrics in found.items()}
    assert [first[name]["selected"] for name in found] == [12, 12, 12]
    assert first["best"]["selected_mean"] > first["some"]["selected_mean"] > first["some"]["random_mean"]


@pytest.mark.parametrize("count", [3, 29])
def test_rewards_of_whole_prompts_give_the_same_in_any_batches_and_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    def parts() -> Parts:
        found = toy_parts(rounds=1)
        apart = DuplicatesReward(by_features(toy_features), discard=0.002)
        ranker = replace(found.ranker, rewards=[*found.ranker.rewards, (apart, 0.5)])
        return replace(found, ranker=ranker, held_out=())

    finish(tmp_path / "whole", parts())
    monkeypatch.setattr(verbs, "SCORING_BATCH", 5)  # fewer than a prompt has
    run = Run.create(tmp_path / "killed", ToyRecipe(), seed=0)
    with pytest.raises(KilledError):
        list(raft(run, die_after(parts(), count)))
    draft = run.draft(0)
    rows = draft.folder.rows()  # one is lost, and drawn again after its neighbours
    draft.write_rows([row for row in rows if row != rows[1]])
    list(raft(run, parts()))
    one, other = (Run.open(tmp_path / name).round(0) for name in ("whole", "killed"))
    for name in ("duplicates", "toy"):
        np.testing.assert_array_equal(one.scores().raw[name], other.scores().raw[name])
    assert np.isnan(one.scores().raw["duplicates"]).any()
    assert one.selection() == other.selection()


def test_a_ranker_that_cannot_tell_how_alike_candidates_are_says_so(tmp_path: Path) -> None:
    parts = toy_parts(Diverse(2, 1.0), rounds=1)
    with pytest.raises(UserError, match="give the Ranker a 'similarity'"):
        finish(tmp_path / "run", replace(parts, ranker=replace(parts.ranker, similarity=None)))


def test_blank_candidates_are_counted_and_a_model_that_draws_nothing_else_is_a_sentence(tmp_path: Path) -> None:
    parts = toy_parts(rounds=1)
    ranker = replace(parts.ranker, unfit=Unfit(lambda sample: sample.index == 0, "blank", "are."))
    metrics = finish(tmp_path / "run", replace(parts, ranker=ranker))[0].metrics
    assert (metrics["blank"], metrics["discard_rate"], metrics["per_prompt"]) == (6, 1 / 8, 8)
    dead = replace(toy_parts(rounds=1), ranker=replace(parts.ranker, unfit=Unfit(lambda sample: True, "blank", "are.")))
    with pytest.raises(UserError, match="All 24 are."):  # the held-out ones, before any is sampled
        finish(tmp_path / "dead", dead)


class KilledError(Exception):
    """Stands for SIGKILL: nothing runs after it but what the loop does for any error."""


def die_after(parts: Parts, count: int) -> Parts:
    """The same parts, with a sampler that dies after ``count`` samples."""
    inner = parts.sampler

    class Dying:
        source = inner.source
        provides = inner.provides

        def sample(self, *args: Any, **words: Any) -> Iterator[Sample[Any]]:
            for number, sample in enumerate(inner.sample(*args, **words)):
                if number == count:
                    raise KilledError
                yield sample

        def network_evaluations(self) -> int:
            return inner.network_evaluations()

    return Parts(Dying(), parts.ranker, parts.finetuner, parts.prompts, loop=parts.loop)


@pytest.mark.parametrize("count", [0, 1, 29, 47])
def test_a_run_killed_in_the_middle_of_sampling_continues_to_the_same_bits(tmp_path: Path, count: int) -> None:
    def unvalidated() -> Parts:
        parts = toy_parts(rounds=3)
        return Parts(parts.sampler, parts.ranker, parts.finetuner, parts.prompts, loop=parts.loop)

    whole = finish(tmp_path / "whole", unvalidated())
    run = Run.create(tmp_path / "killed", ToyRecipe(), seed=0)
    first = raft(run, unvalidated())
    next(first)
    with pytest.raises(KilledError):
        list(raft(run, die_after(unvalidated(), count)))
    again = list(raft(run, unvalidated()))
    assert [finished.index for finished in again] == [1, 2]
    for finished, other in zip(whole[1:], again, strict=True):
        assert finished.metrics["selected_mean"] == other.metrics["selected_mean"]
    one, other_state = states(tmp_path / "whole"), states(tmp_path / "killed")
    assert one.keys() == other_state.keys()
    assert all(torch.equal(one[name], other_state[name]) for name in one)
    pictures = sorted((tmp_path / "whole/rounds/002/samples").glob("*.png"))
    twins = sorted((tmp_path / "killed/rounds/002/samples").glob("*.png"))
    assert [path.read_bytes() for path in pictures] == [path.read_bytes() for path in twins]


def test_a_torn_last_line_and_a_half_written_picture_are_drawn_again(tmp_path: Path) -> None:
    whole = finish(tmp_path / "whole", toy_parts(rounds=1))
    parts = toy_parts(rounds=1)
    run = Run.create(tmp_path / "torn", ToyRecipe(), seed=0)
    with pytest.raises(KilledError):
        list(raft(run, die_after(parts, 30)))
    samples = tmp_path / "torn/rounds/000.partial/samples"
    rows = (samples / "metadata.jsonl").read_text()
    (samples / "metadata.jsonl").write_text(rows[:-25])
    victim = samples / "red-0-003.png"
    victim.write_bytes(victim.read_bytes()[:40])
    (again,) = list(raft(run, toy_parts(rounds=1)))
    assert again.metrics["selected_mean"] == whole[0].metrics["selected_mean"]
    assert len(run.round(0).rows()) == 48


def test_what_was_drawn_once_is_learnt_from_in_the_rounds_that_follow(tmp_path: Path) -> None:
    rounds = finish(tmp_path / "run", toy_parts(sample_every=3, rounds=4, prompts_per_round=2))
    drawn = [finished.metrics["network_evaluations"]["sample"] for finished in rounds]
    assert drawn == [16, 0, 0, 16]
    assert [finished.metrics["tune"]["steps"] for finished in rounds] == [4] * 4
    run = Run.open(tmp_path / "run")
    first, *others = (run.round(t).samples() for t in range(4))
    for t, samples in enumerate(others[:2], 1):
        assert {sample.round for sample in samples} == {t}
        assert [sample.seed for sample in samples] == [sample.seed for sample in first]
        assert [sample.media.tobytes() for sample in samples] == [sample.media.tobytes() for sample in first]
        assert all(torch.equal(one.aux["latent"], two.aux["latent"]) for one, two in zip(samples, first, strict=True))
    assert {sample.prompt.id for sample in first}.isdisjoint(sample.prompt.id for sample in others[2])


def test_a_kill_while_candidates_are_taken_over_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(tmp_path / "whole", toy_parts(sample_every=2, rounds=2))
    run, add, count = Run.create(tmp_path / "killed", ToyRecipe(), seed=0), Draft.add, 0

    def dying(draft: Draft, sample: Sample[Any]) -> None:
        nonlocal count
        count += 1
        if count == 48 + 29:
            raise KilledError
        add(draft, sample)

    with monkeypatch.context() as patch:
        patch.setattr(Draft, "add", dying)
        with pytest.raises(KilledError):
            list(raft(run, toy_parts(sample_every=2, rounds=2)))
    list(raft(run, toy_parts(sample_every=2, rounds=2)))
    assert len(run.round(1).rows()) == 48
    one, other = states(tmp_path / "whole"), states(tmp_path / "killed")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_round_leaves_no_tensor_picture_file_or_thread_behind(tmp_path: Path) -> None:
    def held() -> tuple[int, int, int]:
        gc.collect()
        kept = sum(type(it) in (torch.Tensor, Image.Image, Sample) for it in gc.get_objects())
        return kept, len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    run = Run.create(tmp_path / "run", ToyRecipe(), seed=0)
    seen = [held() for _ in raft(run, toy_parts(rounds=5, replay_rounds=1))]
    assert seen[2] == seen[3] == seen[4]


def test_early_stop_when_the_held_out_reward_has_not_risen() -> None:
    def rounds(values: list[float]) -> Iterator[Round]:
        for index, value in enumerate(values):
            yield Round(index, Path(), {"held_out": value, **({"held_out_base": 1.0} if index == 0 else {})})

    assert len(list(until_no_gain(rounds([2, 3, 2.9, 2.8, 9]), 2))) == 4
    assert len(list(until_no_gain(rounds([0.5, 0.6, 2]), 2))) == 2
    assert len(list(until_no_gain(rounds([0.0] * 5), None))) == 5


def test_replay_hands_the_earlier_selections_to_the_fine_tuner(tmp_path: Path) -> None:
    steps = [finished.metrics["tune"]["steps"] for finished in finish(tmp_path / "run", toy_parts(replay_rounds=2))]
    assert steps == [12, 24, 36, 36, 36]


def test_prompts_are_dealt_without_repetition_until_the_deck_runs_out(tmp_path: Path) -> None:
    finish(tmp_path / "run", toy_parts(prompts_per_round=2, rounds=6))
    run = Run.open(tmp_path / "run")
    hands = [{row["prompt_id"] for row in run.round(t).rows()} for t in range(6)]
    assert [len(hand) for hand in hands] == [2] * 6
    assert len(hands[0] | hands[1] | hands[2]) == 6
    assert len(hands[3] | hands[4] | hands[5]) == 6


def test_a_deck_that_does_not_divide_evenly_is_still_dealt_out_whole() -> None:
    loop = LoopConfig(prompts_per_round=4)
    hands = [[prompt.id for prompt in asked(toy_prompts(10), loop, t)] for t in range(10)]
    assert all(len(set(hand)) == 4 for hand in hands)
    dealt = [card for hand in hands for card in hand]
    assert all(len(set(dealt[start : start + 10])) == 10 for start in (0, 10, 20, 30))
    twice = [asked(toy_prompts(10), loop.model_copy(update={"sample_every": 2}), t) for t in range(4)]
    assert [[prompt.id for prompt in hand] for hand in twice] == [hands[0], hands[0], hands[1], hands[1]]


def test_best_of_k_follows_the_order_statistic(tmp_path: Path) -> None:
    """Under a fresh policy scores are Normal(0, 1.225 x 0.08), so the best of 8 lies 1.4236 deviations up."""
    parts = toy_parts(rounds=1, candidates=8)
    wide = Parts(parts.sampler, parts.ranker, parts.finetuner, toy_prompts(300), loop=parts.loop)
    metrics = finish(tmp_path / "run", wide)[0].metrics
    deviation = np.sqrt(1.5) * 0.08
    assert metrics["best_of_k"] == pytest.approx(1.4236 * deviation, abs=4 * 0.6 * deviation / np.sqrt(300))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("place", "name", "count"),
    [
        (ToyFineTuner, "fit", 2),
        (rounds, "save_tensors", 3),
        (rounds, "sync_all", 2),
        (integrity, "seal", 2),
        (Run, "_hold", 2),
        (Draft, "keep", 3),
        (Draft, "commit", 1),
        (Draft, "commit", 2),
    ],
)
def test_a_run_killed_while_it_tunes_or_commits_ends_in_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, place: Any, name: str, count: int, when: str
) -> None:
    """What it was doing is done again; nothing that was half written is taken for whole."""
    whole = finish(tmp_path / "whole", toy_parts(rounds=2, candidates=4))
    do, calls = getattr(place, name), []

    def dying(*words: Any, **named: Any) -> Any:
        calls.append(name)
        if when == "before" and len(calls) == count:
            raise KilledError
        done = do(*words, **named)
        if when == "after" and len(calls) == count:
            raise KilledError
        return done

    with monkeypatch.context() as patch:
        patch.setattr(place, name, dying)
        with pytest.raises(KilledError):
            finish(tmp_path / "killed", toy_parts(rounds=2, candidates=4))
    finish(tmp_path / "killed", toy_parts(rounds=2, candidates=4))
    one, other = states(tmp_path / "whole"), states(tmp_path / "killed")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    run = Run.open(tmp_path / "killed")
    assert [it["held_out"] for it in run.metrics()] == [finished.metrics["held_out"] for finished in whole]
    assert [found.damage for found in check(run)] == [[], []]
    assert not list(run.path.rglob("*.tmp"))
