"""Prompt files, and the three texts of a prompt: what is sampled, what is scored, what is learnt."""

import json
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from raftdiff.errors import UserError
from raftdiff.recipes.config import Config
from raftdiff.recipes.rows import CELLS, ID, SUFFIXES, heading, hub_prompts, json_value, kind, read_file, tell_choice
from raftdiff.seeds import fold
from raftdiff.types import Prompt

MAX_SLUG, MAX_ID = 80, 200
HUB = "hub:"
"""Before the id of a data set, in place of a file's name."""
TEXTS = ("caption", "sampling", "negative")
ALIASES: Mapping[str, tuple[str, ...]] = {
    "negative": ("negative", "negative_prompt"),
    "sampling": ("sampling",),
    "id": ("id",),
    "caption": ("caption", "prompt", "text"),
}
"""Our names, and how files call them; the first that is there counts."""


def text_or_row(value: Any) -> Any:
    """Nothing but a text, or a mapping that can be a row of texts: not what YAML makes of an unquoted text.

    Raises:
        PydanticCustomError: another value; a mapping of one key with white space in it, as of "portrait of a woman:
            oil painting", or without a value, as of "{a cat}".
    """
    accident = isinstance(value, Mapping) and any(
        len(value) == 1 and (held is None or re.search(r"\s", str(key))) for key, held in value.items()
    )
    if accident or not isinstance(value, str | Mapping):
        raise PydanticCustomError("string_type", "Input should be a valid string")
    return value


Asked: TypeAlias = Annotated[str | dict[str, Any], BeforeValidator(text_or_row)]
"""What is asked for, in a recipe: a text, or a row of texts by their names."""


class PromptsConfig(Config):
    """What to ask for. A run's own recipe.yaml holds the prompts themselves, so that it needs no other file."""

    file: str | None = None
    """A .txt file with a caption a line, or a .jsonl, .ndjson, .json, .csv, .tsv or .parquet file with at least a
    "caption" (or "prompt") in each row, or a folder of .txt files with a caption in each; beside the recipe, or under
    the current folder. Or a data set on the hub, hub:owner/name or hub:owner/name:split."""
    captions: list[Asked] = Field(default_factory=list)
    """The prompts themselves: captions, or mappings with "caption" and by choice "id", "sampling", "negative"; what
    else these hold is kept with the prompt, for rewards that read it."""
    magic: list[str] = Field(default_factory=lambda: ["{caption}"])
    """Templates of what the sampler reads, dealt out to the prompts in turn; "{caption}" stands for the caption."""
    negative: str = ""
    """The negative prompt: read by the sampler only, never learnt."""
    decouple: bool = True
    """The model learns the plain caption although the sampler read the magic prompt. With false it learns what the
    sampler read: the ablation."""


def inline(config: PromptsConfig, folder: Path, key: str = "prompts") -> PromptsConfig:
    """The same prompts, held in the config itself instead of in a file; ``key`` is where they stand in the recipe.

    Captions that stand there more than once are told, here and in ``read_captions``: once, whoever builds them.

    Raises:
        UserError: the file is missing, empty, or wrong in a line; a magic template lacks "{caption}".
    """
    check_magic(config.magic, "caption", key)
    if config.file is None:
        _tell_repeated(f"{key}.captions", config.captions)
        return config
    if config.captions:
        raise UserError(f"{key}: 'file' and 'captions' are both given; keep one of the two.")
    found = read_named(config.file, folder, f"{key}.file")
    return config.model_copy(update={"file": None, "captions": found})


def read_named(name: str, folder: Path, key: str) -> list[str | dict[str, Any]]:
    """The prompts of a file or folder, as ``find_file`` and ``read_captions``, or of a data set of the hub, which is
    called ``hub:owner/name``, by choice with ``:split`` behind.

    Raises:
        UserError: it is not there, or a row of it is wrong.
    """
    if not name.startswith(HUB):
        return read_captions(find_file(name, folder, key))
    found: list[str | dict[str, Any]] = [
        _checked(row.where, _known(row.columns)) for row in hub_prompts(name.removeprefix(HUB), key)
    ]
    _tell_repeated(name, found)
    return found


def find_file(name: str, folder: Path, key: str) -> Path:
    """The file, or folder, of that name in ``folder``, where the recipe stands, or under the current folder.

    Raises:
        UserError: there is none; ``key`` says which key of the recipe named it.
    """
    places = [path for path in (folder / name, Path(name)) if path.is_file() or (name and path.is_dir())]
    if not places:
        where = "in this folder" if folder == Path() else f"in {folder} nor in this folder"
        neither = "" if folder == Path() else "neither "
        raise UserError(f"{key}: there is no file '{name}', {neither}{where}.{_downloaded(name)}")
    return places[0]


