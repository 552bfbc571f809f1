"""The curve of the trained reward against what looks on."""

from typing import Any

import pytest

from raftdiff.reports.goodhart import _unseen, _watched, goodhart

BASE = [0.0, 1.0, 2.0]  # of standard deviation 1


def looked(place: int, trained: float, other: float, weight: float = 0.0) -> dict[str, Any]:
    base = {"held_out_base": 1.0, "held_out_base_each": BASE} if place == 0 else {}
    base |= {"held_out_base_rewards_each": {"jpeg": BASE, "clip": BASE}} if place == 0 else {}
    each = {"jpeg": [it + trained for it in BASE], "clip": [it + other for it in BASE]}
    return base | {
        "round": place,
        "mean": 10.0 + place,
        "held_out": 1.0 + trained,
        "held_out_rewards_each": each,
        "held_out_weights": {"jpeg": 1.0, "clip": weight},
    }


def test_both_axes_are_in_units_of_the_bases_spread_where_a_reward_looks_on() -> None:
    points = _watched([looked(0, 1.0, 0.5), looked(1, 2.0, -1.0)])
    assert [(name, x, pytest.approx(y)) for name, x, y in points] == [("base", 0, 0), ("0", 1.0, 0.5), ("1", 2.0, -1.0)]
    assert "1: -1 at 2" in goodhart([looked(0, 1.0, 0.5), looked(1, 2.0, -1.0)])


def test_without_one_the_held_out_reward_stands_against_the_training_prompts_of_the_same_model() -> None:
    rounds = [looked(0, 1.0, 0.5, 1.0), looked(1, 2.0, -1.0, 1.0)]
    assert _watched(rounds) == []
    assert _unseen(rounds) == [("base", 10.0, 1.0), ("0", 11.0, 2.0)]


def test_runs_of_earlier_versions_and_without_held_out_prompts_have_no_such_curve() -> None:
    assert goodhart([]) == goodhart([{"round": 0, "mean": 1.0}]) == ""
    assert "reward on the training prompts" in goodhart(
        [{"round": 0, "mean": 1.0, "held_out_base": 0.5, "held_out": 0.7}, {"round": 1, "mean": 2.0, "held_out": 0.6}]
    )
