"""Data sets as rows, and what names their content; files are read in ``recipes.rows``."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from raftdiff.errors import UserError
from raftdiff.recipes.needs import unreachable
from raftdiff.recipes.rows import Row

SAVED = ("state.json", "dataset_dict.json")
"""What ``datasets`` leaves in a folder that it saved itself."""


def read_hub(
    name: str, *, split: str, subset: str | None = None, data_dir: str | None = None, revision: str | None = None
) -> list[Row]:
    """The rows of a Hugging Face data set: an id on the hub, or a local folder. Code that comes with it is never run.

    Raises:
        UserError: ``datasets`` is not installed or too old, or the data set or split cannot be had.
    """
    if not (folder := Path(name).expanduser()).is_dir():
        unreachable()  # where it is, the library looks into its cache at once
    try:
        import datasets
    except ImportError:
        hint = "install it: pip install 'raftdiff[llm]'"
        raise UserError(f"prompts.hub: the package 'datasets' is missing; {hint}.") from None
    if int(datasets.__version__.split(".")[0]) < 4:
        raise UserError(
            f"prompts.hub: datasets {datasets.__version__} may run code that comes with a data set; "
            "install a newer one: pip install 'datasets>=4'."
        )
    try:
        if any((folder / mark).is_file() for mark in SAVED):
            held = datasets.load_from_disk(str(folder))
            table = held[split] if isinstance(held, Mapping) else held
        else:
            source = str(folder) if folder.is_dir() else name
            table = datasets.load_dataset(source, subset, data_dir=data_dir, split=split, revision=revision)
    except Exception as error:  # whatever it raises: no network, no such id, no such split, a script in the folder
        message = " ".join(str(error).split())[:300]
        raise UserError(f"prompts.hub: cannot load '{name}', split '{split}': {message}") from None
    found = [Row(f"{name}[{split}]: row {number}", row) for number, row in enumerate(table)]
    if not found:
        raise UserError(f"prompts.hub: '{name}', split '{split}', has no rows.")
    return found


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rows_digest(rows: Sequence[Row]) -> str:
    """sha256 of what rows say, in their order, whatever file holds them; 64 hex digits."""
    mark = hashlib.sha256()
    for row in rows:
        mark.update(json.dumps(row.columns, sort_keys=True, default=str).encode() + b"\n")
    return mark.hexdigest()
