"""Samplers of answers that are there already: those of the data file, and those that somebody collected."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import torch

from raftdiff.chat.dialogue import whole
from raftdiff.errors import UserError
from raftdiff.llm.data.files import rows_digest
from raftdiff.recipes.config import Config
from raftdiff.recipes.rows import SUFFIXES, Row, read_file
from raftdiff.seeds import fold
from raftdiff.types import Prompt, Sample, Source

IDS, TEXTS, ANSWERS = ("id", "prompt_id"), ("prompt", "caption"), ("text", "response")


class DatasetSamplerConfig(Config):
    """The answers that came with the prompts: RRHF's policy P, supervised fine-tuning, offline DPO."""

    type: Literal["dataset"] = "dataset"

    def build(self) -> "DatasetSampler":
        return DatasetSampler()


class FolderSamplerConfig(Config):
    """Answers that were collected earlier: from people, from other models, from another run."""

    type: Literal["folder"] = "folder"
    path: str
    """A .jsonl (or .json, .csv, .tsv) file, or a folder of them, such as the samples folder of a run's round: in each
    row the prompt's "id" (or "prompt_id"), or else its text as "prompt" (or "caption"), and the answer as "text" (or
    "response"). Where "cut" is true, as a run writes it of an answer that reached its longest, it is learnt without an
    end. Beside the recipe, or under the current folder."""
    source: Literal["teacher", "human"] = "teacher"
    """Whose answers these are."""
    sha256: str | None = None
    """Filled in when a run begins: a resumed run refuses other answers."""

    def sealed(self, folder: Path) -> "FolderSamplerConfig":
        """The same config with the whole path and ``sha256``, for a run to keep.

        Raises:
            UserError: the path is not there, or a file cannot be read.
        """
        found = _found(self.path, folder)
        return self.model_copy(update={"path": str(found.resolve()), "sha256": rows_digest(_rows(found))})

    def build(self, folder: Path) -> "FolderSampler":
        """``folder`` is where the recipe stands.

        Raises:
            UserError: the path is not there, a file cannot be read, a row lacks prompt or answer, or these are not the
                answers that ``sha256`` names.
        """
        found = _rows(_found(self.path, folder))
        if self.sha256 and rows_digest(found) != self.sha256:
            raise UserError(
                f"sampler.path: the answers in '{self.path}' are not those that the run began with. Put the old ones "
                "back, or begin a new run."
            )
        return FolderSampler(collect(found), self.source, self.path)


class Given(NamedTuple):
    """An answer that was there before."""

    text: str
    cut: bool = False
    """Whether it lacks its end, as one that was too long for a model."""

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> "Given":
        """One of ``prompt.meta["answers"]``."""
        return cls(answer["text"], bool(answer.get("cut")))


@final
class DatasetSampler:
    """Candidate k is answer k of ``prompt.meta["answers"]``, in the order of the data.

    A prompt with fewer answers than candidates yields what it has, and one with more its first ones.
    """

    source: Source = "dataset"
    provides: tuple[str, ...] = ()

    def sample(
        self, prompts: Sequence[Prompt], *, per_prompt: int, seed: int, round: int, done: AbstractSet[tuple[str, int]]
    ) -> Iterator[Sample[str]]:
        given = {prompt.id: [Given.of(answer) for answer in prompt.meta.get("answers", ())] for prompt in prompts}
        yield from _samples(prompts, given, self.source, per_prompt=per_prompt, seed=seed, round=round, done=done)

    def network_evaluations(self) -> int:
        """None: nothing is drawn."""
        return 0

    def check(self, prompts: Sequence[Prompt]) -> None:
        """
        Raises:
            UserError: not one prompt of the run has an answer.
        """
        if not any(prompt.meta.get("answers") for prompt in prompts):
            raise UserError(
                f"sampler: not one of the {len(prompts)} prompts has an answer in the data; "
                "name data with answers under prompts, or another sampler."
            )


