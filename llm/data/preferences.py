"""What was preferred to what, to train reward models on: from data, from a run's rounds, or from people's answers."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, final

import numpy as np
from jaxtyping import Float
from pydantic import Field, model_validator

from raftdiff.chat.dialogue import context, whole
from raftdiff.errors import UserError
from raftdiff.llm.data.cells import BrokenRow, score_of
from raftdiff.llm.data.files import rows_digest
from raftdiff.llm.data.formats import BAD, GOOD
from raftdiff.llm.data.prompts import DataConfig, read_prompts, sealed_prompts
from raftdiff.recipes.config import Config
from raftdiff.recipes.rows import Row
from raftdiff.records import labels
from raftdiff.records.rounds import RoundFolder
from raftdiff.records.run import Run
from raftdiff.types import Prompt

PerPrompt = Annotated[int, Field(ge=1)] | Literal["all"]
STRENGTH: Mapping[str, tuple[str, ...]] = {
    "mu": ("mu", "mean preference difference"),
    "sigma": ("sigma", "std preference difference"),
}
"""Columns that hold a pair's strength: our names, and those of the HH-RLHF data that the authors released."""


@final
@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one prompt, and which was preferred."""

    id: str
    """Unique among the comparisons of one source."""
    prompt: Prompt
    chosen: str
    rejected: str
    mu: float | None = None
    """Strength: the mean difference of reward under an ensemble, where it was measured
    (``raftdiff.llm.reward_models.strength``)."""
    sigma: float | None = None
    """Its standard deviation over the ensemble."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Other columns of the data."""


class PairsConfig(Config):
    """Preference pairs: exactly one of ``data``, ``run`` and ``labels``."""

    data: DataConfig = DataConfig()
    """A file or data set with a chosen and a rejected answer a row, or with scored answers, of which the best and the
    worst are taken."""
    run: str | None = None
    """A run on texts: the best and the worst answer to each prompt of its rounds, by total reward."""
    rounds: list[Annotated[int, Field(ge=0)]] | None = Field(default=None, min_length=1)
    """Which rounds of ``run``; all that are finished by default, or
    where none is, the one that is scored so far."""
    per_prompt: PerPrompt = 1
    """Of ``run``, how many pairs of a prompt's answers at most: the best with the worst, the second best with the
    second worst, and so on, as far as they differ, each answer in one pair. Or "all": every two answers that differ,
    as InstructGPT compares them (arXiv:2203.02155); with ``tuner.whole_prompts`` they cost little more."""
    labels: str | None = None
    """A run on texts whose answers people compared, with raftdiff label."""
    limit: int | None = Field(default=None, ge=1)
    """How many pairs at most, the first ones."""
    sha256: str | None = None
    """Filled in when a run begins, for pairs of a run or of people: a resumed run refuses others."""

    @model_validator(mode="after")
    def _one_source(self) -> "PairsConfig":
        given = [
            name for name, value in (("data", self.data.given), ("run", self.run), ("labels", self.labels)) if value
        ]
        if len(given) != 1:
            raise ValueError(
                f"name exactly one of data, run and labels ({' and '.join(given) if given else 'none'} given)"
            )
        if self.rounds is not None and self.run is None:
            raise ValueError("rounds are those of a run; name it under run")
        if self.per_prompt != 1 and self.run is None:
            raise ValueError("per_prompt is for the answers of a run; name it under run")
        return self


def build(config: PairsConfig, folder: Path, key: str) -> list[Comparison]:
    """The comparisons; ``folder`` is where the recipe stands, ``key`` where the pairs stand in it: pairs or held_out.

    Raises:
        UserError: the source cannot be read, holds no comparison, or is not what the run began with; a row of the data
            does not say which of two different answers is better (and ``data.broken`` is "stop").
    """
    found = _read(config, folder, key)
    if config.sha256 and _digest(found) == config.sha256:
        return found[: config.limit]  # older versions took empty answers of a run in: it keeps what it began with
    kept = _spoken(found, key)
    if config.sha256 and _digest(kept) != config.sha256:
        raise UserError(
            f"{key}: what '{config.run or config.labels}' holds is no longer what this run began with; begin a new run."
        )
    return kept[: config.limit]


