"""What ends a run before its last round: a held-out reward that no longer rises, and an alarm."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raftdiff.records.changes import HARMLESS, alike
from raftdiff.records.run import Run
from raftdiff.records.watching import alarms
from raftdiff.stages.parts import LoopConfig
from raftdiff.stages.verbs import heed
from raftdiff.types import Round


def until_no_gain(
    rounds: Iterator[Round], patience: int | None, earlier: Sequence[Mapping[str, Any]] = ()
) -> Iterator[Round]:
    """The rounds, until the held-out reward has not risen for ``patience`` of them; all of them for None.

    ``earlier`` are the metrics of the rounds that another process finished, so that a run that stopped stays stopped.
    """
    seen = list(earlier)
    if stalled(seen, patience):
        return
    for finished in rounds:
        yield finished
        seen.append(finished.metrics)
        if stalled(seen, patience):
            return


def until_alarm(rounds: Iterator[Round], run: Run, loop: LoopConfig) -> Iterator[Round]:
    """The rounds, until one alarms where ``loop.guard`` is to stop or to go back; all of them where it is to warn."""
    heed(run, loop, run.metrics())  # a guard that was set after the round that alarmed
    if not guarded(run, loop):
        for finished in rounds:
            yield finished
            if guarded(run, loop):
                return


def guarded(run: Run, loop: LoopConfig) -> bool:
    """Whether the guard keeps a run from going on: its last round alarmed, and what makes the next is as it was."""
    changed = run.changes().get(run.rounds_done(), [])
    return loop.guard != "warn" and set(changed) <= set(HARMLESS) and bool(alarms(run.metrics()))


def stalled(metrics: Sequence[Mapping[str, Any]], patience: int | None) -> bool:
    """Whether the best held-out reward, the base model's included, is ``patience`` or more rounds old."""
    curve = [value for value in (one.get("held_out") for one in metrics) if value is not None]
    if patience is None or not curve:
        return False
    base = metrics[0].get("held_out_base")
    curve = curve if base is None else [base, *curve]
    return len(curve) - 1 - curve.index(max(curve)) >= patience


def ended(run: Run, loop: LoopConfig) -> bool:
    """Whether there is no round to make: all are there, or what stopped the run still does."""
    done = run.rounds_done()
    return done >= loop.rounds or (done > 0 and (stalled(alike(run.metrics()), loop.patience) or guarded(run, loop)))
