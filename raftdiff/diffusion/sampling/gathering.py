"""All pictures of a place, for whoever only looks at them: captions where there are any, also as benchmarks keep them;
ratings, for whoever learns from those.

a folder with metadata.jsonl, .csv or .parquet    datasets' ImageFolder, a run's samples; a table alone
00000/metadata.jsonl and 00000/samples/*.png      GenEval's: a folder a prompt, what is known of it, its pictures
any other folder, and the folders in it           each as it stands, captions in .txt files beside the pictures
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from raftdiff.diffusion.sampling.pictures import (
    CAPTIONS,
    IDS,
    PICTURES,
    SUFFIXES,
    TABLES,
    Found,
    beside,
    captions_of,
    first,
    number,
    picture_in,
    refuse_outside,
)
from raftdiff.errors import UserError, nearest
from raftdiff.recipes.needs import near
from raftdiff.recipes.rows import Row, json_value, read_file, tell_choice

ROWS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Of files that can be a table of pictures, by choice with .gz behind."""
RATING, RATED = "rating", re.compile(r"-?\d+(\.\d+)?")
"""The column that a rating is looked for in, and how a folder is called that rates what lies in it."""
SAMPLES = "samples"
"""The folder with a prompt's pictures, in GenEval's layout."""
MADE = (
    "index",
    "sampling",
    "learning",
    "negative",
    "seed",
    "source",
    "cut",
    "side",
    "meta",
    "score",
    "total",
    "selected",
)
"""Columns about how a picture came to be, and what was said of it."""


class _Jobs(NamedTuple):
    """What is to be read of a place."""

    pictures: list[Callable[[], Found]]
    rows: list[Row]
    """Of all tables."""
    left: list[str]
    """What is left out, a sentence each."""


def gathered(path: Path) -> tuple[list[Found], list[str]]:
    """All pictures of a table, of a folder that has one, or of a folder and those in it, also those without a caption,
    which have an empty one; and what is left out, a sentence each: a file that is missing, what a link leads to
    elsewhere, a table in a folder within that cannot be read.

    Raises:
        UserError: there is none, or the table cannot be read.
    """
    jobs = _all(path)
    tell_choice(jobs.rows, captions_of)
    return _found(path, jobs), jobs.left


def rated(path: Path, column: str | None = None) -> tuple[list[Found], list[str]]:
    """The pictures of a place, as ``gathered`` finds them, each with a rating as its ``score``; and what is left out, a
    sentence each, those without a rating too.

    A rating stands in a column of the table, ``RATING`` by default. Where there is no table it is the number that the
    folder of the picture is called, or the nearest folder above that, within ``path``, which is called one.

    Raises:
        UserError: as ``gathered``; no table has the column, a rating is no number, or nothing is rated.
    """
    jobs, asked = _all(path), column or RATING
    names = {name for row in jobs.rows for name in row.columns}
    if jobs.rows and asked not in names:
        raise UserError(f"{path}: no row has a column '{asked}' with ratings (--column). {nearest(asked, names)}")
    if column and not jobs.rows:
        raise UserError(f"{path}: there is no table here that could have a column '{column}'. {_tables_in(path)}")
    ratings = {row.where: number(row, asked) for row in jobs.rows}  # one that is no number leaves none out: it is told
    found = _found(path, jobs)
    said = [one._replace(score=ratings.get(one.where) if jobs.rows else _rating_by_folder(one, path)) for one in found]
    if all(one.score is None for one in said):
        raise UserError(
            f"{path}: not one of the pictures here has a rating. {_tables_in(path)}"
            if not jobs.rows
            else f"{path}: the column '{asked}' says nothing of any of the pictures here."
        )
    bare = [f"{one.where}: this picture has no rating." for one in said if one.score is None]
    return [one for one in said if one.score is not None], [*jobs.left, *bare]


def _all(path: Path) -> _Jobs:
    """
    Raises:
        UserError: there is nothing of the kind, or the table cannot be read.
    """
    if not path.exists():
        raise UserError(f"{path}: nothing is there. {near(str(path))}".rstrip())
    if (path / "run.json").is_file():
        raise UserError(f"{path}: this is a run; the pictures of a round lie in {path / 'rounds' / '000' / 'samples'}.")
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        raise UserError(f"{path}: one picture has none to be ranked with; name the folder.")
    if path.is_file() and not path.name.lower().removesuffix(".gz").endswith(ROWS):
        raise UserError(
            f"{path}: this is neither a folder of pictures nor a table of them ({', '.join(ROWS)}, with file_name and "
            "caption)."
        )
    jobs = _Jobs([], [], [])
    if path.is_file():
        _table(path, jobs)
    else:
        _folder(path, path, jobs)
    return jobs


def _found(path: Path, jobs: _Jobs) -> list[Found]:
    """
    Raises:
        UserError: there is none.
    """
    found = []
    for job in jobs.pictures:
        try:
            found.append(job())
        except UserError as error:
            jobs.left.append(str(error))
    if not found:
        some = f" Left out: {jobs.left[0]}" if jobs.left else f" Known: {', '.join(SUFFIXES)}."
        raise UserError(f"{path}: there is no picture here.{some}")
    return found


def _rating_by_folder(one: Found, path: Path) -> float | None:
    """What the folders between ``path`` and a picture are called, the nearest number."""
    inner = one.picture.relative_to(path).parent.parts if isinstance(one.picture, Path) else ()
    return next((float(name) for name in reversed(inner) if RATED.fullmatch(name)), None)


