"""Pictures that one already has: scored by rewards, sorted, and the best of them copied."""

import csv
import io
import json
import math
import os
import re
import shutil
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, TypeAlias, final

import torch
from PIL import Image

from raftdiff.diffusion.sampling.pictures import Found
from raftdiff.errors import UserError, counted
from raftdiff.measures.pictures import is_flat, opened
from raftdiff.ranking import Bound, Ranker, Unfit
from raftdiff.recipes.prompts import made_ids
from raftdiff.records.disk import together, write_text
from raftdiff.records.media import apart
from raftdiff.reports.images import grid
from raftdiff.scoring import sees_prompts
from raftdiff.selection.best import BestOfKConfig
from raftdiff.selection.mixes import MIXES, Mix
from raftdiff.types import Key, Prompt, Report, Reward, Sample, silent

BATCH = 32
"""Pictures that the rewards see together; as many again are being opened meanwhile."""
THREADS = 2
"""That open pictures while the rewards compute."""
SHEET, COLUMNS, LABEL, LONGEST = 100, 10, 18, 160
"""Pictures on a contact sheet and in a row of it; letters of a name under one, and bytes of a copy's name."""

Without: TypeAlias = Literal["flat", "discarded", "vetoed"]
"""Why a picture has no total: it is of one colour, a reward that has a say is NaN, or it is below a veto."""


class NoCaptionError(UserError):
    """A reward asked for the caption of a picture whose caption nobody knows."""


@final
class Untitled(Prompt):
    """The prompt of pictures of which no caption is known: whoever reads it is told so."""

    __slots__ = ()

    def __deepcopy__(self, memo: object) -> "Untitled":
        return self

    def __init__(self) -> None:
        for name, value in {"id": "untitled", "sampling": "", "learning": "", "negative": "", "meta": {}}.items():
            object.__setattr__(self, name, value)

    @property
    def caption(self) -> NoReturn:
        raise NoCaptionError("no caption is known of this picture")


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


def titled(found: Sequence[Found], given: Sequence[Prompt] = ()) -> tuple[list[tuple[Found, Prompt]], list[str]]:
    """Each picture with its prompt; and the pictures that are left out, a sentence each.

    Prompts that are ``given`` come before what is known of the pictures: one alone holds for all of them, of several
    the one with the picture's id or caption, or whose id is its file's name, by choice with a number behind. A picture
    that is of none of them is left out, whatever its caption.

    Raises:
        UserError: some prompts are given, and no picture is of one.
    """
    if len(given) == 1:
        return [(one, given[0]) for one in found], []
    by_id, by_caption = {it.id: it for it in given}, {it.caption: it for it in given}
    matched = [
        next((by_id[name] for name in _names(one) if name in by_id), by_caption.get(one.caption)) for one in found
    ]
    if given and not any(matched):
        raise UserError(
            f"--prompts: not one of {counted(len(found), 'picture')} is of one of these {len(given)} prompts, such as "
            f"'{given[0].id}'. A picture is named after its prompt's id, such as {given[0].id}-000.png, or has its "
            "caption in metadata.jsonl or in a .txt file beside it."
        )
    if given:
        held = [(one, prompt) for one, prompt in zip(found, matched, strict=True) if prompt is not None]
        strange = [one for one, prompt in zip(found, matched, strict=True) if prompt is None]
        return held, [f"{one.where}: this picture is of none of the prompts." for one in strange]
    own = _own([one for one in found if one.caption])
    return [(one, own.get(_key(one)) or UNTITLED) for one in found], []


def retitled(pictures: Sequence[tuple[Found, Prompt]]) -> str:
    """Of how many pictures the caption that they have is not the one of their prompt, with one of them; nothing where
    it is of all."""
    other = [(one, prompt) for one, prompt in pictures if one.caption and one.caption != prompt.caption]
    if not other:
        return ""
    (one, prompt), count = other[0], f"{len(other)} of {counted(len(pictures), 'picture')}"
    return f"{count} with a caption of their own are scored by another: {one.where} by '{prompt.caption}'"


def constant(ranked: Sequence[Ranked], name: str) -> float | None:
    """What a reward says of each picture of which it says something, where that is the same of two or more of them."""
    told = [one.scores[name] for one in ranked if not math.isnan(one.scores[name])]
    return told[0] if len(told) > 1 and len(set(told)) == 1 else None


UNTITLED = Untitled()


def untitled(prompt: Prompt) -> bool:
    """Whether it is that of pictures of which no caption is known."""
    return prompt is UNTITLED


def _names(one: Found) -> list[str]:
    """Ids that the picture's prompt may have."""
    stem = one.picture.stem.replace("~", "") if isinstance(one.picture, Path) else ""
    return [name for name in (one.id, stem, re.sub(r"[-_]\d+$", "", stem)) if name]


