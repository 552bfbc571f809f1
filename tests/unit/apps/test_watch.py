"""What the page of ``watch`` says of a run's rounds."""

import re
from typing import Any

from raftdiff.apps.watch import overview
from raftdiff.records.watching import Snapshot

EACH = {"clip": [1.0, 3.0]}
MIXING: dict[str, Any] = {
    "mix": "gdpo",
    "roles": {"clip": "train", "jpeg": "hold_out"},
    "told_nothing": {"clip": 0.0, "jpeg": 0.25},
    "agreement": {"clip": {"jpeg": 0.61}},
    "contribution": {"clip": 1.0},
    "chosen_above": {"clip": 0.5, "jpeg": None},
    "vetoed": {},
}


def standing(*metrics: dict[str, Any]) -> str:
    return overview(Snapshot("toy", 4, metrics, None, 1.0, 0, ()))


def cells(page: str, what: str) -> list[str]:
    row = re.search(rf'<th scope="row">{what}</th>(.*?)</tr>', page, re.S)
    assert row, page
    return re.findall(r"<td[^>]*>(.*?)</td>", row.group(1))


def test_it_says_who_decided_in_the_last_round_and_what_the_guard_looks_at() -> None:
    base = {"held_out_base": 2.0, "held_out_base_rewards_each": EACH}
    page = standing(
        {"round": 0, "held_out": 2.0, "held_out_rewards_each": EACH, "mixing": {**MIXING, "mix": "rank_sum"}, **base},
        {"round": 1, "held_out": 3.0, "held_out_rewards_each": {"clip": [2.0, 4.0]}, "mixing": MIXING},
    )
    assert "Who decided: rewards in round 1, mix: gdpo" in page
    assert cells(page, "clip") == ["train", "100%", "+0.50 sd", "0%", "-"]
    assert cells(page, "jpeg") == ["hold_out", "-", "-", "25%", "-"]
    assert "clip and jpeg order 61% of the pairs alike" in page
    assert cells(page, "reward clip") == ["2", "3", "+0.7 sd"]


def test_of_one_reward_and_without_held_out_prompts_there_is_neither() -> None:
    alone = {**MIXING, "roles": {"clip": "train"}}
    for page in (standing(), standing({"round": 0, "mixing": alone})):
        assert "Who decided" not in page
        assert "guard" not in page
