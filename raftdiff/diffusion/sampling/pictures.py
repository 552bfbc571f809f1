"""Folders and tables of pictures with captions, as people and other programs keep them: read, not yet opened.

a folder with metadata.jsonl, .csv or .parquet    file_name and caption: datasets' ImageFolder, a run's samples
a folder of cat.png beside cat.txt                kohya's and OneTrainer's captions
a folder with chosen/ and rejected/               pairs, of one name in both, captions beside the chosen
a table of pairs, .jsonl, .csv or .parquet        see ``PAIRS``
"""

import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from raftdiff.errors import UserError, nearest
from raftdiff.recipes.rows import Row, read_file, tell_choice

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
BESIDE = (".txt", ".caption")
TABLES = tuple(f"metadata{suffix}" for suffix in (".jsonl", ".csv", ".parquet"))
CAPTIONS, IDS = ("caption", "prompt", "text"), ("id", "prompt_id")
PICTURES = ("file_name", "image", "jpg")
PAIR = re.compile(r"pair-[0-9a-f]{6}-\d{5,}")
"""Ids of pairs."""
FOLDERS = (("chosen", "rejected"), ("preferred", "rejected"), ("good", "bad"), ("win", "lose"))
"""How folders of pairs are called, the better first."""


class Columns(NamedTuple):
    """How a table of pairs calls its two pictures, and what says which is the better one."""

    first: str
    second: str
    labels: tuple[str, str] | None = None
    """Higher is better, equal is a tie; None where the first is."""


PAIRS = (
    Columns("chosen_file_name", "rejected_file_name"),  # raftdiff labels RUN --pairs FILE
    Columns("chosen", "rejected"),
    Columns("jpg_0", "jpg_1", ("label_0", "label_1")),  # Pick-a-Pic
    Columns("image_0", "image_1", ("prefer_0", "prefer_1")),  # InvokeAI
)


class Found(NamedTuple):
    """A picture that is there already."""

    where: str
    """For sentences: the file and line, or the picture's file."""
    id: str | None
    """Of its prompt, where that has one."""
    caption: str
    picture: Path | bytes
    score: float | None
    """What was said of it; of a pair 1 for the better and 0 for the worse. None for nothing."""
    meta: Mapping[str, Any] = MappingProxyType({})
    """What else is said of its prompt."""


def read(path: Path, *, root: Path | None = None, score: str = "score") -> list[Found]:
    """The pictures of a folder or a table, in the order of its names or rows.

    Args:
        root: what file names are within; None takes the folder that the table stands in.
        score: the column with what was said of a picture.

    Raises:
        UserError: there is none, a row lacks picture or caption, or names a file that is missing or lies elsewhere.
    """
    if path.is_file():
        return _table(path, root or path.parent, score)
    for better, worse in FOLDERS:
        if (path / better).is_dir() and (path / worse).is_dir():
            return _numbered(list(_paired(path / better, path / worse)))
    for name in TABLES:
        if (path / name).is_file():
            return _table(path / name, root or path, score)
    if captioned := list(_captioned(path)):
        return captioned
    raise UserError(
        f"{path}: there are no pictures with captions here. It can be a folder with {', '.join(TABLES)}; with captions "
        "in .txt files beside the pictures; with the folders chosen and rejected; or a table of pairs."
    )


def captions_of(row: Row) -> list[str]:
    """The columns that could be the caption; the first is read."""
    return [name for name in CAPTIONS if row.columns.get(name) not in (None, "")]


def asked(found: Sequence[Found]) -> list[dict[str, str]]:
    """The prompts of these pictures, each once, as a recipe has them under ``prompts.captions``."""
    return list({(one.id, one.caption): _prompt(one) for one in found}.values())


def digest(found: Sequence[Found]) -> str:
    """A checksum of all that is learnt from: captions, scores, and every picture's bytes."""
    mark = hashlib.sha256()
    for one in found:
        content = one.picture.read_bytes() if isinstance(one.picture, Path) else one.picture
        mark.update(repr((one.id, one.caption, one.score, hashlib.sha256(content).hexdigest())).encode())
    return mark.hexdigest()


def _prompt(one: Found) -> dict[str, str]:
    return {"caption": one.caption} if one.id is None else {"id": one.id, "caption": one.caption}


def _table(path: Path, root: Path, score: str) -> list[Found]:
    rows = read_file(path)
    tell_choice(rows, captions_of)
    names = {name for row in rows for name in row.columns}
    if score not in ("score", *names):
        raise UserError(f"{path}: no row has a column '{score}' (sampler.score). {nearest(score, names)}")
    pairs = next((it for it in PAIRS if {it.first, it.second} <= names), None)
    if pairs is None:
        return [_single(row, root, score) for row in rows]
    decided = [row for row in rows if not _tie(row, pairs)]
    if not decided:
        raise UserError(f"{path}: every row is a tie, so no picture is better than another.")
    return _numbered([one for row in decided for one in _pair(row, pairs, root)])


def _single(row: Row, root: Path, score: str) -> Found:
    value = first(row, PICTURES)
    if value is None:
        raise UserError(f"{row.where}: this row names no picture; write it as '{PICTURES[0]}'.")
    name = first(row, IDS)
    return Found(
        row.where,
        None if name is None else str(name),
        _caption(row),
        picture_in(row.where, value, root),
        number(row, score),
    )


def _pair(row: Row, columns: Columns, root: Path) -> Iterator[Found]:
    """Both pictures, the better first."""
    better, worse = (row.columns.get(name) for name in (columns.first, columns.second))
    if columns.labels and _label(row, columns.labels[0]) < _label(row, columns.labels[1]):
        better, worse = worse, better
    for value, score in ((better, 1.0), (worse, 0.0)):
        if value in (None, ""):
            raise UserError(f"{row.where}: one of the pair's pictures is missing.")
        yield Found(row.where, None, _caption(row), picture_in(row.where, value, root), score)


