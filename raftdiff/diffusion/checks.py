"""What can be wrong in a recipe for pictures, found before a model is loaded."""

from typing import Any

from raftdiff.diffusion.learning.reward_gradient import without_gradient
from raftdiff.diffusion.learning.rules import Draft, Refl
from raftdiff.diffusion.models.blocks import demand_fit
from raftdiff.diffusion.recipe import UNMEASURED, Recipe, drawn_of, looking_of, samplers, shares
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.diffusion.sampling.given import FolderSamplerConfig
from raftdiff.errors import UserError
from raftdiff.mixing import MixSamplerConfig
from raftdiff.recipes.checks import check_alike, check_fresh, check_kind, has_say, lacks_gradient, weight_of
from raftdiff.recipes.prompts import build
from raftdiff.selection.pruning import PruneConfig
from raftdiff.training.devices import DTYPES

UNSEEN = (*UNMEASURED, "labels")
"""Those that say nothing of a preview."""
TAKES_BEST = ("best_of_k", "diverse", "top_fraction")
"""Selectors that have no use for the worst."""


def check_recipe(recipe: Recipe) -> None:
    """What can be known to be wrong before a model is loaded."""
    ids = {prompt.id for prompt in build(recipe.prompts)}
    if recipe.evaluation.prompts.captions:
        build(recipe.evaluation.prompts, "evaluation.prompts")  # which a run would need only at its end
    hand = recipe.loop.prompts_per_round
    if hand is not None and hand > len(ids):
        raise UserError(f"loop.prompts_per_round: {hand} prompts a round, but there are only {len(ids)} prompts.")
    evaluation = recipe.evaluation
    check_alike(recipe, held_out=bool(evaluation.prompts.captions), onlookers=evaluation.rewards)
    if any(reward.type in UNMEASURED for reward in evaluation.rewards):
        raise UserError("evaluation.rewards: 'given' knows the pictures of a folder alone, not what a model draws.")
    counted = [weight_of(reward) for reward in recipe.ranker.rewards if reward.type not in UNMEASURED]
    if not any([*counted, *(reward.weight for reward in evaluation.rewards)]):
        raise UserError(
            "evaluation.rewards: data score their own pictures alone (ranker.rewards: given), and a veto measures "
            "nothing, so the tuned model's pictures would have no reward; name one here that looks on, such as clip, "
            "with a weight."
        )
    drawn = [one for one in samplers(recipe) if not isinstance(one, FolderSamplerConfig)]
    if drawn and any(reward.type in UNMEASURED and has_say(reward) for reward in recipe.ranker.rewards):
        raise UserError(
            "ranker.rewards: 'given' is the data's word on its own pictures, so nothing that a model draws could be "
            "selected; take sampler type: folder alone, or give 'given' role: hold_out."
        )
    if isinstance(recipe.sampler, MixSamplerConfig):
        if any(isinstance(part, MixSamplerConfig) for part in samplers(recipe)):
            raise UserError("sampler.parts: a mixture within a mixture; name its parts beside the others.")
        recipe.sampler.fit(recipe.loop.candidates)
    _check_guided(recipe)
    if recipe.model.offload == "blocks":
        tuner = recipe.finetuner
        dtypes = {DTYPES[recipe.model.dtype], DTYPES[tuner.precision or recipe.model.dtype]}
        demand_fit(tuner.adapter, tuner.gradient_checkpointing, dtypes)
    needs, learner = recipe.finetuner.requires, f"learning: {recipe.finetuner.learning.type}"
    for one, share in zip(samplers(recipe), shares(recipe), strict=True):
        _check_pruned(recipe, one, share, learner)
        _check_reuse(recipe, one, share, learner)
    if recipe.finetuner.learning.type in ("draft", "refl"):
        _check_gradient(recipe, learner)
    check_kind(recipe, learner, needs)
    if "path" in needs.aux:
        _check_path(recipe, learner)
    if needs.fresh_samples:
        _check_chain(recipe, learner)


