"""Following the rounds of a run: what a kill came between is made up for."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from raftdiff.cli import opening
from raftdiff.recipes.config import Config
from raftdiff.records.beginning import fork
from raftdiff.records.run import Run
from raftdiff.tracking import LoggingConfig
from raftdiff.types import Round


class Loop(Config):
    rounds: int = 3


class Toy(Config):
    name: str = "toy"
    loop: Loop = Loop()
    logging: LoggingConfig = LoggingConfig(tracker=None)


class KilledError(Exception):
    pass


def test_a_round_that_was_finished_and_not_told_of_is_told_of_by_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path / "run", Toy(), seed=0)
    heard: list[int] = []
    tracker = SimpleNamespace(log=lambda finished: heard.append(finished.index), close=lambda: None)
    monkeypatch.setattr(opening, "Tracker", lambda *_: tracker)

    def rounds(_: object, *, dies_after: int | None = None) -> Iterator[Round]:
        for t in range(run.rounds_done(), 3):
            draft = run.draft(t)
            draft.note(mean=float(t))
            path = draft.commit({})
            if t == dies_after:
                raise KilledError
            yield Round(t, path, {})

    def follow(dies_after: int | None = None) -> None:
        opening.follow(run, Toy(), lambda bars: rounds(bars, dies_after=dies_after), lambda *_: "", event="round")

    with pytest.raises(KilledError):
        follow(dies_after=0)
    with pytest.raises(KilledError):
        follow(dies_after=2)
    assert opening.untold(run, "round")
    follow()
    follow()
    assert heard == [0, 1, 2]
    lines = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    assert [(line["event"], line["round"]) for line in lines] == [("round", t) for t in range(3)]
    assert not opening.untold(run, "round")


def test_a_forked_run_does_not_tell_of_the_rounds_that_it_did_not_make(tmp_path: Path) -> None:
    parent = Run.create(tmp_path / "run", Toy(), seed=0)
    for t in range(2):
        draft = parent.draft(t)
        draft.note(mean=1.0)
        draft.commit({})
    child = fork(parent, Toy(), tmp_path / "new", round=1, seed=0)
    assert not opening.untold(child, "round")
    draft = child.draft(1)
    draft.note(mean=1.0)
    draft.commit({})
    assert opening.untold(child, "round")


def test_what_to_do_next_is_not_refused_after_the_guard_went_back_to_the_base(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", Toy(), seed=0)
    for t in (0, 1):
        run.draft(t).commit({})
    assert opening.looking(run).split()[1:] == ["eval", str(run.path)]
    run.go_back(1, 0)
    assert opening.looking(run).split()[1:] == ["eval", str(run.path)]
    run.go_back(1, None)
    assert opening.looking(run).split()[1:] == ["eval", str(run.path), "--round", "1"]
