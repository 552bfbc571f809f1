"""Before against after on toy samples whose media are numbers."""

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from raftdiff.errors import UserError
from raftdiff.measures.evaluation import evaluate, to_json
from raftdiff.reports.tables import Row, aggregate, markdown, rows, shown, table
from raftdiff.types import Prompt, Sample

PROMPTS = [Prompt(name, f"a {name}", sampling=name, learning=name) for name in ("cat", "dog", "fox")]


@dataclass(frozen=True)
class Value:
    """The reward is the number itself."""

    name: str = "value"

    def score(self, samples):
        return torch.tensor([sample.media for sample in samples], dtype=torch.float32)


def side(values):
    """Samples of ``PROMPTS`` from a (prompts, samples) table."""
    return [
        Sample(0, prompt, index, 10 * row + index, "policy", value)
        for row, (prompt, line) in enumerate(zip(PROMPTS, values, strict=False))
        for index, value in enumerate(line)
    ]


def angles(samples):
    """Two features, at the angle that the number says: so cosines are known."""
    angle = torch.tensor([sample.media for sample in samples], dtype=torch.float32)
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def big(media, captions):
    assert len(media) == len(captions)
    return {"object": np.array(media) > 1, "exact": np.array(media) > 2}


BEFORE = side([[0.0, 1.0], [2.0, 3.0], [1.0, 1.0]])
AFTER = side([[1.0, 1.0], [4.0, 4.0], [1.0, 0.0]])


@pytest.fixture
def evaluation():
    return evaluate(
        PROMPTS,
        BEFORE,
        AFTER,
        rewards=[Value()],
        features=angles,
        judge=big,
        prediction_drift=0.25,
        seconds=2.0,
        network_evaluations=960,
    )


def test_rewards_are_paired(evaluation):
    value = evaluation["rewards"]["value"]
    assert value["before"]["mean"] == pytest.approx(8 / 6)
    assert value["after"]["mean"] == pytest.approx(11 / 6)
    assert value["difference"]["mean"] == pytest.approx(3 / 6)
    assert value["win_rate"] == pytest.approx((3 + 2 / 2) / 6)
    assert value["before"]["n"] == 6


def test_judge_gives_rates(evaluation):
    assert evaluation["judge"]["object"]["before"] == pytest.approx(2 / 6)
    assert evaluation["judge"]["exact"]["after"] == pytest.approx(2 / 6)
    assert evaluation["judge"]["exact"]["difference"]["mean"] == pytest.approx(1 / 6)
    low, high = evaluation["judge"]["exact"]["after_ci95"]
    assert 0 <= low <= 2 / 6 <= high <= 1


def relation(media, captions):
    """Asked by the cat's caption alone; each caption asks for an object."""
    asked = np.array(["cat" in caption for caption in captions])
    return {"object": np.array(media) > 1, "relation": np.where(asked, np.array(media) > 0.5, np.nan)}


def test_what_one_prompt_of_several_asks_has_neither_interval_nor_verdict():
    told = evaluate(PROMPTS, BEFORE, side([[1.0, 1.0]] * 3), rewards=[Value()], judge=relation)
    asked = told["judge"]["relation"]
    assert (asked["before"], asked["after"], asked["difference"]["mean"]) == (0.5, 1.0, 0.5)
    assert (asked["difference"]["n"], asked["difference"]["prompts"], asked["difference"]["ci95"]) == (2, 1, None)
    assert asked["before_ci95"] is asked["after_ci95"] is None
    assert told["judge"]["object"]["difference"]["prompts"] == 3
    by_key = {row.key: row for row in rows(json.loads(to_json(told)))}
    assert (by_key["judge.relation"].ci95, by_key["judge.relation"].verdict) == (None, "")
    assert by_key["judge.object"].verdict
    assert "+50.0 pt" in table(told)


def test_diversity_and_drift(evaluation):
    distance = evaluation["diversity"]["pairwise_distance"]
    assert distance["before"] == pytest.approx((1 - np.cos(1) + 1 - np.cos(1) + 0) / 3, abs=1e-6)
    assert distance["after"] == pytest.approx((1 - np.cos(1)) / 3, abs=1e-6)
    assert evaluation["diversity"]["ratio"]["pairwise_distance"] == pytest.approx(0.5, abs=1e-6)
    assert 1 <= evaluation["diversity"]["vendi_within"]["after"] <= 2
    assert evaluation["drift"]["prediction"] == 0.25
    moved = [1, 0, 2, 1, 0, 1]
    assert evaluation["drift"]["picture"] == pytest.approx(np.mean(1 - np.cos(moved)), abs=1e-6)


