"""``raftdiff plan RECIPE --card 12GB``: does it fit, and if not, with which settings."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path

from raftdiff.diffusion.memory.card import Fit, card_bytes, fit
from raftdiff.diffusion.memory.footprint import CUDA, WASTE, Footprint, footprint
from raftdiff.diffusion.models.kept import LARGE
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.errors import counted

SURE = (
    f"How sure: counted from sizes, nothing was run. {CUDA / 2**30:.1f} GB are set aside for CUDA and "
    f"{WASTE - 1:.0%} of what is computed for waste; what rewards compute is not counted, nor what trained text "
    "encoders do. On the card itself 'raftdiff plan' without --card measures."
)


def plan_for(name: str, overrides: list[str], size: str, *, as_json: bool) -> None:
    """Print what a recipe needs, stage by stage, and the first settings with which it fits on a card."""
    card = card_bytes(size)
    found = fit(lambda more: load_recipe(name, [*overrides, *more]), footprint, card)
    fits = found.last.worst.total <= card
    if as_json:
        print(json.dumps({"card": card, "fits": fits, "overrides": found.overrides, **asdict(found)}, indent=2))
        return
    lines = [*_table(found.first), ""]
    if not found.changes and fits:
        lines += [f"It fits on {_gb(card)} as it stands: at most {_gb(found.last.worst.total)}."]
    else:
        lines += [f"As it stands it needs {_gb(found.first.worst.total)} while {found.first.worst.name}.", ""]
        lines += _changes(found)
    if fits and found.changes:
        command = shlex.join(["raftdiff", "train", name, *overrides, *found.overrides])
        lines += ["", f"So it fits on {_gb(card)}: at most {_gb(found.last.worst.total)}.", f"next: {command}"]
    elif not fits:
        worst = found.last.worst
        lines += ["", f"It does not fit on {_gb(card)}: {_gb(worst.total)} while {worst.name} is the least found here."]
        lines += ["A smaller picture, a smaller model or a lower rank is left."]
    if found.last.uncounted:
        names = ", ".join(found.last.uncounted)
        lines += ["", f"Not counted: the weights of {counted(len(found.last.uncounted), 'reward')} ({names})."]
    texts, model = found.last.stages[0].held["text encoders"], load_recipe(name, overrides).model
    of_files = bool(model.loras or model.embeddings) or Path(model.base).expanduser().is_file()
    if texts >= LARGE and model.keep_texts and not of_files:
        lines += [
            "",
            f"Text encoders: {_gb(texts)}, which a run leaves out whose texts were all read before (model.keep_texts).",
        ]
    print("\n".join([*lines, "", SURE]))


def _table(found: Footprint) -> list[str]:
    held = dict.fromkeys(name for stage in found.stages for name in stage.held)
    rows = [["while", *(stage.name for stage in found.stages)]]
    rows += [[name, *(_cell(stage.held.get(name, 0)) for stage in found.stages)] for name in held]
    rows.append(["CUDA itself", *(_cell(CUDA) for _ in found.stages)])
    rows.append(["computed, and waste", *(_cell(int(WASTE * stage.computed)) for stage in found.stages)])
    rows.append(["in all", *(_cell(stage.total) for stage in found.stages)])
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    told = [
        "  ".join(f"{cell:>{w}}" if n else f"{cell:<{w}}" for n, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return [f"{told[0]}   (GB)", *told[1:]]


def _cell(size: int) -> str:
    return f"{size / 2**30:.2f}"


def _changes(found: Fit) -> list[str]:
    rows = [
        (" ".join(change.overrides), f"{stage.name} {_gb(stage.total)} -> {_gb(then)}", change.costs)
        for change, stage, then in found.changes
    ]
    if not rows:
        return ["No setting lowers it."]
    left, middle = (max(len(row[place]) for row in rows) for place in (0, 1))
    return [f"  {settings:<{left}}  {lowered:<{middle}}  costs {costs}" for settings, lowered, costs in rows]


def _gb(size: int) -> str:
    return f"{size / 2**30:.1f} GB"
