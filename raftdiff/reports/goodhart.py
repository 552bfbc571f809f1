"""The trained reward against what it stands for, round by round: where it is hacked, the curve turns (Goodhart)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raftdiff.measures.alarms import HeldOut, gain
from raftdiff.records.changes import alike
from raftdiff.reports.plots import path

Rounds = Sequence[Mapping[str, Any]]
Points = list[tuple[str, float, float]]


def goodhart(rounds: Rounds) -> str:
    """One SVG: the base, then each round, by its number. Empty where no round has held-out figures.

    Where rewards only look on, both axes are of the held-out prompts, as changes from the base in units of its standard
    deviation between prompts; else the reward on the held-out prompts stands against that on the training prompts.
    Rounds that other rewards scored are left out.
    """
    same = alike(rounds)
    if watched := _watched(same):
        return path(
            watched, x="trained reward, held-out prompts", y="rewards that only look on; both in base's spreads"
        )
    return path(_unseen(same), x="reward on the training prompts", y="reward on the held-out prompts")


def _watched(rounds: Rounds) -> Points:
    """Change of the total, and of the rewards that only look on; nothing where there are none."""
    if not rounds or rounds[0].get("held_out_base") is None:
        return []
    base = HeldOut.of(rounds[0], "held_out_base")
    each = [it for it in rounds[0].get("held_out_base_each") or () if it is not None]
    spread = float(np.std(each, ddof=1)) if len(each) > 1 else 0.0
    found: Points = [("base", 0.0, 0.0)]
    for place, metrics in enumerate(rounds):
        now = HeldOut.of(metrics, "held_out")
        change = gain(base, now)
        if not now.onlookers or now.total is None or base.total is None or change is None or spread <= 0:
            return []
        found.append((str(metrics.get("round", place)), (now.total - base.total) / spread, change))
    return found


def _unseen(rounds: Rounds) -> Points:
    """Mean of a round's candidates, which its beginning drew, and of the held-out prompts before it was tuned."""
    found: Points = []
    for place, metrics in enumerate(rounds):
        before = rounds[place - 1].get("held_out") if place else metrics.get("held_out_base")
        if before is not None and metrics.get("mean") is not None:
            name = str(metrics.get("round", place) - 1) if metrics.get("round", place) else "base"
            found.append((name, metrics["mean"], before))
    return found