def sealed(config: PairsConfig, folder: Path, key: str) -> PairsConfig:
    """The same config with the whole path and the checksum of what it reads, for a run to keep.

    Raises:
        UserError: as ``build``.
    """
    if config.data.given:
        return config.model_copy(update={"data": sealed_prompts(config.data, folder, f"{key}.data")})
    demand_once(config.rounds, f"{key}.rounds")
    name = "run" if config.run else "labels"
    path = str(_run(str(config.run or config.labels), folder).path.resolve())
    return config.model_copy(update={name: path, "sha256": _digest(_spoken(_read(config, folder, key), key))})


def from_rounds(run: Run, rounds: Sequence[int] | None = None, per_prompt: PerPrompt = 1) -> list[Comparison]:
    """The best against the worst valid answer to each prompt of a run's rounds, by total reward, the second best
    against the second worst, and so on, ``per_prompt`` at most, or every two answers; ties are left out. By default of
    all finished rounds; where none is, of the one that was drawn and scored to collect answers.

    Raises:
        UserError: it is a run on pictures, or lacks a round, or a round has no scores.
    """
    _refuse_pictures(run)
    return [pair for folder in _folders(run, rounds) for pair in _ordered(folder, per_prompt)]


def demand_once(rounds: Sequence[int] | None, key: str) -> None:
    """
    Raises:
        UserError: one of the rounds is named twice.
    """
    if twice := [t for place, t in enumerate(rounds or ()) if t in (rounds or ())[:place]]:
        raise UserError(f"{key}: round {twice[0]} is named twice, and its pairs count once; name it once.")


def answered(pairs: Sequence[Comparison]) -> list[Comparison]:
    """The pairs without those of which one answer is empty: no format of data has an empty answer, so a model is
    trained on none, whether it reads the run or a file of its pairs."""
    return [pair for pair in pairs if pair.chosen.strip() and pair.rejected.strip()]


def from_labels(run: Run) -> list[Comparison]:
    """What people chose, one comparison an answer of theirs, in their order; ties are left out.

    Raises:
        UserError: it is a run on pictures.
    """
    _refuse_pictures(run)
    rows = labels.preferences(run)
    return from_data(DataConfig(captions=[*rows], format="pairs"), Path(), "labels") if rows else []


def from_data(config: DataConfig, folder: Path, key: str) -> list[Comparison]:
    """The two answers of each prompt of the data, or the best and the worst of several by their scores; of answers
    labelled one by one, a good and a bad one to the same prompt. ``key``: where the data stand in the recipe, such as
    pairs.data.

    Raises:
        UserError: as ``read_prompts``, a row does not say which of two different answers is better, or none does.
    """
    prompts = read_prompts(config, folder, key)
    labelled = [prompt for prompt in prompts if _label(prompt)]
    found, broken = _of_labels(labelled, key), []
    for prompt in prompts:
        if _label(prompt):
            continue
        try:
            found.append(_compared(prompt))
        except BrokenRow as problem:
            broken.append(f"'{prompt.id}': {problem}")
    if broken and config.broken == "stop":
        raise UserError(
            f"{key}: the prompt {broken[0]}. Correct the row, or set {key}.broken to skip, which leaves such rows out."
        )
    if broken:
        warnings.warn(f"{key}: {len(broken)} prompts were left out, the first {broken[0]}.", stacklevel=2)
    return _some(found, key)


def by_prompt(pairs: Sequence[Comparison]) -> list[list[int]]:
    """Where the pairs of each prompt stand, its system message and earlier turns counted; prompts in order of their
    first pair."""
    places: dict[str, list[int]] = {}
    for place, pair in enumerate(pairs):
        places.setdefault(whole(pair.prompt), []).append(place)
    return list(places.values())


