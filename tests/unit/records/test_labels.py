"""What people chose: on the disk at once, taken back at will, and back again as a reward, as pairs, as a win rate."""

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raftdiff.errors import UserError
from raftdiff.recipes.config import Config
from raftdiff.records.labels import (
    Ballot,
    Pair,
    ballots,
    candidate_pairs,
    evaluation_pairs,
    points,
    preferences,
    tally,
    unanswered,
)
from raftdiff.records.run import Run
from raftdiff.rewards.labels import LabelsConfig
from raftdiff.types import Item, Key, Prompt, Sample, Scores, Selection

PROMPTS = ("cat", "dog", "owl")
CANDIDATES = 4


class Toy(Config):
    name: str = "toy"


def picture(prompt: str, index: int) -> str:
    return f"rounds/000/samples/{prompt}-{index:03d}.png"


def candidate(prompt: str, index: int) -> Sample[Image.Image]:
    asked = Prompt(prompt, f"a {prompt}", f"a {prompt}", f"a {prompt}")
    return Sample(0, asked, index, 100 * PROMPTS.index(prompt) + index, "policy", Image.new("RGB", (8, 8)))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """One finished round in which candidate k of every prompt has the total k, and the last of "owl" was discarded."""
    run = Run.create(tmp_path / "run", Toy(), seed=0)
    draft = run.draft(0)
    for prompt in PROMPTS:
        for index in range(CANDIDATES):
            draft.add(candidate(prompt, index))
    draft.flush()
    total = np.tile(np.arange(CANDIDATES, dtype=float), (len(PROMPTS), 1))
    total[2, 3] = np.nan
    draft.write_scores(Scores(0, PROMPTS, total, {"clip": total}))
    draft.write_selection(Selection("weighted", (Item((Key(0, "cat", 3),)),)))
    draft.commit({})
    evaluated = run.path / "eval"
    evaluated.mkdir()
    (evaluated / "pictures.json").write_text(json.dumps({f"{p}-000.png": f"a {p}" for p in PROMPTS}))
    return run


def pair(prompt: str, one: int, two: int) -> Pair:
    return Pair(f"a {prompt}", picture(prompt, one), picture(prompt, two))


