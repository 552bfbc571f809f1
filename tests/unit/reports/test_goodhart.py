"""The curve of the trained reward against what looks on."""

import re
from typing import Any

import numpy as np
import pytest

from raftdiff.reports.goodhart import _unseen, _watched, goodhart, signs, signs_note, signs_told

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
    plot = goodhart([looked(0, 1.0, 0.5), looked(1, 2.0, -1.0)])
    assert "base: 0 at 0; round 0: 0.5 at 1; round 1: -1 at 2." in plot


def test_the_bases_name_does_not_stand_over_that_of_the_axis() -> None:
    """Where every round is worse, as under a hacked reward, the base is at the top."""
    plot = goodhart([looked(0, 1.0, -0.5), looked(1, 2.0, -1.0)])
    heights = [
        float(y) for y in re.findall(r'<text[^>]* y="([\d.]+)"[^>]*>(?:base|rewards that only look on[^<]*)<', plot)
    ]
    assert len(heights) == 2
    assert max(heights) - min(heights) > 13, "a line of text apart"


def test_without_one_the_held_out_reward_stands_against_the_training_prompts_of_the_same_model() -> None:
    rounds = [looked(0, 1.0, 0.5, 1.0), looked(1, 2.0, -1.0, 1.0)]
    assert _watched(rounds) == []
    assert _unseen(rounds) == [("base", 10.0, 1.0), ("0", 11.0, 2.0)]


def test_runs_of_earlier_versions_and_without_held_out_prompts_have_no_such_curve() -> None:
    assert goodhart([]) == goodhart([{"round": 0, "mean": 1.0}]) == ""
    assert "reward on the training prompts" in goodhart(
        [{"round": 0, "mean": 1.0, "held_out_base": 0.5, "held_out": 0.7}, {"round": 1, "mean": 2.0, "held_out": 0.6}]
    )


def seen(clip: float, saturation: float, **more: Any) -> dict[str, Any]:
    """A round of four prompts, whose base has a standard deviation of 1 in both figures."""
    each = [-1.5, -0.5, 0.5, 1.5]
    spread = float(np.std(each, ddof=1))
    rewards = {"clip": [(it + clip) / spread for it in each], "none": [None] * 4}
    told = {"mean": saturation, "std": 0.1, "each": [0.1 * it + saturation for it in each]}
    return {
        "held_out": 1.0,
        "held_out_rewards_each": rewards,
        "held_out_weights": {"clip": 1.0},
        "held_out_figures": {"vendi": 8.0, "near_duplicates": 0.25, "signals": {"colour_entropy": told}},
        **more,
    }


def of_base(clip: float, saturation: float) -> dict[str, Any]:
    return {it.replace("held_out", "held_out_base"): told for it, told in seen(clip, saturation).items()}


def test_signs_stand_in_units_of_the_bases_spread_with_the_alarms_marked() -> None:
    drift = {"mean": 0.45, "each": [0.44, 0.46, 0.44, 0.46], "apart": [0.3, 0.3, 0.3, 0.3]}
    tune = {"prediction_drift": 0.0123}
    rounds = [seen(0.0, 0.5) | of_base(0.0, 0.5), seen(0.5, 0.7, held_out_drift=drift, tune=tune)]
    found = {it.what: it for it in signs(rounds)}
    assert found["reward clip"][1:] == ("0", "0.3873", "+0.4 sd", False)
    assert found["reward none"][1:4] == ("", "", "")
    assert found["colour entropy"][1:] == ("0.5", "0.7", "+2.0 sd", True)
    assert found["vendi"].moved == "100% of it"
    assert found["near-duplicates"].moved == "+0 pt"
    assert found["drift"][1:] == ("", "0.450", "1.50 of two seeds'", True)
    assert found["drift of predictions"].now == "0.0123"
    lines = signs_told(rounds)
    assert [line.split()[0] for line in lines if line.endswith("!")] == ["colour", "drift"]
    assert len({len(line.removesuffix("  !")) for line in lines}) == 1, "columns stand under each other"


def test_there_are_no_signs_without_a_base_to_compare_with() -> None:
    assert signs([]) == signs([seen(0.0, 0.5)]) == signs_told([seen(0.0, 0.5)]) == []
    changed = [seen(0.0, 0.5) | of_base(0.0, 0.5), seen(1.0, 0.5, changed=["evaluation.guidance"])]
    assert signs(changed) == []


def test_text_is_a_sign_where_it_was_looked_for_in_both_rounds_and_is_said_where_not() -> None:
    first, last = seen(0.0, 0.5) | of_base(0.0, 0.5), seen(0.0, 0.5)
    read = {"text": {"mean": 0.5, "std": 0.5, "each": [0.0, 1.0, 0.0, 1.0]}}
    blind = {"not_looked_at": ["text"]}

    def told(base: dict[str, Any], now: dict[str, Any]) -> tuple[list[str], str]:
        rounds = [
            first | {"held_out_base_figures": {**first["held_out_base_figures"], **base}},
            last | {"held_out_figures": {**last["held_out_figures"], **now}},
        ]
        note = signs_note(rounds)
        assert (signs_told(rounds)[-1].strip() in note) == bool(base.get("not_looked_at") or now.get("not_looked_at"))
        return [it.moved for it in signs(rounds) if it.what == "text"], note

    assert told(read, {"text": {**read["text"], "mean": 0.75}})[0] == ["+25 pt"]
    assert told(read, blind)[0] == told(blind, read)[0] == []
    assert "was not looked for: no OCR is at hand (pip install 'raftdiff[rewards]')" in told(read, blind)[1]
    assert "Text in the base's pictures was not looked for" in told(blind, read)[1]
    assert signs_note([]) == signs_note([first, last])