def _own(found: Sequence[Found]) -> dict[str, Prompt]:
    """The prompts that pictures bring themselves, each once."""
    first = {_key(one): one for one in found}
    twice = Counter(str(one.id).lower() for one in first.values())
    given = [one.id if twice[str(one.id).lower()] == 1 else None for one in first.values()]
    ids = made_ids(given, [one.caption for one in first.values()])
    return {
        key: Prompt(name, one.caption, one.caption, one.caption, meta=one.meta)
        for name, (key, one) in zip(ids, first.items(), strict=True)
    }


def _key(one: Found) -> str:
    return json.dumps([one.id, one.caption, dict(one.meta)], sort_keys=True, default=str)


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


def write(
    folder: Path,
    ranked: Sequence[Ranked],
    chosen: Sequence[Ranked],
    *,
    root: Path,
    rewards: Mapping[str, Mapping[str, Any]],
    left_out: Sequence[str],
    mix: str = "weighted_sum",
) -> None:
    """Tables of all pictures, best first, as CSV and JSON; of those that were chosen a contact sheet, and copies in
    ``best``, a folder as datasets' ImageFolder and the sampler ``folder`` read it. All of it or nothing.

    Args:
        root: what the tables name files within.
        rewards: their settings by name, for the record, as is ``mix``.

    Raises:
        OSError: the disk refuses.
    """
    rows = [_row(place, one, root) for place, one in enumerate(ranked, 1)]
    with together(folder) as aside:
        write_text(aside / "ranking.csv", _csv(rows, list(rewards)))
        record = {"folder": str(root), "rewards": rewards, "mix": mix, "left_out": list(left_out), "pictures": rows}
        write_text(aside / "ranking.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        (copies := aside / "best").mkdir()
        lines = []
        for place, one in enumerate(chosen, 1):
            name = _copy(copies, f"{place:0{len(str(len(chosen)))}d}", one.found)
            row = _row(place, one, root)
            told = {key: row[key] for key in ("prompt_id", "caption", "place", "total", "file") if key in row}
            meta = {"meta": json.dumps(dict(one.prompt.meta), ensure_ascii=False)} if one.prompt.meta else {}
            scores = {f"reward_{key}": _number(value) for key, value in one.scores.items()}
            lines.append(json.dumps({"file_name": name, **told, **scores, **meta}) + "\n")
        write_text(copies / "metadata.jsonl", "".join(lines))
        sheet(chosen[:SHEET]).save(aside / "sheet.png", compress_level=1)


def sheet(chosen: Sequence[Ranked]) -> Image.Image:
    """The pictures in rows, each with its place, total and name."""
    pictures = [opened(one.found.picture, one.found.where) for one in chosen]
    names = [one.found.picture.stem if isinstance(one.found.picture, Path) else "" for one in chosen]
    short = [name if len(name) <= LABEL else f"{name[: LABEL - 1]}…" for name in names]
    labels = [
        f"{place}: {one.total:.4g} {name}" for place, (one, name) in enumerate(zip(chosen, short, strict=True), 1)
    ]
    return grid(pictures, columns=COLUMNS, labels=labels)


def _row(place: int, one: Ranked, root: Path) -> dict[str, Any]:
    known = {} if one.prompt is UNTITLED else {"prompt_id": one.prompt.id, "caption": one.prompt.caption}
    return {
        "place": None if math.isnan(one.total) else place,
        "file": place_of(one.found, root),
        "total": _number(one.total),
        "scores": {name: _number(value) for name, value in one.scores.items()},
        **({"without": one.without} if one.without else {}),
        **known,
    }


def place_of(one: Found, root: Path) -> str:
    """A picture's file within ``root``; of one that lies in a table itself, its row."""
    return os.path.relpath(one.picture, root) if isinstance(one.picture, Path) else one.where


def _csv(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["place", "total", *names, "file", "prompt_id", "caption"])
    for row in rows:
        scores = [row["scores"][name] for name in names]
        table.writerow([row["place"], row["total"], *scores, row["file"], row.get("prompt_id"), row.get("caption")])
    return text.getvalue()


def _copy(folder: Path, place: str, one: Found) -> str:
    """A picture under a name of its own, byte by byte."""
    if isinstance(one.picture, bytes):
        with Image.open(io.BytesIO(one.picture)) as picture:
            name = f"{place}.{(picture.format or 'png').lower()}"
        (folder / name).write_bytes(one.picture)
        return name
    plain = _short("".join(letter if _keeps(letter) else "-" for letter in one.picture.stem)) or "picture"
    name = apart(f"{place}-{plain}{one.picture.suffix.lower()}")
    shutil.copyfile(one.picture, folder / name)
    return name


def _keeps(letter: str) -> bool:
    """Whether a letter of any script can stand in a file's name everywhere."""
    return letter in "._-" or letter.isalnum() if letter.isascii() else letter.isprintable()


def _short(name: str) -> str:
    """As much of a name as file systems take, which count bytes, with signs before and behind taken off."""
    return re.sub(r"-+", "-", name).encode()[:LONGEST].decode(errors="ignore").strip("-.")


def _number(value: float) -> float | None:
    """As rewards give it, without what float32 adds in more digits than it has."""
    return None if math.isnan(value) else float(f"{value:.7g}")
