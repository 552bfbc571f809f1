"""Ranked pictures on disk: tables of all of them, and of the best a contact sheet and copies."""

import csv
import io
import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from raftdiff.diffusion.found.ranked import Ranked
from raftdiff.diffusion.found.titles import UNTITLED
from raftdiff.diffusion.sampling.pictures import Found
from raftdiff.measures.pictures import opened
from raftdiff.records.disk import together, write_text
from raftdiff.records.media import apart
from raftdiff.reports.images import grid

SHEET, COLUMNS, LABEL, LONGEST = 100, 10, 18, 160
"""Pictures on a contact sheet and in a row of it; letters of a name under one, and bytes of a copy's name."""


def write(
    folder: Path,
    ranked: Sequence[Ranked],
    chosen: Sequence[Ranked],
    *,
    root: Path,
    rewards: Mapping[str, Mapping[str, Any]],
    left_out: Sequence[str],
    mix: str = "weighted_sum",
) -> None:
    """Tables of all pictures, best first, as CSV and JSON; of those that were chosen a contact sheet, and copies in
    ``best``, a folder as datasets' ImageFolder and the sampler ``folder`` read it. All of it or nothing.

    Args:
        root: what the tables name files within.
        rewards: their settings by name, for the record, as is ``mix``.

    Raises:
        OSError: the disk refuses.
    """
    rows = [_row(place, one, root) for place, one in enumerate(ranked, 1)]
    with together(folder) as aside:
        write_text(aside / "ranking.csv", _csv(rows, list(rewards)))
        record = {"folder": str(root), "rewards": rewards, "mix": mix, "left_out": list(left_out), "pictures": rows}
        write_text(aside / "ranking.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        (copies := aside / "best").mkdir()
        lines = []
        for place, one in enumerate(chosen, 1):
            name = _copy(copies, f"{place:0{len(str(len(chosen)))}d}", one.found)
            row = _row(place, one, root)
            told = {key: row[key] for key in ("prompt_id", "caption", "place", "total", "file") if key in row}
            meta = {"meta": json.dumps(dict(one.prompt.meta), ensure_ascii=False)} if one.prompt.meta else {}
            scores = {f"reward_{key}": _number(value) for key, value in one.scores.items()}
            lines.append(json.dumps({"file_name": name, **told, **scores, **meta}) + "\n")
        write_text(copies / "metadata.jsonl", "".join(lines))
        sheet(chosen[:SHEET]).save(aside / "sheet.png", compress_level=1)


def sheet(chosen: Sequence[Ranked]) -> Image.Image:
    """The pictures in rows, each with its place, total and name."""
    pictures = [opened(one.found.picture, one.found.where) for one in chosen]
    names = [one.found.picture.stem if isinstance(one.found.picture, Path) else "" for one in chosen]
    short = [name if len(name) <= LABEL else f"{name[: LABEL - 1]}…" for name in names]
    labels = [
        f"{place}: {one.total:.4g} {name}" for place, (one, name) in enumerate(zip(chosen, short, strict=True), 1)
    ]
    return grid(pictures, columns=COLUMNS, labels=labels)


def _row(place: int, one: Ranked, root: Path) -> dict[str, Any]:
    known = {} if one.prompt is UNTITLED else {"prompt_id": one.prompt.id, "caption": one.prompt.caption}
    return {
        "place": None if math.isnan(one.total) else place,
        "file": place_of(one.found, root),
        "total": _number(one.total),
        "scores": {name: _number(value) for name, value in one.scores.items()},
        **({"without": one.without} if one.without else {}),
        **known,
    }


def place_of(one: Found, root: Path) -> str:
    """A picture's file within ``root``; of one that lies in a table itself, its row."""
    return os.path.relpath(one.picture, root) if isinstance(one.picture, Path) else one.where


def _csv(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["place", "total", *names, "file", "prompt_id", "caption"])
    for row in rows:
        scores = [row["scores"][name] for name in names]
        table.writerow([row["place"], row["total"], *scores, row["file"], row.get("prompt_id"), row.get("caption")])
    return text.getvalue()


def _copy(folder: Path, place: str, one: Found) -> str:
    """A picture under a name of its own, byte by byte."""
    if isinstance(one.picture, bytes):
        with Image.open(io.BytesIO(one.picture)) as picture:
            name = f"{place}.{(picture.format or 'png').lower()}"
        (folder / name).write_bytes(one.picture)
        return name
    plain = _short("".join(letter if _keeps(letter) else "-" for letter in one.picture.stem)) or "picture"
    name = apart(f"{place}-{plain}{one.picture.suffix.lower()}")
    shutil.copyfile(one.picture, folder / name)
    return name


def _keeps(letter: str) -> bool:
    """Whether a letter of any script can stand in a file's name everywhere."""
    return letter in "._-" or letter.isalnum() if letter.isascii() else letter.isprintable()


def _short(name: str) -> str:
    """As much of a name as file systems take, which count bytes, with signs before and behind taken off."""
    return re.sub(r"-+", "-", name).encode()[:LONGEST].decode(errors="ignore").strip("-.")


def _number(value: float) -> float | None:
    """As rewards give it, without what float32 adds in more digits than it has."""
    return None if math.isnan(value) else float(f"{value:.7g}")
