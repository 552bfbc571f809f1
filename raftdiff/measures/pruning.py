"""What pruning dropped in a round, and how far previews could be trusted: pure functions. numpy only."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from raftdiff.measures.mixing import agreement
from raftdiff.types import Preview, Scores


def looks(previews: Sequence[Preview]) -> dict[str, Any]:
    """``pruned``: of each ``step`` at which candidates were seen, how many were ``seen`` and ``kept``, and the mean
    ``total`` of both, None where all are NaN; nothing where none were. Previews come by step.

    >>> looks([Preview("a", 0, 3, 1.0, False), Preview("a", 1, 3, 2.0, True)])
    {'pruned': [{'step': 3, 'seen': 2, 'kept': 1, 'total': 1.5, 'total_kept': 2.0}]}
    """
    found = []
    for step, group in groupby(previews, key=lambda one: one.step):
        seen = list(group)
        kept = [one.total for one in seen if one.kept]
        means = {"total": _mean([one.total for one in seen]), "total_kept": _mean(kept)}
        found.append({"step": step, "seen": len(seen), "kept": len(kept), **means})
    return {"pruned": found} if found else {}


def trust(previews: Sequence[Preview], scores: Scores) -> dict[str, Any]:
    """What changes in a round's figures where candidates were pruned. ``preview_agreement``: by step, of the pairs of a
    prompt's candidates that were drawn to the end, the share that the previews had in the order of the pictures; of
    close survivors, so it is lower than over all that were seen. ``first_sample_mean`` is not known: the first
    candidate of a prompt is drawn where it promised to be good.

    >>> scores = Scores(0, ("a",), np.array([[np.nan, 1.0, 5.0]]), {})
    >>> trust([Preview("a", k, 3, float(k), k > 0) for k in range(3)], scores)
    {'first_sample_mean': None, 'preview_agreement': {'3': 1.0}}
    """
    at = {prompt: row for row, prompt in enumerate(scores.prompts)}
    found = {}
    for step, group in groupby(previews, key=lambda one: one.step):
        table = np.full(scores.total.shape, np.nan)
        for one in group:
            if one.prompt in at and one.index < scores.total.shape[1]:
                table[at[one.prompt], one.index] = one.total
        found[str(step)] = agreement(table, scores.total)
    return {"first_sample_mean": None, "preview_agreement": found} if found else {}


def _mean(values: Sequence[float]) -> float | None:
    return None if np.isnan(values).all() else float(np.nanmean(values))