def _numbered(found: Sequence[Found]) -> list[Found]:
    """Pictures, two and two: every pair is a prompt of its own, so that no other picture comes between. What they are
    goes into the ids, so that pairs of two sets are not taken for each other."""
    said = [(one.caption, one.picture.name if isinstance(one.picture, Path) else one.picture) for one in found]
    mark = hashlib.sha256(repr(said).encode()).hexdigest()[:6]
    return [one._replace(id=f"pair-{mark}-{place // 2:05d}") for place, one in enumerate(found)]


def _tie(row: Row, columns: Columns) -> bool:
    return columns.labels is not None and _label(row, columns.labels[0]) == _label(row, columns.labels[1])


def _label(row: Row, name: str) -> float:
    value = number(row, name)
    if value is None:
        raise UserError(f"{row.where}: '{name}' is missing, which says which picture of the pair is better.")
    return value


def _paired(better: Path, worse: Path) -> Iterator[Found]:
    """The pictures of one name in both folders.

    Raises:
        UserError: a name stands in one alone, or there is none.
    """
    chosen, rejected = (_by_name(folder) for folder in (better, worse))
    if lone := sorted(chosen.keys() ^ rejected.keys()):
        folder, other = (better, worse) if lone[0] in chosen else (worse, better)
        raise UserError(f"{folder}: '{lone[0]}' has no partner of its name in {other}, as a pair has.")
    if not chosen:
        raise UserError(f"{better}: there is no picture here ({', '.join(SUFFIXES)}).")
    for name in sorted(chosen):
        caption = beside(chosen[name]) or beside(rejected[name])
        if caption is None:
            raise UserError(f"{chosen[name]}: this picture has no caption; write it into {name}.txt beside it.")
        for file, score in ((chosen[name], 1.0), (rejected[name], 0.0)):
            yield Found(str(file), None, caption, file, score)


def _by_name(folder: Path) -> dict[str, Path]:
    """
    Raises:
        UserError: two pictures differ in their suffix alone.
    """
    found: dict[str, Path] = {}
    for file in _files(folder):
        if (other := found.setdefault(file.stem, file)) != file:
            raise UserError(f"{file}: {other.name} has the same name, and only one of them can be one of a pair.")
    return found


def _captioned(folder: Path) -> Iterator[Found]:
    """Pictures with their captions beside them; nothing where no picture has one.

    Raises:
        UserError: some have one and others not.
    """
    files = _files(folder)
    captions = [beside(file) for file in files]
    if not any(captions):
        return
    for file, caption in zip(files, captions, strict=True):
        if caption is None:
            raise UserError(f"{file}: this picture has no caption, as others have; write it into {file.stem}.txt.")
        yield Found(str(file), None, caption, file, None)


def _files(folder: Path) -> list[Path]:
    """
    Raises:
        UserError: a link leads out of the folder.
    """
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    for file in found:
        refuse_outside(str(file), file, folder)
    return found


def beside(file: Path) -> str | None:
    """The first line with words of the text file of a picture's name.

    Raises:
        UserError: it cannot be read, or a link leads elsewhere.
    """
    text = next((path for path in map(file.with_suffix, BESIDE) if path.is_file()), None)
    if text is None:
        return None
    refuse_outside(str(text), text, file.parent)
    try:
        lines = text.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{text}: this caption cannot be read ({error}); write it as UTF-8.") from None
    return next((line.strip() for line in lines if line.strip()), None)


def _caption(row: Row) -> str:
    value = first(row, CAPTIONS)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{row.where}: this row has no caption; write it as '{CAPTIONS[0]}'.")
    return value.strip()


def picture_in(where: str, value: Any, root: Path) -> Path | bytes:
    """What a cell says of a picture: its bytes, or a file within ``root``.

    Raises:
        UserError: neither, or the file is missing or lies elsewhere.
    """
    if isinstance(value, Mapping):  # how datasets keep a picture
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: {str(value)[:60]!r} is neither a picture nor the name of one.")
    file = root / value
    refuse_outside(f"{where}: the picture '{value}'", file, root)
    if not file.is_file():
        raise UserError(f"{where}: there is no picture '{value}' in {root}.")
    return file


def refuse_outside(what: str, file: Path, root: Path) -> None:
    """
    Raises:
        UserError: ``file`` is not within ``root``, its links followed.
    """
    inner = file.relative_to(root).parts if file.is_relative_to(root) else ("..",)
    steps = (root.joinpath(*inner[: depth + 1]) for depth in range(len(inner)))
    straight = ".." not in inner and not any(map(Path.is_symlink, steps))  # as nearly all are, and soon told
    if not straight and not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(root)):
        raise UserError(f"{what} lies outside of {root}, and is not opened.")


def number(row: Row, name: str) -> float | None:
    """What a column says, true and false as 1 and 0; None for nothing and for NaN.

    Raises:
        UserError: it is no number, or infinite.
    """
    value = row.columns.get(name)
    if value is None or value == "":
        return None
    words = {"true": 1.0, "false": 0.0}
    try:
        told = words[value.lower()] if isinstance(value, str) and value.lower() in words else float(value)
    except (TypeError, ValueError):
        raise UserError(f"{row.where}: '{name}' is {value!r}, which is no number.") from None
    if math.isinf(told):
        raise UserError(f"{row.where}: '{name}' is infinite.")
    return None if math.isnan(told) else told  # so tables keep what is missing


def first(row: Row, names: Sequence[str]) -> Any:
    """What the first of these columns says that says something."""
    return next((row.columns[name] for name in names if row.columns.get(name) not in (None, "")), None)
