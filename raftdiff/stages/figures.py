"""A round's figures: what the rewards told apart, how they went together, and how good the candidates are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from raftdiff.measures.mixing import agreements, chosen_above, contributions, signed, told_nothing
from raftdiff.ranking import Ranker
from raftdiff.records.changes import alike
from raftdiff.records.rounds import Draft
from raftdiff.records.run import Run
from raftdiff.selection.best import constant, undecided
from raftdiff.types import Sample, Scores, Selection


def told_apart(draft: Draft, scores: Scores, ranker: Ranker[Any]) -> dict[str, Any]:
    """Where the rewards told nothing apart. Of what a model did not draw one answer a prompt is all that there is, and
    with one alone from a teacher its answers are learnt for their own sake: there nothing was to be told apart. Nor is
    what vetoes leave where no reward ranks."""
    sources = {row["source"] for row in draft.folder.rows()}
    wanted = {"policy"} if scores.total.shape[1] == 1 else {"policy", "teacher"}
    if not sources & wanted or not any(weight for _, weight in ranker.rewards):
        return {"undecided": 0, "constant": []}
    weighed = [
        reward.name
        for reward, _ in ranker.rewards
        if ranker.role(reward.name) in ("train", "constraint")
        and not (draft.index == 0 and getattr(reward, "nothing_at_first", False))
    ]
    return {
        "undecided": undecided(scores.total, getattr(ranker.selector, "compares", "prompt")),
        "constant": [name for name in weighed if name in scores.raw and constant(scores.raw[name])],
    }


def units_of(
    draft: Draft, run: Run, ranker: Ranker[Any], raw: Mapping[str, Float[np.ndarray, "..."]]
) -> dict[str, dict[str, float]]:
    """What scores are divided by in the figures of the total, to be noted, where the weights count a reward's own
    spread: of each reward the spread that was first seen while the rewards meant the same, so that rounds can be
    compared. Nothing for other mixes."""
    if not ranker.mix.unitless:
        return {}
    before = alike([*run.metrics(), {"changed": run.changes().get(draft.index, [])}])[:-1]
    seen = [*(it.get("units") or {} for it in (*before, draft.metrics())), ranker.units(raw)]
    return {"units": {name: unit for units in reversed(seen) for name, unit in units.items()}}


def levels_of(
    ranker: Ranker[Any], scores: Scores, units: Mapping[str, float]
) -> Float[np.ndarray, "prompts candidates"]:
    """How good candidates are by themselves; NaN where one is discarded."""
    return np.where(np.isnan(scores.total), np.nan, ranker.level(scores.raw, units))


def mixing(ranker: Ranker[Any], scores: Scores, selection: Selection) -> dict[str, Any]:
    """How the rewards went together: what ``measures.mixing`` says of them."""
    learnt = signed(scores, selection)
    weights = {reward.name: weight for reward, weight in ranker.rewards}
    wanted = {name: -table if weights[name] < 0 else table for name, table in scores.raw.items()}
    return {
        "mix": ranker.mix.name,
        "roles": {name: ranker.role(name) for name in scores.raw},
        "told_nothing": {name: told_nothing(table) for name, table in scores.raw.items()},
        "agreement": agreements(wanted),
        "contribution": contributions(ranker.parts(scores.raw), learnt),
        "chosen_above": {name: chosen_above(table, learnt) for name, table in scores.raw.items()},
        "vetoed": ranker.vetoed(scores.raw),
    }


def mean(values: Any) -> float | None:
    """The mean of those that are not discarded; None where all are."""
    return None if np.isnan(values).all() else float(np.nanmean(values))


def each(drawn: Sequence[Sample[Any]], totals: Any) -> list[float | None]:
    """The mean of each prompt's samples, in the prompts' order."""
    held: dict[str, list[float]] = {}
    for sample, total in zip(drawn, totals, strict=True):
        held.setdefault(sample.key.prompt, []).append(float(total))
    return [mean(np.array(values)) for values in held.values()]