def test_costs_are_carried(evaluation):
    assert evaluation["seconds"] >= 2
    assert evaluation["network_evaluations"] == 960
    assert (evaluation["prompts"], evaluation["samples_per_prompt"]) == (3, 2)


def test_json_is_the_evaluation(evaluation):
    assert json.loads(to_json(evaluation)) == evaluation


def test_nothing_changed_means_zero_and_one_half():
    same = evaluate(PROMPTS, BEFORE, BEFORE, rewards=[Value()], features=angles)
    assert same["rewards"]["value"]["difference"]["ci95"] == [0, 0]
    assert same["rewards"]["value"]["win_rate"] == 0.5
    assert set(same["diversity"]["ratio"].values()) == {1.0}
    assert same["drift"]["picture"] == pytest.approx(0)
    assert same["judge"] == {}


def test_without_features_there_is_no_diversity():
    bare = evaluate(PROMPTS, BEFORE, AFTER, rewards=[Value()])
    assert bare["diversity"] is None
    assert bare["drift"] == {"picture": None, "prediction": None}
    assert len(table(bare).splitlines()) == 4


def test_one_sample_a_prompt_has_no_pairwise_distance():
    one, other = side([[0.0], [1.0], [2.0]]), side([[1.0], [1.0], [2.0]])
    single = evaluate(PROMPTS, one, other, rewards=[Value()], features=angles)
    assert single["diversity"]["pairwise_distance"] == {"before": None, "after": None}
    assert single["diversity"]["ratio"]["pairwise_distance"] is None
    assert json.loads(to_json(single)) == single
    assert "distance in a prompt" not in table(single)


def test_a_discarded_sample_leaves_its_pair_out():
    holed = [replace(AFTER[0], media=float("nan")), *AFTER[1:]]
    value = evaluate(PROMPTS, BEFORE, holed, rewards=[Value()])["rewards"]["value"]
    assert (value["before"]["n"], value["after"]["n"], value["difference"]["n"]) == (6, 5, 5)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([], [], "There is nothing to evaluate"),
        (BEFORE, AFTER[:-1], "6 samples before but 5 after; every sample needs its counterpart"),
        (BEFORE, AFTER[::-1], r"'cat' number 0 \(seed 0\) before but 'fox' number 1 \(seed 21\) after; both sides"),
        (BEFORE[:-1], AFTER[:-1], "same number of samples, but 'fox' has 1 and 'cat' 2"),
    ],
)
def test_sides_that_do_not_match(before, after, message):
    with pytest.raises(UserError, match=message):
        evaluate(PROMPTS, before, after, rewards=[Value()])


def test_a_sample_of_no_prompt():
    with pytest.raises(UserError, match="'cat', which is not among the prompts"):
        evaluate(PROMPTS[1:], BEFORE, AFTER, rewards=[Value()])


@dataclass(frozen=True)
class Fixed:
    scores: torch.Tensor
    name: str = "fixed"

    def score(self, samples):
        return self.scores


NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(6, 2), r"The reward 'fixed' returned Tensor of shape \(6, 2\) .* Of several columns return one"),
        (torch.tensor([0, 0, 0, 0, 0, torch.inf]), "The reward 'fixed' returned infinity for 1 of 6 samples"),
        (torch.full((6,), NAN), "The reward 'fixed' is NaN .* for all 6 samples"),
    ],
)
def test_bad_rewards(scores, message):
    with pytest.raises(UserError, match=message):
        evaluate(PROMPTS, BEFORE, AFTER, rewards=[Fixed(scores)])


def test_no_pair_left():
    before = [replace(sample, media=NAN if sample.index else 1.0) for sample in BEFORE]
    after = [replace(sample, media=1.0 if sample.index else NAN) for sample in AFTER]
    with pytest.raises(UserError, match="no sample that is valid both before and after"):
        evaluate(PROMPTS, before, after, rewards=[Value()])


def test_two_rewards_of_one_name():
    with pytest.raises(UserError, match="Two rewards are called 'value'"):
        evaluate(PROMPTS, BEFORE, AFTER, rewards=[Value(), Value()])


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (lambda samples: torch.zeros(2, 2), r"shape \(2, 2\) for 6 samples; expected \(6, d\)"),
        (lambda samples: torch.full((6, 2), NAN), "The features hold NaN or infinity"),
    ],
)
def test_bad_features(features, message):
    with pytest.raises(UserError, match=message):
        evaluate(PROMPTS, BEFORE, AFTER, rewards=[Value()], features=features)


