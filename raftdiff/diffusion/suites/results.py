"""What is wrong with each picture, as GenEval's evaluation writes it and its ``summary_scores.py`` reads it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raftdiff.diffusion.suites.lying import Picture, row_of
from raftdiff.diffusion.suites.scoring import Told


def results(pictures: Sequence[Picture], told: Mapping[str, Told], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each picture that a reward with reasons has scored, in the order of the pictures.

    Args:
        told: reward -> what is wrong with each picture.
        columns: of the prompts, by which the benchmark is reduced.
    """
    for reward, reasons in told.items():
        for one in pictures:
            wrong = reasons.get((one.prompt.id, one.index))
            if wrong is not None:
                yield {
                    "filename": one.where,
                    **{column: one.prompt.meta[column] for column in columns if column in one.prompt.meta},
                    "prompt": one.prompt.caption,
                    "correct": not wrong,
                    "reason": "\n".join(reason.text for reason in wrong),
                    "kinds": [reason.kind for reason in wrong],
                    "metadata": json.dumps(row_of(one.prompt), ensure_ascii=False),
                    "reward": reward,
                }
