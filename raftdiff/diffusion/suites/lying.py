"""Pictures on a disk and the prompts that they are of: as GenEval keeps them, or as an ImageFolder.

GenEval's layout has a folder for each prompt, ``00000`` and so on, with its row in ``metadata.jsonl`` and its pictures
in ``samples``: ``0000.png`` and so on. ``drawing`` writes it, and GenEval's own scripts read it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from raftdiff.diffusion.ranked import titled, untitled
from raftdiff.diffusion.sampling.gathering import gathered
from raftdiff.diffusion.sampling.pictures import SUFFIXES, Found
from raftdiff.errors import UserError
from raftdiff.recipes.prompts import PromptsConfig, build
from raftdiff.types import Prompt

ROW, SAMPLES = "metadata.jsonl", "samples"


@final
@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a prompt, not yet opened."""

    prompt: Prompt
    index: int
    """Which of the prompt's pictures, from 0."""
    source: Path | bytes
    where: str
    """For sentences."""


def is_layout(folder: Path) -> bool:
    """Whether pictures lie in it as GenEval keeps them."""
    return any(_folders(folder))


def pictures(path: Path, given: Sequence[Prompt] = ()) -> tuple[list[Picture], list[str]]:
    """All pictures of a folder with their prompts, those that are ``given`` or else what lies beside them; and what is
    left out, a sentence each.

    Raises:
        UserError: there is none, a picture's prompt is not known, or a file is damaged.
    """
    found, left = _layout(path) if is_layout(path) else gathered(path)
    held, strange = titled(found, given)
    if bare := next((one for one, prompt in held if untitled(prompt)), None):
        raise UserError(
            f"{bare.where}: of this picture no prompt is known. Captions stand in {ROW} beside the pictures, with "
            "file_name and caption, or in .txt files; or name the benchmark's file with --prompts."
        )
    left += strange
    count: dict[str, int] = {}
    placed = []
    for one, prompt in held:
        index = count[prompt.id] = count.get(prompt.id, -1) + 1
        placed.append(Picture(prompt, index, one.picture, one.where))
    order = {prompt.id: place for place, prompt in enumerate(given)}
    return sorted(placed, key=lambda it: order.get(it.prompt.id, 0)), left


def _folders(path: Path) -> list[Path]:
    """Those of the prompts, in order."""
    inner = path.iterdir() if path.is_dir() else ()
    return sorted(
        (one for one in inner if one.name.isdigit() and (one / ROW).is_file() and (one / SAMPLES).is_dir()),
        key=lambda one: int(one.name),
    )


def _layout(path: Path) -> tuple[list[Found], list[str]]:
    rows = [_row(folder / ROW) for folder in _folders(path)]
    prompts = build(PromptsConfig(captions=list(rows)))
    found = []
    for folder, prompt in zip(_folders(path), prompts, strict=True):
        files = sorted(file for file in (folder / SAMPLES).iterdir() if file.suffix.lower() in SUFFIXES)
        for file in files:
            if not file.resolve().is_relative_to(path.resolve()):
                raise UserError(f"{file}: this is a link that leads out of {path}, and is not opened.")
            found.append(Found(str(file), prompt.id, prompt.caption, file, None, prompt.meta))
    if not found:
        raise UserError(f"{path}: the folders of {len(rows)} prompts lie here, and there is no picture in any.")
    return found, []


def _row(file: Path) -> dict[str, Any]:
    try:
        row = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: this row cannot be read: {' '.join(str(error).split())}.") from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise UserError(f"{file}: there is no object with a 'prompt' here, as GenEval keeps it beside the pictures.")
    return row


def row_of(prompt: Prompt) -> Mapping[str, Any]:
    """What lies beside a prompt's pictures."""
    return {**prompt.meta, "prompt": prompt.caption, "id": prompt.id}
