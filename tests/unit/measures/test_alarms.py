"""The guard's alarms, against closed forms."""

from typing import Any

import numpy as np
import pytest

from raftdiff.measures.alarms import (
    FELL,
    KEPT,
    SURE,
    Drift,
    HeldOut,
    Signal,
    after_going_back,
    alarms,
    best,
    gain,
    half_width,
)
from raftdiff.measures.statistics import t_quantile

LEVELS = np.linspace(0.4, 0.6, 16)
SPREAD = float(LEVELS.std())


def looked(shift: float = 0.0, noise: float = 0.0, **more: Any) -> HeldOut:
    each = LEVELS + shift + noise * np.resize([1.0, -1.0], 16)
    return HeldOut(signals={"saturation": Signal(float(each.mean()), float(each.std()), each)}, **more)


def whats(base: HeldOut, now: HeldOut) -> list[str]:
    return [alarm.what for alarm in alarms(base, now)]


def test_the_interval_is_students() -> None:
    changes = np.array([0.0, 1.0, 2.0, 5.0])
    known = 3.182 * np.sqrt(14 / 3) / 2  # of a table: t of 3 degrees at 97.5%; variance 14/3, four prompts
    assert half_width(changes, 0.05) == pytest.approx(known, rel=1e-3)
    assert half_width(changes[:1], 0.05) == np.inf


@pytest.mark.parametrize(("share", "told"), [(0.9, []), (1.1, ["signal saturation"]), (-1.1, ["signal saturation"])])
def test_a_signal_alarms_beyond_the_bases_own_spread_in_either_direction(share: float, told: list[str]) -> None:
    assert whats(looked(), looked(share * SPREAD)) == told


def test_a_signal_that_moved_no_surer_than_chance_is_no_alarm() -> None:
    shift = 1.5 * SPREAD
    wide = shift / (t_quantile(15, 1 - SURE / 2) * np.sqrt(16 / 15) / 4)  # noise at which the interval reaches 0
    assert whats(looked(), looked(shift, 0.95 * wide)) == ["signal saturation"]
    assert whats(looked(), looked(shift, 1.05 * wide)) == []


def test_the_sentence_says_what_moved_from_what_to_what_and_what_to_do() -> None:
    told = alarms(looked(), looked(2 * SPREAD))[0].told
    assert "saturation of the held-out pictures rose from 0.5 to 0.623" in told
    assert "2.0 of the base's standard deviations" in told
    assert "type: saturation, with a target" in told
    assert "loop.guard: rollback" in told
    (after,) = after_going_back([told])
    assert "go back" not in after
    assert "Look at the pictures; keep it in bounds with a reward" in after


def test_what_is_trained_for_is_meant_to_move() -> None:
    assert whats(looked(), looked(3 * SPREAD, weights={"saturation": 1.0})) == []
    assert whats(looked(), looked(3 * SPREAD, weights={"saturation": 0.0})) == ["signal saturation"]


def scored(shift: float, noise: float = 0.0, weight: float = 0.0, *, prompts: int = 16) -> HeldOut:
    each = (LEVELS + shift + noise * np.resize([1.0, -1.0], 16))[:prompts]
    return HeldOut(rewards={"clip": each}, weights={"clip": weight}, total=float(each.mean()))


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_a_reward_alarms_when_it_surely_fell_and_not_when_it_rose(weight: float) -> None:
    assert whats(scored(0), scored(-0.05, 0.02, weight)) == ["reward clip"]
    assert whats(scored(0), scored(0.05, 0.02, weight)) == []
    assert whats(scored(0), scored(-0.02, 0.2, weight)) == []  # it may be chance
    assert whats(scored(0), scored(-0.9 * FELL * LEVELS.std(ddof=1), 0.0, weight)) == []  # sure, and too little


def test_of_a_reward_below_0_of_weight_the_rise_is_the_fall() -> None:
    found = alarms(scored(0), scored(0.05, 0.02, -1.0))
    assert [alarm.what for alarm in found] == ["reward clip"]
    assert "rose from 0.5 to 0.55" in found[0].told
    assert whats(scored(0), scored(-0.05, 0.02, -1.0)) == []


def test_one_prompt_tells_nothing_from_chance() -> None:
    assert whats(scored(0, prompts=1), scored(-9, prompts=1)) == []


def test_prompts_that_a_reward_discards_on_either_side_are_left_out() -> None:
    base, now = scored(0), scored(-0.05, 0.02)
    base.rewards["clip"][0] = now.rewards["clip"][1] = np.nan
    assert whats(base, now) == ["reward clip"]


def test_diversity_is_of_what_there_is_beyond_one_picture() -> None:
    base = HeldOut(vendi=11.0, near_duplicates=0.0)
    assert whats(base, HeldOut(vendi=1 + 10 * KEPT, near_duplicates=0.1)) == []
    assert whats(base, HeldOut(vendi=8.4, near_duplicates=0.25)) == ["vendi", "near-duplicates"]


