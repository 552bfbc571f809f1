"""What a text recipe asks for: prompts with their answers, from files, data sets or the recipe itself."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from raftdiff.errors import UserError, nearest
from raftdiff.llm.data import trees
from raftdiff.llm.data.cells import BrokenRow, Record, text_of
from raftdiff.llm.data.files import file_digest, rows_digest
from raftdiff.llm.data.formats import Format, detect, parse
from raftdiff.recipes.config import Config
from raftdiff.recipes.prompts import Asked, check_ids, check_magic, find_file, made_ids
from raftdiff.recipes.rows import Row, heading, json_value, read_file, read_hub
from raftdiff.seeds import fold
from raftdiff.types import Prompt

OWN = ("id", "sampling")
"""Columns that any row may bring, whatever its format."""


class DataConfig(Config):
    """What to ask for, and which answers came with it: one of ``file``, ``hub`` and ``captions``."""

    file: str | None = None
    """A .jsonl, .ndjson, .json, .csv, .tsv, .parquet or .txt (a prompt a line) file, or a folder of .txt files with a
    prompt in each; beside the recipe, or under the current folder."""
    hub: str | None = None
    """A Hugging Face data set: its id on the hub, or a local folder. Code that comes with it is never run."""
    captions: list[Asked] = Field(default_factory=list)
    """The prompts themselves: texts, or mappings of columns as in a .jsonl file."""
    split: str = "train"
    """Which part of a ``hub`` data set; slices such as "train[:1000]" too."""
    subset: str | None = None
    """The configuration of a ``hub`` data set that has several."""
    data_dir: str | None = None
    """The folder within a ``hub`` data set, such as "helpful-base" of HH-RLHF."""
    revision: str | None = None
    """The commit of a ``hub`` data set; pin it, so that a later run reads the same."""
    format: Literal["auto"] | Format = "auto"
    """What the columns mean; "auto" recognises it from their names."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Renames, "name in the file: name that the format knows", such as {question: prompt, reply: response}."""
    broken: Literal["stop", "skip"] = "stop"
    """What to do about a row that cannot be used (an empty answer, chosen = rejected, ...): stop with a sentence that
    names it, or leave such rows out and say how many."""
    limit: int | None = Field(default=None, ge=1)
    """How many prompts at most, after shuffling."""
    shuffle_seed: int | None = None
    """Shuffles the prompts; in the order of the file by default."""
    max_prompt_words: int | None = Field(default=None, ge=1)
    """Leaves out prompts with more words (split at whitespace, history and system message counted)."""
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    """Leaves out prompts of more tokens, as the model reads them: template, system message and history counted."""
    max_answer_tokens: int | None = Field(default=None, ge=2)
    """Leaves out prompts with an answer of more tokens among those of the data, its end counted."""
    too_long: Literal["stop", "skip", "cut"] | None = None
    """What to do about a row that is longer than the model reads (model.max_prompt_tokens, and what it is made for):
    stop with a sentence, leave such rows out and say how many, or cut: a dialogue loses its oldest turns, an answer its
    end, which is then not learnt as one. So are rows beyond the two limits above cut. As ``broken`` by default."""
    system: str = ""
    """The system message of prompts that bring none. That of the training is also that of held-out prompts and of what
    the tuned model is asked by hand, unless these bring one."""
    magic: list[str] = Field(default_factory=lambda: ["{prompt}"])
    """Templates of what the sampler reads, dealt out to the prompts in turn; "{prompt}" stands for the prompt."""
    decouple: bool = True
    """The model learns to answer the plain prompt although the sampler read the magic one (context distillation). With
    false it learns to answer what the sampler read."""
    sha256: str | None = None
    """Filled in when a run begins: a resumed run refuses other data."""

    @property
    def given(self) -> bool:
        """Whether it names any prompts; held-out prompts may be left out of a recipe."""
        return bool(self.file or self.hub or self.captions)