def _check_guided(recipe: Recipe) -> None:
    """
    Raises:
        UserError: the guided prediction is to be learnt, and another is drawn with.
    """
    used = looking_of(recipe)
    if recipe.finetuner.loss_on == "guided" and used.guidance_rescale and used.guidance != 1:
        raise UserError(
            "finetuner.loss_on: the guided prediction is learnt as it is without guidance_rescale, and the tuned model "
            "is to be used with it; set loss_on: conditional, or evaluation.guidance_rescale: 0."
        )


def _check_pruned(recipe: Recipe, config: Any, share: int, learner: str) -> None:
    """
    Args:
        config: of one of its samplers, that gives ``share`` candidates of a prompt.

    Raises:
        UserError: candidates are pruned that are needed, that nothing is saved on, or that nobody could compare.
    """
    if getattr(getattr(config, "drawing", None), "prune", None):
        raise UserError("sampler.drawing.prune: only what the policy draws to learn from is pruned; leave it out.")
    prune: PruneConfig | None = getattr(config, "prune", None)
    if prune is None:
        return
    selector, ranks = recipe.ranker.selector, list(filter(has_say, recipe.ranker.rewards))
    if "path" in recipe.finetuner.requires.aux:
        raise UserError(f"sampler.prune: {learner} learns from how each candidate was drawn; leave it out.")
    if selector.type not in TAKES_BEST:
        raise UserError(
            f"sampler.prune: the selector '{selector.type}' takes candidates that lost too, and these are not drawn; "
            f"use {', '.join(TAKES_BEST)}, or leave it out."
        )
    named = [it.name or it.type for it in ranks]
    if strange := [name for name in prune.rewards or () if name not in named]:
        raise UserError(
            f"sampler.prune.rewards: '{strange[0]}' is none of the ranker's rewards that rank, veto or constrain: "
            f"{', '.join(named)}."
        )
    looking = [it for it in ranks if prune.rewards is None or (it.name or it.type) in prune.rewards]
    if blind := next((it for it in looking if it.type in UNSEEN), None):
        raise UserError(
            f"sampler.prune.rewards: '{blind.name or blind.type}' knows finished pictures alone, and no previews; "
            "name others of the ranker's."
        )
    if not any(weight_of(it) for it in looking):
        raise UserError("sampler.prune.rewards: none of these ranks; name one with a weight.")
    prune.check(config.steps, share)
    prompts = recipe.loop.prompts_per_round or len(build(recipe.prompts))
    if selector.count(prompts, recipe.loop.candidates) > prompts * drawn_of(recipe):
        raise UserError(
            f"sampler.prune.keep: {drawn_of(recipe)} of a prompt's {recipe.loop.candidates} candidates are left, and "
            f"the selector '{selector.type}' takes more; keep more, or select fewer."
        )


def _check_reuse(recipe: Recipe, config: Any, share: int, learner: str) -> None:
    """
    Args:
        config: of one of its samplers, that gives ``share`` candidates of a prompt.

    Raises:
        UserError: layers are to be asked alone where nothing is drawn, where the way of each picture counts, at every
            step but the first, or of a network that is held so that all are asked in turn.
    """
    drawing = config if isinstance(config, DiffusionSamplerConfig) else getattr(config, "drawing", None)
    reuse = getattr(drawing, "reuse", None)
    if drawing is None or reuse is None:
        return
    if isinstance(config, FolderSamplerConfig):
        raise UserError("sampler.drawing.reuse: a folder's pictures are there already; leave it out.")
    if "path" in recipe.finetuner.requires.aux:
        raise UserError(f"sampler.reuse: {learner} learns from steps of the whole network; leave it out.")
    model = getattr(config, "model", None) or recipe.model
    held = {"compile": model.compile, "sharded: true": model.sharded, "offload: blocks": model.offload == "blocks"}
    if taken := next((key for key, it in held.items() if it), None):
        raise UserError(
            f"sampler.reuse: it asks some layers of the network alone, and does not go with model.{taken}; leave one "
            "out."
        )
    if reuse.every >= max(2, drawing.steps):
        raise UserError(
            f"sampler.reuse.every: of {drawing.steps} steps only the first would ask the whole network, which leaves "
            "little of a picture; take fewer, 2 or 3 say."
        )
    looks = [] if drawing.prune is None else drawing.prune.looks(drawing.steps, share)
    if torn := next((look.steps for look in looks if look.steps % reuse.every), None):
        raise UserError(
            f"sampler.reuse: by sampler.prune candidates are compared after step {torn}, and what all of the network "
            f"said is used for {reuse.every} steps on end; compare after a multiple of {reuse.every} steps."
        )