def drifted(share: float, noise: float = 0.0, apart: float = 0.3) -> HeldOut:
    return HeldOut(drift=Drift(share * apart + noise * np.resize([1.0, -1.0], 16), np.full(16, apart)))


def test_drift_alarms_beyond_the_distance_between_the_bases_own_seeds() -> None:
    assert whats(HeldOut(), drifted(0.95)) == []
    assert whats(HeldOut(), drifted(1.05)) == ["drift"]
    (alarm,) = alarms(HeldOut(), drifted(1.5))
    assert "lie 1.5 times as far from the base's of the same prompt and seed" in alarm.told
    wide = 0.15 / (t_quantile(15, 1 - SURE / 2) * np.sqrt(16 / 15) / 4)  # noise at which the interval reaches 0
    assert whats(HeldOut(), drifted(1.5, 0.95 * wide)) == ["drift"]
    assert whats(HeldOut(), drifted(1.5, 1.05 * wide)) == []


def test_drift_without_a_yardstick_is_no_alarm() -> None:
    """One picture a prompt; and a base that draws one picture whatever the seed, so that none would be near enough."""
    told = {"held_out_drift": {"mean": 1.0, "each": [1.0, 1.0], "apart": [None, None]}}
    assert HeldOut.of(told, "held_out").drift is not None
    assert alarms(HeldOut(), HeldOut.of(told, "held_out")) == []
    assert whats(HeldOut(), HeldOut(drift=Drift(np.full(16, 0.1), np.zeros(16)))) == []


def lettered(share: float) -> HeldOut:
    each = np.array([1.0] * round(16 * share) + [0.0] * round(16 * (1 - share)))
    return HeldOut(text=Signal(float(each.mean()), float(each.std()), each))


def test_text_alarms_where_surely_more_pictures_show_it_than_the_bases_spread() -> None:
    assert whats(lettered(0), lettered(0.25)) == []  # four pictures: it may be chance
    assert whats(lettered(0), lettered(0.75)) == ["text"]
    assert whats(lettered(0.75), lettered(0)) == []
    assert whats(lettered(0.5), lettered(0.9375)) == []  # less than the base's standard deviation of a half
    assert whats(HeldOut(), lettered(1.0)) == [], "nobody looked at the base"
    (alarm,) = alarms(lettered(0), lettered(0.75))
    assert alarm.told.startswith("75% of the held-out pictures show letters that nobody asked for, of the base model's")


def test_rounds_without_figures_raise_no_alarm() -> None:
    assert alarms(HeldOut.of({}, "held_out_base"), HeldOut.of({"held_out": 1.0}, "held_out")) == []


def test_chance_alone_alarms_less_often_than_it_may() -> None:
    """Eight rewards that did not change, on 16 prompts with Gaussian noise: 1%, half of it for falls."""
    rng = np.random.default_rng(0)
    base = HeldOut(rewards={str(n): rng.normal(size=16) for n in range(8)})
    found = [
        bool(alarms(base, HeldOut(rewards={name: it + rng.normal(size=16) for name, it in base.rewards.items()})))
        for _ in range(2000)
    ]
    assert np.mean(found) == pytest.approx(SURE / 2, abs=4 * np.sqrt(SURE / 2 / 2000))


def test_the_gain_is_that_of_those_that_only_look_on_where_there_are_any() -> None:
    base = HeldOut(rewards={"jpeg": LEVELS, "clip": LEVELS}, total=0.0)
    now = HeldOut(rewards={"jpeg": LEVELS + 9, "clip": LEVELS - 0.1}, total=9.0, weights={"jpeg": 1.0, "clip": 0.0})
    assert gain(base, now) == pytest.approx(-0.1 / LEVELS.std(ddof=1))
    alone = HeldOut(rewards={"jpeg": LEVELS + 9}, total=9.0, weights={"jpeg": 1.0})
    assert gain(base, alone) == 9.0
    assert gain(base, HeldOut()) is None


def test_the_best_is_a_round_that_did_not_alarm_or_the_base() -> None:
    assert best([0.1, 0.4, 0.4, 2.0], {3}) == 1
    assert best([-0.1, -0.2], ()) is None
    assert best([2.0], {0}) is None


def test_who_vetoes_or_constrains_is_no_witness_though_it_alarms() -> None:
    """Its scores have a part in the choice; who looks on has none."""
    each = {"clip": LEVELS, "safe": LEVELS}
    falls = {"clip": LEVELS, "safe": LEVELS - 2 * SPREAD}
    roles = {"clip": "hold_out", "safe": "veto"}
    base, now = (HeldOut(rewards=held, weights={"clip": 0.0, "safe": 0.0}, roles=roles) for held in (each, falls))
    assert now.onlookers == ["clip"]
    assert gain(base, now) == 0
    (alarm,) = alarms(base, now)
    assert "'safe' (it vetoes) fell" in alarm.told
    old = HeldOut.of({"held_out_rewards_each": {"clip": [1.0]}, "held_out_weights": {"clip": 0.0}}, "held_out")
    assert old.onlookers == ["clip"], "a round of an earlier version, which knew no roles"