def _downloaded(name: str) -> str:
    """How to come by a file, where the name is one that a hub's data set may have."""
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) or Path(name).suffix.lower() in (*SUFFIXES, ".gz"):
        return ""
    return f" If it is a data set on the hub, write {HUB}{name}."


def read_captions(path: Path) -> list[str | dict[str, Any]]:
    """The prompts of a file or folder: captions where it is .txt, else rows, in which "prompt" or "text" may stand for
    "caption", and "negative_prompt" for "negative"; of a folder rows with the files' names as ids.

    Raises:
        UserError: as ``rows.read_file``; a row has no caption, or one of its texts is none; with file and line.
    """
    found = _captions(path)
    _tell_repeated(str(path), found)
    return found


def _captions(path: Path) -> list[str | dict[str, Any]]:
    rows = read_file(path, pictures=False)
    if kind(path) == ".txt" and not path.is_dir():
        return [_checked(row.where, row.columns)["caption"] for row in rows]
    names = list(rows[0].columns)
    if kind(path) in CELLS and not any(name.lower() in ALIASES["caption"] for name in names):
        raise UserError(f"{path}: no column is called 'caption' or 'prompt'.{heading(path, names)}")
    absent = (None, "") if kind(path) in CELLS else (None,)  # whose empty cells say nothing
    tell_choice(rows, lambda row: _given(row.columns, "caption", absent))
    return [_checked(row.where, _known(row.columns, absent=absent)) for row in rows]


def _known(columns: Mapping[str, Any], *, absent: Collection[Any] = (None,)) -> dict[str, Any]:
    """The columns under our own names, whatever their case; a text that is ``absent`` was not given."""
    row: dict[str, Any] = dict(columns)
    for ours, names in ALIASES.items():
        held = [name for name in columns if name.lower() in names]
        given = _given(columns, ours, absent)
        for name in held:
            if name not in given[1:]:
                del row[name]
        if given:
            row = {ours: columns[given[0]], **row}
    return row


def _given(columns: Mapping[str, Any], ours: str, absent: Collection[Any]) -> list[str]:
    """The columns that may stand for one of our names and say something; the first counts."""
    held = [name for alias in ALIASES[ours] for name in columns if name.lower() == alias]
    return [name for name in held if columns[name] not in absent]


