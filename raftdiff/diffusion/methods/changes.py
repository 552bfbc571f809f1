"""Learning rules as changes of one recipe, each at the cost of the others.

Every method draws its candidates alike, but for ``ddpo``, which learns from the drawing itself. How many steps it then
learns is chosen so that drawing and learning together come to the same number of network evaluations, as nearly as it
comes from below: a rule with a reference asks the network twice for a picture, and so gets half the steps of one that
imitates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, final

from raftdiff.diffusion import probe
from raftdiff.diffusion.recipe import Recipe, drawing_of, looking_of, work
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.errors import UserError, nearest
from raftdiff.recipes import files
from raftdiff.recipes.config import plain


@final
@dataclass(frozen=True, slots=True)
class Method:
    """What a method changes in a recipe; what the recipe says of a selector or rule of this type stays as it is."""

    selector: str
    learning: str
    options: Mapping[str, str] = field(default_factory=dict)
    """Of the rule."""
    kept: tuple[str, ...] = ()
    """Options that the recipe's own selector passes on, where it has them."""
    ranked: bool = True
    """Whether it learns from what was selected; else from all candidates."""
    drawing: tuple[str, ...] = ()
    """Changes of how the candidates are drawn, for a rule that learns from the drawing itself."""

    def overrides(self, recipe: Recipe) -> list[str]:
        """The changes, as on the command line."""
        own, found = recipe.ranker.selector, []
        if not self.ranked:
            found.append(f"ranker.selector={{type: {self.selector}, keep: {recipe.loop.candidates}}}")
        elif own.type != self.selector:
            passed = [f"{name}: {getattr(own, name)}" for name in self.kept if hasattr(own, name)]
            if self.selector == "advantage" and recipe.ranker.mix == "gdpo":  # which has scaled them already
                passed.append("method: dr_grpo")
            found.append(f"ranker.selector={{{', '.join([f'type: {self.selector}', *passed])}}}")
        if recipe.finetuner.learning.type != self.learning:
            found.append(f"finetuner.learning={{type: {self.learning}}}")
        return [*found, *self.drawing, *(f"finetuner.learning.{name}={value}" for name, value in self.options.items())]


OWN_STEPS = (
    "sampler.scheduler=ddim",
    "sampler.eta=1",
    "prompts.magic=['{caption}']",
    "loop.sample_every=1",
    "loop.replay_rounds=0",
)
"""A policy gradient draws anew in each round, for the caption itself, with noise at every step."""
BASE = "base"
"""What the untuned model is called."""
METHODS: Mapping[str, Method] = {
    "raft": Method("best_of_k", "sft", kept=("keep",)),
    "raft_random": Method("random", "sft", kept=("keep",)),
    "rwr": Method("softmax", "sft"),
    "awm": Method("advantage", "advantage"),
    "nft": Method("advantage", "nft"),
    "dpo": Method("best_worst", "dpo", {"loss": "sigmoid"}),
    "ipo": Method("best_worst", "dpo", {"loss": "ipo"}),
    "kto": Method("threshold", "kto"),
    "ddpo": Method("advantage", "ddpo", drawing=OWN_STEPS),
    "draft": Method("random", "draft", ranked=False),
    "refl": Method("random", "refl", ranked=False),
}
NAMED = ("ddpo", "draft", "refl")
"""Those that learn from paths, which not every recipe has; run where they are named."""
ALIKE = tuple(name for name in METHODS if name not in NAMED)


class Cost(NamedTuple):
    """Rows through the network in all rounds of a run; what is drawn and computed to look at it is left out."""

    sampling: int
    tuning: int

    @property
    def total(self) -> int:
        return self.sampling + self.tuning


@final
@dataclass(frozen=True, slots=True)
class Trial:
    """A method as it is run."""

    name: str
    recipe: Recipe
    cost: Cost

    def of_seed(self, seed: int) -> Recipe:
        """The recipe with which the run of this seed is begun."""
        return self.recipe.model_copy(update={"loop": self.recipe.loop.model_copy(update={"seed": seed})})


def cost(recipe: Recipe) -> Cost:
    """What a recipe's run costs, at most."""
    one, loop = work(recipe), recipe.loop
    return Cost(loop.draws * one.sampling_evaluations, loop.rounds * one.tuning_evaluations)


