"""The parts of a recipe for pictures, built and wired; ``llm.assembly`` does it for texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from PIL.Image import Image

from raftdiff import embedded
from raftdiff.diffusion.learning.finetuner import DiffusionFineTuner
from raftdiff.diffusion.learning.policy_gradient import Chain, chain_of
from raftdiff.diffusion.models import loaded, loading
from raftdiff.diffusion.recipe import UNMEASURED, Recipe, drawing_of, looking_of, samplers, shares
from raftdiff.diffusion.sampler import DiffusionSampler, DiffusionSamplerConfig
from raftdiff.diffusion.sampling import batches
from raftdiff.diffusion.sampling.given import FolderSampler, FolderSamplerConfig
from raftdiff.diffusion.sampling.pruned import PrunedSampler
from raftdiff.diffusion.sampling.teacher import TeacherSamplerConfig
from raftdiff.diffusion.sizes import Size, told
from raftdiff.diffusion.wording import NEXT, Reading, limits, signs
from raftdiff.embedded.worlds import open_judge, understands
from raftdiff.errors import UserError
from raftdiff.measures.diversity import HeldOutDrift, HeldOutFigures, PictureFigures, PictureSimilarity, pixels
from raftdiff.measures.evaluation import Judge
from raftdiff.measures.pictures import is_flat
from raftdiff.mixing import MixSampler, MixSamplerConfig
from raftdiff.ranking import Features, Ranker, Turn, Unfit, assigned, at_hand, measured_by
from raftdiff.recipes.checks import has_say
from raftdiff.recipes.prompts import build
from raftdiff.records.changes import left_open
from raftdiff.records.changes import settled as with_values
from raftdiff.rewards.ocr import unasked
from raftdiff.scoring import demand_prompts
from raftdiff.seeds import fold
from raftdiff.selection.mixes import MIXES
from raftdiff.spread.processes import SharedSampler
from raftdiff.stages.parts import Parts
from raftdiff.training.devices import InTurn, flush_denormals
from raftdiff.types import Prompt, Reader, Reward, Sample, Sampler


@final
@dataclass(frozen=True)
class Assembly:
    """The parts of a recipe, built and wired: sampler and fine-tuner share one network."""

    recipe: Recipe
    model: loaded.Parts
    sampler: DiffusionSampler
    """Draws as the training does, or as what is learnt from was drawn."""
    evaluator: DiffusionSampler
    """Another sampler on the same network, with the evaluation's number of steps, guidance and size."""
    finetuner: DiffusionFineTuner
    ranker: Ranker[Image]
    measures: Ranker[Image]
    """The rewards that an evaluation looks at; those that only look on count where no other does."""
    parts: Parts[Image]
    """What the loop takes."""

    def notes(self, what: str, prompts: Sequence[Prompt], *, learnt: bool = False) -> list[str]:
        """What of some prompts is not read, or not as other programs read it: see ``wording``. ``learnt`` says that
        the model is tuned on them."""
        encoder = self.model.prompts
        readings = [
            Reading("the sampler", encoder, lambda prompt: prompt.sampling),
            Reading("the sampler, as negative prompt,", encoder, lambda prompt: prompt.negative),
        ]
        if learnt:
            readings.append(Reading("the fine-tuner", encoder, lambda prompt: prompt.learning))
        return [*limits(what, prompts, [*readings, *read_by(self.ranker, self.measures)]), *signs(what, prompts)]

    def first_notes(self) -> list[str]:
        """``notes`` of the recipe's own prompts, for whoever begins with them."""
        held_out = self.recipe.evaluation.prompts
        known = build(held_out, "evaluation.prompts") if held_out.captions else []
        what, asked = ("evaluation.prompts", known) if known else ("prompts", self.parts.prompts)
        judged = [*self.unjudged(what, asked), *self._half_judged(what, asked)]
        own = [*few_step_notes(self.recipe, self.model), *self.notes("prompts", self.parts.prompts, learnt=True)]
        own += _given_notes(self.parts.sampler, self.parts.prompts, self.recipe.loop.candidates)
        return [*own, *self.notes("evaluation.prompts", known), *judged]

    def unjudged(self, what: str, prompts: Sequence[Prompt]) -> list[str]:
        """A note where the recipe names a judge that understands none of the prompts to be evaluated on, and is left
        out: see ``judge``."""
        name, captions = self.recipe.evaluation.judge, [prompt.caption for prompt in prompts]
        if not name or not captions or len(self.strange(captions)) < len(captions):
            return []
        head = f"{what}: the judge {name} understands none of these captions, and the evaluation goes without it."
        return [NEXT.join([head, f"such as '{captions[0]}'; none that ships does"])]

    def _half_judged(self, what: str, prompts: Sequence[Prompt]) -> list[str]:
        """A note where the judge understands some of the prompts alone: the evaluation will be refused."""
        name, strange = self.recipe.evaluation.judge, self.strange([prompt.caption for prompt in prompts])
        if not strange or len(strange) == len(prompts):
            return []
        head = f"{what}: the judge {name} does not understand {len(strange)} of {len(prompts)} captions, so raftdiff "
        line = f"such as '{strange[0]}'; write it as the others, or evaluate with: evaluation.judge=null"
        return [NEXT.join([f"{head}eval will refuse them.", line])]

    def strange(self, captions: Sequence[str]) -> list[str]:
        """Those of the captions that the held-out judge does not understand; none where the recipe names no judge."""
        name = self.recipe.evaluation.judge
        return [caption for caption in captions if not understands(name, caption)] if name else []

    def judge(self, captions: Sequence[str]) -> Judge | None:
        """The held-out judge that the recipe names, if there is one and it understands all of these captions."""
        name = self.recipe.evaluation.judge
        return open_judge(name) if name and not self.strange(captions) else None


