"""Where long work says what it is at. The command line shows bars; a library user hears nothing."""

from typing import Protocol, final, runtime_checkable

from raftdiff.types import Report, silent


@runtime_checkable
class Progress(Protocol):
    def stage(self, round: int, stage: str) -> Report:
        """A report for one stage of one round, called with how much is done of how much."""
        ...


@final
class Quiet:
    """No progress shown."""

    def stage(self, round: int, stage: str) -> Report:
        del round, stage
        return silent
