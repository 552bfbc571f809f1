"""What a person sees while a run goes on."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from raftdiff.cli import show
from raftdiff.cli.show import Bars, round_line
from raftdiff.types import Round


def test_a_log_file_gets_whole_lines_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0.0, 20.0)  # a report every 20 seconds
    monkeypatch.setattr(show.time, "monotonic", lambda: next(clock))
    bars = Bars(3)
    report = bars.stage(1, "sample")
    for done in range(5, 11):  # four were drawn by an earlier process
        report(done, 10)
    bars.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "round 1/2 sample: 6 of 10 candidates, about 1 min 20 s left",
        "round 1/2 sample: 8 of 10 candidates, about 40 s left",
    ]


def test_short_work_leaves_nothing_in_a_log_file(capsys: pytest.CaptureFixture[str]) -> None:
    bars = Bars()
    report = bars.stage(0, "evaluate")
    for done in range(1, 11):
        report(done, 10)
    bars.close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({}, "4 selected 2.00 | 3.0 s"),  # a round of an earlier version
        ({"undecided": 0, "prompts": 4, "blank": 0}, "4 selected 2.00 | 3.0 s"),
        ({"undecided": 3, "prompts": 4}, "4 selected 2.00 | nothing told apart for 3 of 4 prompts | 3.0 s"),
        ({"discard_rate": 0.25, "blank": 2}, "4 selected 2.00 | 25% discarded (2 blank) | 3.0 s"),
        (
            {"pruned": [{"step": 3, "seen": 8, "kept": 2}]},
            "4 selected 2.00 | 6 of 8 candidates dropped on the way | 3.0 s",
        ),
        ({"discard_rate": 0.25, "too_long": 2}, "4 selected 2.00 | 25% discarded (2 too long) | 3.0 s"),
    ],
)
def test_a_rounds_line_says_where_the_rewards_told_nothing_apart(found: dict[str, Any], told: str) -> None:
    held = {"first_sample_mean": 1.0, "mean": 1.0, "selected": 4, "selected_mean": 2.0, "discard_rate": 0.0}
    finished = Round(0, Path(), {**held, "left_out": [], "seconds": {"sample": 3.0}, **found})
    assert round_line(finished, 1, 0.0) == f"round 0/0 | reward 1.00 first, 1.00 all | {told}"
