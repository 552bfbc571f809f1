"""A pipeline's folder: which pipeline began it, and what of that may still be another."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from raftdiff.errors import UserError
from raftdiff.llm.recipe import TextRecipe
from raftdiff.llm.reward_runs.recipe import RewardRecipe
from raftdiff.recipes.config import completed, differing, flat
from raftdiff.records.disk import write_text
from raftdiff.records.provenance import moves, told
from raftdiff.records.run import NOT_IDENTITY, Run

BEGUN = "pipeline.yaml"
"""Every stage's recipe, complete, as it was begun."""


def outcome_file(out: Path, stage: str) -> Path:
    """What came of a stage; present means that the stage is finished."""
    return out / f"{stage}.json"


def begin(out: Path, name: str, identity: Mapping[str, Any]) -> None:
    """Make the folder, or find that the same pipeline began it; ``identity`` is what ``pipeline.check`` returned. Keys
    of stages that are yet to begin may be others than they were.

    Raises:
        UserError: another pipeline began it (the keys that differ are named), or other files lie there.
    """
    now = {"name": name, "order": list(identity), **identity}
    file = out / BEGUN
    if file.is_file():
        known = yaml.safe_load(file.read_text(encoding="utf-8"))
        _demand_same(out, known, now)
        if known == now:
            return
    elif out.exists() and (not out.is_dir() or {one.name for one in out.iterdir()} - {f"{BEGUN}.tmp"}):
        raise UserError(f"{out}: this is no pipeline's folder and not empty; name another with --out.")
    out.mkdir(parents=True, exist_ok=True)
    write_text(file, yaml.safe_dump(now, sort_keys=False, allow_unicode=True, width=100))


def _demand_same(out: Path, known: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """
    Raises:
        UserError: keys differ at which a stage that was begun would be another.
    """
    if known["name"] != now["name"]:
        raise UserError(
            f"{out}: this is the folder of the pipeline '{known['name']}', and this one is '{now['name']}'; name "
            "another folder with --out."
        )
    stages = now["order"]
    known = {**known, **{stage: _completed(known[stage], now[stage]) for stage in stages if stage in known}}
    free = [f"{stage}.{key}" for stage in stages for key in NOT_IDENTITY]
    free += stages[_begun(out, stages) :]
    marks = {name: mark for stage in stages for name, mark in _marks(out / stage).items()}
    moved = moves(flat(known), flat(now), marks)
    if keys := [key for key in differing(known, now, free) if key not in moved]:
        others = told(keys, flat(known), flat(now), marks)
        raise UserError(
            f"{out}: another pipeline began this folder; these keys differ: {others}. Change them back, or name "
            "another folder with --out."
        )


def _begun(out: Path, stages: list[str]) -> int:
    """How many stages, in their order, were begun, or came before one that was."""
    held = [Run(out / one).begun() or outcome_file(out, one).is_file() for one in stages]
    return max((place for place, begun in enumerate(held, 1) if begun), default=0)


def _completed(known: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What ``pipeline.check`` returned of a stage once, with the defaults of keys that were yet to come then. Pairs
    that an earlier version would read later, it wrote down as overrides; they are taken for what they are ``now``."""
    until = {name: known[name] for name in ("until",) if name in known}
    kind = TextRecipe if known.get("media") == "text" else RewardRecipe
    later = {re.split(r"[.=]", text)[0] for text in known.get("read later", ())}
    told = {key: value for key, value in known.items() if key not in ("until", "read later")}
    return {**completed(told, kind), **until, **{key: now.get(key) for key in later}}


def _marks(stage: Path) -> Mapping[str, str]:
    """The fingerprints of the models that a stage began with, by their names; none where it did not begin."""
    return Run(stage).info().get("weights", {}) if (stage / "run.json").is_file() else {}