def test_an_answer_is_on_the_disk_when_the_call_returns_even_if_the_process_is_killed_then(
    run: Run, forked: Callable[[str], Any]
) -> None:
    process = forked(
        "import signal\nfrom pathlib import Path\n"
        "from raftdiff.records.labels import Ballot, Pair\nfrom raftdiff.records.run import Run\n"
        f"Ballot(Run(Path({str(run.path)!r})), 'ada').choose(Pair('c', 'x', 'y'), 'left')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [choice.better for choice in Ballot(run, "ada").choices()] == ["x"]


def test_a_line_that_was_cut_short_does_not_count_and_spoils_nothing(run: Run) -> None:
    ballot = Ballot(run, "ada")
    ballot.choose(pair("cat", 0, 1), "left")
    with ballot.path.open("a") as file:
        file.write('{"act": "choi')
    ballot.choose(pair("dog", 0, 1), "right")
    assert [choice.better for choice in ballot.choices()] == [picture("cat", 0), picture("dog", 1)]


def test_undo_takes_back_one_act_after_the_other_and_says_when_there_is_none(run: Run) -> None:
    ballot = Ballot(run, "ada")
    ballot.choose(pair("cat", 0, 1), "left")
    ballot.veto(picture("cat", 2))
    assert ballot.undo()
    assert ballot.vetoes() == set()
    assert len(ballot.choices()) == 1
    assert ballot.undo()
    assert ballot.choices() == []
    assert not ballot.undo()
    ballot.choose(pair("cat", 0, 1), "right")
    assert [choice.better for choice in ballot.choices()] == [picture("cat", 1)]


@pytest.mark.parametrize("rater", ["", "../ada", "a b", "x" * 65])
def test_a_name_that_could_leave_the_folder_is_refused(run: Run, rater: str) -> None:
    with pytest.raises(UserError, match="use letters, digits"):
        Ballot(run, rater)


def test_pairs_are_of_one_prompt_and_every_prompt_comes_before_any_comes_again(run: Run) -> None:
    pairs = candidate_pairs(run, 0, per_prompt=2, seed=1)
    assert [one.caption for one in pairs] == ["a cat", "a dog", "a owl"] * 2
    assert len({one.names for one in pairs}) == 6
    for one in pairs:
        assert len({Path(name).stem.rpartition("-")[0] for name in one.names}) == 1
    assert pairs == candidate_pairs(run, 0, per_prompt=2, seed=1) != candidate_pairs(run, 0, per_prompt=2, seed=2)


def test_which_side_is_after_is_as_good_as_chance(run: Run) -> None:
    sides = [one.left.split("/")[1] for seed in range(200) for one in evaluation_pairs(run, None, seed=seed)]
    assert 0.45 < sides.count("after") / len(sides) < 0.55


def test_without_an_evaluation_it_says_what_to_run(run: Run) -> None:
    with pytest.raises(UserError, match="no evaluation is here; run: raftdiff eval"):
        evaluation_pairs(run, "other", seed=0)


def test_what_was_answered_is_not_asked_again_whichever_side_it_stood_on(run: Run) -> None:
    pairs = candidate_pairs(run, 0, per_prompt=1, seed=0)
    ballot = Ballot(run, "ada")
    first = pairs[0]
    ballot.choose(Pair(first.caption, first.right, first.left), "tie")
    assert list(unanswered(pairs, ballot.choices())) == pairs[1:]


def test_points_are_wins_less_losses_over_all_raters_or_one(run: Run) -> None:
    Ballot(run, "ada").choose(pair("cat", 0, 1), "left")
    Ballot(run, "ada").choose(pair("cat", 0, 2), "left")
    Ballot(run, "bob").choose(pair("cat", 0, 1), "right")
    Ballot(run, "bob").choose(pair("dog", 0, 1), "tie")
    Ballot(run, "bob").veto(picture("dog", 3))
    scores, vetoes = points(run)
    assert scores == {
        picture("cat", 0): 1.0,
        picture("cat", 1): 0.0,
        picture("cat", 2): -1.0,
        picture("dog", 0): 0.0,
        picture("dog", 1): 0.0,
    }
    assert vetoes == {picture("dog", 3)}
    assert points(run, "ada")[0][picture("cat", 0)] == 2.0


def test_as_a_reward_people_rank_the_candidates_and_a_veto_discards(run: Run) -> None:
    Ballot(run, "ada").choose(pair("cat", 2, 1), "left")
    Ballot(run, "ada").veto(picture("dog", 0))
    reward = LabelsConfig(run=str(run.path)).build()
    scores = reward.score([candidate("cat", 2), candidate("cat", 1), candidate("cat", 0), candidate("dog", 0)]).tolist()
    assert scores[:3] == [1.0, -1.0, 0.0]
    assert math.isnan(scores[3])


def test_what_was_said_of_a_candidate_in_several_rounds_is_added_up(run: Run) -> None:
    """Where a round took over the candidates of the one before it."""
    draft = run.draft(1)
    for prompt in PROMPTS:
        for index in range(CANDIDATES):
            draft.add(replace(candidate(prompt, index), round=1))
    draft.flush()
    total = np.zeros((len(PROMPTS), CANDIDATES))
    draft.write_scores(Scores(1, PROMPTS, total, {"clip": total}))
    draft.write_selection(Selection("weighted", (Item((Key(1, "cat", 3),)),)))
    draft.commit({})

    def again(prompt: str, one: int, two: int) -> Pair:
        names = (picture(prompt, place).replace("rounds/000", "rounds/001") for place in (one, two))
        return Pair(f"a {prompt}", *names)

    ballot = Ballot(run, "ada")
    ballot.choose(pair("cat", 2, 1), "left")
    ballot.choose(again("cat", 2, 0), "right")
    ballot.veto(picture("dog", 0))
    ballot.choose(again("dog", 0, 1), "left")
    asked = [candidate("cat", 2), candidate("cat", 1), candidate("cat", 0), candidate("dog", 0)]
    scores = LabelsConfig(run=str(run.path)).build().score(asked).tolist()
    assert scores[:3] == [0.0, -1.0, 1.0]
    assert math.isnan(scores[3])


def test_as_a_reward_it_says_how_many_of_the_candidates_people_judged(run: Run) -> None:
    ballot = Ballot(run, "ada")
    ballot.choose(pair("cat", 2, 1), "left")
    ballot.choose(pair("owl", 2, 1), "tie")
    ballot.veto(picture("dog", 0))
    seeds = {candidate(prompt, index).seed for prompt in PROMPTS for index in range(CANDIDATES)}
    assert LabelsConfig(run=str(run.path)).build().about(seeds) == (
        "5 of 12 candidates were labelled: 1 won more than they lost, 1 lost more, 2 are level, 1 vetoed; "
        "the others have 0"
    )


@pytest.mark.parametrize(
    ("chosen", "rater", "why"),
    [
        (None, None, "nobody has labelled anything in .*run yet; run: raftdiff label "),
        (("ada", "rounds/000/samples/cat"), "bob", "'bob' labelled nothing in .*those who labelled are: ada"),
        (("ada", "undone"), None, "all was taken back in "),
        (("ada", "eval/before/cat"), None, "all labels of .* are about an evaluation.*raftdiff label .* --round 0"),
        (("ada", "rounds/000/samples/cat"), None, "the labels of .* are about round 0. Score that .* --round 0"),
    ],
)
def test_as_a_reward_it_says_why_it_knows_none_of_the_candidates(
    run: Run, chosen: tuple[str, ...] | None, rater: str | None, why: str
) -> None:
    if chosen:
        ballot = Ballot(run, chosen[0])
        ballot.choose(Pair("a cat", f"{chosen[1]}-000.png", f"{chosen[1]}-001.png"), "left")
        if chosen[1] == "undone":
            ballot.undo()
    reward = LabelsConfig(run=str(run.path), rater=rater).build()
    with pytest.raises(UserError, match="knows none of these candidates: " + why):
        reward.about({12345})


def test_preferences_name_caption_winner_and_loser_and_leave_ties_out(run: Run) -> None:
    Ballot(run, "ada").choose(pair("cat", 2, 1), "right")
    Ballot(run, "ada").choose(pair("dog", 2, 1), "tie")
    assert preferences(run) == [
        {
            "rater": "ada",
            "caption": "a cat",
            "chosen_file_name": picture("cat", 1),
            "rejected_file_name": picture("cat", 2),
        }
    ], "no path is called an answer, which a trainer of language models would learn"


def test_preferences_of_a_picture_that_is_another_now_are_refused(run: Run) -> None:
    Ballot(run, "ada").choose(pair("cat", 2, 1), "right")
    Image.new("RGB", (8, 8), "red").save(run.path / picture("cat", 1))
    with pytest.raises(UserError, match=r"cat-001.png: this picture is not what people chose"):
        preferences(run)


def test_the_win_rate_of_after_counts_a_tie_half_whatever_the_side(run: Run) -> None:
    ballot = Ballot(run, "ada")
    ballot.choose(Pair("a cat", "eval/before/cat-000.png", "eval/after/cat-000.png"), "right")
    ballot.choose(Pair("a dog", "eval/after/dog-000.png", "eval/before/dog-000.png"), "left")
    ballot.choose(Pair("a owl", "eval/after/owl-000.png", "eval/before/owl-000.png"), "tie")
    found = tally(run, ballots(run))
    assert found.after_wins is not None
    assert found.after_wins.mean == pytest.approx(2.5 / 3)
    assert found.after_wins.ci95[0] < found.after_wins.mean < found.after_wins.ci95[1]
    assert found.ties == 1
    assert "After beats before in 83%" in found.lines[1]


def test_agreement_is_how_often_the_chosen_candidate_scored_higher(run: Run) -> None:
    """Totals rise with the index; the last owl was discarded and cannot agree or disagree."""
    ballot = Ballot(run, "ada")
    ballot.choose(pair("cat", 0, 3), "right")
    ballot.choose(pair("dog", 3, 1), "right")
    ballot.choose(pair("owl", 3, 1), "right")
    found = tally(run, [ballot])
    assert found.agreement is not None
    assert (found.agreement.mean, found.agreement.n) == (0.5, 2)


def test_of_one_choice_nearly_all_is_open(run: Run) -> None:
    """What a resampling would give, 100% to 100%, would be the surest figure there is."""
    ballot = Ballot(run, "ada")
    ballot.choose(pair("cat", 0, 3), "right")
    ballot.choose(Pair("a cat", "eval/before/cat-000.png", "eval/after/cat-000.png"), "right")
    assert tally(run, [ballot]).lines == [
        "2 choices, of them 0 ties; 0 vetoed.",
        "After beats before in 100% (95% interval 21% to 100%) of 1 pair.",
        "The reward agrees with people in 100% (95% interval 21% to 100%) of 1 choice.",
    ]


def test_every_rater_has_a_ballot(run: Run) -> None:
    for rater in ("bob", "ada"):
        Ballot(run, rater).choose(pair("cat", 0, 1), "left")
    assert [ballot.rater for ballot in ballots(run)] == ["ada", "bob"]
    assert os.access(next(islice(run.path.glob("labels/*.jsonl"), 1)), os.R_OK)
