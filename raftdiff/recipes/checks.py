"""What can be wrong in the same way in recipes of both media, found before a model is loaded."""

import typing
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
RELATIVE = ("grpo", "gdpo", "rank_sum")
"""Mixes that say how a candidate stands among those of its prompt."""
ABSOLUTE = ("all",)
"""Selectors that pass on how good a candidate is."""
RESCALING = ("grpo", "rloo")
"""Advantages that undo what GDPO did over the batch."""


def weight_of(reward: Any) -> float:
    """A reward's weight in the total, from its config; 0 of one that does not train. A plug-in's may have no role."""
    return float(reward.weight) if _role(reward) == "train" else 0.0


def has_say(reward: Any) -> bool:
    """Whether a reward has a part in what is chosen, from its config: it trains, vetoes or constrains."""
    return weight_of(reward) != 0 or _role(reward) in ("veto", "constraint")


def lacks_gradient(reward: Any) -> bool:
    """Whether a reward has no gradient for sure (``types.Differentiable``), from its config: ``build`` says what it
    makes, and that is final. Of a plug-in that does not say so, it is known once it is made."""
    try:
        made = typing.get_type_hints(type(reward).build).get("return")
    except (AttributeError, NameError, TypeError):  # of names that are imported for type checkers alone
        return False
    return getattr(made, "__final__", False) and not hasattr(made, "graded")


def _role(reward: Any) -> str:
    return str(getattr(reward, "role", "train"))


SELECTED: Mapping[SelectionKind, str] = {
    "weighted": "candidates, each with a weight",
    "pairs": "pairs, the better first",
    "ranked": "rankings, the best first",
    "labelled": "candidates, each good or bad",
    "advantages": "candidates, each with an advantage",
    "all": "all candidates",
}
"""What a selection of each kind is, in words."""


def check_alike(recipe: Any, *, held_out: bool, onlookers: Sequence[Any] | None = None) -> None:
    """What can be wrong in the same way in a recipe for pictures and in one for texts.

    Args:
        held_out: whether it names held-out prompts.
        onlookers: rewards of the evaluation alone; None where there is no such key.

    Raises:
        UserError: two rewards of one name, or none that ranks or vetoes; a mix or a role that has no meaning there;
            held-out figures without held-out prompts; stopping by a curve, or a guard over figures, that are not drawn;
            more candidates kept than there are.
    """
    rewards, loop, evaluation = recipe.ranker.rewards, recipe.loop, recipe.evaluation
    names = [reward.name or reward.type for reward in (*rewards, *(onlookers or ()))]
    if twice := {name for name in names if names.count(name) > 1}:
        where = "ranker.rewards" if onlookers is None else "ranker.rewards, evaluation.rewards"
        raise UserError(f"{where}: two are called '{min(twice)}'; give each its own 'name'.")
    if not any(map(weight_of, rewards)):
        _check_unranked(recipe)
    if bound := next((it for it in onlookers or () if _role(it) in ("veto", "constraint")), None):
        raise UserError(
            f"evaluation.rewards: these look on, and '{bound.name or bound.type}' is to be a {bound.role}; give it "
            "role: hold_out without at_least, or name it under ranker.rewards."
        )
    _check_mix(recipe)
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


def _check_unranked(recipe: Any) -> None:
    """
    Raises:
        UserError: nothing vetoes either; or what is left, all of it as good as the rest, is to be compared.
    """
    ranker, roles = recipe.ranker, {_role(it): it.name or it.type for it in recipe.ranker.rewards}
    if "veto" not in roles:
        raise UserError(
            "ranker.rewards: every weight is 0, or of a role that does not rank, so nothing could be ranked; give "
            "one a weight, and role: train."
        )
    if "constraint" in roles:
        raise UserError(
            f"ranker.rewards: nothing ranks, so the constraint '{roles['constraint']}' would do nothing; make it a "
            "veto, or give another reward a weight, and role: train."
        )
    if ranker.selector.build(seed=0).kind != "weighted":
        raise UserError(
            f"ranker.rewards: nothing ranks what the vetoes leave, and the selector '{ranker.selector.type}' compares "
            f"it; use {SELECTORS['weighted']}, or give a reward a weight, and role: train."
        )


def _check_mix(recipe: Any) -> None:
    """
    Raises:
        UserError: the mix compares candidates, and there are none to compare, or who learns wants to know how good they
            are by themselves.
    """
    ranker, mix = recipe.ranker, recipe.ranker.mix
    medians = [it for it in ranker.rewards if getattr(it, "at_least", None) == "median"]
    if recipe.loop.candidates == 1 and (mix in RELATIVE or medians):
        what = f"mix: {mix}" if mix in RELATIVE else "at_least: median"
        raise UserError(
            f"ranker: {what} compares the candidates of a prompt, and there is one; make loop.candidates 2 or more."
        )
    if mix in RELATIVE and ranker.selector.type in ABSOLUTE:
        raise UserError(
            f"ranker.mix: {mix} says how a candidate stands among those of its prompt, and the selector "
            f"'{ranker.selector.type}' passes on how good it is; use mix: weighted_sum."
        )
    if ranker.selector.type in ABSOLUTE and (held := [it for it in ranker.rewards if _role(it) == "constraint"]):
        raise UserError(
            f"ranker.rewards: the constraint '{held[0].name or held[0].type}' puts candidates in an order, and the "
            f"selector '{ranker.selector.type}' passes on how good each is; give it role: train, veto or hold_out."
        )
    if mix == "gdpo" and getattr(ranker.selector, "method", None) in RESCALING:
        raise UserError(
            f"ranker.selector.method: {ranker.selector.method} would scale each prompt anew, and mix: gdpo has scaled "
            "the batch; use method: dr_grpo, which leaves it as it is."
        )


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
        wanted, fitting = (" or ".join(words[one] for one in needs.kinds) for words in (SELECTED, SELECTORS))
        told = f"it selects {SELECTED[kind]}, and {learner} learns from {wanted}; use type: {fitting}."
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