def assemble(recipe: Recipe, *, training: bool = True) -> Assembly:
    """Load the model and the rewards, and wire them.

    Args:
        training: whether candidates are to be drawn. What looks at a model needs no teacher and no folder, which may be
            gone by then; the policy's own sampler stands in for them.

    Raises:
        UserError: a model or a reward cannot be loaded.
    """
    flush_denormals()
    model = loading.load(recipe.model, embedded.resolve)
    recipe = settled(recipe, lambda: model)
    drawing, evaluation, prompts = drawing_of(recipe), recipe.evaluation, build(recipe.prompts)
    own, guidance = drawing.build(model), recipe.guidance
    own.fits.halved = lambda most: batches.lower(batches.facts(recipe.model, drawing), most)
    used = looking_of(recipe)
    evaluator = used.model_copy(update={"steps": evaluation.steps or used.steps}).build(model)
    taught_on_path = "path" in recipe.finetuner.requires.aux
    chains = chains_of(own, drawing) if taught_on_path else {}
    ranker = build_ranker(recipe, device=str(model.device))
    finetuner = recipe.finetuner.build(
        model,
        total_rounds=recipe.loop.rounds,
        guidance=guidance,
        seed=fold(recipe.loop.seed, "finetuner"),
        chains=chains,
        rewards=ranker.rewards if training else (),
    )
    sampler = _training_sampler(recipe, own, finetuner, prompts, ranker) if training else own
    measures = measuring(recipe, ranker, device=str(model.device))
    demand_prompts([reward for reward, _ in ranker.rewards] if training else [], prompts)
    looked = evaluation.prompts.captions and evaluation.every_round
    held_out = build(evaluation.prompts, "evaluation.prompts") if looked else []
    demand_prompts([reward for reward, _ in measures.rewards] if training else [], held_out)
    parts = Parts(
        sampler=sampler,
        ranker=ranker,
        finetuner=finetuner,
        prompts=prompts,
        held_out=held_out,
        held_out_sampler=used.build(model) if used != drawing else own,
        held_out_ranker=measures,
        held_out_candidates=max(1, evaluation.every_round),
        examine=HeldOutFigures(features(measures.rewards, measures.turn), unasked),
        moved=HeldOutDrift(features(measures.rewards, measures.turn)),
        loop=recipe.loop,
    )
    return Assembly(recipe, model, own, evaluator, finetuner, ranker, measures, parts)


def settled(recipe: Recipe, load: Callable[[], loaded.Parts] | None = None) -> Recipe:
    """The recipe with a number wherever ``batch_size: auto`` stands: what draws best on this machine. ``load`` gives
    the model, if it was loaded already.

    Raises:
        UserError: the model is to be split over several processes.
    """
    keys = left_open(recipe)
    if not keys:
        return recipe
    if recipe.model.sharded:
        raise UserError(
            f"{keys[0]}: auto is measured by one process, and model.sharded splits the model. Say a number."
        )
    there = load or (lambda: loading.load(recipe.model, embedded.resolve))
    return with_values(recipe, dict.fromkeys(keys, batches.found(recipe.model, drawing_of(recipe), there)))