def _of_labels(prompts: Sequence[Prompt], key: str) -> list[Comparison]:
    """Answers labelled good against those labelled bad to the same prompt, the first with the first and so on; those
    without a partner are left out, and counted."""
    sides: dict[str, dict[str, list[Prompt]]] = {}
    for prompt in prompts:
        sides.setdefault(whole(prompt), {GOOD: [], BAD: []})[_label(prompt)].append(prompt)
    pairs = [pair for both in sides.values() for pair in zip(both[GOOD], both[BAD], strict=False)]
    if alone := len(prompts) - 2 * len(pairs):
        warnings.warn(
            f"{key}: {alone} of {len(prompts)} labelled answers were left out: a pair is a good and a bad answer "
            "to the same prompt.",
            stacklevel=3,
        )
    return [
        Comparison(good.id, replace(good, meta=context(good)), _text(good), _text(bad))
        for good, bad in pairs
        if _text(good).strip() != _text(bad).strip()
    ]


def _label(prompt: Prompt) -> str:
    """What the prompt's one answer was called, desirable or undesirable; empty where it was not labelled."""
    answers = prompt.meta.get("answers", [])
    return str(answers[0]["source"]) if len(answers) == 1 and answers[0]["source"] in (GOOD, BAD) else ""


def _text(prompt: Prompt) -> str:
    return str(prompt.meta["answers"][0]["text"])


def row(pair: Comparison) -> dict[str, Any]:
    """A comparison as a row of the data format ``pairs``, which ``from_data`` reads again."""
    known = {"mu": pair.mu, "sigma": pair.sigma}
    return {
        "id": pair.id,
        "prompt": pair.prompt.caption,
        **context(pair.prompt),
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        **{name: value for name, value in known.items() if value is not None},
        **pair.meta,
    }


def _read(config: PairsConfig, folder: Path, key: str) -> list[Comparison]:
    if config.data.given:
        return from_data(config.data, folder, f"{key}.data")
    if config.run:
        found = from_rounds(_run(config.run, folder), config.rounds, config.per_prompt)
        return _some(found, f"{key}.run: '{config.run}'")
    return _some(from_labels(_run(str(config.labels), folder)), f"{key}.labels: '{config.labels}'")


def _spoken(found: list[Comparison], key: str) -> list[Comparison]:
    """``answered``, and how many are left out.

    Raises:
        UserError: all of them.
    """
    if left_out := len(found) - len(kept := answered(found)):
        told = f"{key}: {left_out} of {len(found)} pairs have an empty answer"
        if not kept:
            raise UserError(f"{told}, and nothing can be learnt from them; name another run or other rounds.")
        warnings.warn(f"{told} and were left out.", stacklevel=1)  # one place: once
    return kept


def _some(found: list[Comparison], where: str) -> list[Comparison]:
    """
    Raises:
        UserError: they are none.
    """
    if not found:
        raise UserError(f"{where}: there is not one pair of answers of which one is better.")
    return found


def place_of(name: str, folder: Path) -> Path:
    """Where a run lies that a recipe in ``folder`` names: beside it, or else under the current folder."""
    path = Path(name).expanduser()
    beside = folder / path
    return beside if (beside / "run.json").is_file() else path


def _run(name: str, folder: Path) -> Run:
    return Run.open(place_of(name, folder))


def _refuse_pictures(run: Run) -> None:
    if run.recipe().get("media") != "text":
        raise UserError(f"{run.path}: this is no run on texts, and a reward model reads texts; name another run.")


def _folders(run: Run, rounds: Sequence[int] | None) -> list[RoundFolder]:
    begun, done = run.unfinished(0), run.rounds_done()
    drawn = not done and (begun.path / "samples").is_dir()
    if drawn and (rounds is None or set(rounds) == {0}):
        return [begun]
    if drawn and rounds:
        raise UserError(
            f"{run.path}: this run was drawn and scored alone, its round 0; there is no round {max(rounds)}."
        )
    return [run.round(t) for t in (range(done) if rounds is None else rounds)]


