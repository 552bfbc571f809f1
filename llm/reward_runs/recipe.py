"""Recipes for reward models: read, checked against themselves; ``training`` does what they say."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field

from raftdiff import embedded
from raftdiff.errors import UserError
from raftdiff.llm.data import preferences
from raftdiff.llm.data.preferences import Comparison, PairsConfig
from raftdiff.llm.data.prompts import DataConfig, read_prompts, sealed_prompts
from raftdiff.llm.model.loading import LMConfig
from raftdiff.llm.recipe import beside
from raftdiff.llm.reward_models.strength import DenoiseConfig, NoDenoiseConfig
from raftdiff.llm.reward_models.tuner import RewardTunerConfig
from raftdiff.llm.sampling.generation import DecodingConfig
from raftdiff.recipes.config import Config, Named, check, plain, read
from raftdiff.recipes.files import medium_of, spoken
from raftdiff.recipes.needs import runs_near
from raftdiff.records.provenance import fingerprints
from raftdiff.records.run import Run
from raftdiff.seeds import fold
from raftdiff.tracking import LoggingConfig

LARGEST_MU = 1e4
"""Of a pair's strength, in logits; where labels were made of rewards, these may be large."""


class PolicyPoolConfig(Config):
    """Where the answers of the current policy come from that MetaRM learns to tell apart: ``run`` or ``model``."""

    run: str | None = None
    """A run on texts; its tuned model answers its own prompts, drawn as the run says, unless they are given here."""
    model: LMConfig | None = None
    """Any other language model, such as a merged folder."""
    prompts: DataConfig = DataConfig()
    """What is asked. They need not be the prompts of the pairs."""
    decoding: DecodingConfig | None = None
    """How the answers are drawn."""
    batch_size: int = Field(default=64, ge=1)
    """Answers drawn at once."""


class RewardLoopConfig(Config):
    """The training in parts: after each the state is on the disk, and the held-out pairs are asked."""

    rounds: int = Field(default=4, ge=1)
    """Equal parts of the whole training."""
    seed: int = 0
    """Every other seed is derived from this one: of the head, of the split, of the order of the pairs."""
    order: int = 0
    """Another number shows the same pairs in another order and changes nothing else, as the members of an ensemble."""


class RewardRecipe(Config):
    """Everything that the training of a reward model does."""

    media: Literal["preferences"]
    name: Named
    """Part of the run directory's name."""
    model: LMConfig
    """What the reward model starts from: a causal language model or an encoder; it gets a head of one number."""
    pairs: PairsConfig
    """What was preferred to what."""
    held_out: PairsConfig | None = None
    """Pairs that are never trained on; by default a share of ``pairs`` is kept back."""
    held_out_share: float = Field(default=0.1, ge=0, lt=1)
    """How much of ``pairs`` is kept back, by whole prompts; not used where ``held_out`` is given."""
    denoise: DenoiseConfig = NoDenoiseConfig()
    """What is done about labels that may be wrong (arXiv:2401.06080): none, flip, margin, flip_margin, soft_margin,
    smooth. All but none and smooth need the strength of each pair, its ``mu``: raftdiff llm rm strength."""
    tuner: RewardTunerConfig = RewardTunerConfig()
    policy_pool: PolicyPoolConfig | None = None
    """Answers of the current policy, for tuner.meta (MetaRM, arXiv:2405.00438)."""
    loop: RewardLoopConfig = RewardLoopConfig()
    logging: LoggingConfig = LoggingConfig()


def load_reward_recipe(path: Path, overrides: Sequence[str] = ()) -> RewardRecipe:
    """The recipe in a file, its data found and sealed, parts checked against each other.

    Raises:
        UserError: anything wrong in it, in a sentence a line.
    """
    if (medium := medium_of(path)) != "preferences" and path.is_file():
        raise UserError(
            f"{path}: this is a recipe for {spoken(medium)}, and this command trains a reward model (media: "
            "preferences)."
        )
    recipe = read(RewardRecipe, path, overrides)
    folder, pool = path.parent, recipe.policy_pool
    _demand_runs(recipe, path)
    held_out = recipe.held_out and preferences.sealed(recipe.held_out, folder, "held_out")
    if pool is not None and pool.prompts.given:
        pool = pool.model_copy(update={"prompts": sealed_prompts(pool.prompts, folder, "policy_pool.prompts")})
    sealed = {"pairs": preferences.sealed(recipe.pairs, folder, "pairs"), "held_out": held_out, "policy_pool": pool}
    recipe = recipe.model_copy(update=sealed)
    _check(recipe)
    return recipe


def _demand_runs(recipe: RewardRecipe, path: Path) -> None:
    """
    Raises:
        UserError: where pairs are taken from a run, none is there.
    """
    for key, pairs in (("pairs", recipe.pairs), ("held_out", recipe.held_out)):
        name = "run" if pairs and pairs.run else "labels"
        if not (named := pairs and getattr(pairs, name)):
            continue
        place = preferences.place_of(named, path.parent)
        if not (place / "run.json").is_file():
            made = {"run": "answers are drawn and scored", "labels": "people chose among a finished round's answers"}
            said = [
                f"{key}.{name}: '{named}' is not a run directory (it has no run.json).",
                runs_near(place),
                f"It is to be a run on texts in which {made[name]}; of a recipe that ships, the head of {path} says "
                "how one is made.",
            ]
            raise UserError(" ".join(filter(None, said)))