def rows(config: DataConfig, folder: Path, key: str) -> list[Row]:
    """Every row of the source, columns renamed; ``folder`` is where the recipe stands.

    ``key``, here and below: where the data stand in the recipe, such as "prompts" or "pairs.data", which every sentence
    says.

    Raises:
        UserError: none or several sources, a source that cannot be read, other data than ``sha256`` names, or a rename
            of a column that is not there or to one that is.
    """
    found, digest = _read(config, folder, key)
    if config.sha256 and digest() != config.sha256:
        raise UserError(
            f"{key}.{'file' if config.file else 'hub'}: '{config.file or config.hub}' is not what the run began with "
            f"(sha256 {config.sha256[:12]}... then, {digest()[:12]}... now). Put the old data back, or begin a new run."
        )
    return [Row(row.where, _renamed(row, config.columns, key)) for row in _known(found, config.columns, key)]


def sealed_prompts(config: DataConfig, folder: Path, key: str) -> DataConfig:
    """The same config with the whole path and ``sha256`` of its data, for a run to keep; captions are kept as they are.

    Raises:
        UserError: as ``rows``; a magic template lacks "{prompt}".
    """
    check_magic(config.magic, "prompt", key)
    if config.file is None and config.hub is None:
        return config
    _, digest = _read(config, folder, key)
    file = None if config.file is None else str(find_file(config.file, folder, f"{key}.file").resolve())
    hub = None if config.hub is None else _hub(config.hub, folder)
    return config.model_copy(update={"file": file, "hub": hub, "sha256": digest()})


def read_prompts(config: DataConfig, folder: Path, key: str) -> list[Prompt]:
    """The prompts, each with its three texts; answers, system message and history are in ``meta``.

    ``meta["answers"]`` is a list of {"text", "score", "source"}: higher scores are better, None is unrated, and the
    order is that of the data. Columns that the format does not use are kept in ``meta`` under their own names.
    An id that the data do not give is made from the prompt, and of several alike the later ones are numbered.

    Raises:
        UserError: as ``rows``; the format is not recognised; a row is broken (and ``broken`` is "stop"); nothing is
            left; an id is given twice or cannot name a file; a magic template lacks "{prompt}".
    """
    check_magic(config.magic, "prompt", key)
    table = rows(config, folder, key)
    kept = _parsed(table, _format(table, config, folder, key), config, key)
    ids = made_ids([rest.get("id") for _, rest in kept], [record.prompt for record, _ in kept])
    check_ids(ids, key)
    chosen = [k for k in _order(len(kept), config.shuffle_seed) if _fits(kept[k][0], config)][: config.limit]
    if not chosen:
        raise UserError(f"{key}: no prompt is left; raise {key}.max_prompt_words, or look at the data.")
    return [_prompt(config, place, ids[k], *kept[k]) for place, k in enumerate(chosen)]


def asked(config: DataConfig, texts: Sequence[str]) -> list[Prompt]:
    """Texts as prompts like those of the data, for a model that learnt from them: with their system message, and
    written as the model learnt to answer them. Their ids are prompt-0, prompt-1 and so on."""
    made = [_prompt(config, place, f"prompt-{place}", Record(text), {}) for place, text in enumerate(texts)]
    return [as_learnt(prompt) for prompt in made]


def like(trained: DataConfig, other: DataConfig) -> DataConfig:
    """Another source of prompts for a model that learns from ``trained``: with the same system message, where the other
    names none."""
    return other if other.system else other.model_copy(update={"system": trained.system})


def as_learnt(prompt: Prompt) -> Prompt:
    """The prompt as the tuned model is asked it: whatever was sampled in training, the text that it learnt to
    answer."""
    return replace(prompt, sampling=prompt.learning)


def _read(config: DataConfig, folder: Path, key: str) -> tuple[list[Row], Callable[[], str]]:
    """The rows as they are, and a function that gives their sha256."""
    given = [name for name in ("file", "hub", "captions") if getattr(config, name)]
    if len(given) != 1:
        wrong = f"'{given[0]}' and '{given[1]}' are both given; keep one of the two" if given else "there is no prompt"
        hint = "" if given else "; name a file under 'file' or a data set under 'hub', or write them under 'captions'"
        raise UserError(f"{key}: {wrong}{hint}.")
    if config.file:
        path = find_file(config.file, folder, f"{key}.file")
        found = read_file(path)
        return found, lambda: rows_digest(found) if path.is_dir() else file_digest(path)
    if config.hub:
        found = read_hub(
            _hub(config.hub, folder),
            f"{key}.hub",
            split=config.split,
            subset=config.subset,
            data_dir=config.data_dir,
            revision=config.revision,
        )
        return found, lambda: rows_digest(found)
    held = [{"prompt": row} if isinstance(row, str) else row for row in config.captions]
    found = [Row(f"{key}.captions.{place}", row) for place, row in enumerate(held)]
    return found, lambda: rows_digest(found)


