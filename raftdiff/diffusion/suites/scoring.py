"""Scores of a benchmark's pictures, batch after batch; what was said of a picture is kept, and not asked again."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float
from PIL import Image

from raftdiff.diffusion.suites.lying import Picture, row_of
from raftdiff.errors import UserError, counted
from raftdiff.measures.pictures import is_flat, opened
from raftdiff.ranking import scores
from raftdiff.recipes.config import digest
from raftdiff.recipes.registry import BUILT_IN
from raftdiff.records.disk import append, read_appended
from raftdiff.scoring import called, demand_prompts, in_batches, numbers, sees_prompts
from raftdiff.types import Explained, Explains, Prompt, Reason, Report, Reward, Sample, silent

BATCH = 32
"""Pictures that the rewards see together."""
UNKEPT = ("callable", "remote", "labels")
"""Rewards of ours that may say something else tomorrow under the same settings: each is asked again, as those of
plug-ins are."""

Table = Float[np.ndarray, "prompts samples"]
Told: TypeAlias = dict[tuple[str, int], tuple[Reason, ...]]
"""What is wrong with each picture that has a score, by prompt id and index."""


class Scorer(NamedTuple):
    """A reward and what its scores depend on."""

    reward: Reward[Image.Image]
    settings: Mapping[str, Any]
    """Its recipe, and the fingerprints of its weights; under them its scores are kept."""


class Scored(NamedTuple):
    tables: dict[str, Table]
    """By reward; rows are the prompts, NaN where there is no picture or the reward discards it."""
    reasons: dict[str, Told]
    """By reward that gives any."""
    blank: int
    """Pictures of one colour all over. They are scored as all are: a benchmark leaves none out."""
    pictures: int
    sizes: dict[str, tuple[int, int]]
    """Width and height in pixels of each picture, by what sentences call it."""


def score(
    pictures: Sequence[Picture],
    prompts: Sequence[Prompt],
    scorers: Sequence[Scorer],
    file: Path,
    *,
    report: Report = silent,
) -> Scored:
    """The tables of all rewards; ``file`` keeps scores as JSON lines.

    Raises:
        UserError: a picture is damaged, a reward does not know a prompt, or gives no numbers; all are of one colour.
    """
    demand_prompts([one.reward for one in scorers], prompts)
    row = {prompt.id: place for place, prompt in enumerate(prompts)}
    size = (len(prompts), 1 + max((one.index for one in pictures), default=0))
    tables = {one.reward.name: np.full(size, np.nan) for one in scorers}
    reasons: dict[str, Told] = {one.reward.name: {} for one in scorers if isinstance(one.reward, Explains)}
    held = {line["key"]: line for line in read_appended(file) if isinstance(line.get("key"), str)}
    marks = {one.reward.name: digest(one.settings) for one in scorers}
    done, blank, sizes = 0, 0, dict[str, tuple[int, int]]()
    for places in in_batches(((one.prompt.id, one.index) for one in pictures), BATCH):
        batch = [pictures[place] for place in places]
        media = [opened(one.source, one.where) for one in batch]
        blank += sum(map(is_flat, media))
        sizes |= {one.where: picture.size for one, picture in zip(batch, media, strict=True)}
        samples = [
            Sample(0, one.prompt, one.index, 0, "policy", picture) for one, picture in zip(batch, media, strict=True)
        ]
        seen = [_seen(sample) for sample in samples]
        together = {sample.prompt.id: "" for sample in samples}
        for sample, mark in zip(samples, seen, strict=True):
            together[sample.prompt.id] += mark
        lines = []
        for one in scorers:
            name = one.reward.name
            whole = [together[sample.prompt.id] if sees_prompts(one.reward) else "" for sample in samples]
            keys = [_key(marks[name], *said) for said in zip(seen, whole, strict=True)]
            kept = _is_kept(one.settings)
            known = [_read(held.get(key), one.reward) for key in keys] if kept else []
            values = [it for it in known if it is not None]
            if lacking := len(values) < len(samples):
                values = _asked(one.reward, samples)
            for sample, key, value in zip(samples, keys, values, strict=True):
                tables[name][row[sample.prompt.id], sample.index] = value.score
                if name in reasons and not np.isnan(value.score):
                    reasons[name][sample.prompt.id, sample.index] = value.reasons
                if lacking:
                    said = {"reward": name, "prompt": sample.prompt.id, "index": sample.index}
                    held[key] = {"key": key, **said, **_written(value, one.reward)}
                    lines.append(json.dumps(held[key], ensure_ascii=False) + "\n")
        if lines:
            file.parent.mkdir(parents=True, exist_ok=True)
            append(file, lines)
        done += len(batch)
        report(done, len(pictures))
    if pictures and blank == len(pictures):
        raise UserError(
            f"All {counted(blank, 'picture')} are of one colour, as where a model computes NaN: set model.dtype to "
            "bfloat16 or float32."
        )
    return Scored(tables, reasons, blank, len(pictures), sizes)


def _is_kept(settings: Mapping[str, Any]) -> bool:
    """Whether a reward says the same again: one of ours that asks nobody's function."""
    return settings.get("type") in {*BUILT_IN["rewards"]}.difference(UNKEPT) and not settings.get("captioner")


def _seen(sample: Sample[Image.Image]) -> str:
    """Names a picture by its pixels, with all that is known of its prompt."""
    mark = hashlib.blake2b(digest_size=16)
    mark.update(json.dumps([sample.media.size, row_of(sample.prompt)], sort_keys=True, default=str).encode())
    mark.update(sample.media.tobytes())
    return mark.hexdigest()


def _key(reward: str, picture: str, others: str) -> str:
    return hashlib.blake2b("-".join((reward, picture, others)).encode(), digest_size=12).hexdigest()


def _asked(reward: Reward[Image.Image], samples: Sequence[Sample[Image.Image]]) -> list[Explained]:
    """
    Raises:
        UserError: as ``ranking.scores``.
    """
    if not isinstance(reward, Explains):
        return [Explained(float(value)) for value in scores(reward, samples)]
    told = reward.explained(samples)
    values = numbers([one.score for one in told], len(samples), called(reward))
    return [Explained(float(value), one.reasons) for value, one in zip(values, told, strict=True)]


def _written(value: Explained, reward: Reward[Image.Image]) -> dict[str, Any]:
    """As a line of JSON holds it."""
    score = {"score": None if np.isnan(value.score) else value.score}
    return {**score, "reasons": value.reasons} if isinstance(reward, Explains) else score


def _read(line: Mapping[str, Any] | None, reward: Reward[Image.Image]) -> Explained | None:
    """What a line holds; None where it is not as ``_written`` leaves it, by somebody's edit or without the reasons that
    earlier versions did not keep: that is asked for again."""
    score = (line or {}).get("score", "")
    reasons = (line or {}).get("reasons") if isinstance(reward, Explains) else []
    if score is not None and not (isinstance(score, float) and math.isfinite(score)):
        return None
    if not isinstance(reasons, list | tuple) or not all(map(_is_reason, reasons)):
        return None
    return Explained(np.nan if score is None else score, tuple(Reason(*reason) for reason in reasons))


def _is_reason(told: Any) -> bool:
    return isinstance(told, list | tuple) and len(told) == 2 and all(isinstance(it, str) for it in told)
