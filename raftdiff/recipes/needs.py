"""What a recipe needs and this machine lacks: all of it at once, before anything is loaded.

A part of a recipe says so itself, by a method ``needs(resolve)`` of its config; ``needs`` here asks all parts.
"""

import difflib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session
from pydantic import BaseModel

from raftdiff.errors import Need, UserError

MOST_RUNS = 5
"""That a sentence names."""
ELSEWHERE = "Fetch it where there is a network, and give its folder in place of the name."
LONGEST = 96
"""Characters in a hub id."""
HUB_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)?")


def needs(recipe: Any, resolve: Callable[[str], str] = str, path: str = "") -> list[Need]:
    """What the parts of a recipe lack, by the recipe's dotted keys. Loads nothing."""
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
    return fetched(needs(recipe, resolve))


def rewards_ready(rewards: Iterable[Any], resolve: Callable[[str], str] = str) -> list[str]:
    """As ``ready``, of rewards that stand in no recipe: a sentence begins with the name of its reward.

    Raises:
        UserError: as ``ready``.
    """
    return fetched([need for one in rewards for need in needs(one, resolve, f"the reward '{one.name}': ")])


def fetched(found: Sequence[Need]) -> list[str]:
    """Of what ``needs`` found, a sentence each for what will be fetched from a hub.

    Raises:
        UserError: something is missing that nobody will fetch; a line for each, and for what will be fetched.
    """
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


def demand(who: str, lacking: Iterable[Need]) -> None:
    """For whoever loads: ``who`` names what is loaded, at the beginning of the sentence.

    Raises:
        UserError: something is missing that nobody will fetch.
    """
    if lost := next((need for need in lacking if not need.fetched), None):
        raise UserError(f"{who}: {lost.sentence}")


def model_at(key: str, name: str, *, where: str = "") -> Iterator[Need]:
    """A model that is a folder, a file or a hub id; ``where`` says what would do, and where to get it."""
    if _there(name):
        return
    known = HUB_ID.fullmatch(name) and len(name) <= LONGEST
    beside = known and "/" in name and Path(name).parent.is_dir()
    if not known or (beside and not hub_has(name)):
        yield Need(key, " ".join(filter(None, [f"there is no folder or file '{name}' here.", near(name), where])))
    else:
        yield from from_hub(key, name)


def from_hub(key: str, name: str) -> Iterator[Need]:
    """A hub model that is not in the cache."""
    # asked for those in the cache too: their libraries look there at once where the hub is silent
    silent = unreachable()
    if hub_has(name):
        return
    if silent:
        missing = f"'{name}' is not in the hub's cache here, and {silent}."
        yield Need(key, " ".join(filter(None, [missing, near(name), ELSEWHERE])))
    else:
        yield Need(key, f"'{name}' is not here yet and will be fetched from the hub.", fetched=True)


def near(name: str) -> str:
    """A sentence that names what lies nearest to a folder or file that is missing; none where nothing is near."""
    if _there(turned := name.replace("\\", "/")):
        return f"Did you mean '{turned}'?"
    try:
        path = Path(name).expanduser()
        while not path.parent.is_dir():
            path = path.parent
        lying = [one.name for one in path.parent.iterdir()]
    except (OSError, RuntimeError):
        return ""
    close = difflib.get_close_matches(path.name, lying, n=1)
    return f"Did you mean '{path.parent / close[0]}'?" if close else ""


def runs_near(path: Path) -> str:
    """What to say where no run is: what lies nearest to a folder that is missing, and which runs there are, in it or
    beside it, else in this folder's ``runs``: those of near names, then the newest. Nothing where there are none."""
    folders = (folder for folder in (path, path.parent, Path("runs")) if folder.is_dir())
    held = next((found for folder in folders if (found := _runs_in(folder))), [])
    close = difflib.get_close_matches(path.name, [run.name for run in held], n=MOST_RUNS)
    runs = sorted(held, key=lambda run: close.index(run.name) if run.name in close else len(close))
    told = [] if path.exists() else [near(str(path))]
    if runs:
        more = f" and {len(runs) - MOST_RUNS} more" if len(runs) > MOST_RUNS else ""
        told.append(f"Runs there are: {', '.join(map(str, runs[:MOST_RUNS]))}{more}.")
    return " ".join(filter(None, told))


def _runs_in(folder: Path) -> list[Path]:
    """The newest first."""
    try:
        marks = sorted(folder.glob("*/run.json"), key=lambda mark: mark.stat().st_mtime, reverse=True)
    except OSError:
        return []
    return [mark.parent for mark in marks]


def _there(name: str) -> bool:
    try:
        return bool(name) and Path(name).expanduser().exists()
    except (OSError, RuntimeError):  # too long for a name; the home of nobody
        return False


def unreachable() -> str:
    """Why nothing can be fetched from the hub, as a clause; empty where it answers.

    It is asked once a process, for 2 x ``PATIENCE`` at most, and is more than a question: where it does not answer,
    this sets HF_HUB_OFFLINE, in huggingface_hub and in the environment, for the rest of the process. The libraries
    use what is in the cache from then on, and nothing else: they would try again for a minute, for each file.
    """
    global _silent  # noqa: PLW0603  (one answer a process)
    if not _silent and offline():
        return "HF_HUB_OFFLINE forbids to fetch it"
    if _silent is None and (silent := _asked()):
        constants.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"
        _silent = silent
    _silent = _silent or ""
    return _silent


_silent: str | None = None
PATIENCE = 5.0
"""Seconds that the hub has to answer; as many again for the look-up of its name."""


def _asked() -> str:
    found: list[str] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=PATIENCE)
            found.append("")
        except Exception as error:  # of one library or another, by version; proxies and certificates too
            found.append(f"{constants.ENDPOINT} cannot be reached ({str(error).strip() or type(error).__name__})")

    asking = threading.Thread(target=ask, daemon=True)  # a look-up of the name has no time limit of its own
    asking.start()
    asking.join(2 * PATIENCE)
    return found[0] if found else f"{constants.ENDPOINT} does not answer"


def hub_has(name: str) -> bool:
    """Whether the hub's cache on this machine holds something of a model."""
    return any((Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "snapshots").glob("*/*"))


def offline() -> bool:
    return bool(constants.is_offline_mode()) or os.environ.get("TRANSFORMERS_OFFLINE", "") in ("1", "true", "True")