def chains_of(sampler: DiffusionSampler, drawing: DiffusionSamplerConfig) -> dict[Size, Chain]:
    """By the size of the latents; the main one first."""
    flow, parts = sampler.parts.process.predicts == "flow", sampler.parts
    found = {}
    for size in sampler.sizes:
        _, rows, columns = parts.latent_shape(*size)
        found[rows, columns] = chain_of(
            sampler.solver(size), drawing.effective_eta, drawing.guidance, rescale=drawing.guidance_rescale, flow=flow
        )
    return found


def _training_sampler(
    recipe: Recipe,
    own: DiffusionSampler,
    finetuner: DiffusionFineTuner,
    prompts: Sequence[Prompt],
    ranker: Ranker[Image],
) -> Sampler[Image]:
    """
    Raises:
        UserError: a part cannot be built, gives pictures of another size than the policy draws, or has none.
    """
    held = [_sampler(one, own, finetuner, ranker) for one in samplers(recipe)]
    for one, share in zip(held, shares(recipe), strict=True):
        if isinstance(one, FolderSampler):
            one.check(prompts, share, alone=len(held) == 1 and recipe.loop.prompts_per_round is not None)
        given = any(it.type == "given" and has_say(it) for it in recipe.ranker.rewards)
        if given and isinstance(one, FolderSampler) and not one.scored:
            raise UserError(
                f"ranker.rewards: 'given' is what is said of a picture, and '{one.config.path}' says nothing of any: "
                f"there are no pairs, and no column '{one.config.score}' (sampler.score). Take another reward."
            )
        theirs = getattr(one, "sizes", own.sizes)
        if theirs != own.sizes:
            they, we = (" or ".join(map(told, sizes)) for sizes in (theirs, own.sizes))
            alike = "one height and width" if len(own.sizes) == len(theirs) == 1 else "the same sizes, in one order"
            raise UserError(
                f"sampler: of {one.source} come pictures of {they}, and the policy draws {we}; give all parts {alike}."
            )
    torn = finetuner.config.pictures_an_item > 1 and len(held) > 1 and len(own.sizes) > 1
    if torn and any(isinstance(one, FolderSampler) for one in held):
        raise UserError(
            f"sampler.parts: {recipe.finetuner.learning.type} learns from pairs of one size, and a folder's pictures "
            "have others than what is drawn for the same prompt. Take one size, or the folder without the other parts."
        )
    return recipe.sampler.build(held) if isinstance(recipe.sampler, MixSamplerConfig) else held[0]


def _sampler(
    config: Any, own: DiffusionSampler, finetuner: DiffusionFineTuner, ranker: Ranker[Image]
) -> Sampler[Image]:
    """One sampler of the recipe; ``own`` is the policy's."""
    match config:
        case DiffusionSamplerConfig():
            drawing, prune = config.build(own.parts, finetuner.requires.aux), config.prune
            drawing.fits = own.fits
            return drawing if prune is None else PrunedSampler(drawing, prune, previewing(ranker, prune.rewards))
        case TeacherSamplerConfig():
            return config.build(own.parts, finetuner.base_weights, embedded.resolve)
        case FolderSamplerConfig():
            return config.build(own.parts, alike=finetuner.config.pictures_an_item > 1)
        case _:
            built: Sampler[Image] = config.build(own.parts)
            return built


def _given_notes(sampler: Sampler[Image], prompts: Sequence[Prompt], candidates: int) -> list[str]:
    """How the pictures of folders come to their sizes."""
    own = sampler.sampler if isinstance(sampler, SharedSampler) else sampler
    held = own.parts if isinstance(own, MixSampler) else [(candidates, own)]
    return [note for share, one in held if isinstance(one, FolderSampler) for note in one.notes(prompts, share)]


def previewing(ranker: Ranker[Image], names: Sequence[str] | None) -> Ranker[Image]:
    """A ranker of previews: the rewards of these names, by default all that rank or bound, mixed as in the other."""
    looking = [pair for pair in ranker.rewards if ranker.role(pair[0].name) != "hold_out"]
    return ranker.measuring([pair for pair in looking if names is None or pair[0].name in names], BLANK)


def measuring(recipe: Recipe, ranker: Ranker[Image], *, device: str) -> Ranker[Image]:
    """The training's rewards and those that only look on, which count for the held-out curve only where there is
    nothing else. Left out are scores that data gave to their own pictures."""
    configs = recipe.ranker.rewards
    kept = [pair for pair, config in zip(ranker.rewards, configs, strict=True) if config.type not in UNMEASURED]
    decided = all(weight for _, weight in ranker.rewards[:1])
    if len(kept) == len(ranker.rewards) and not recipe.evaluation.rewards and decided:
        return ranker
    built = [(one.build(device=device, resolve=embedded.resolve), one.weight) for one in recipe.evaluation.rewards]
    if recipe.ranker.in_turn:
        for reward, _ in built:
            InTurn(torch.device(device)).rest(reward)
    return ranker.measuring(measured_by(kept, built), BLANK)