def test_bad_judge():
    with pytest.raises(UserError, match="The judge's 'object' returned ndarray of shape"):
        evaluate(PROMPTS, BEFORE, AFTER, rewards=[], judge=lambda media, captions: {"object": np.array([True])})


def test_table_is_aligned_and_narrow(evaluation):
    text = table(evaluation)
    lines = text.splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert lines[0].split() == ["before", "after", "difference", "95%", "interval", "win", "rate"]
    assert lines[1].split()[:5] == ["↑", "value", "1.33", "1.83", "+0.50"]
    assert any(line.startswith("↑ everything right") and "33.3%" in line for line in lines)
    assert any(line.startswith("↓ drift from base (picture)") for line in lines)
    assert "3 prompts x 2 samples" in lines[-1]


def test_table_stays_narrow_with_a_long_name_and_large_numbers(evaluation):
    change = json.loads(json.dumps(evaluation["rewards"]["value"]))
    for figure in ("before", "after", "difference"):
        change[figure] = {"mean": -123456.7, "std": 1.0, "ci95": [-234567.8, -123456.7], "n": 6}
    wide = {**evaluation, "rewards": {"a" * 60: change}}
    assert max(map(len, table(wide).splitlines())) <= 100


@pytest.mark.parametrize(("size", "digits"), [(123.4, 1), (27.3, 2), (0.41, 3), (0.0312, 4), (1e-12, 6), (0.0, 3)])
def test_precision_suits_the_size(size, digits):
    row = Row("key", "label", None, size, size, None, None, better=1, unit="")
    assert shown(row, size) == f"{size:.{digits}f}"


def test_a_change_of_a_rate_is_in_points():
    row = Row("key", "label", 10.0, 35.0, 25.0, None, None, better=1, unit="%")
    assert (shown(row, 35.0), shown(row, 25.0, change=True)) == ("35.0%", "+25.0 pt")


def test_verdicts(evaluation):
    by_key = {row.key: row for row in rows(evaluation)}
    assert by_key["diversity.vendi"].verdict == ""
    assert by_key["reward.value"].verdict == "unclear"
    up = by_key["reward.value"]._replace(ci95=(0.1, 0.2))
    assert up.verdict == "better"
    assert up._replace(better=-1).verdict == "worse"


def test_aggregate_over_seeds(evaluation):
    other = evaluate(PROMPTS, BEFORE, side([[2.0, 1.0]] * 3), rewards=[Value()], features=angles, judge=big)
    other["drift"]["prediction"] = 0.75
    across = {row.key: row for row in aggregate([evaluation, other])}
    value = across["reward.value"]
    assert value.before.mean == pytest.approx(8 / 6)
    assert value.before.ci95 == pytest.approx((8 / 6, 8 / 6))
    assert value.difference.mean == pytest.approx((3 / 6 + 1 / 6) / 2)
    assert across["drift.prediction"].before is None
    assert across["drift.prediction"].after.mean == 0.5


def test_a_figure_that_is_no_number_is_a_sentence(evaluation):
    for value in (math.nan, math.inf):
        with pytest.raises(UserError, match=rf"no number: drift\.kl \({value}\)\. .* 'drift' of the tuned model"):
            to_json({**evaluation, "drift": {"kl": value}})
    evaluation["rewards"]["value"]["before"]["mean"] = math.inf
    with pytest.raises(
        UserError, match=r"no number: rewards\.value\.before\.mean \(inf\)\. A figure named 'before' is"
    ):
        to_json(evaluation)


def test_one_seed_has_no_interval(evaluation):
    alone = aggregate([evaluation])
    assert alone[0].difference.ci95 is None
    assert "±" not in markdown({"in": alone})


def test_aggregate_refuses(evaluation):
    with pytest.raises(UserError, match="no evaluation"):
        aggregate([])
    with pytest.raises(UserError, match=r"some lack: .*judge\.exact"):
        aggregate([evaluation, evaluate(PROMPTS, BEFORE, AFTER, rewards=[Value()], features=angles)])


def test_markdown_has_three_columns_a_heading(evaluation):
    inside = aggregate([evaluation, evaluation])
    lines = markdown({"in": inside, "out": inside[:1]}).splitlines()
    assert lines[0] == ("| metric | in: base | in: tuned | in: difference | out: base | out: tuned | out: difference |")
    assert lines[2] == (
        "| value ↑ | 1.33 ± 0.00 | 1.83 ± 0.00 | +0.50 ± 0.00 | 1.33 ± 0.00 | 1.83 ± 0.00 | +0.50 ± 0.00 |"
    )
    assert {line.count("|") for line in lines} == {8}
    assert lines[3].endswith("|  |  |  |")
