"""Pictures on a disk and the prompts that they are of: as GenEval keeps them, or as an ImageFolder.

GenEval's layout has a folder for each prompt, ``00000`` and so on, with its row in ``metadata.jsonl`` and its pictures
in ``samples``: ``0000.png`` and so on. ``drawing`` writes it, and GenEval's own scripts read it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from raftdiff.diffusion.found.titles import titled, untitled
from raftdiff.diffusion.sampling.gathering import gathered
from raftdiff.errors import UserError
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


def pictures(path: Path, given: Sequence[Prompt] = ()) -> tuple[list[Picture], list[str]]:
    """All pictures of a folder with their prompts, those that are ``given`` or else what lies beside them; and what is
    left out, a sentence each.

    Raises:
        UserError: there is none, a picture's prompt is not known, or a file is damaged.
    """
    found, left = gathered(path)
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


def row_of(prompt: Prompt) -> Mapping[str, Any]:
    """What lies beside a prompt's pictures."""
    return {**prompt.meta, "prompt": prompt.caption, "id": prompt.id}
