"""RAFT: Reward rAnked FineTuning (arXiv:2304.06767, Algorithm 1), the whole loop.

    sample K candidates per prompt -> score them -> select -> fine-tune on what was selected -> again

Each stage reads what the one before it left in the round's folder and leaves its own result there (``stages``), so
the stages can run in one process or in four, and a killed run continues where it was.

Where this departs from the paper: prompts may be drawn per round (``prompts_per_round``); selections of earlier rounds
may be replayed; what the sampler reads, what the reward compares with and what the model learns may be three texts.
"""

from collections.abc import Iterator

from raftdiff.progress import Progress, Quiet
from raftdiff.records.run import Run
from raftdiff.stages.parts import Parts
from raftdiff.stages.verbs import commit, sample, score, select, tune
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
