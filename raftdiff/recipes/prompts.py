"""Prompt files, and the three texts of a prompt: what is sampled, what is scored, what is learnt."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from raftdiff.errors import UserError
from raftdiff.recipes.config import Config
from raftdiff.seeds import fold
from raftdiff.types import Prompt

ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
MAX_SLUG = 80
TEXTS = ("caption", "sampling", "negative")


class PromptsConfig(Config):
    """What to ask for. A run's own recipe.yaml holds the prompts themselves, so that it needs no other file."""

    file: str | None = None
    """A .txt file with a caption a line, or a .jsonl file with at least a "caption" a line; beside the recipe, or
    under the current folder."""
    captions: list[str | dict[str, Any]] = Field(default_factory=list)
    """The prompts themselves: captions, or mappings with "caption" and by choice "id", "sampling", "negative"."""
    magic: list[str] = Field(default_factory=lambda: ["{caption}"])
    """Templates of what the sampler reads, dealt out to the prompts in turn; "{caption}" stands for the caption."""
    negative: str = ""
    """The negative prompt: read by the sampler only, never learnt."""
    decouple: bool = True
    """The model learns the plain caption although the sampler read the magic prompt. With false it learns what the
    sampler read: the ablation."""


def inline(config: PromptsConfig, folder: Path) -> PromptsConfig:
    """The same prompts, held in the config itself instead of in a file.

    Raises:
        UserError: the file is missing, empty, or wrong in a line.
    """
    if config.file is None:
        return config
    if config.captions:
        raise UserError("prompts: 'file' and 'captions' are both given; keep one of the two.")
    found = find_file(config.file, folder, "prompts.file")
    return config.model_copy(update={"file": None, "captions": read_file(found)})


def find_file(name: str, folder: Path, key: str) -> Path:
    """The file of that name in ``folder``, where the recipe stands, or under the current folder.

    Raises:
        UserError: there is none; ``key`` says which key of the recipe named it.
    """
    found = next((path for path in (folder / name, Path(name)) if path.is_file()), None)
    if found is None:
        raise UserError(f"{key}: there is no file '{name}', neither in {folder} nor in this folder.")
    return found


def read_file(path: Path) -> list[str | dict[str, Any]]:
    """The captions of a .txt or .jsonl file; blank lines and lines that start with '#' are passed over.

    Raises:
        UserError: the file cannot be read, is empty, or a line of it is no JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read this prompt file: {error}.") from None
    kept = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip() and line.lstrip()[0] != "#"]
    if not kept:
        raise UserError(f"{path}: this prompt file is empty; write one caption a line.")
    if path.suffix != ".jsonl":
        return [line for _, line in kept]
    return [_json_line(path, number, line) for number, line in kept]


def _json_line(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{number}: this line is not valid JSON: {error.msg}.") from None
    if not isinstance(row, dict):
        raise UserError(f'{path}:{number}: expected an object such as {{"caption": "a cat"}}, found {line[:40]}.')
    return row


def build(config: PromptsConfig) -> list[Prompt]:
    """The prompts, each with its three texts.

    Raises:
        UserError: there is none, an id is given twice or cannot name a file, a caption is missing or empty, or a magic
            template lacks "{caption}".
    """
    if not config.captions:
        raise UserError("prompts: there is no prompt; name a file under 'file', or write them under 'captions'.")
    for template in config.magic:
        if "{caption}" not in template:
            raise UserError(f"prompts.magic: the template '{template}' lacks {{caption}}, where the caption goes.")
    if not config.magic:
        raise UserError('prompts.magic: the list of templates is empty; leave the key out, or write "{caption}".')
    rows = [{"caption": row} if isinstance(row, str) else row for row in config.captions]
    prompts = [_prompt(config, place, row) for place, row in enumerate(rows)]
    check_ids([prompt.id for prompt in prompts])
    return prompts


def _prompt(config: PromptsConfig, place: int, row: Mapping[str, Any]) -> Prompt:
    for name in TEXTS:
        if not isinstance(row.get(name, ""), str):
            raise UserError(f"prompts: prompt {place + 1}: '{name}' is not a text but {row[name]!r}.")
    caption = row.get("caption", "").strip()
    if not caption:
        raise UserError(f"prompts: prompt {place + 1} has no caption: {dict(row)!r}.")
    template = config.magic[place % len(config.magic)]
    sampling = row.get("sampling", template.replace("{caption}", caption))
    learning = caption if config.decouple else sampling
    meta = {key: value for key, value in row.items() if key not in (*TEXTS, "id")}
    return Prompt(
        str(row.get("id", slug(caption))), caption, sampling, learning, row.get("negative", config.negative), meta
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


def check_ids(ids: Sequence[str]) -> None:
    """
    Raises:
        UserError: an id is given twice or cannot name a file.
    """
    first: dict[str, int] = {}
    for place, name in enumerate(ids, 1):
        if not ID.fullmatch(name):
            raise UserError(
                f"prompts: the id '{name}' of prompt {place} cannot name a file; "
                f"use letters, digits, '.', '_' and '-', and do not begin with a dot."
            )
        if name in first:
            raise UserError(
                f"prompts: prompts {first[name]} and {place} have the same id '{name}'; "
                f"ids must be unique: remove one, or give each its own 'id' in a .jsonl file."
            )
        first[name] = place
