"""Work beside other work, in one thread more: what comes next is read ahead, and what came is written behind."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar, final

T = TypeVar("T")


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The items in their order, the next one made while the last is looked at; never more than that one waits.

    What making one raises is raised here in its place. Whoever stops looking, by an error too, waits for the one that
    is being made, and the thread has ended.
    """
    source, end = iter(items), object()
    with ThreadPoolExecutor(1, "ahead") as worker:
        coming = worker.submit(next, source, end)
        while (item := coming.result()) is not end:
            coming = worker.submit(next, source, end)
            yield item  # type: ignore[misc]


@final
class Behind:
    """Calls made one after the other in a thread of their own, while whoever asks for them goes on. One that fails
    keeps none after it from being made."""

    def __init__(self, most: int) -> None:
        """``most`` calls wait; who asks for one more waits for the first of them."""
        self._most = most
        self._worker: ThreadPoolExecutor | None = None
        self._waiting: deque[Future[object]] = deque()

    def do(self, call: Callable[..., object], *args: Any) -> None:
        """Ask for a call. Raises whatever an earlier one has raised, and then does not ask."""
        while self._waiting and (len(self._waiting) >= self._most or self._waiting[0].done()):
            self._waiting.popleft().result()
        self._worker = self._worker or ThreadPoolExecutor(1, "behind")
        self._waiting.append(self._worker.submit(call, *args))

    def wait(self) -> None:
        """Until all calls are made; then the thread has ended. Raises what the first of them has raised, of those that
        ``do`` has not told of. Interrupted, it waits for the one under way, and the rest is not made."""
        worker, waiting, self._worker, self._waiting = self._worker, self._waiting, None, deque()
        if worker is None:
            return
        try:
            failed = [error for one in waiting if (error := one.exception()) is not None]
        finally:
            worker.shutdown(cancel_futures=True)
        if failed:
            raise failed[0]