def _ordered(folder: RoundFolder, per_prompt: PerPrompt) -> Iterator[Comparison]:
    scores = folder.scores()
    texts = {(sample.prompt.id, sample.index): sample for sample in folder.samples()}
    for prompt, totals in zip(scores.prompts, scores.total, strict=True):
        for place, (best, worst) in enumerate(_opposed(totals, per_prompt)):
            one, other = texts[prompt, best], texts[prompt, worst]
            if totals[best] > totals[worst] and one.media.strip() != other.media.strip():
                meta = {
                    "round": folder.index,
                    "total_chosen": float(totals[best]),
                    "total_rejected": float(totals[worst]),
                }
                asked = replace(one.prompt, meta=context(one.prompt))
                name = f"{folder.index:03d}-{prompt}" + (f"-{place}" if place else "")
                yield Comparison(name, asked, one.media, other.media, meta=meta)


def _opposed(totals: Float[np.ndarray, " answers"], per_prompt: PerPrompt) -> list[tuple[int, int]]:
    """A better and a worse answer each time, those furthest apart in rank first; NaN is no answer.

    >>> _opposed(np.array([1.0, 3.0, np.nan, 2.0, 0.0]), 2)
    [(1, 4), (3, 0)]
    >>> _opposed(np.array([1.0, 3.0, np.nan, 2.0]), "all")
    [(1, 0), (1, 3), (3, 0)]
    """
    valid = int((~np.isnan(totals)).sum())
    falling, rising = (np.argsort(sign * totals, kind="stable")[:valid].tolist() for sign in (-1, 1))  # NaN last
    if per_prompt == "all":
        apart = sorted(combinations(range(valid), 2), key=lambda ranks: ranks[0] - ranks[1])
        return [(falling[better], falling[worse]) for better, worse in apart]
    pairs = min(per_prompt, valid // 2)
    return list(zip(falling[:pairs], rising[:pairs], strict=True))


def _compared(prompt: Prompt) -> Comparison:
    """A prompt's answers as one comparison.

    Raises:
        BrokenRow: they do not say which of two different ones is better.
    """
    answers = prompt.meta.get("answers", [])
    by_source = {answer["source"]: answer["text"] for answer in answers}
    if set(by_source) == {"chosen", "rejected"} and len(answers) == 2:
        chosen, rejected = by_source["chosen"], by_source["rejected"]
    else:
        chosen, rejected = _best_and_worst(answers)
    known = {name: _strength(prompt.meta, names) for name, names in STRENGTH.items()}
    used = {"answers", "system", "history", *(name for names in STRENGTH.values() for name in names)}
    rest = {name: value for name, value in prompt.meta.items() if name not in used}
    return Comparison(prompt.id, replace(prompt, meta=context(prompt)), chosen, rejected, **known, meta=rest)


def _best_and_worst(answers: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    rated = [answer for answer in answers if answer["score"] is not None]
    if len(rated) < 2:
        raise BrokenRow(f"{len(rated)} of its answers are rated, and a comparison needs two")
    best, worst = max(rated, key=lambda one: one["score"]), min(rated, key=lambda one: one["score"])
    if best["score"] == worst["score"]:
        raise BrokenRow("its answers are rated alike, so none is better")
    if best["text"].strip() == worst["text"].strip():
        raise BrokenRow("its best and its worst answer are the same")
    return best["text"], worst["text"]


def _strength(meta: Mapping[str, Any], names: Sequence[str]) -> float | None:
    return next((score_of(meta[name]) for name in names if meta.get(name) is not None), None)


def _digest(found: Sequence[Comparison]) -> str:
    return rows_digest([Row(pair.id, row(pair)) for pair in found])
