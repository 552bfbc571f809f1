"""Pictures that one already has: scored by rewards, sorted, and the best of them copied."""

import math
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, final

import torch
from PIL import Image

from raftdiff.diffusion.found.titles import UNTITLED, NoCaptionError
from raftdiff.diffusion.sampling.pictures import Found
from raftdiff.errors import UserError, counted
from raftdiff.measures.pictures import is_flat, opened
from raftdiff.ranking import Bound, Ranker, Unfit
from raftdiff.scoring import sees_prompts
from raftdiff.selection.best import BestOfKConfig
from raftdiff.selection.mixes import MIXES, Mix
from raftdiff.types import Key, Prompt, Report, Reward, Sample, silent

BATCH = 32
"""Pictures that the rewards see together; as many again are being opened meanwhile."""
THREADS = 2
"""That open pictures while the rewards compute."""

Without: TypeAlias = Literal["flat", "discarded", "vetoed"]
"""Why a picture has no total: it is of one colour, a reward that has a say is NaN, or it is below a veto."""


@final
@dataclass(frozen=True, slots=True)
class Ranked:
    """A picture and what the rewards say of it."""

    found: Found
    prompt: Prompt
    total: float
    """What it is ranked by, as the rewards are mixed; higher is better, NaN where it has no score or was vetoed."""
    scores: Mapping[str, float]
    """By reward, as each says it."""
    without: Without | None = None
    """Why it has no total."""


class Opened(NamedTuple):
    """A picture in memory."""

    picture: Image.Image
    flat: bool
    """Whether it is of one colour all over."""


def constant(ranked: Sequence[Ranked], name: str) -> float | None:
    """What a reward says of each picture of which it says something, where that is the same of two or more of them."""
    told = [one.scores[name] for one in ranked if not math.isnan(one.scores[name])]
    return told[0] if len(told) > 1 and len(set(told)) == 1 else None


def rank(
    pictures: Sequence[tuple[Found, Prompt]],
    rewards: Sequence[tuple[Reward[Image.Image], float]],
    *,
    mix: Mix = MIXES["weighted_sum"],
    bounds: Mapping[str, Bound] | None = None,
    report: Report = silent,
) -> tuple[list[Ranked], list[str]]:
    """The pictures by their total, best first and those without one last; and what could not be opened, a sentence
    each. ``report`` hears how many were looked at; ``mix`` and ``bounds`` are those of a ``Ranker``.

    Raises:
        UserError: no picture can be opened, none has a total, or a reward reads captions where one is not known.
    """
    asked = sorted(pictures, key=lambda it: (it[1] is not UNTITLED, it[1].id))  # what may be refused is refused at once
    ids = list(dict.fromkeys(prompt.id for _, prompt in asked))
    row, met = {name: place for place, name in enumerate(ids)}, Counter[str]()
    cells = []
    for _, prompt in asked:
        cells.append((row[prompt.id], met[prompt.id]))
        met[prompt.id] += 1
    damaged, flat = dict[int, str](), set[Key]()
    comparing = any(sees_prompts(reward) for reward, _ in rewards)

    def batches() -> Iterator[list[Sample[Image.Image]]]:
        batch: list[Sample[Image.Image]] = []
        for k, opening in enumerate(ahead([one for one, _ in asked])):
            if comparing and k and asked[k][1].id != asked[k - 1][1].id and len(batch) >= BATCH:
                yield batch  # only here, where a prompt's pictures are compared with each other
                batch = []
            if isinstance(opening, UserError):
                damaged[k] = str(opening)
            else:
                batch.append(_sample(*asked[k], cells[k][1], opening.picture))
                if opening.flat:
                    flat.add(batch[-1].key)
            if len(batch) == BATCH and not comparing:
                yield batch
                batch = []
            report(k + 1, len(asked))
        if batch:
            yield batch
        if len(damaged) == len(asked):
            raise UserError(f"Not one of {counted(len(asked), 'picture')} can be opened: {damaged[0]}")

    unfit = Unfit[Image.Image](lambda sample: sample.key in flat, "blank", "pictures are of one colour all over.")
    ranker = Ranker(rewards, BestOfKConfig().build(seed=0), unfit=unfit, mix=mix, bounds=bounds or {})
    try:
        scores = ranker.score(batches(), ids, 1 + max(place for _, place in cells))
    except NoCaptionError:
        raise UserError(_who_reads(rewards, [one for one, prompt in asked if prompt is UNTITLED])) from None
    telling = [reward.name for reward, weight in rewards if weight or reward.name in ranker.bounds]
    found = []
    for k, cell in enumerate(cells):
        if k not in damaged:
            told = {name: float(table[cell]) for name, table in scores.raw.items()}
            blank = Key(0, asked[k][1].id, cell[1]) in flat
            why = None if not math.isnan(scores.total[cell]) else _why(blank, [told[name] for name in telling])
            found.append(Ranked(*asked[k], float(scores.total[cell]), told, why))
    order = {id(one): place for place, (one, _) in enumerate(pictures)}
    found.sort(key=lambda it: (math.isnan(it.total), -it.total, order[id(it.found)]))
    return found, list(damaged.values())


def _why(flat: bool, told: Sequence[float]) -> Without:
    """Why a picture has no total, given what the rewards say of it that have a say."""
    return "flat" if flat else "discarded" if any(map(math.isnan, told)) else "vetoed"


def ahead(found: Sequence[Found]) -> Iterator[Opened | UserError]:
    """The pictures one after the other, or why one cannot be opened; the next ones are being opened meanwhile."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting = deque[Future[Opened | UserError]]()
        try:
            for one in found:
                waiting.append(pool.submit(_open, one))
                if len(waiting) > BATCH:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _open(one: Found) -> Opened | UserError:
    try:
        picture = opened(one.picture, None if isinstance(one.picture, Path) else one.where)
        return Opened(picture, is_flat(picture))
    except UserError as error:
        return error


def _sample(one: Found, prompt: Prompt, index: int, picture: Image.Image) -> Sample[Image.Image]:
    told = {} if one.score is None else {"score": torch.tensor(one.score)}
    return Sample(0, prompt, index, 0, "dataset", picture, told)


def _who_reads(rewards: Sequence[tuple[Reward[Image.Image], float]], bare: Sequence[Found]) -> str:
    """That a reward reads captions, and where they could stand."""
    pattern = Image.linear_gradient("L").convert("RGB")
    names = []
    for reward, _ in rewards:
        try:
            reward.score([_sample(bare[0], UNTITLED, 0, pattern)])
        except NoCaptionError:
            names.append(f"'{reward.name}'")
        except Exception:  # of another kind, which is not what is told here
            continue
    who = f"The reward {names[0]} reads" if len(names) == 1 else f"The rewards {', '.join(names)} read"
    return (
        f"{who} captions, and none is known of {counted(len(bare), 'picture')}, such as {bare[0].where}. Captions "
        "stand in metadata.jsonl (or .csv) with file_name and caption, or in .txt files beside the pictures; or name a "
        "file of prompts with --prompts: one alone holds for all, of several each for the pictures named after its id."
    )


def best(ranked: Sequence[Ranked], top: int, per_prompt: int | None = None) -> list[Ranked]:
    """The first ``top`` that have a total, at most ``per_prompt`` of one prompt."""
    met, chosen = Counter[str](), list[Ranked]()
    for one in ranked:
        met[one.prompt.id] += 1
        if not math.isnan(one.total) and (per_prompt is None or met[one.prompt.id] <= per_prompt):
            chosen.append(one)
    return chosen[:top]
