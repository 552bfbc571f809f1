"""Calls in threads that nobody waits for at the end of the program, so that an interrupted one ends at once."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def concurrently(call: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """``call(item) for item in items`` with up to ``workers`` threads, in the order of the items.

    The first exception is raised here once the calls under way have ended; those not yet begun never begin.
    """
    jobs = list(items)
    todo, lock, stop = iter(enumerate(jobs)), threading.Lock(), threading.Event()
    ended: queue.SimpleQueue[tuple[int, Callable[[], R]]] = queue.SimpleQueue()

    def work() -> None:
        while not stop.is_set():
            with lock:
                job = next(todo, None)
            if job is None:
                return
            ended.put((job[0], _outcome(call, job[1])))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(max(1, min(workers, len(jobs))))]
    for thread in threads:
        thread.start()
    held: dict[int, Callable[[], R]] = {}
    try:
        for index in range(len(jobs)):
            while index not in held:
                held.update([ended.get()])
            try:
                result = held.pop(index)()
            except BaseException:
                stop.set()
                for thread in threads:
                    thread.join()
                raise
            yield result
    finally:
        stop.set()


def _outcome(call: Callable[[T], R], item: T) -> Callable[[], R]:
    """What gives the call's result, or raises what it raised."""
    try:
        result = call(item)
    except BaseException as error:
        raised = error

        def again() -> R:
            raise raised

        return again
    return lambda: result


def within(seconds: float, call: Callable[[], R]) -> R:
    """
    Raises:
        TimeoutError: the call, in a thread of its own, has not ended after so many seconds; and whatever it raises.
    """
    ended: queue.SimpleQueue[Callable[[], R]] = queue.SimpleQueue()
    threading.Thread(target=lambda: ended.put(_outcome(lambda _: call(), None)), daemon=True).start()
    try:
        outcome = ended.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no whole reply within {seconds:g} s") from None
    return outcome()