def build_ranker(recipe: Recipe, *, device: str) -> Ranker[Image]:
    """The rewards, the selector, and what a round says of its pictures."""
    configs = recipe.ranker.rewards
    built: list[Reward[Image]] = [config.build(device=device, resolve=embedded.resolve) for config in configs]
    rewards, bounds = assigned(configs, built)
    selector = recipe.ranker.selector.build(seed=fold(recipe.loop.seed, "select"))
    turn: Turn = at_hand
    if recipe.ranker.in_turn:
        turn = waiting = InTurn(torch.device(device))
        for reward, _ in rewards:
            waiting.rest(reward)
    seen = features(rewards, turn)
    mix = MIXES[recipe.ranker.mix]
    return Ranker(rewards, selector, PictureFigures(seen), BLANK, PictureSimilarity(seen), mix, bounds, turn)


BLANK = Unfit[Image](
    lambda sample: is_flat(sample.media),
    "blank",
    "pictures are blank, of one colour, as they are where a model computes NaN: its numbers overflow, or training "
    "diverged. Set model.dtype to bfloat16 or float32, name another model.vae, or begin again with a lower "
    "finetuner.learning_rate.",
)


def few_step_notes(recipe: Recipe, model: loaded.Parts) -> list[str]:
    """A note where a model that was distilled to few steps is to draw otherwise, or to learn by a loss that it was not
    distilled with; and one on a guidance below 1, which model cards mean by 0 otherwise than recipes do."""
    drawing, evaluation, few = drawing_of(recipe), recipe.evaluation, model.few_steps
    own = "sampler" if isinstance(recipe.sampler, DiffusionSamplerConfig) else "sampler.drawing"
    guidances = {f"{own}.guidance": drawing.guidance, "evaluation.guidance": evaluation.guidance}
    low = [
        f"{key}: {value:g} follows a caption less than 1 does, and 0 not at all. diffusers draws as with 1 there, and "
        f"that is what cards of few-step models mean by 0: set {key}=1"
        for key, value in guidances.items()
        if value is not None and value < 1
    ]
    if few is None:
        return low
    steps = {f"{own}.steps": drawing.steps, "evaluation.steps": evaluation.steps}
    lines = [f"set {key}={few.steps} or fewer, not {it}" for key, it in steps.items() if it and it > few.steps]
    most = f"={few.guidance:g}" if few.guidance == 1 else f" to {few.guidance:g} at most"
    lines += [f"set {key}{most}, not {it:g}" for key, it in guidances.items() if it and it > few.guidance]
    if few.solver not in (None, drawing.scheduler):
        lines.append(f"set {own}.scheduler={few.solver}, not {drawing.scheduler}")
    if "path" not in recipe.finetuner.requires.aux:
        learner = recipe.finetuner.learning.type
        lines.append(
            f"finetuner.learning: {learner} learns from pictures under noise, which may undo the distillation; ddpo, "
            "draft and refl learn from its own steps (docs/models.md, 'Few-step models')"
        )
    head = f"model.base: by {few.why}, {model.name} was distilled to draw in few steps."
    return [*low, *([NEXT.join([head, *lines])] if lines else [])]


def read_by(*rankers: Ranker[Image]) -> list[Reading]:
    """The rewards of rankers that read captions up to a limit, each once."""
    return read_by_rewards([reward for ranker in rankers for reward, _ in ranker.rewards])


def read_by_rewards(rewards: Sequence[Reward[Image]]) -> list[Reading]:
    """Those that read captions up to a limit."""
    held = {reward.name: reward for reward in rewards}
    return [
        Reading(f"the reward '{name}'", reward, lambda prompt: prompt.caption)
        for name, reward in held.items()
        if isinstance(reward, Reader)
    ]


def features(
    rewards: Sequence[tuple[Reward[Image], float]],
    turn: Turn = at_hand,
) -> Features:
    """What diversity is measured on: the first CLIP tower among the rewards, or, without one, the pixels. ``turn``:
    within which the tower is asked."""
    towers = [reward.tower for reward, _ in rewards if hasattr(reward, "tower")]
    if not towers:
        return pixels

    def seen(samples: Sequence[Sample[Image]]) -> torch.Tensor:
        with turn(towers[0]):
            found: torch.Tensor = towers[0].image_features(samples)
        return found

    return seen
