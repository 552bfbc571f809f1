"""What can be wrong in the same way in recipes of both media, found before a model is loaded."""

from collections.abc import Mapping, Sequence
from typing import Any

from raftdiff.errors import UserError
from raftdiff.types import Requires, SelectionKind

SELECTORS: Mapping[SelectionKind, str] = {
    "weighted": "best_of_k, top_fraction, diverse, softmax or random",
    "pairs": "best_worst",
    "ranked": "ranked",
    "labelled": "threshold",
    "advantages": "advantage",
    "all": "all",
}
"""What gives each kind of selection."""


def check_alike(recipe: Any, *, held_out: bool, onlookers: Sequence[Any] | None = None) -> None:
    """What can be wrong in the same way in a recipe for pictures and in one for texts.

    Args:
        held_out: whether it names held-out prompts.
        onlookers: rewards of the evaluation alone; None where there is no such key.

    Raises:
        UserError: two rewards of one name, or none that counts; held-out figures without held-out prompts; stopping by
            a curve, or a guard over figures, that are not drawn; more candidates kept than there are.
    """
    rewards, loop, evaluation = recipe.ranker.rewards, recipe.loop, recipe.evaluation
    names = [reward.name or reward.type for reward in (*rewards, *(onlookers or ()))]
    if twice := {name for name in names if names.count(name) > 1}:
        where = "ranker.rewards" if onlookers is None else "ranker.rewards, evaluation.rewards"
        raise UserError(f"{where}: two are called '{min(twice)}'; give each its own 'name'.")
    if not any(reward.weight for reward in rewards):
        raise UserError("ranker.rewards: every weight is 0, so nothing could be ranked; give one a weight.")
    if evaluation.every_round and not held_out:
        raise UserError("evaluation.every_round: there are no held-out prompts; name a file under evaluation.prompts.")
    if loop.patience is not None and not evaluation.every_round:
        raise UserError("loop.patience: stopping needs a held-out reward; set evaluation.every_round to 1 or more.")
    if loop.guard != "warn" and not evaluation.every_round:
        raise UserError(
            f"loop.guard: to {loop.guard} takes held-out figures; set evaluation.every_round to 1 or more, or guard to "
            "warn."
        )
    keep = getattr(recipe.ranker.selector, "keep", 1)
    if keep > loop.candidates:
        raise UserError(f"ranker.selector.keep: {keep} of only {loop.candidates} candidates (loop.candidates).")


def check_fresh(recipe: Any, learner: str, samples: str) -> None:
    """
    Args:
        samples: what sentences call them: answers or pictures.

    Raises:
        UserError: a round learns from samples of an earlier one, and ``learner`` from fresh ones alone.
    """
    for key, only in (("sample_every", 1), ("replay_rounds", 0)):
        if getattr(recipe.loop, key) != only:
            raise UserError(f"loop.{key}: {learner} learns from fresh {samples}; make it {only}.")


def check_kind(recipe: Any, learner: str, needs: Requires) -> None:
    """
    Raises:
        UserError: what the selector selects is not what ``learner`` learns from, or there are too few candidates.
    """
    selector = recipe.ranker.selector.build(seed=0)
    kind = selector.kind
    if kind not in needs.kinds:
        wanted, fitting = ", ".join(needs.kinds), " or ".join(SELECTORS[one] for one in needs.kinds)
        told = f"it selects '{kind}', and {learner} learns from {wanted}; use type: {fitting}."
        raise UserError(f"ranker.selector: {told}")
    if kind == "pairs" and recipe.loop.candidates == 1:
        raise UserError("loop.candidates: a pair takes two candidates of a prompt; make it 2 or more.")
    if (
        kind in ("advantages", "labelled")
        and recipe.loop.candidates == 1
        and getattr(selector, "compares", "prompt") == "prompt"
    ):
        told = "compares the candidates of a prompt, and one alone is neither good nor bad; make it 2 or more."
        raise UserError(f"loop.candidates: the selector '{recipe.ranker.selector.type}' {told}")
