"""How strong each preference is: what several reward models, trained on the same pairs in other orders, say of it.

Secrets of RLHF, part II (arXiv:2401.06080): pairs on which an ensemble disagrees with the label are mostly labelled
wrongly. ``mu`` is the mean over the models of the reward of the chosen less that of the rejected answer, ``sigma``
their spread; a mu below 0 says that the models would have chosen the other one. Each model is asked of the pairs that
it was trained on, as in the paper, so one epoch or two are right: who knows the pairs by heart agrees with every label.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from jaxtyping import Float

from raftdiff.errors import UserError
from raftdiff.llm.data import preferences
from raftdiff.llm.data.preferences import Comparison
from raftdiff.llm.reward_models.strength import Roc, by_decile, roc, strength
from raftdiff.llm.reward_runs.recipe import RewardRecipe, weights
from raftdiff.llm.reward_runs.training import asked, assemble_reward, rounds
from raftdiff.progress import Progress
from raftdiff.recipes.config import check, completed, differing, dump, plain
from raftdiff.records.beginning import at_work
from raftdiff.records.disk import read_json, write_text
from raftdiff.records.run import NOT_IDENTITY, Run

DECIMALS = 6
"""Of mu and sigma in the file."""


class Member(NamedTuple):
    """One model of the ensemble, as it is finished."""

    place: int
    """From 0."""
    accuracy: float
    """The share of the pairs, which it was trained on, whose label it agrees with."""


class Measured(NamedTuple):
    """The pairs, and what every model says of each."""

    pairs: Sequence[Comparison]
    differences: Float[np.ndarray, "pairs models"]


def measure(recipe: RewardRecipe, folder: Path, models: int, progress: Progress) -> Iterator[Member]:
    """Train the members that are still missing, and yield each when its answers are in ``folder``.

    A member is an ordinary run while it is trained, so that a kill costs a part of one at most; its weights go when it
    has said what it thinks of the pairs.

    Raises:
        UserError: the folder holds members of another recipe.
    """
    first = _member(recipe, 0)
    _check_recipe(folder, first)
    for index in range(models):
        file, own = folder / f"{index:03d}.json", _member(recipe, index)
        if not file.is_file():
            run = Run.at(folder / f"{index:03d}", own)
            with at_work(run, own, weights, assemble_reward) as parts:
                write_text(folder / "recipe.yaml", dump(first))
                if state := run.state():  # finished but for the question
                    parts.tuner.load_state_dict(state)
                for _ in rounds(run, parts, progress):
                    pass
                said = asked(parts, parts.pairs, progress.stage(own.loop.rounds - 1, "ask"))
                write_text(file, json.dumps({"pairs": [pair.id for pair in parts.pairs], "differences": said.tolist()}))
        shutil.rmtree(folder / f"{index:03d}", ignore_errors=True)
        yield Member(index, float(np.mean(np.array(read_json(file)["differences"]) > 0)))


def measured(recipe: RewardRecipe, folder: Path, models: int) -> Measured:
    """What the members said, all of them being there."""
    pairs = preferences.build(recipe.pairs, Path(), "pairs")
    told = [read_json(folder / f"{index:03d}.json") for index in range(models)]
    if known := set(told[0].get("pairs", ())):  # those that the models could read; an older raftdiff asked of all
        pairs = [pair for pair in pairs if pair.id in known]
    return Measured(pairs, np.array([one["differences"] for one in told], dtype=np.float64).T)


def lines(found: Measured) -> list[dict[str, Any]]:
    """The pairs in the format ``pairs`` with their other columns, ``mu`` and ``sigma``."""
    mu, sigma = strength(found.differences)
    return [
        {**preferences.row(pair), "mu": round(float(mean), DECIMALS), "sigma": round(float(spread), DECIMALS)}
        for pair, mean, spread in zip(found.pairs, mu, sigma, strict=True)
    ]


def figures(found: Measured) -> dict[str, Any]:
    """What the strengths tell, as JSON.

    ``deciles``: from the weakest tenth of the pairs to the strongest, the range of ``mu``, the share of the models that
    agree with the label (``agreement``), and where the data know which labels are right (a column ``truth``, 1 for a
    right one) the share of right labels. ``auc``: how well a low mu tells the wrong labels, 0.5 is chance, 1 all.
    """
    mu, sigma = strength(found.differences)
    agreement = by_decile(mu, (found.differences > 0).mean(axis=1))
    right = truth(found.pairs)
    known = None if right is None else by_decile(mu, right)
    return {
        "pairs": len(mu),
        "models": found.differences.shape[1],
        "mu": {"mean": float(mu.mean()), "std": float(mu.std()), "below_0": float((mu < 0).mean())},
        "sigma": {"mean": float(sigma.mean())},
        "deciles": [
            {
                "from": one.low,
                "to": one.high,
                "pairs": one.n,
                "agreement": one.mean,
                **({} if known is None else {"truth": known[place].mean}),
            }
            for place, one in enumerate(agreement)
        ],
        "auc": None if right is None else wrong_labels(mu, right).auc,
    }


def truth(pairs: Sequence[Comparison]) -> Float[np.ndarray, " pairs"] | None:
    """1 for every pair whose label is right, 0 for a wrong one; None where the data do not say it of all."""
    told = [pair.meta.get("truth") for pair in pairs]
    return None if any(one is None for one in told) else np.array(told, dtype=np.float64)


def wrong_labels(mu: Float[np.ndarray, " pairs"], right: Float[np.ndarray, " pairs"]) -> Roc:
    """How well a low strength tells the pairs whose label is wrong."""
    return roc(-mu, right < 0.5)


def _member(recipe: RewardRecipe, index: int) -> RewardRecipe:
    """The recipe of one member: all pairs, nothing held out, labels as they are, an order of its own."""
    data = plain(recipe)
    data |= {"held_out": None, "held_out_share": 0.0, "denoise": {"type": "none"}, "policy_pool": None}
    data["tuner"]["meta"] = None
    data["loop"]["order"] = index
    data["logging"] = {"tracker": None}
    return check(RewardRecipe, data)


def _check_recipe(folder: Path, first: RewardRecipe) -> None:
    """Members of another recipe are not counted in."""
    file = folder / "recipe.yaml"
    if not file.is_file():
        return
    own = completed(yaml.safe_load(file.read_text()), type(first))
    if keys := differing(own, plain(first), NOT_IDENTITY):
        raise UserError(
            f"{folder}: these models were trained by another recipe; these keys differ: {', '.join(keys)}. Change them "
            "back, delete the folder, or name another file with --out."
        )
