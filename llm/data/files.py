"""Data sets as rows, and what names their content; files are read in ``recipes.rows``."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from raftdiff.recipes.rows import Row


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
