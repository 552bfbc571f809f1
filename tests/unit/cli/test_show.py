"""What a person sees while a run goes on."""

import fcntl
import itertools
import os
import struct
import sys
import termios
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
    monkeypatch.setattr(show, "monotonic", lambda: next(clock))
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


def test_a_terminal_that_does_not_say_how_wide_it_is_has_a_bar_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for rows, columns in ((0, 0), (24, 60)):
        controller, terminal = os.openpty()
        os.set_blocking(controller, False)
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        with os.fdopen(terminal, "w", encoding="utf-8") as screen:
            monkeypatch.setattr(sys, "stderr", screen)
            bars = Bars(2, "part")
            bars.stage(1, "tune")(3, 4)
            monkeypatch.undo()
            shown = os.read(controller, 2**16).decode()
            bars.close()
        os.close(controller)
        assert "part 1/1 tune: " in shown


def test_the_first_of_a_batch_says_nothing_of_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 120.0, 120.1, 120.2, 240.0, 240.1, 240.2])
    monkeypatch.setattr(show, "monotonic", lambda: next(times))
    report = Bars(1).stage(0, "sample")
    for done in range(1, 7):  # three at once, two minutes a batch
        report(done, 9)
    assert capsys.readouterr().err.splitlines() == [
        "round 0/0 sample: 1 of 9 candidates",
        "round 0/0 sample: 4 of 9 candidates, about 2 min 1 s left",  # 6 of 120.2 / 3 s, less 119.8 s since the third
    ]


def test_work_told_in_batches_goes_by_the_seconds_of_a_batch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken for one item, the first batch made its minute one of an item: hours left instead of minutes."""
    for before in (0, 100):  # what an earlier process did
        times = iter([0.0, 60.0, 120.0, 180.0])
        monkeypatch.setattr(show, "monotonic", lambda times=times: next(times))
        report = Bars(1).stage(0, "score")
        for batch in range(1, 4):
            report(before + 250 * batch, before + 1000)
        first, *later = capsys.readouterr().err.splitlines()
        assert first == f"round 0/0 score: {before + 250} of {before + 1000} items"
        assert [line.partition(", ")[2] for line in later] == ["about 2 min 0 s left", "about 1 min 0 s left"]


@pytest.mark.parametrize(("before", "batch"), [(0, 250), (10_000, 250), (10_000, 1), (0, 1)])
def test_a_bar_goes_by_the_seconds_of_a_batch_and_not_by_what_was_there_before(before: int, batch: int) -> None:
    bar, now = show._Bar("score", "item"), [0.0]
    bar._bar._time = lambda: now[0]
    for _ in range(6):
        now[0] += 60.0
        bar.report(done := (before := before + batch), 20_000)
    told = bar._bar.format_dict
    bar.close()
    assert (told["n"], told["rate"]) == (done, pytest.approx(batch / 60))


def test_work_that_has_become_slower_than_foretold_is_not_about_to_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 1.0, 2.0, 60.0])
    monkeypatch.setattr(show, "monotonic", lambda: next(times))
    report = Bars(1).stage(0, "sample")
    for done in range(1, 4):
        report(done, 9)
    assert capsys.readouterr().err == "round 0/0 sample: 3 of 9 candidates\n"


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
        ({"discard_rate": 0.25, "too_long": 2}, "4 selected 2.00 | 25% discarded (2 too long) | 3.0 s"),
    ],
)
def test_a_rounds_line_says_where_the_rewards_told_nothing_apart(found: dict[str, Any], told: str) -> None:
    held = {"first_sample_mean": 1.0, "mean": 1.0, "selected": 4, "selected_mean": 2.0, "discard_rate": 0.0}
    finished = Round(0, Path(), {**held, "left_out": [], "seconds": {"sample": 3.0}, **found})
    assert round_line(finished, 1, 0.0) == f"round 0/0 | reward 1.00 first, 1.00 all | {told}"


def test_a_pruned_rounds_line_says_whose_reward_it_is() -> None:
    held = {"first_sample_mean": None, "mean": 1.0, "selected": 4, "selected_mean": 2.0, "discard_rate": 0.0}
    found = {"pruned": [{"step": 3, "seen": 8, "kept": 2}], "left_out": [], "seconds": {"sample": 3.0}}
    said = round_line(Round(0, Path(), {**held, **found}), 1, 0.0)
    assert said.startswith("round 0/0 | reward 1.00 drawn to the end | 4 selected 2.00 | 6 of 8 candidates dropped")
