"""What is read ahead and written behind: the order, the errors, and no thread that stays."""

import threading
from collections.abc import Iterator
from typing import NoReturn

import pytest

from raftdiff.training.beside import Behind, ahead

PATIENCE = 60.0


def helpers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("ahead", "behind"))]


def test_the_next_item_is_made_while_the_last_is_looked_at_and_no_further_one() -> None:
    made = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    seen = []
    for number in ahead(items()):
        seen.append(number)
        if number < 3:
            assert made[number + 1].wait(PATIENCE)
        assert not any(event.is_set() for event in made[number + 2 :])
    assert seen == [0, 1, 2, 3]
    assert helpers() == []
    assert list(ahead([])) == []


def test_what_making_an_item_raises_is_raised_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError("the second")

    stream = ahead(items())
    assert next(stream) == 1
    with pytest.raises(ZeroDivisionError, match="the second"):
        next(stream)
    assert helpers() == []


def test_no_thread_stays_when_whoever_looks_stops() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(9):
            made.append(number)
            yield number

    stream = ahead(items())
    assert next(stream) == 0
    stream.close()  # type: ignore[attr-defined]
    assert helpers() == []
    assert made == [0, 1]


def test_calls_are_made_in_order_beside_who_asks_and_waited_for_where_too_many_wait() -> None:
    done, go = list[int](), threading.Event()
    behind = Behind(2)

    def call(number: int) -> None:
        assert go.wait(PATIENCE)
        done.append(number)

    for number in range(2):
        behind.do(call, number)
    assert done == []
    timer = threading.Timer(0.05, go.set)
    timer.start()
    behind.do(call, 2)  # waits for the first
    assert done[:1] == [0]
    behind.wait()
    assert done == [0, 1, 2]
    assert helpers() == []
    behind.wait()  # of nothing
    behind.do(done.append, 3)  # and on
    behind.wait()
    assert done == [0, 1, 2, 3]


def test_a_call_that_fails_is_told_of_once_and_those_after_it_are_made() -> None:
    def fail(what: str) -> NoReturn:
        raise OSError(what)

    done, behind = list[int](), Behind(1)
    behind.do(fail, "first")
    with pytest.raises(OSError, match="first"):
        behind.do(done.append, 0)
    behind.do(fail, "second")
    behind._most = 9

    def more() -> None:
        for number in range(8):
            behind.do(done.append, number)
        behind.wait()

    with pytest.raises(OSError, match="second"):
        more()
    behind.wait()
    assert done == list(range(len(done)))
    assert helpers() == []


def test_an_interrupt_while_it_waits_ends_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    behind, started, go, done = Behind(9), threading.Event(), threading.Event(), list[int]()

    def call(number: int) -> None:
        started.set()
        assert go.wait(PATIENCE)
        done.append(number)

    for number in range(3):
        behind.do(call, number)
    assert started.wait(PATIENCE)

    class Interrupted:
        def exception(self) -> NoReturn:
            raise KeyboardInterrupt

    def shutdown(*, cancel_futures: bool) -> None:
        end(wait=False, cancel_futures=cancel_futures)
        go.set()  # the one under way ends after the others were called off
        end()

    assert behind._worker is not None
    end = behind._worker.shutdown
    monkeypatch.setattr(behind._worker, "shutdown", shutdown)
    behind._waiting.appendleft(Interrupted())  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        behind.wait()
    assert done == [0]
    assert helpers() == []