def _check_gradient(recipe: Recipe, learner: str) -> None:
    """
    Raises:
        UserError: no reward is climbed; or they are mixed or bounded in a way that has no gradient, or one of them has
            none.
    """
    if not any(map(weight_of, recipe.ranker.rewards)):
        raise UserError(
            f"ranker.rewards: {learner} climbs the rewards' gradient, and none of them has a weight, and role: train."
        )
    if recipe.ranker.mix != "weighted_sum":
        raise UserError(
            f"ranker.mix: {learner} climbs the weighted sum of the rewards, and ranks nothing; use mix: weighted_sum."
        )
    if bound := next((it for it in recipe.ranker.rewards if getattr(it, "role", "train") == "constraint"), None):
        raise UserError(
            f"ranker.rewards: {learner} climbs the rewards' gradient and ranks nothing, so that the constraint "
            f"'{bound.name or bound.type}' would do nothing; give it role: train, veto or hold_out."
        )
    if recipe.ranker.in_turn:
        raise UserError(
            f"ranker.in_turn: {learner} follows the rewards' gradient while it learns, so that they stay on the GPU; "
            "leave it out."
        )
    if flat := next((it for it in recipe.ranker.rewards if weight_of(it) and lacks_gradient(it)), None):
        raise UserError(without_gradient(recipe.finetuner.learning.type, flat.name or flat.type))


def _check_path(recipe: Recipe, learner: str) -> None:
    """
    Raises:
        UserError: the pictures have no path that the fine-tuner could learn from.
    """
    if not isinstance(recipe.sampler, DiffusionSamplerConfig):
        raise UserError(
            f"sampler: {learner} learns from the path on which a picture was drawn, and only the policy's own sampler "
            "records it; use type: diffusion."
        )
    if "path" not in recipe.sampler.can_provide:
        raise UserError(
            f"sampler: {learner} learns from steps between pictures under noise of a known level; use scheduler: ddim, "
            "dpm++, euler, euler_a, lcm or tcd, or with a model of flow euler or euler_a."
        )
    if isinstance(rule := recipe.finetuner.learning.build(), Draft | Refl):
        rule.walk(recipe.sampler.steps)


def _check_chain(recipe: Recipe, learner: str) -> None:
    """
    Raises:
        UserError: what the fine-tuner would learn from are not draws of known probability, fresh and for the same text.
    """
    drawn = recipe.sampler.scheduler
    if drawn not in ("euler_a", "lcm") and not (drawn in ("ddim", "tcd") and recipe.sampler.eta):
        raise UserError(
            f"sampler: {learner} learns from steps that draw noise, with a probability that is known; use "
            "scheduler: euler_a, or ddim with an eta above 0, such as eta: 1; with a model distilled for them lcm, or "
            "tcd with an eta."
        )
    check_fresh(recipe, learner, "pictures")
    for prompt in build(recipe.prompts):
        if prompt.sampling != prompt.learning:
            raise UserError(
                f"prompts: {learner} learns from steps that were drawn for the text that is learnt, and "
                f"'{prompt.id}' is drawn for another; leave the magic prompt out, or set prompts.decouple: false."
            )