@final
class FolderSampler:
    """Candidate k is the k-th answer to the prompt, in the order of the files' names and of their rows.

    Found by the prompt's id where the row gives one, else by its text. A prompt with fewer answers than candidates
    yields what it has.
    """

    provides: tuple[str, ...] = ()

    def __init__(self, answers: Mapping[tuple[str, str], Sequence[Given]], source: Source, where: str) -> None:
        """``answers``: ("id", id) or ("prompt", text) -> texts, as ``collect`` makes them."""
        self.source = source
        self._answers, self._where = answers, where

    def sample(
        self, prompts: Sequence[Prompt], *, per_prompt: int, seed: int, round: int, done: AbstractSet[tuple[str, int]]
    ) -> Iterator[Sample[str]]:
        given = {prompt.id: self.answers(prompt) for prompt in prompts}
        yield from _samples(prompts, given, self.source, per_prompt=per_prompt, seed=seed, round=round, done=done)

    def only(self, prompts: Sequence[Prompt], fits: Callable[[Prompt, str], bool]) -> "FolderSampler":
        """The same with those of the prompts' answers alone that fit."""
        kept = {
            ("id", prompt.id): [one for one in self.answers(prompt) if fits(prompt, one.text)] for prompt in prompts
        }
        return FolderSampler(kept, self.source, self._where)

    def answers(self, prompt: Prompt) -> list[Given]:
        named = self._answers.get(("id", prompt.id), ())
        return [*named, *self._answers.get(("prompt", prompt.caption.strip()), ())]

    def network_evaluations(self) -> int:
        """None: nothing is drawn."""
        return 0

    def check(self, prompts: Sequence[Prompt]) -> None:
        """
        Raises:
            UserError: not one prompt of the run has an answer, or a text names two dialogues that end in it.
        """
        ends: dict[str, str] = {}
        for prompt in prompts:
            text = prompt.caption.strip()
            if ("prompt", text) in self._answers and ends.setdefault(text, whole(prompt)) != whole(prompt):
                raise UserError(
                    f"sampler.path: rows of '{self._where}' name the prompt '{text}', and several dialogues end in it; "
                    'name each by its "id".'
                )
        if not any(self.answers(prompt) for prompt in prompts):
            raise UserError(
                f"sampler.path: '{self._where}' answers not one of the {len(prompts)} prompts; its rows name them by "
                '"id" or by their text as "prompt".'
            )


def collect(rows: Sequence[Row]) -> dict[tuple[str, str], list[Given]]:
    """The answers by ("id", id) or ("prompt", text); empty answers are passed over.

    Raises:
        UserError: a row lacks prompt or answer.
    """
    found: dict[tuple[str, str], list[Given]] = {}
    for row in rows:
        text, name, prompt = (_first(row, names) for names in (ANSWERS, IDS, TEXTS))
        if not isinstance(text, str):
            raise UserError(f'{row.where}: there is no answer; write it as "text".')
        if name in (None, "") and not (isinstance(prompt, str) and prompt.strip()):
            raise UserError(f'{row.where}: this answer names no prompt; give its "id", or its text as "prompt".')
        key = ("prompt", str(prompt).strip()) if name in (None, "") else ("id", str(name))
        if text.strip():
            found.setdefault(key, []).append(Given(text, row.columns.get("cut") in (True, "true", "True")))
    return found


def _first(row: Row, names: Sequence[str]) -> Any:
    return next((row.columns[name] for name in names if row.columns.get(name) is not None), None)


def _found(name: str, folder: Path) -> Path:
    places = (folder / name, Path(name).expanduser())
    found = next((path for path in places if path.exists()), None)
    if found is None:
        raise UserError(f"sampler.path: there is no '{name}', neither in {folder} nor in this folder.")
    return found


def _rows(path: Path) -> list[Row]:
    if path.is_file():
        return read_file(path)
    tables = [suffix for suffix in SUFFIXES if suffix != ".txt"]
    files = [file for file in sorted(path.iterdir()) if file.suffix.lower() in tables and file.is_file()]
    if not files:
        raise UserError(f"sampler.path: there is no {', '.join(tables)} file in {path}.")
    return [row for file in files for row in read_file(file)]


def _samples(
    prompts: Sequence[Prompt],
    given: Mapping[str, Sequence[Given]],
    source: Source,
    *,
    per_prompt: int,
    seed: int,
    round: int,
    done: AbstractSet[tuple[str, int]],
) -> Iterator[Sample[str]]:
    for prompt in prompts:
        for index, (text, cut) in enumerate(given[prompt.id][:per_prompt]):
            if (prompt.id, index) not in done:
                aux = {"cut": torch.tensor(True)} if cut else {}
                yield Sample(round, prompt, index, fold(seed, prompt.id, index), source, text, aux)
