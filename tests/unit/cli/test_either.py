"""What commands on runs of either medium share."""

import warnings
from pathlib import Path

from raftdiff.cli.either import tell_once
from raftdiff.recipes.config import Config
from raftdiff.records.run import Run

LONG = "prompts: words beyond a limit\n  the sampler reads 77 tokens\n  clip reads 20 tokens"


def told(run: Run, *notes: str) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # as outside of tests, where a text is shown once a place and process
        tell_once(run, notes)
    return [str(one.message) for one in caught]


def test_a_note_is_told_once_a_run_whatever_the_command_and_in_every_run_of_a_process(tmp_path: Path) -> None:
    one, other = (Run.create(tmp_path / name, Config(), seed=0) for name in ("one", "other"))
    assert told(one, LONG) == [LONG]
    assert told(one, LONG) == []
    assert told(other, LONG) == [LONG]
    again = Run.open(one.path)
    assert told(again, "prompts: words beyond a limit\n  clip reads 20 tokens") == [], "scoring says a part of it"
    longer = "prompts: words beyond a limit\n  clip reads 20 tokens\n  the judge reads 9 tokens"
    assert told(again, longer) == ["prompts: words beyond a limit\n  the judge reads 9 tokens"]
    assert told(again, longer.replace("prompts:", "other.txt:")) == [longer.replace("prompts:", "other.txt:")]


def test_a_line_of_the_log_that_was_cut_short_is_no_reason_to_stop(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", Config(), seed=0)
    (run.path / "log.jsonl").write_text('{"event": "note", "no')
    assert told(run, LONG) == [LONG]
    assert told(run, LONG) == []


def test_a_note_of_one_line_is_told_too_and_once(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", Config(), seed=0)
    assert told(run, "prompts: none is read") == ["prompts: none is read"]
    assert told(run, "prompts: none is read") == []
