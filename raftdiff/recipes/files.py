"""Recipe files: those that ship, the one that a word means, and what kind of run each is for."""

import difflib
from collections.abc import Collection, Mapping
from importlib.resources import files
from pathlib import Path

import yaml

from raftdiff.errors import UserError, command, gone
from raftdiff.recipes.needs import near, runs_near
from raftdiff.recipes.source import values

MEDIA: Mapping[str, str] = {
    "image": "pictures",
    "text": "texts",
    "preferences": "a reward model",
    "pipeline": "a pipeline",
}
"""What a recipe may be for, by its ``media``, and how a sentence calls it."""

FOLDERS: Mapping[str, str] = {"": "pictures", "llm": "texts", "rm": "reward models", "pipelines": "pipelines"}
"""Where the recipes of each kind stand, and how a list of them calls these."""


def recipes() -> dict[str, Path]:
    """The recipes that ship, by name."""
    folder = Path(str(files("raftdiff"))) / "configs"
    return {path.stem: path for part in FOLDERS for path in sorted((folder / part).glob("*.yaml"))}


def locate(name: str) -> Path:
    """The file of a recipe: itself, or that of the one of this name that ships.

    Raises:
        UserError: there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = recipes()
    if name in known:
        return known[name]
    if told := gone(path.stem):
        raise UserError(told)
    close = difflib.get_close_matches(path.stem, known, n=3, cutoff=0.0)
    hint = f"The nearest that ship: {', '.join(close)}; all of them: {command('recipes')}."
    recipe = path.suffix.lower() in (".yaml", ".yml")
    if path.is_dir() or (not recipe and path.parent != Path()):
        said = f"'{name}' is a folder without a run in it" if path.is_dir() else f"There is no run '{name}'"
        meant = _meant(path, known) or f"If you meant a recipe, its file ends in .yaml. {hint}"
        raise UserError(f"{said} (no run.json). {meant}")
    if recipe:
        raise UserError(" ".join(filter(None, [f"There is no recipe file '{name}'.", near(name), hint])))
    run = Path("runs") / name
    begun = f" Did you mean the run '{run}'?" if (run / "run.json").is_file() else ""
    raise UserError(f"'{name}' is no file and not a recipe that ships.{begun} {hint}")


def _meant(path: Path, known: Collection[str]) -> str:
    """What may have been meant by a path that is neither a run nor a recipe; nothing where nothing is near."""
    beside = [path.parent / f"{stem}.yaml" for stem in (path.name, path.stem)]
    if there := next((file for file in beside if file.is_file()), None):
        return f"Did you mean the recipe '{there}'?"
    ships = f"The recipe '{path.stem}' that ships is named without a folder." if path.stem in known else ""
    return " ".join(filter(None, [runs_near(path), ships]))


def medium_of(path: Path) -> str:
    """What a recipe file is for, as its ``media`` says: ``text``, ``preferences`` (a reward model), ``pipeline``; a
    recipe for pictures says nothing."""
    try:
        data = values(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return "image"  # whoever reads it in earnest says what is wrong
    return str(data.get("media", "image")) if isinstance(data, dict) else "image"


def _refuse_media(path: Path) -> None:
    """
    Raises:
        UserError: the recipe says a medium that there is not, or that it is for pictures, which goes without saying.
    """
    words = [word for word in MEDIA if word != "image"]
    if (found := medium_of(path)) in words or not path.is_file():
        return
    before, said, _ = path.read_text(encoding="utf-8", errors="replace").partition("media:")
    if said and (not before or before.endswith("\n")):
        raise UserError(
            f"{path}:{before.count(chr(10)) + 1}: media: '{found}' is none of {', '.join(words)}; a recipe for "
            "pictures has no 'media'."
        )


def spoken(medium: str) -> str:
    """What a recipe is for, in words."""
    return MEDIA.get(medium, f"'{medium}'")


def refuse_preferences(path: Path, name: str | Path) -> None:
    """
    Raises:
        UserError: the recipe at ``path`` trains a reward model or runs a pipeline; ``name`` is what the user called it.
    """
    if medium_of(path) == "pipeline":
        run = command("llm", "pipeline", name)
        raise UserError(f"{name}: this runs several recipes one after the other, with: {run}.")
    if medium_of(path) == "preferences":
        raise UserError(
            f"{name}: this trains a reward model, which has commands of its own: raftdiff llm rm train, eval and "
            "strength; a trained one lies in its run's folder 'model', in the transformers format."
        )


def expect(path: Path, medium: str, who: str | Path, noun: str = "recipe for") -> None:
    """Nothing, where the recipe at ``path`` is for ``medium``; ``who`` and ``noun`` say in the sentence what the user
    named: a "recipe for" pictures, a "run on" texts.

    Raises:
        UserError: it is for another medium.
    """
    refuse_preferences(path, who)
    _refuse_media(path)
    if (found := medium_of(path)) != medium:
        raise UserError(f"{who}: this is a {noun} {spoken(found)}, and this command is for {spoken(medium)}.")
