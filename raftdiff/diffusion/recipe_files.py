"""Recipes for pictures, read from files and from runs, with what they name sealed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raftdiff import embedded
from raftdiff.diffusion.checks import check_recipe
from raftdiff.diffusion.recipe import Recipe, parts_of, samplers
from raftdiff.diffusion.sampling.given import FolderSamplerConfig
from raftdiff.mixing import MixSamplerConfig
from raftdiff.recipes.config import check, plain, read
from raftdiff.recipes.files import expect, locate, refuse_preferences
from raftdiff.recipes.prompts import inline
from raftdiff.records.provenance import fingerprints
from raftdiff.records.run import Run


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, or the one of that name that ships; prompts held inline, parts checked against each other.

    Raises:
        UserError: no such recipe, or anything wrong in it, in a sentence a line.
    """
    path = locate(name)
    refuse_preferences(path, name)
    expect(path, "image", path)
    recipe = read(Recipe, path, overrides)
    recipe = recipe.model_copy(update={"sampler": _sealed(recipe.sampler, path.parent)})
    prompts = inline(recipe.prompts, path.parent)
    if not prompts.captions and (known := [one for it in samplers(recipe) for one in _own_prompts(it)]):
        prompts = prompts.model_copy(update={"captions": list({str(one): one for one in known}.values())})
    held_out = inline(recipe.evaluation.prompts, path.parent, "evaluation.prompts")
    evaluation = recipe.evaluation.model_copy(update={"prompts": held_out})
    recipe = recipe.model_copy(update={"prompts": prompts, "evaluation": evaluation})
    check_recipe(recipe)
    return recipe


def _sealed(config: Any, folder: Path) -> Any:
    """A sampler's config with the checksum of the pictures that it reads."""
    if isinstance(config, FolderSamplerConfig):
        return config.sealed(folder)
    if isinstance(config, MixSamplerConfig):
        return config.of([_sealed(part, folder) for part in parts_of(config)])
    return config


def _own_prompts(config: Any) -> list[dict[str, str]]:
    return config.prompts() if isinstance(config, FolderSamplerConfig) else []


def recipe_of(run: Run) -> Recipe:
    """
    Raises:
        UserError: it is a run on texts, or of a reward model.
    """
    refuse_other(run)
    return check(Recipe, run.recipe(), str(run.path / "recipe.yaml"))


def refuse_other(run: Run) -> None:
    """
    Raises:
        UserError: the run is not one on pictures.
    """
    expect(run.path / "recipe.yaml", "image", run.path, "run on")


def weights(recipe: Recipe) -> dict[str, str]:
    """A fingerprint of every local model and run that the recipe names, by that name; hub models are left out."""
    return fingerprints(plain(recipe), embedded.resolve)