def _tables_in(path: Path) -> str:
    """How ratings may stand beside pictures, and whether a table of another name lies there, which is not read."""
    lying = sorted(path.iterdir()) if path.is_dir() else []
    tables = [file for file in lying if file.name.lower().removesuffix(".gz").endswith(ROWS)]
    some = f" Or is it {tables[0]} that has them? Then name that file in place of the folder." if tables else ""
    return (
        f"Ratings stand in {' or '.join(TABLES[:2])} with file_name and {RATING}, or pictures lie in folders that are "
        f"called by them, such as {Path('1') / 'a.png'}.{some}"
    )


def _folder(folder: Path, root: Path, jobs: _Jobs) -> None:
    """
    Raises:
        UserError: it is ``root``, and has a table that cannot be read.
    """
    if (table := next((folder / name for name in TABLES if (folder / name).is_file()), None)) is not None:
        try:
            _table(table, jobs)
        except UserError as error:
            if folder == root:
                raise
            jobs.left.append(str(error))
        return
    files, folders = _lying(folder, jobs)
    jobs.pictures.extend(partial(_bare, file, root) for file in files)
    for one in folders:
        _folder(one, root, jobs)


def _lying(folder: Path, jobs: _Jobs) -> tuple[list[Path], list[Path]]:
    """The pictures of a folder and the folders in it, by name; none that is hidden or a link to a folder."""
    lying = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    nameless = {path: shown for path in lying if (shown := _as_text(str(path))) != str(path)}
    jobs.left.extend(f"{it}: its name is no UTF-8, which no table can hold; rename it." for it in nameless.values())
    held = [path for path in lying if path not in nameless]
    files = [path for path in held if path.suffix.lower() in SUFFIXES and not path.is_dir()]
    folders = [path for path in held if path.is_dir()]
    links = [path for path in folders if path.is_symlink()]
    jobs.left.extend(f"{link}: this is a link to a folder, and is not followed." for link in links)
    endless = [path for path in files if path.exists() and not path.is_file()]
    jobs.left.extend(f"{path}: this is a pipe, a socket or a device, and is not opened." for path in endless)
    return [path for path in files if path not in endless], [path for path in folders if path not in links]


def _as_text(name: str) -> str:
    """A name as UTF-8 can hold it: of bytes that are none, their numbers."""
    return name.encode("utf-8", "backslashreplace").decode()


def _table(table: Path, jobs: _Jobs) -> None:
    """
    Raises:
        UserError: it cannot be read.
    """
    rows = read_file(table)
    jobs.rows.extend(rows)
    samples = table.parent / SAMPLES
    if len(rows) == 1 and first(rows[0], PICTURES) is None and samples.is_dir():
        jobs.pictures.extend(_of_benchmark(rows[0], samples, jobs))
    else:
        jobs.pictures.extend(partial(_known, row, table.parent) for row in rows)


def _of_benchmark(row: Row, samples: Path, jobs: _Jobs) -> Iterator[Callable[[], Found]]:
    """The pictures of a prompt in GenEval's layout, by ``generation/diffusers_generate.py`` of
    https://github.com/djghosh13/geneval: the prompt's row of the benchmark's file lies beside them, and the folder's
    name is the prompt's, unless the row has an id. What else lies there, such as grid.png, is none of its pictures."""
    if samples.is_symlink():
        jobs.left.append(f"{samples}: this is a link to a folder, and is not followed.")
        return
    files, _ = _lying(samples, jobs)
    if not files:
        jobs.left.append(f"{samples}: there is no picture of this prompt.")
    for file in files:
        yield partial(_sampled, row, file, samples)


def _sampled(row: Row, file: Path, samples: Path) -> Found:
    refuse_outside(str(file), file, samples)
    name = first(row, IDS) or samples.absolute().parent.name
    return Found(str(file), str(name), _caption(row), file, None, _meta(row))


def _bare(file: Path, root: Path) -> Found:
    """A picture within ``root``, with the caption beside it."""
    refuse_outside(str(file), file, root)
    return Found(str(file), None, beside(file) or "", file, None)


def _known(row: Row, root: Path) -> Found:
    """A picture that a row names, with all that the row says; a run's rows say more of a prompt under "meta"."""
    if (value := first(row, PICTURES)) is None:
        raise UserError(f"{row.where}: this row names no picture; write it as '{PICTURES[0]}'.")
    name, picture = first(row, IDS), picture_in(row.where, value, root)
    return Found(
        row.where, None if name is None else str(name), _caption(row), picture, number(row, "score"), _meta(row)
    )


def _caption(row: Row) -> str:
    caption = first(row, CAPTIONS)
    return "" if caption is None else str(caption).strip()


def _meta(row: Row) -> Mapping[str, Any]:
    """What is said of the prompt beside its caption, and not of the picture."""
    own = {*PICTURES, *IDS, *MADE, *captions_of(row)[:1]}
    meta = {key: it for key, it in row.columns.items() if key not in own and not key.startswith(("reward_", "judge_"))}
    return {**json_value(meta), **_of_run(row.columns.get("meta"))}


def _of_run(told: Any) -> Mapping[str, Any]:
    try:
        held = json.loads(told) if isinstance(told, str) else told
    except ValueError:
        held = None
    return held if isinstance(held, Mapping) else {}
