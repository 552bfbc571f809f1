"""Files and folders of rows, for prompts and data of both media: columns by name, and where each row stands, for
sentences."""

import csv
import gzip
import io
import json
import math
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from raftdiff.errors import UserError, counted
from raftdiff.recipes.encoding import decode
from raftdiff.recipes.needs import unreachable

CELLS = {".csv": ",", ".tsv": "\t"}
"""What stands between the cells of a row, by suffix."""
SHORT, MOST_NAMES = 60, 8
"""Letters of a column's name, and names, that are shown."""
SEPARATORS = {",": "','", ";": "';'", "\t": "tabs", "|": "'|'"}
"""What programs put between cells, as sentences say it."""
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
SAVED = ("state.json", "dataset_dict.json")
"""What ``datasets`` leaves in a folder that it saved itself."""
ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
"""What can name a prompt, and so its files."""


@final
@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file, before anybody knows what its columns mean.

    Example: ``Row("chat.jsonl:12", {"prompt": "Tell me a joke.", "response": "..."})``.
    """

    where: str
    """File and line (or item), as sentences name it."""
    columns: Mapping[str, Any]


def read_file(path: Path, *, pictures: bool = True) -> list[Row]:
    """The rows of a file, by its suffix in any case: .jsonl or .ndjson (an object a line), .json (a list), .csv, .tsv,
    .parquet, or .txt (a prompt a line). All but .parquet are UTF-8 and may end in .gz. Of a folder each .txt file is a
    row, which has the file's name as its "id" where that can be one.

    A text that stands alone, on a line of .txt or among the items of JSON, is the column "prompt". Blank lines are
    passed over, and in .txt those that start with '#'. A byte order mark and Windows line ends are taken off. CSV and
    TSV need a first line of column names; quotes are as in spreadsheets, but in a TSV file in which they cannot be
    that, they are signs like others.

    Args:
        pictures: whether columns of bytes are read too; else they are left out, which is said.

    Raises:
        UserError: the file cannot be read, is of another kind or empty, or a line is wrong; with file and line.
    """
    if path.is_dir():
        return _texts(path)
    suffix = kind(path)
    if suffix == ".parquet":
        found = _table(path, pictures=pictures)
    elif suffix in (".jsonl", ".ndjson"):
        found = [_object(f"{path}:{number}", line) for number, line in _lines(_text(path))]
    elif suffix == ".json":
        found = _items(path, _text(path))
    elif suffix == ".txt":
        found = [Row(f"{path}:{number}", {"prompt": line}) for number, line in _uncommented(path, _text(path))]
    else:
        found = _cells(path, _text(path), CELLS[suffix])
    if not found:
        raise UserError(f"{path}: this file has no rows.")
    return found


def kind(path: Path) -> str:
    """One of ``SUFFIXES``: what a file's name says that it is; a folder is one of .txt files.

    Raises:
        UserError: it says nothing that is read here.
    """
    if path.is_dir():
        return ".txt"
    plain = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    if (suffix := plain.suffix.lower()) not in SUFFIXES:
        raise UserError(
            f"{path}: a file of prompts or data ends in {', '.join(SUFFIXES)} (and may end in .gz after it). With one "
            "prompt a line, name it .txt."
        )
    return suffix


def heading(path: Path, columns: Iterable[str]) -> str:
    """What is to be said beside columns that nobody knows, with a space before it: that the first line of a .csv or
    .tsv file was read as their names. Nothing for files in which each row has names of its own."""
    if kind(path) not in CELLS:
        return ""
    return (
        f" The first line of {path} was read as the names of the columns ({_listed(columns)}). If it is a "
        "row like the others, put a line of names above it, such as 'prompt'; with a prompt a line, name the file .txt."
    )


def _listed(names: Iterable[str]) -> str:
    shown = [repr(name if len(name) <= SHORT else f"{name[:SHORT]}...") for name in names]
    return ", ".join(shown[:MOST_NAMES]) + (", ..." if len(shown) > MOST_NAMES else "")


def tell_choice(rows: Sequence[Row], columns: Callable[[Row], Sequence[str]]) -> None:
    """Say which column is read as the caption, where rows have several that could be and that differ.

    Args:
        columns: of a row those that could be, the one that is read first.
    """
    told = [(row, columns(row)) for row in rows]
    held = [(row, names) for row, names in told if len({_spelled(row.columns[name]) for name in names}) > 1]
    if held:
        row, (read, *others) = held[0]
        others = [name for name in others if _spelled(row.columns[name]) != _spelled(row.columns[read])]
        and_so = f", and so in {len(held)} of {len(rows)} rows" if len(held) > 1 else ""
        warnings.warn(
            f"{row.where}: the caption is read from '{read}', not from {_listed(others)}, which differs{and_so}.",
            stacklevel=2,
        )


def _spelled(value: Any) -> str:
    return " ".join(str(value).split())


def json_value(value: Any) -> Any:
    """What JSON can hold; anything else as its text, NaN and infinity as null."""
    if isinstance(value, Mapping):
        return {str(key): json_value(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(held) for held in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return decode(gzip.decompress(data) if path.suffix.lower() == ".gz" else data, path)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot read this file: {getattr(error, 'strerror', None) or error}.") from None


def _texts(folder: Path) -> list[Row]:
    """A prompt a file, in the order of their names, numbers by their value; lines of one are joined."""
    files = sorted((file for file in folder.glob("[!.]*") if file.suffix.lower() == ".txt"), key=_by_number)
    if not files:
        raise UserError(f"{folder}: this folder has no .txt files, with a prompt in each; else name a file in it.")
    found = []
    for file in files:
        if not (text := " ".join(_text(file).split())):
            raise UserError(f"{file}: this file is empty, and should hold a prompt.")
        found.append(Row(str(file), {"id": file.stem, "prompt": text} if ID.fullmatch(file.stem) else {"prompt": text}))
    return found


def _by_number(file: Path) -> list[tuple[str, int]]:
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", file.name)]


def _lines(text: str) -> list[tuple[int, str]]:
    """Lines that are not blank, with their numbers. A line feed ends a line, or the carriage return of an old Mac; JSON
    text may hold the other characters that ``str.splitlines`` cuts at, such as U+2028."""
    numbered = enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1)
    return [(number, line) for number, line in numbered if line.strip()]


def _uncommented(path: Path, text: str) -> list[tuple[int, str]]:
    """Lines that do not begin with '#'. Where one looks like a prompt, such as "#1 dad mug", it is said."""
    stripped = [(number, line.strip()) for number, line in _lines(text)]
    comments = [(number, line) for number, line in stripped if line.startswith("#")]
    if doubtful := [(number, line) for number, line in comments if re.match(r"#+[^#\s]", line)]:
        number, line = doubtful[0]
        warnings.warn(
            f"{path}: {len(comments)} lines that begin with '#' were passed over as comments, such as line {number}: "
            f"'{line[:40]}'. Prompts that begin so can stand in a .jsonl or .csv file.",
            stacklevel=2,
        )
    return [(number, line) for number, line in stripped if not line.startswith("#")]


def _object(where: str, line: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        message = getattr(error, "msg", None) or str(error)
        raise UserError(f"{where}: this line is not valid JSON: {message}.") from None
    row = {"prompt": row} if isinstance(row, str) else row
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
    if isinstance(items, dict) and isinstance(items.get("instances"), list):  # LMFlow's: {"type", "instances"}
        items = [_instance(item) for item in items["instances"]]
    if not isinstance(items, list):
        raise UserError(
            f"{path}: a .json file of prompts or data is a list of texts or objects; this one holds "
            f"{type(items).__name__}."
        )
    items = [{"prompt": item} if isinstance(item, str) else item for item in items]
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict):
            raise UserError(f"{path}: item {number} is no text or object but {type(item).__name__}.")
    return [Row(f"{path}: item {number}", item) for number, item in enumerate(items, 1)]


def _instance(item: Any) -> Any:
    """An instance of LMFlow's text_to_textlist or text_to_scored_textlist with its list under our name."""
    if isinstance(item, dict) and isinstance(item.get("output"), list):
        return {"answers" if name == "output" else name: value for name, value in item.items()}
    return item


