"""What a person sees while a run goes on."""

import itertools

import pytest

from raftdiff.cli import show
from raftdiff.cli.show import Bars


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
