"""Long work for visitors of a page, one piece at a time, in the order in which it was asked for.

Visitors ask how it stands again and again; none keeps a connection open meanwhile. A browser opens six to a host, for
all of its windows together: were each window to hold one while it waits, the seventh could not even ask.
"""

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, final

from raftdiff.errors import UserError

MOST = 64
"""Pieces of work that may wait or run at once."""
PATIENCE = 90.0
"""Seconds after which a visitor who does not ask is gone; browsers let hidden windows ask once a minute."""


class Gone(Exception):  # noqa: N818
    """Nobody waits for this work any more."""


class Standing(NamedTuple):
    """How a piece of work stands."""

    ahead: int | None
    """How many pieces come before it; None once it was begun."""
    done: int
    total: int
    doing: str
    """What is being done, for people."""
    result: Any
    """None until it is finished."""


@final
@dataclass
class Job:
    """A piece of work, as it is told how far it got."""

    work: Callable[["Job"], Any]
    clock: Callable[[], float]
    seen: float
    left: bool = False
    begun: bool = False
    progress: tuple[int, int, str] = (0, 0, "")
    result: Any = None
    mistake: str | None = None
    finished: threading.Event = field(default_factory=threading.Event)

    @property
    def gone(self) -> bool:
        return self.left or self.clock() - self.seen > PATIENCE

    def check(self) -> None:
        """
        Raises:
            Gone: nobody waits for it any more.
        """
        if self.gone:
            raise Gone

    def report(self, done: int, total: int, doing: str) -> None:
        self.progress = (done, total, doing)


Work: TypeAlias = Callable[[Job], Any]
"""Long work: calls ``job.check()`` often, and ``job.report()`` where there is something to tell."""


@final
class Desk:
    """Each visitor, known by a name of their own that no other can guess, has one piece of work at most."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._jobs: dict[str, Job] = {}
        self._changed = threading.Condition()
        self._worker: threading.Thread | None = None

    def ask(self, visitor: str, work: Work) -> None:
        """Line up; what the visitor asked for before is given up.

        Raises:
            UserError: too many wait already.
        """
        with self._changed:
            self._forget(visitor)
            if len(self._jobs) >= MOST:
                raise UserError(f"{MOST} drawings are waiting already. Try again in a moment.")
            self._jobs[visitor] = Job(work, self._clock, self._clock())
            if self._worker is None:
                self._worker = threading.Thread(target=self._serve, daemon=True)
                self._worker.start()
            self._changed.notify_all()

    def look(self, visitor: str) -> Standing:
        """How the visitor's work stands; a result is handed over once.

        Raises:
            UserError: there is none, or it ended in a mistake.
        """
        with self._changed:
            self._forget()
            job = self._jobs.get(visitor)
            if job is None:
                raise UserError("This drawing has ended. Press Draw again.")
            job.seen = self._clock()
            if job.finished.is_set():
                del self._jobs[visitor]
                if job.mistake is not None:
                    raise UserError(job.mistake)
            waiting = [it for it in self._jobs.values() if not it.finished.is_set()]
            ahead = None if job.begun else waiting.index(job)
            return Standing(ahead, *job.progress, job.result)

    def leave(self, visitor: str) -> bool:
        """Give up what the visitor asked for; False where that is nothing."""
        with self._changed:
            left = visitor in self._jobs
            self._forget(visitor)
            return left

    def _forget(self, *visitors: str) -> None:
        """Drop the work of these visitors and of all who are gone. What runs ends when it next checks."""
        for visitor in [name for name, job in self._jobs.items() if name in visitors or job.gone]:
            self._jobs.pop(visitor).left = True

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: any(not job.begun for job in self._jobs.values()))
                job = next(job for job in self._jobs.values() if not job.begun)
                job.begun = True
            try:
                job.check()
                job.result = job.work(job)
            except Gone:
                pass
            except UserError as error:
                job.mistake = str(error)
            except Exception as error:
                traceback.print_exc()  # for whoever runs the page: a mistake of ours, or the memory
                job.mistake = f"This could not be drawn: {type(error).__name__}: {error}"
            job.finished.set()
