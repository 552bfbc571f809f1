"""RAFT: Reward rAnked FineTuning (arXiv:2304.06767, Algorithm 1), the whole loop.

    sample K candidates per prompt -> score them -> select -> fine-tune on what was selected -> again

Each stage reads what the one before it left in the round's folder and leaves its own result there (``stages``), so
the stages can run in one process or in four, and a killed run continues where it was.

Where this departs from the paper: prompts may be drawn per round (``prompts_per_round``); selections of earlier rounds
may be replayed; what the sampler reads, what the reward compares with and what the model learns may be three texts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from raftdiff.progress import Progress, Quiet
from raftdiff.records.changes import HARMLESS
from raftdiff.records.run import Run
from raftdiff.records.watching import alarms
from raftdiff.scoring import demand_servers
from raftdiff.stages.parts import LoopConfig, Parts
from raftdiff.stages.verbs import commit, heed, sample, score, select, tune
from raftdiff.types import Media, Round


def raft(run: Run, parts: Parts[Media], progress: Progress | None = None) -> Iterator[Round]:
    """Run the rounds that are still missing, and yield each when it is committed.

    The fine-tuner takes up its state after the last finished round first. Logging, plotting and early stopping are up
    to whoever consumes the rounds.
    """
    progress = progress or Quiet()
    if state := run.state():
        parts.finetuner.load_state_dict(state)
    for t in range(run.rounds_done(), parts.loop.rounds):
        draft = run.draft(t)
        sample(draft, run, parts, progress)
        score(draft, parts.ranker, parts.prompts, parts.loop, progress)
        select(draft, run, parts.ranker)
        tune(draft, run, parts, progress)
        yield commit(draft, run, parts)


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


Recipe = TypeVar("Recipe")


class _WithParts(Protocol):
    @property
    def parts(self) -> Parts[Any]: ...


Assembled = TypeVar("Assembled", bound=_WithParts)


def answered(
    run: Run, assemble: Callable[[Recipe], Assembled], *, scored: bool = True
) -> Callable[[Recipe], Assembled]:
    """``assemble``, which then asks whether the servers behind the next round's sampler and rewards are there, so that
    it is said before anything is drawn. Of a round that lies there in part nothing is asked, since what was replied is
    kept, nor where there is none to make. Without ``scored`` its candidates are drawn alone.

    Raises:
        UserError: within, a server is not there, or has no such model.
    """

    def assembled(recipe: Recipe) -> Assembled:
        assembly = assemble(recipe)
        t, parts = run.rounds_done(), assembly.parts
        if not _ended(run, parts.loop) and not run.unfinished(t).rows():
            watching = [parts.held_out_ranker or parts.ranker] if parts.held_out and (scored or not t) else []
            rankers = [*watching, *([parts.ranker] if scored else ())]
            demand_servers([parts.sampler, *(reward for ranker in rankers for reward, _ in ranker.rewards)])
        return assembly

    return assembled


def _ended(run: Run, loop: LoopConfig) -> bool:
    """Whether there is no round to make: all are there, or what stopped the run still does."""
    done = run.rounds_done()
    return done >= loop.rounds or (done > 0 and (stalled(run.metrics(), loop.patience) or guarded(run, loop)))
