"""What a benchmark came to: its scores by category, as the JSON that every table is made of."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Float

from raftdiff.diffusion.suites.known import suite
from raftdiff.diffusion.suites.scoring import Told
from raftdiff.measures.categories import Grouping, Line, grouped, line
from raftdiff.types import Prompt

Table = Float[np.ndarray, "prompts samples"]


class Reward(TypedDict):
    """One reward's figures. Higher is better."""

    overall: Line
    """The benchmark's own figure: the mean over categories where its authors take that, else over all prompts."""
    pictures: Line
    """Over all prompts."""
    by: dict[str, Grouping]
    """By each column that the benchmark is reduced by."""
    any: Line | None
    """Of scores of 0 and 1: the share of prompts of which any picture is right, as GenEval's summary tells; without a
    win rate to speak of."""


class Why(TypedDict):
    """How common one kind of reason is among the pictures of a category."""

    category: str
    """Of the first column that the benchmark is reduced by; empty without one."""
    kind: str
    pictures: dict[str, int]
    """Side -> how many pictures were scored."""
    wrong: dict[str, int]
    """Side -> how many of those have such a reason; a picture may have several."""


class Outcome(TypedDict):
    benchmark: str
    title: str
    model: str
    """What was looked at, as the user named it."""
    prompts: int
    samples: int
    sides: list[str]
    """``before`` and ``after``, or ``score``."""
    rewards: dict[str, Reward]
    reasons: dict[str, list[Why]]
    """By reward that gives any: what is wrong with pictures, category by category, the commonest first."""
    how: dict[str, Any]
    """What the figures depend on: settings of the drawing, rewards, notes."""


def outcome(
    name: str,
    model: str,
    prompts: Sequence[Prompt],
    tables: Mapping[str, Mapping[str, Table]],
    how: Mapping[str, Any],
    *,
    reasons: Mapping[str, Mapping[str, Told]] | None = None,
) -> Outcome:
    """Args:
    tables: side -> reward -> scores; the sides have the same prompts and, side by side, the same seeds.
    reasons: side -> reward -> what is wrong with each picture.
    """
    sides = list(tables)
    rewards = {
        reward: _reward(name, prompts, {side: tables[side][reward] for side in sides}) for reward in tables[sides[0]]
    }
    samples = max(table.shape[1] for of_side in tables.values() for table in of_side.values())
    return Outcome(
        benchmark=name,
        title=suite(name).title,
        model=model,
        prompts=len(prompts),
        samples=samples,
        sides=sides,
        rewards=rewards,
        reasons=_reasons(name, prompts, reasons or {}),
        how=dict(how),
    )


def _reward(name: str, prompts: Sequence[Prompt], sides: Mapping[str, Table]) -> Reward:
    it = suite(name)
    by = {
        column: grouped(sides, [str(prompt.meta.get(column, "")) for prompt in prompts])
        for column in it.columns
        if any(column in prompt.meta for prompt in prompts)
    }
    pictures = line(sides)
    mean = by[it.columns[0]]["mean"] if it.balanced and it.columns and it.columns[0] in by else None
    every = np.concatenate([table.ravel() for table in sides.values()])
    said = set(np.unique(every[~np.isnan(every)]))
    rates = bool(said) and said <= {0.0, 1.0}
    best = {side: _best(table) for side, table in sides.items()}
    return Reward(overall=mean or pictures, pictures=pictures, by=by, any=line(best) if rates else None)


def _reasons(name: str, prompts: Sequence[Prompt], sides: Mapping[str, Mapping[str, Told]]) -> dict[str, list[Why]]:
    column = next(iter(suite(name).columns), "")
    category = {prompt.id: str(prompt.meta.get(column, "")) for prompt in prompts}
    found: dict[str, list[Why]] = {}
    for reward in dict.fromkeys(reward for of_side in sides.values() for reward in of_side):
        pictures: dict[str, Counter[str]] = {one: Counter() for one in category.values()}
        wrong: dict[tuple[str, str], Counter[str]] = {}
        for side, told in sides.items():
            for (prompt, _), reasons in told[reward].items():
                pictures[category[prompt]][side] += 1
                for kind in {reason.kind for reason in reasons}:
                    wrong.setdefault((category[prompt], kind), Counter())[side] += 1
        places = {one: place for place, one in enumerate(pictures)}
        order = sorted(wrong, key=lambda it: (places[it[0]], -wrong[it].total(), it[1]))
        found[reward] = [
            Why(
                category=one,
                kind=kind,
                pictures={side: pictures[one][side] for side in sides},
                wrong={side: wrong[one, kind][side] for side in sides},
            )
            for one, kind in order
        ]
    return found


def _best(table: Table) -> Float[np.ndarray, "prompts 1"]:
    """The best of each prompt's scores, as a column; NaN where it has none."""
    found: np.ndarray = np.where(np.isnan(table), -np.inf, table).max(axis=1, keepdims=True)
    found[np.isinf(found)] = np.nan
    return found
