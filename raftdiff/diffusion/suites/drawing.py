"""Pictures of a benchmark's prompts, drawn onto the disk as GenEval keeps them, going on where they were stopped."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from raftdiff.diffusion.suites.lying import ROW, SAMPLES, Picture, row_of
from raftdiff.errors import UserError
from raftdiff.measures.pictures import whole
from raftdiff.recipes.config import differing, digest, flat
from raftdiff.records.disk import naming, read_json, write_text
from raftdiff.seeds import fold
from raftdiff.types import Prompt, Report, Sampler, silent

RECORD = "drawn.json"


def draw(
    sampler: Sampler[Image.Image],
    prompts: Sequence[Prompt],
    folder: Path,
    *,
    per_prompt: int,
    seed: int,
    how: Mapping[str, Any],
    report: Report = silent,
) -> list[Picture]:
    """The pictures of all prompts, those that lie in ``folder`` already and those that are drawn now: from the seeds of
    ``raftdiff eval``, so two models that are asked with one seed are compared on the same draws.

    Args:
        how: what else the pictures depend on, the model for one; it is kept beside them.

    Raises:
        UserError: pictures lie there that were drawn otherwise.
    """
    asked = [{**row_of(prompt), "sampling": prompt.sampling, "negative": prompt.negative} for prompt in prompts]
    record = {**how, "seed": seed, "samples": per_prompt, "prompts": digest({"prompts": asked})}
    _begin(folder, record)
    places = {
        (prompt.id, index): folder / f"{number:05d}" / SAMPLES / f"{index:05d}.png"
        for number, prompt in enumerate(prompts)
        for index in range(per_prompt)
    }
    for prompt, number in zip(prompts, range(len(prompts)), strict=True):
        (folder / f"{number:05d}" / SAMPLES).mkdir(parents=True, exist_ok=True)
        if not (row := folder / f"{number:05d}" / ROW).is_file():
            write_text(row, json.dumps(row_of(prompt), ensure_ascii=False) + "\n")
    done = {key for key, file in places.items() if _is_whole(file)}
    report(len(done), len(places))
    own = fold(seed, "evaluate")
    for sample in sampler.sample(prompts, per_prompt=per_prompt, seed=own, round=0, done=frozenset(done)):
        key = (sample.prompt.id, sample.index)
        _save(sample.media, places[key])
        done.add(key)
        report(len(done), len(places))
    known = {prompt.id: prompt for prompt in prompts}
    return [Picture(known[name], index, file, str(file)) for (name, index), file in places.items()]


def _begin(folder: Path, record: Mapping[str, Any]) -> None:
    file = folder / RECORD
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        return
    if keys := differing(there := read_json(file), record):
        held, now = flat(there), flat(record)
        told = ", ".join(f"{key} {held.get(key)} instead of {now.get(key)}" for key in keys)
        raise UserError(
            f"{folder}: the pictures here were drawn otherwise ({told}). Take another --name or "
            "--out, or remove this folder."
        )


def _is_whole(file: Path) -> bool:
    try:
        whole(file)
    except OSError:
        return False
    return True


def _save(picture: Image.Image, file: Path) -> None:
    """Aside, then renamed, so that what is there is whole."""
    aside = file.with_suffix(".tmp")
    with naming(file):
        picture.save(aside, format="PNG", compress_level=1)
        aside.replace(file)
