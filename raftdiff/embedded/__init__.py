"""The small models that ship with the package, by name. No download, no network.

``scenes``, ``reviews``, ``translation`` and ``programs`` are the worlds that they know, and how they were trained.
"""

import difflib
from pathlib import Path

from raftdiff.errors import UserError, gone, nearest

_FOLDER = Path(__file__).parent / "models"
_NAMES = ("scene-sd", "emoji-flow", "scene-clip", "scene-judge", "review-lm", "translate-lm", "code-lm")


def names() -> tuple[str, ...]:
    """The names that ship.

    Pictures: ``scene-sd`` (the model to align), ``emoji-flow`` (a flow that draws the same), ``scene-clip`` (the
    reward), ``scene-judge`` (the held-out judge).
    Text: ``review-lm`` (the model to align; its reward and its judge are the grammar, `raftdiff.embedded.reviews`),
    ``translate-lm`` (the model that translates; the truth is the grammar of `raftdiff.embedded.translation`), and
    ``code-lm`` (the model that writes Python, which is the reward too; `raftdiff.embedded.programs`).
    """
    return _NAMES


def folder(name: str) -> Path:
    """Where a model that ships lies.

    Raises:
        UserError: no model of that name ships, or this installation lacks its files.
    """
    if name not in _NAMES:
        raise UserError(gone(name) or f"No model called '{name}' ships with raftdiff. {nearest(name, _NAMES)}")
    found = _FOLDER / name
    if not found.is_dir():
        raise UserError(
            f"The model '{name}' is missing from this installation (looked in {found}); reinstall raftdiff."
        )
    return found


def resolve(model: str) -> str:
    """A model's name in a recipe -> what its loader takes: a folder for those that ship, else the name itself.

    Raises:
        UserError: this installation lacks its files; or it shipped once, or nearly has the name of one that ships, and
            nothing of that name lies here.
    """
    if gone(model) and not Path(model).exists():
        raise UserError(gone(model))
    close = difflib.get_close_matches(model.lower(), _NAMES, n=1, cutoff=0.8)
    if close and model not in _NAMES and "/" not in model and not Path(model).exists():  # a hub's have an owner
        raise UserError(f"No model called '{model}' ships with raftdiff, or lies here. Did you mean '{close[0]}'?")
    return str(folder(model)) if model in _NAMES else model
