"""Work for visitors: one piece at a time in the order of asking, given up by a press, by leaving, by staying away."""

import threading
from typing import Any

import pytest

from raftdiff.apps import desk as desks
from raftdiff.apps.desk import PATIENCE, Desk, Job
from raftdiff.errors import UserError

LONG = 60.0


class Step:
    """Work that goes on step by step, as it is let."""

    def __init__(self, result: Any = "done", steps: int = 1) -> None:
        self.begun, self.go, self.ended = threading.Event(), threading.Semaphore(0), threading.Event()
        self.result, self.steps = result, steps

    def __call__(self, job: Job) -> Any:
        try:
            for step in range(self.steps):
                job.report(step, self.steps, "drawing")
                self.begun.set()
                assert self.go.acquire(timeout=LONG)
                job.check()
            return self.result
        finally:
            self.ended.set()


def finished(desk: Desk, visitor: str) -> Any:
    job = desk._jobs[visitor]
    assert job.finished.wait(LONG)
    return desk.look(visitor).result


def test_one_piece_is_done_at_a_time_in_the_order_of_asking() -> None:
    desk, first, second, third = Desk(), Step("one"), Step("two"), Step("three")
    desk.ask("ada", first)
    assert first.begun.wait(LONG)
    desk.ask("bob", second)
    desk.ask("cyd", third)
    assert desk.look("ada")[:4] == (None, 0, 1, "drawing")
    assert [desk.look("bob").ahead, desk.look("cyd").ahead] == [1, 2]
    assert not second.begun.is_set()
    first.go.release()
    assert finished(desk, "ada") == "one"
    assert second.begun.wait(LONG)
    assert desk.look("cyd").ahead == 1
    for step in (second, third):
        step.go.release()
    assert [finished(desk, "bob"), finished(desk, "cyd")] == ["two", "three"]


def test_a_result_is_handed_over_once() -> None:
    desk, step = Desk(), Step()
    step.go.release()
    desk.ask("ada", step)
    assert finished(desk, "ada") == "done"
    with pytest.raises(UserError, match="This drawing has ended. Press Draw again."):
        desk.look("ada")


def test_what_is_given_up_ends_at_its_next_step_and_the_next_begins() -> None:
    desk, endless, after = Desk(), Step(steps=10**9), Step()
    desk.ask("ada", endless)
    assert endless.begun.wait(LONG)
    desk.ask("bob", after)
    assert desk.leave("ada")
    assert not desk.leave("ada")
    endless.go.release()
    assert endless.ended.wait(LONG)
    after.go.release()
    assert finished(desk, "bob") == "done"


def test_a_visitor_who_stays_away_is_gone_and_one_who_looks_is_not() -> None:
    now = 0.0
    desk, endless, waiting = Desk(clock=lambda: now), Step(steps=10**9), Step()
    desk.ask("ada", endless)
    assert endless.begun.wait(LONG)
    desk.ask("bob", waiting)
    now = PATIENCE
    desk.look("ada")
    now = PATIENCE + 1
    assert desk.look("ada").ahead is None
    with pytest.raises(UserError, match="has ended"):
        desk.look("bob")
    now = 3 * PATIENCE
    endless.go.release()
    assert endless.ended.wait(LONG)
    assert not waiting.begun.is_set()


def test_asking_again_gives_up_what_was_asked_before() -> None:
    desk, first, second = Desk(), Step("first", steps=10**9), Step("second")
    desk.ask("ada", first)
    assert first.begun.wait(LONG)
    desk.ask("ada", second)
    first.go.release()
    second.go.release()
    assert finished(desk, "ada") == "second"


def test_mistakes_are_told_to_who_asked_and_the_next_is_served(capsys: pytest.CaptureFixture[str]) -> None:
    def refused(job: Job) -> None:
        raise UserError("There is no prompt.")

    def broken(job: Job) -> None:
        raise MemoryError("out of it")

    desk, after = Desk(), Step()
    for visitor, work in (("ada", refused), ("bob", broken), ("cyd", after)):
        desk.ask(visitor, work)
    after.go.release()
    with pytest.raises(UserError, match="There is no prompt."):
        finished(desk, "ada")
    with pytest.raises(UserError, match="This could not be drawn: MemoryError: out of it"):
        finished(desk, "bob")
    assert finished(desk, "cyd") == "done"
    assert "MemoryError" in capsys.readouterr().err


def test_more_than_can_wait_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desks, "MOST", 2)
    desk, step = Desk(), Step()
    desk.ask("ada", step)
    desk.ask("bob", Step())
    with pytest.raises(UserError, match="2 drawings are waiting already"):
        desk.ask("cyd", Step())
    desk.leave("bob")
    desk.ask("cyd", Step())
