"""What a recipe needs and this machine lacks: all of it at once, before anything is loaded.

A part of a recipe says so itself, by a method ``needs(resolve)`` of its config; ``needs`` here asks all parts.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from pydantic import BaseModel

from raftdiff.errors import Need, UserError

HUB_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)?")


def needs(recipe: Any, resolve: Callable[[str], str] = str, path: str = "") -> list[Need]:
    """What the parts of a recipe lack, by the recipe's dotted keys. Loads nothing and asks no network."""
    if isinstance(recipe, list | tuple):
        return [need for place, one in enumerate(recipe) for need in needs(one, resolve, f"{path}{place}.")]
    if not isinstance(recipe, BaseModel):
        return []
    own = recipe.needs(resolve) if hasattr(recipe, "needs") else ()
    found = [need._replace(key=f"{path}{need.key}") for need in own]
    for name in type(recipe).model_fields:
        found += needs(getattr(recipe, name), resolve, f"{path}{name}.")
    return found


def ready(recipe: Any, resolve: Callable[[str], str] = str) -> list[str]:
    """What will be fetched from a hub before the recipe can begin, a sentence each.

    Raises:
        UserError: something is missing that nobody will fetch; a line for each, and for what will be fetched.
    """
    found = needs(recipe, resolve)
    told = list(dict.fromkeys(f"{need.key}: {need.sentence}" for need in found))
    if all(need.fetched for need in found):
        return told
    raise UserError("\n".join(told))


def refuse(key: str, lacking: Iterable[Need]) -> None:
    """
    Raises:
        UserError: something of the part under ``key`` is missing, a line for each.
    """
    if sentences := [f"{key}.{need.key}: {need.sentence}" for need in lacking if not need.fetched]:
        raise UserError("\n".join(sentences))


def model_at(key: str, name: str, *, where: str) -> Iterator[Need]:
    """A model that is a folder, a file or a hub id; ``where`` says what would do, and where to get it."""
    if Path(name).expanduser().exists():
        return
    if not HUB_ID.fullmatch(name):
        yield Need(key, f"there is no folder or file '{name}' here. {where}")
    elif not hub_has(name):
        yield from from_hub(key, name)


def from_hub(key: str, name: str) -> Iterator[Need]:
    """A hub model that is not in the cache."""
    if offline():
        yield Need(key, f"'{name}' is not in the hub's cache here, and HF_HUB_OFFLINE forbids to fetch it.")
    else:
        yield Need(key, f"'{name}' is not here yet and will be fetched from the hub.", fetched=True)


def hub_has(name: str) -> bool:
    """Whether the hub's cache on this machine holds something of a model."""
    return any((Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "snapshots").glob("*/*"))


def offline() -> bool:
    return bool(constants.is_offline_mode()) or os.environ.get("TRANSFORMERS_OFFLINE", "") in ("1", "true", "True")