def _cells(path: Path, text: str, delimiter: str) -> list[Row]:
    if not (rows := _split(path, text, delimiter)):
        return []
    names = [name.strip() for name in rows[0][1]]
    _refuse_separator(f"{path}:{rows[0][0]}", names, delimiter)
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise UserError(f"{path}:{rows[0][0]}: two columns are called '{twice[0]}'.{heading(path, names)}")
    if len(rows) == 1:
        raise UserError(f"{path}: this file has no rows.{heading(path, names)}")
    for number, cells in rows[1:]:
        if len(cells) != len(names):
            has, are = counted(len(cells), "cell"), counted(len(names), "column")
            raise UserError(
                f"{path}:{number}: this row has {has}, and the first line names {are}: {_listed(names)}. "
                f"A text with {SEPARATORS[delimiter]} in it stands in double quotes."
            )
    for place in (place for place, name in enumerate(names) if not name):
        if full := next((number for number, cells in rows[1:] if cells[place].strip()), None):
            raise UserError(
                f"{path}:{rows[0][0]}: column {place + 1} has no name, and line {full} has something in it. Give it a "
                f"name, or take it away (pandas writes one with index=True).{heading(path, names)}"
            )
    if not any(names):
        raise UserError(f"{path}:{rows[0][0]}: this line names no columns.{heading(path, names)}")
    named = [(place, name) for place, name in enumerate(names) if name]
    return [Row(f"{path}:{number}", {name: cells[place] for place, name in named}) for number, cells in rows[1:]]


