"""What people are asked about: the candidates of a run's rounds and both sides of its evaluations, by their names.

A picture is named by its path within the run, ``rounds/000/samples/cat-001.png``. A text has no file of its own and is
named in the same way without a suffix: ``rounds/000/samples/cat-001``, ``eval/after/cat-001``.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from raftdiff.errors import UserError, command
from raftdiff.records.disk import damaged, read_json, read_json_lines
from raftdiff.records.media import plain_name, prompt_of
from raftdiff.records.rounds import RoundFolder
from raftdiff.records.run import Run
from raftdiff.types import Prompt

PICTURES: Final = "pictures.json"
"""Of an evaluation of pictures: file name -> caption."""
ANSWERS: Final = "answers.jsonl"
"""Of an evaluation of texts: an object for each prompt and seed, with both answers."""


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """One picture or answer that people can be asked about."""

    name: str
    prompt: Prompt
    media: Path | str
    """Where the picture is, or the answer itself."""
    seed: int | None = None
    """Of a candidate; no other sample has it."""
    total: float | None = None
    """The total reward of a candidate; higher is better. None before scoring, and where a reward discarded it."""


def of_round(folder: RoundFolder) -> list[Entry]:
    """Every candidate, prompt by prompt."""
    samples = folder.path / "samples"
    return [_candidate(f"rounds/{folder.index:03d}/samples", samples, row) for row in folder.rows()]


def of_evaluation(run: Run, folder: str) -> list[tuple[Entry, Entry]]:
    """Before and after of each prompt and seed; ``folder`` is ``eval`` or ``eval/NAME``.

    Raises:
        UserError: there is no such evaluation, it does not say which prompts its answers belong to, or it was changed.
    """
    path = run.path / folder
    if (path / PICTURES).is_file():
        captions = read_json(path / PICTURES)
        if any(not plain_name(file) or not isinstance(caption, str) for file, caption in captions.items()):
            raise damaged(path / PICTURES, "it names a file that is not here, or no caption")
        return [_pictures(folder, path, file, caption) for file, caption in captions.items()]
    if not (path / ANSWERS).is_file():
        raise UserError(f"{path}: no evaluation is here; run: {command('eval', run.path)}")
    rows = read_json_lines(path / ANSWERS)
    if any("prompt_id" not in row for row in rows):
        raise UserError(
            f"{path / ANSWERS}: these answers do not name their prompts, as an older raftdiff wrote them; "
            f"run again: {command('eval', run.path)}"
        )
    try:
        return [_answers(folder, row) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path / ANSWERS, f"a row is none of two answers: {type(error).__name__}: {error}") from None


def found(run: Run, names: Collection[str]) -> dict[str, Entry]:
    """Those of these names that the run has. The names lead to no file: they are looked up among the run's own.

    Raises:
        UserError: a round's lines are not as they were, or an evaluation was changed.
    """
    rounds = [t for t in range(run.rounds_done()) if any(name.startswith(f"rounds/{t:03d}/") for name in names)]
    entries = [entry for t in rounds for entry in of_round(run.round(t))]
    for folder in _evaluations(run):
        if any(name.rsplit("/", 2)[0] == folder for name in names):
            entries += [entry for both in of_evaluation(run, folder) for entry in both]
    return {entry.name: entry for entry in entries if entry.name in names}


def changed(run: Run, entry: Entry) -> bool:
    """Whether this is a picture of a finished round that is not what it was when the round was finished."""
    if isinstance(entry.media, str) or not entry.name.startswith("rounds/"):
        return False
    return run.round(int(entry.name.split("/")[1])).changed(entry.media)


def _evaluations(run: Run) -> list[str]:
    files = [file for name in (PICTURES, ANSWERS) for file in sorted((run.path / "eval").rglob(name))]
    return list(dict.fromkeys(file.parent.relative_to(run.path).as_posix() for file in files))


def _candidate(place: str, samples: Path, row: dict[str, Any]) -> Entry:
    texts = {name: row[name] for name in ("caption", "sampling", "learning", "negative")}
    prompt = Prompt(row["prompt_id"], **texts, meta=row.get("meta", {}))
    file = row.get("file_name", f"{row['prompt_id']}-{row['index']:03d}")
    media = row["text"] if "text" in row else samples / file
    return Entry(f"{place}/{file}", prompt, media, row["seed"], row.get("total"))


def _pictures(folder: str, path: Path, file: str, caption: str) -> tuple[Entry, Entry]:
    prompt = Prompt(prompt_of(file), caption, caption, caption)
    before, after = (Entry(f"{folder}/{side}/{file}", prompt, path / side / file) for side in ("before", "after"))
    return before, after


def _answers(folder: str, row: dict[str, Any]) -> tuple[Entry, Entry]:
    text = row["prompt"]
    before_it: dict[str, Any] = {name: row[name] for name in ("system", "history") if name in row}
    prompt = Prompt(row["prompt_id"], text, text, text, meta=before_it)
    file = f"{row['prompt_id']}-{row['index']:03d}"
    if any(not isinstance(row[side], str) for side in ("before", "after")):
        raise TypeError("before and after are texts")
    before, after = (Entry(f"{folder}/{side}/{file}", prompt, row[side]) for side in ("before", "after"))
    return before, after
