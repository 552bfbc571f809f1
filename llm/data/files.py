"""Data files and data sets as rows: columns by name, and where each row stands, for sentences that name the place."""

import csv
import gzip
import hashlib
import io
import json
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from raftdiff.errors import UserError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt")
SAVED = ("state.json", "dataset_dict.json")
"""What ``datasets`` leaves in a folder that it saved itself."""


@final
@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data file, before its format is known.

    Example: ``Row("chat.jsonl:12", {"prompt": "Tell me a joke.", "response": "..."})``.
    """

    where: str
    """File and line (or item), as sentences name it."""
    columns: Mapping[str, Any]


def read_file(path: Path) -> list[Row]:
    """The rows of a .jsonl, .json, .csv, .tsv or .txt file (one prompt a line), which may end in .gz; UTF-8.

    Blank lines are passed over, and in .txt those that start with '#'. A byte order mark and Windows line ends are
    taken off. CSV and TSV need a first line of column names; quotes are as in spreadsheets.

    Raises:
        UserError: the file cannot be read, is of another kind or empty, or a line is wrong; with file and line.
    """
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if plain.suffix not in SUFFIXES:
        raise UserError(f"{path}: a data file ends in {', '.join(SUFFIXES)} (and may end in .gz after it).")
    text = _text(path)
    match plain.suffix:
        case ".jsonl":
            found = [_object(f"{path}:{number}", line) for number, line in _lines(text)]
        case ".json":
            found = _items(path, text)
        case ".txt":
            kept = [(number, line.strip()) for number, line in _lines(text) if not line.lstrip().startswith("#")]
            found = [Row(f"{path}:{number}", {"prompt": line}) for number, line in kept]
        case suffix:
            found = _cells(path, text, "\t" if suffix == ".tsv" else ",")
    if not found:
        raise UserError(f"{path}: this data file has no rows.")
    return found


def read_hub(
    name: str, *, split: str, subset: str | None = None, data_dir: str | None = None, revision: str | None = None
) -> list[Row]:
    """The rows of a Hugging Face data set: an id on the hub, or a local folder. Code that comes with it is never run.

    Raises:
        UserError: ``datasets`` is not installed or too old, or the data set or split cannot be had.
    """
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
    folder = Path(name).expanduser()
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


def _text(path: Path) -> str:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: this data file is not UTF-8 text; save it as UTF-8.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot read this data file: {error}.") from None


def _lines(text: str) -> list[tuple[int, str]]:
    """Lines that are not blank, with their numbers. Only a line feed ends a line: JSON text may hold the other
    characters that ``str.splitlines`` cuts at, such as U+2028."""
    numbered = enumerate(text.split("\n"), 1)
    return [(number, line.removesuffix("\r")) for number, line in numbered if line.strip()]


def _object(where: str, line: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        message = getattr(error, "msg", None) or str(error)
        raise UserError(f"{where}: this line is not valid JSON: {message}.") from None
    if not isinstance(row, dict):
        raise UserError(f'{where}: expected an object such as {{"prompt": "..."}}, found {line[:40]}.')
    return Row(where, row)


def _items(path: Path, text: str) -> list[Row]:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(
            f"{path}{line}: this file is not valid JSON: {error}. With one object a line, name it .jsonl."
        ) from None
    if not isinstance(items, list):
        raise UserError(f"{path}: a .json data file is a list of objects; this one holds {type(items).__name__}.")
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict):
            raise UserError(f"{path}: item {number} is no object but {type(item).__name__}.")
    return [Row(f"{path}: item {number}", item) for number, item in enumerate(items, 1)]


def _cells(path: Path, text: str, delimiter: str) -> list[Row]:
    limit = csv.field_size_limit(sys.maxsize)  # the module's own limit of 128 kB would refuse long answers
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        rows.extend((reader.line_num, cells) for cells in reader if cells)
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: this line is not valid CSV: {error}.") from None
    finally:
        csv.field_size_limit(limit)
    if not rows:
        return []
    names = [name.strip() for name in rows[0][1]]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path}:{rows[0][0]}: two columns are called '{twice[0]}'.")
    for number, cells in rows[1:]:
        if len(cells) != len(names):
            raise UserError(f"{path}:{number}: this row has {len(cells)} cells, and there are {len(names)} columns.")
    return [Row(f"{path}:{number}", dict(zip(names, cells, strict=True))) for number, cells in rows[1:]]