def reward_recipe_of(run: Run) -> RewardRecipe:
    """
    Raises:
        UserError: it is no run of a reward model.
    """
    if medium_of(run.path / "recipe.yaml") != "preferences":
        raise UserError(f"{run.path}: this is not the run of a reward model; train one with: raftdiff llm rm train.")
    return check(RewardRecipe, run.recipe(), str(run.path / "recipe.yaml"))


def weights(recipe: RewardRecipe) -> dict[str, str]:
    """A fingerprint of every local model and run that the recipe names, by that name; hub models are left out."""
    pool = recipe.policy_pool
    models = [recipe.model, *([pool.model] if pool else [])]
    return fingerprints(plain(recipe), embedded.resolve) | beside(models)


def divided(recipe: RewardRecipe) -> tuple[list[Comparison], list[Comparison]]:
    """The pairs that are trained on, and those that are held out.

    Raises:
        UserError: the data cannot be read, or no pair is left for one of the two.
    """
    pairs = preferences.build(recipe.pairs, Path(), "pairs")
    if recipe.held_out is not None:
        return pairs, preferences.build(recipe.held_out, Path(), "held_out")
    return split(pairs, recipe.held_out_share, recipe.loop.seed)


def split(pairs: Sequence[Comparison], share: float, seed: int) -> tuple[list[Comparison], list[Comparison]]:
    """Pairs to train on and pairs to hold out, each in the order of the data.

    Whole prompts are held out, drawn at random, until they have ``share`` of the pairs: a prompt's other pairs would
    tell a model too much of those that it is tested on.

    Raises:
        UserError: there are fewer than two prompts to divide.
    """
    if share == 0:
        return list(pairs), []
    places = preferences.by_prompt(pairs)
    if len(places) < 2:
        raise UserError(
            f"held_out_share: all {len(pairs)} pairs are of one prompt, and whole prompts are held out; name other "
            "pairs under held_out, or set held_out_share to 0."
        )
    held = set[int]()
    for drawn in np.random.default_rng(fold(seed, "held_out")).permutation(len(places))[:-1]:
        held.update(places[drawn])
        if len(held) >= share * len(pairs):
            break
    kept = [pair for place, pair in enumerate(pairs) if place not in held]
    return kept, [pair for place, pair in enumerate(pairs) if place in held]


def strengths(recipe: RewardRecipe, pairs: Sequence[Comparison]) -> Float[np.ndarray, " pairs"] | None:
    """``mu`` of each pair where the denoising needs it.

    Raises:
        UserError: it does, and a pair has none.
    """
    if not recipe.denoise.needs_strength:
        return None
    if unknown := [pair.id for pair in pairs if pair.mu is None]:
        raise UserError(
            f"denoise: '{recipe.denoise.type}' needs the strength of every pair (a column 'mu'), and {len(unknown)} of "
            f"{len(pairs)} have none, the first: {unknown[0]}. Measure it with: raftdiff llm rm strength RECIPE --out "
            "FILE.jsonl, and name that file under pairs.data.file."
        )
    mu = np.array([pair.mu for pair in pairs], dtype=np.float64)
    if (wrong := np.flatnonzero(~(np.abs(mu) < LARGEST_MU))).size:
        raise UserError(
            f"denoise: the strength (mu) of the pair '{pairs[wrong[0]].id}' is {mu[wrong[0]]:g}; it is a difference of "
            f"rewards, within {LARGEST_MU:g} of 0; correct the column, or measure it with: raftdiff llm rm strength."
        )
    return mu


def _check(recipe: RewardRecipe) -> None:
    """What can be known to be wrong before a model is loaded."""
    pool = recipe.policy_pool
    if recipe.model.sharded:
        raise UserError("model.sharded: a reward model is trained by one process, which holds all of it. Leave it out.")
    if recipe.tuner.meta is not None and pool is None:
        raise UserError(
            "tuner.meta: MetaRM needs answers of the current policy; name them under policy_pool, such as "
            "{run: RUN} or {model: {base: FOLDER}, prompts: {file: FILE}}."
        )
    if pool is not None:
        _check_pool(recipe, pool)
    pairs, _ = divided(recipe)
    strengths(recipe, pairs)


def _check_pool(recipe: RewardRecipe, pool: PolicyPoolConfig) -> None:
    if recipe.tuner.meta is None:
        raise UserError("policy_pool: only tuner.meta learns from these answers; set it, or leave policy_pool out.")
    if (pool.run is None) == (pool.model is None):
        raise UserError("policy_pool: name one of 'run' (a run on texts) and 'model', whose answers are drawn.")
    if pool.model is not None and not pool.prompts.given:
        raise UserError("policy_pool.prompts: the model needs prompts to answer; name a file, or a data set under hub.")
    if pool.run is not None and medium_of(Path(pool.run) / "recipe.yaml") != "text":
        raise UserError(f"policy_pool.run: '{pool.run}' is not a run on texts.")
    if pool.prompts.given:
        read_prompts(pool.prompts, Path(), "policy_pool.prompts")