def _hub(name: str, folder: Path) -> str:
    """A local folder by its whole path; an id on the hub as it is."""
    places = (folder / name, Path(name).expanduser())
    return next((str(path.resolve()) for path in places if path.is_dir()), name)


def _known(found: list[Row], renames: Mapping[str, str], key: str) -> list[Row]:
    columns = {name for row in found for name in row.columns}
    for name in renames:
        if name not in columns:
            raise UserError(f"{key}.columns: there is no column '{name}' to rename. {nearest(name, columns)}")
    return found


def _renamed(row: Row, renames: Mapping[str, str], key: str) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for name, value in row.columns.items():
        new = renames.get(name, name)
        if new in renamed:
            raise UserError(f"{row.where}: two columns would be called '{new}'; see {key}.columns.")
        renamed[new] = value
    return renamed


def _format(table: Sequence[Row], config: DataConfig, folder: Path, key: str) -> Format:
    if config.format != "auto":
        return config.format
    path = find_file(config.file, folder, f"{key}.file") if config.file else None
    return detect([row.columns for row in table], key, heading(path, table[0].columns) if path else "")


def _parsed(table: Sequence[Row], format: Format, config: DataConfig, key: str) -> list[tuple[Record, dict[str, Any]]]:
    kept, reasons, notes, first = [], Counter[str](), Counter[str](), ""
    if format == "oasst":
        table, left = trees.asked(table)
        if left:
            warnings.warn(_counted(key, "messages of the trees were left out", left), stacklevel=3)
    for row in table:
        try:
            record, rest = parse(format, row.columns)
            _check_rest(rest)
            kept.append((record, rest))
            notes.update(record.notes)
        except BrokenRow as problem:
            rename = problem.renamed and not key.startswith("--")  # an option names the file alone
            why = f"{problem}; {key}.columns can rename one" if rename else str(problem)
            if config.broken == "stop":
                raise UserError(
                    f"{row.where}: {why} (format {format}). Correct the row, or set {key}.broken to skip, which "
                    "leaves such rows out."
                ) from None
            reasons[why] += 1
            first = first or row.where
    if reasons:
        sentence = _counted(key, f"of {len(table)} rows were left out (the first: {first})", reasons)
        if not kept:
            raise UserError(sentence)
        warnings.warn(sentence, stacklevel=3)
    for note, count in notes.items():
        warnings.warn(f"{key}: in {count} of {len(table)} rows {note}.", stacklevel=3)
    return kept


def _counted(key: str, what: str, reasons: Counter[str]) -> str:
    listed = "; ".join(f"{count} because {reason}" for reason, count in reasons.most_common(5))
    return f"{key}: {reasons.total()} {what}: {listed}."


def _check_rest(rest: Mapping[str, Any]) -> None:
    reference = rest.get("reference") or ""
    for text in reference if isinstance(reference, list) else [reference]:
        text_of(text, "'reference'", empty=True)
    text_of(rest.get("sampling") or "", "'sampling'", empty=True)


def _order(count: int, seed: int | None) -> list[int]:
    if seed is None:
        return list(range(count))
    order: list[int] = np.random.default_rng(fold(seed, "prompts")).permutation(count).tolist()
    return order


def _fits(record: Record, config: DataConfig) -> bool:
    if config.max_prompt_words is None:
        return True
    texts = [record.system or config.system, *(turn["content"] for turn in record.history), record.prompt]
    return sum(len(text.split()) for text in texts) <= config.max_prompt_words


def _prompt(config: DataConfig, place: int, id: str, record: Record, rest: Mapping[str, Any]) -> Prompt:
    template = config.magic[place % len(config.magic)]
    sampling = rest.get("sampling") or template.replace("{prompt}", record.prompt)
    meta = {name: json_value(value) for name, value in rest.items() if name not in OWN}
    own = {
        "system": record.system or config.system,
        "history": [dict(turn) for turn in record.history],
        "answers": [answer.plain() for answer in record.answers],
    }
    meta.update({name: value for name, value in own.items() if value})
    return Prompt(id, record.prompt, sampling, record.prompt if config.decouple else sampling, meta=meta)
