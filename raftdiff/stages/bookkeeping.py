"""What is kept around a stage: its seconds and network evaluations, how far it is, a judge's replies."""

import contextlib
import time
from collections.abc import Callable, Iterator

from raftdiff.ranking import Ranker
from raftdiff.records.rounds import Draft
from raftdiff.types import KeepsReplies, Media, Report, Sample


def keep_replies(draft: Draft, ranker: Ranker[Media]) -> None:
    """A round whose scoring failed half-way asks a judge only for what it has not yet said."""
    for reward, _ in ranker.rewards:
        if isinstance(reward, KeepsReplies):
            reward.keep_replies(draft.path / "replies.jsonl")


def counted(batches: Iterator[list[Sample[Media]]], total: int, report: Report) -> Iterator[list[Sample[Media]]]:
    """The batches, saying how far they are once the next is asked for."""
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        report(done, total)


@contextlib.contextmanager
def timed(draft: Draft, stage: str, evaluations: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Add the seconds and the network evaluations of the block to the round's metrics, also when it is interrupted."""
    began, before = time.perf_counter(), evaluations()
    try:
        yield
    finally:
        draft.spend(stage, seconds=time.perf_counter() - began, evaluations=evaluations() - before)