def _checked(where: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row, with a caption, in values that JSON can hold.

    Raises:
        UserError: it has none, one of its texts is none, or holds what no file can.
    """
    named = dict(row) if "caption" in row else _known(row)
    for name in TEXTS:
        if not isinstance(named.get(name, ""), str):
            raise UserError(f"{where}: '{name}' is not a text but {named[name]!r}; put it in quotes.")
    if not named.get("caption", "").strip():
        raise UserError(f"{where} has no caption (its keys: {', '.join(map(str, row))}); write it as 'caption'.")
    try:
        _refuse_halves(where, json.dumps(named, ensure_ascii=False, default=_no_bytes))
    except TypeError as error:
        raise UserError(f"{where}: {error}; keep the columns of text and numbers.") from None
    return {name: json_value(value) for name, value in named.items()}


def _refuse_halves(where: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where} holds half a character (a lone surrogate); write that text again.") from None


def _no_bytes(value: Any) -> str:
    if isinstance(value, bytes):
        raise TypeError("a column holds bytes, such as a picture's")
    return str(value)


def build(config: PromptsConfig, key: str = "prompts") -> list[Prompt]:
    """The prompts, each with its three texts; ``key`` is where they stand in the recipe, or what named their file.

    Raises:
        UserError: there is none, an id is given twice, by case alone or not, or cannot name a file, a caption is
            missing or empty, or a magic template lacks "{caption}".
    """
    if not config.captions:
        raise UserError(f"{key}: there is no prompt; name a file under 'file', or write them under 'captions'.")
    check_magic(config.magic, "caption", key)
    _refuse_halves(f"{key}: a magic or negative prompt", "".join((*config.magic, config.negative)))
    rows = [{"caption": row} if isinstance(row, str) else row for row in config.captions]
    held = [_checked(f"{key}: prompt {place}", row) for place, row in enumerate(rows, 1)]
    captions = [row["caption"].strip() for row in held]
    ids = made_ids([row.get("id") for row in held], captions)
    check_ids(ids, key)
    _check_files(ids, key)
    return [_prompt(config, place, name, row) for place, (name, row) in enumerate(zip(ids, held, strict=True))]


def check_magic(templates: Sequence[str], word: str, key: str) -> None:
    """``word`` is what the templates are written around, caption or prompt; ``key`` where the prompts stand.

    Raises:
        UserError: there is no template, or one lacks the word in braces.
    """
    for template in templates:
        if f"{{{word}}}" not in template:
            raise UserError(f"{key}.magic: the template '{template}' lacks {{{word}}}, where the {word} goes.")
    if not templates:
        raise UserError(f'{key}.magic: the list of templates is empty; leave the key out, or write "{{{word}}}".')


def _prompt(config: PromptsConfig, place: int, name: str, row: Mapping[str, Any]) -> Prompt:
    caption = row["caption"].strip()
    sampling = row.get("sampling", config.magic[place % len(config.magic)].replace("{caption}", caption))
    learning = caption if config.decouple else sampling
    meta = {key: value for key, value in row.items() if key not in (*TEXTS, "id")}
    return Prompt(name, caption, sampling, learning, row.get("negative", config.negative), meta)


def _tell_repeated(where: str, rows: Sequence[str | Mapping[str, Any]]) -> None:
    """Say which captions stand in a file, or in a recipe, more than once; those with ids of their own are meant."""
    named = [{"caption": row} if isinstance(row, str) else _known(row) for row in rows]
    captions = [str(row["caption"]).strip() for row in named if row.get("caption") and not row.get("id")]
    if repeated := [caption for caption, count in Counter(captions).items() if count > 1]:
        some = f"{len(repeated)} captions stand" if len(repeated) > 1 else "a caption stands"
        warnings.warn(
            f"{where}: {some} more than once ('{repeated[0]}'); each is asked as often as it stands.", stacklevel=3
        )


def slug(caption: str) -> str:
    """A name for a caption that can name a file; with six digits of its own where letters were lost or it was cut.

    >>> slug("A line sketch of a cat!")
    'a-line-sketch-of-a-cat'
    >>> slug("猫"), slug("Köln")
    ('prompt-b1ec7d', 'k-ln-96926c')
    """
    name = re.sub(r"[^a-z0-9]+", "-", caption.lower()).strip("-")
    if caption.isascii() and len(name) <= MAX_SLUG:
        return name or "prompt"
    return f"{name[:MAX_SLUG] or 'prompt'}-{fold(caption) % 16**6:06x}"


def made_ids(given: Sequence[Any], captions: Sequence[str]) -> list[str]:
    """An id for each caption: the ``given`` one, unless that is None or empty; else one made from the caption, numbered
    where it is taken, also by one that differs by case alone.

    >>> made_ids([None, None, "yes", None], ["C logo", "C++ logo", "no", "Yes!"])
    ['c-logo', 'c-logo-2', 'yes', 'yes-2']
    """
    lacking = [name is None or name == "" for name in given]
    taken = {str(name).lower() for name, lacks in zip(given, lacking, strict=True) if not lacks}
    made = {slug(caption) for caption, lacks in zip(captions, lacking, strict=True) if lacks}
    last, ids = Counter[str](), []
    for known, caption, lacks in zip(given, captions, lacking, strict=True):
        if not lacks:
            ids.append(str(known))
            continue
        stem = name = slug(caption)
        while name in taken or (name != stem and name in made):
            last[stem] += 1
            name = f"{stem}-{last[stem] + 1}"
        taken.add(name)
        ids.append(name)
    return ids


def check_ids(ids: Sequence[str], key: str) -> None:
    """``key`` is where the prompts stand in the recipe.

    Raises:
        UserError: an id is given twice or cannot name a file.
    """
    first: dict[str, int] = {}
    for place, name in enumerate(ids, 1):
        if not ID.fullmatch(name):
            raise UserError(
                f"{key}: the id '{name}' of prompt {place} cannot name a file; "
                f"use letters, digits, '.', '_' and '-', and do not begin with a dot."
            )
        if name in first:
            raise UserError(
                f"{key}: prompts {first[name]} and {place} have the same id '{name}'; "
                f"ids must be unique: remove one, or change its 'id'."
            )
        first[name] = place


def _check_files(ids: Sequence[str], key: str) -> None:
    """
    Raises:
        UserError: an id is too long for a file's name, or two name one file where case makes no difference.
    """
    first: dict[str, str] = {}
    for place, name in enumerate(ids, 1):
        if len(name) > MAX_ID:
            raise UserError(
                f"{key}: the id '{name[:40]}...' of prompt {place} has {len(name)} letters; it names files, so at "
                f"most {MAX_ID}."
            )
        if (other := first.setdefault(name.lower(), name)) != name:
            raise UserError(
                f"{key}: the ids '{other}' and '{name}' differ by case alone, and name one file on macOS and "
                "Windows; change one of them."
            )