def step_cost(recipe: Recipe) -> int:
    """Rows through the network of one optimizer step, where no picture is shown less often for ``exposures``."""
    tuner, pictures = recipe.finetuner, recipe.finetuner.pictures_an_item
    rows = tuner.items_at_once * pictures * tuner.gradient_accumulation
    return int(rows * probe.evaluations_per_row(tuner, recipe.guidance, drawn=drawing_of(recipe).guidance))


def planned(
    names: Sequence[str], base: Recipe, file: str, overrides: Sequence[str] = (), *, evaluations: int | None = None
) -> list[Trial]:
    """The methods of those names, each once, in their order.

    Args:
        names: of ``METHODS``, or of recipes, by name or file, which keep their own selector, rule and sampler.
        base: the recipe that the methods change, as ``load_recipe(file, overrides)`` gives it. All are evaluated as it
            says.
        evaluations: what each may cost; by default what ``base`` costs as it stands.

    Raises:
        UserError: a name is of none, or its recipe does not fit the overrides, tunes another model or costs more; so
            that nothing is begun that cannot be ended.
    """
    allowed = evaluations or cost(base).total
    trials = [
        _trial(name, base, file, overrides, allowed, asked=evaluations is not None) for name in dict.fromkeys(names)
    ]
    called = [trial.name for trial in trials]
    if twice := {name for name in called if called.count(name) > 1}:
        raise UserError(f"--methods: two are called '{min(twice)}'; give one of the files another name.")
    if BASE in called:
        raise UserError(f"--methods: '{BASE}' is what the untuned model is called; give that file another name.")
    return trials


def _trial(name: str, base: Recipe, file: str, overrides: Sequence[str], allowed: int, *, asked: bool) -> Trial:
    recipe = _changed(name, base, file, overrides)
    used = {"guidance": base.guidance, "guidance_rescale": looking_of(base).guidance_rescale}
    evaluation = base.evaluation.model_copy(update=used)
    recipe = recipe.model_copy(update={"evaluation": evaluation})
    sampling, step, rounds = work(recipe).sampling_evaluations, step_cost(recipe), recipe.loop.rounds
    drawn = recipe.loop.draws * sampling
    steps = (allowed - drawn) // rounds // step
    if steps < 1:
        limit = f"--evaluations {allowed:,}" if asked else f"{base.name} as it stands costs {allowed:,} evaluations"
        raise UserError(
            f"{limit}: {name} draws for {drawn:,} in all, {recipe.loop.draws} x {sampling:,}, and a step a round "
            f"takes {rounds * step:,} more. Allow {drawn + rounds * step:,} or more with --evaluations, or draw "
            "less (loop.candidates, loop.prompts_per_round)."
        )
    tuner = recipe.finetuner.model_copy(update={"steps": steps, "exposures": None})
    spent = Cost(drawn, rounds * steps * step)
    return Trial(Path(name).stem, recipe.model_copy(update={"finetuner": tuner}), spent)


def _changed(name: str, base: Recipe, file: str, overrides: Sequence[str]) -> Recipe:
    """The recipe of a method, or the one that a name is of."""
    if name in METHODS:
        try:
            return load_recipe(file, [*overrides, *METHODS[name].overrides(base)])
        except UserError as error:
            others = f"Change that for all of them with an override, or leave '{name}' out of --methods."
            raise UserError(f"{error}\nSo '{name}' does not fit this recipe. {others}") from None
    if not (Path(name).suffix or name in files.recipes()):
        raise UserError(f"'{name}' is not a method. {nearest(name, METHODS)} A recipe's name or file is one, too.")
    recipe = load_recipe(name, overrides)
    ours, theirs = (plain(it.model.model_copy(update={"device": "auto"})) for it in (base, recipe))
    if apart := [key for key in ours if ours[key] != theirs[key]]:
        told = ", ".join(f"model.{key}: {theirs[key]}, and theirs {ours[key]}" for key in apart)
        raise UserError(
            f"{name}: it tunes another model than the other methods ({told}); compared is what becomes of one model. "
            "Name it for all of them, as in model.base=..."
        )
    return recipe