def _split(path: Path, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """The cells of each line, by its number. Nobody quotes in many TSV files, PartiPrompts' for one, where a cell may
    begin with a quote that ends before the cell does: then no quote of the file is one that is taken off."""
    limit = csv.field_size_limit(sys.maxsize)  # the module's own limit of 128 kB would refuse long answers
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        return [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        if CELLS[".tsv"] != delimiter:
            raise UserError(f"{path}:{reader.line_num}: this line is not valid CSV: {error}.") from None
        line = reader.line_num
    finally:
        csv.field_size_limit(limit)
    plain = [(number, row.split(delimiter)) for number, row in _lines(text)]
    quoted = [number for number, cells in plain if any(re.fullmatch(r'"[^"]*"', cell) for cell in cells)]
    if quoted:
        warnings.warn(
            f"{path}: a quote begins a cell of line {line} and does not end it, so quotes are read as signs of the "
            f"texts in all of the file, also around a whole cell, as in line {quoted[0]}.",
            stacklevel=2,
        )
    return plain


def _refuse_separator(where: str, names: Sequence[str], delimiter: str) -> None:
    """
    Raises:
        UserError: the first line is one cell, with what other programs put between cells in it.
    """
    other = next((mark for mark in SEPARATORS if mark != delimiter and mark in names[0]), None)
    if len(names) > 1 or other is None:
        return
    suffix = next(suffix for suffix, mark in CELLS.items() if mark == delimiter)
    raise UserError(
        f"{where}: the first line, {names[0][:SHORT]!r}, was read as the name of a single column: a {suffix} file has "
        f"{SEPARATORS[delimiter]} between the cells, and here are {SEPARATORS[other]}. Save it with "
        f"{SEPARATORS[delimiter]}; if a cell has {SEPARATORS[other]} in it and there is no line of names, put one "
        "above, such as 'prompt'."
    )


def _table(path: Path, *, pictures: bool) -> list[Row]:
    try:
        import pyarrow.parquet  # noqa: PLC0415  (large, and needed for this kind of file alone)
    except ImportError:
        raise UserError(f"{path}: reading .parquet needs the package 'pyarrow': pip install 'raftdiff[llm]'.") from None
    try:
        schema = pyarrow.parquet.read_schema(path)
        texts = [field.name for field in schema if pictures or "binary" not in str(field.type)]
        some = texts if len(texts) < len(schema.names) else None
        held = pyarrow.parquet.read_table(path, columns=some).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are one or the other
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise UserError(f"{path}: cannot read this file: {reason}.") from None
    if left := [name for name in schema.names if name not in texts]:
        warnings.warn(f"{path}: left out, for it holds bytes, such as a picture's: {_listed(left)}.", stacklevel=3)
    return [Row(f"{path}: row {number}", row) for number, row in enumerate(held, 1)]


def read_hub(
    name: str,
    key: str,
    *,
    split: str,
    subset: str | None = None,
    data_dir: str | None = None,
    revision: str | None = None,
) -> list[Row]:
    """The rows of a Hugging Face data set: an id on the hub, or a local folder. Code that comes with it is never run.

    Raises:
        UserError: ``datasets`` is not installed or too old, or the data set or split cannot be had; ``key`` says in
            the sentence who named it.
    """
    datasets, folder = _datasets(name, key, "llm"), Path(name).expanduser()
    try:
        if any((folder / mark).is_file() for mark in SAVED):
            held = datasets.load_from_disk(str(folder))
            table = held[split] if isinstance(held, Mapping) else held
        else:
            source = str(folder) if folder.is_dir() else name
            table = datasets.load_dataset(source, subset, data_dir=data_dir, split=split, revision=revision)
    except Exception as error:  # whatever it raises: no network, no such id, no such split, a script in the folder
        raise _not_had(key, name, split, error) from None
    return _rows(table, f"{name}[{split}]", key)


def hub_prompts(word: str, key: str) -> list[Row]:
    """The rows of ``owner/name`` or ``owner/name:split``, a data set of the hub; without a split, of the only one.
    Columns of pictures are left out, which is said.

    Raises:
        UserError: as ``read_hub``, or there are several splits; ``key`` says in the sentence who named it.
    """
    name, _, split = word.partition(":")
    datasets = _datasets(name, key, "hub")
    try:
        splits = [split] if split else list(datasets.get_dataset_split_names(name))
        if len(splits) != 1:
            raise UserError(f"{key}: '{name}' has the splits {', '.join(splits)}; name one: hub:{name}:{splits[0]}.")
        table = datasets.load_dataset(name, split=splits[0])
    except UserError:
        raise
    except Exception as error:  # as above
        raise _not_had(key, name, split or "the only one", error) from None
    seen = [column for column, held in table.features.items() if isinstance(held, datasets.Image | datasets.Audio)]
    if seen:
        warnings.warn(f"{key}: of '{name}' left out, for it holds pictures or sound: {_listed(seen)}.", stacklevel=3)
    return _rows(table.remove_columns(seen), f"{name}[{splits[0]}]", key)


def _datasets(name: str, key: str, extra: str) -> Any:
    """The package that reads data sets of the hub."""
    if not Path(name).expanduser().is_dir():
        unreachable()  # where it is, the library looks into its cache at once
    try:
        import datasets  # noqa: PLC0415  (large, and needed for data sets of the hub alone)
    except ImportError:
        raise UserError(
            f"{key}: the package 'datasets' is missing; install it: pip install 'raftdiff[{extra}]'."
        ) from None
    if int(datasets.__version__.split(".")[0]) < 4:
        raise UserError(
            f"{key}: datasets {datasets.__version__} may run code that comes with a data set; install a newer one: pip "
            "install 'datasets>=4'."
        )
    return datasets


def _not_had(key: str, name: str, split: str, error: Exception) -> UserError:
    return UserError(f"{key}: cannot load '{name}', split '{split}': {' '.join(str(error).split())[:300]}")


def _rows(table: Iterable[Mapping[str, Any]], where: str, key: str) -> list[Row]:
    if not (found := [Row(f"{where}: row {number}", row) for number, row in enumerate(table)]):
        raise UserError(f"{key}: {where} has no rows.")
    return found
