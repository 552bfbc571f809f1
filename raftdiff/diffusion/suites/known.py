"""The benchmarks by name: where their prompts come from, how many there are, and what they are reduced by."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from raftdiff.errors import UserError, counted
from raftdiff.recipes.prompts import HUB, PromptsConfig, build, find_file, read_captions, read_named
from raftdiff.recipes.rows import Row, read_file
from raftdiff.types import Prompt

DPG = ("item_id", "text", "proposition_id", "dependency", "question_natural_language")
"""Columns of DPG-Bench's table that are read; of ``dependency`` 0 is no parent."""
CATEGORY = "category"
"""The column of prompts that lie in a file for each category."""


@final
@dataclass(frozen=True, slots=True)
class Suite:
    """A benchmark."""

    title: str
    prompts: int
    """As published; that a file has others is told."""
    samples: int
    """Pictures a prompt, as its authors draw them."""
    source: str
    """The published file or folder, and where it is."""
    columns: tuple[str, ...] = ()
    """Of the prompts, which sort them into categories; there are figures by each of them."""
    balanced: bool = False
    """Whether its figure is the mean over the categories, each with the same weight; else it is that of all prompts."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Of a folder with a file for each category: category -> file."""
    scored_by: str | None = None
    """The reward without which it is not that benchmark, where a model must be named for it."""
    reward: Mapping[str, Any] | None = None
    """What it is scored by where nothing else is named; else by the run's own rewards, or those that the user names."""


SUITES: Mapping[str, Suite] = {
    "geneval": Suite(
        "GenEval",
        553,
        4,
        "evaluation_metadata.jsonl, in prompts at github.com/djghosh13/geneval",
        columns=("tag",),
        balanced=True,
        reward={"type": "geneval"},
    ),
    "parti": Suite(
        "PartiPrompts",
        1632,
        1,
        "PartiPrompts.tsv at github.com/google-research/parti",
        columns=("Category", "Challenge"),
    ),
    "compbench": Suite(
        "T2I-CompBench",
        2400,
        10,
        "the folder examples/dataset of github.com/Karine-Huang/T2I-CompBench",
        columns=(CATEGORY,),
        balanced=True,
        files={
            name: f"{name}_val.txt"
            for name in ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex")
        },
    ),
    "hpsv2": Suite(
        "HPSv2",
        3200,
        1,
        "the folder benchmark of the data set zhwang/HPDv2 on the hub: anime.json, concept-art.json, paintings.json"
        " and photo.json",
        columns=(CATEGORY,),
        balanced=True,
        files={name: f"{name}.json" for name in ("anime", "concept-art", "paintings", "photo")},
    ),
    "geneval2": Suite(
        "GenEval 2",
        800,
        1,
        "geneval2_data.jsonl at github.com/facebookresearch/GenEval2",
        columns=("atom_count",),
        scored_by="soft_tifa",
    ),
    "dpg": Suite(
        "DPG-Bench",
        1065,
        4,
        "dpg_bench.csv, in dpg_bench at github.com/TencentQQGYLab/ELLA",
        scored_by="dpg",
    ),
    "imagereward": Suite(
        "ImageReward", 100, 10, "benchmark-prompts.json, in benchmark at github.com/zai-org/ImageReward"
    ),
    "pick-a-pic": Suite("Pick-a-Pic", 500, 1, "a file with the captions of a split of yuvalkirstain/pickapic_v1"),
}


def suite(name: str) -> Suite:
    """
    Raises:
        UserError: there is none of that name.
    """
    if name not in SUITES:
        raise UserError(f"--benchmark: '{name}' is none of {', '.join(SUITES)}.")
    return SUITES[name]


def rows_of(name: str, place: str | None) -> list[str | dict[str, Any]]:
    """The prompts of a benchmark's file or folder, as rows of ``prompts.captions``; captions that stand twice once,
    where the file gives them no other difference.

    Raises:
        UserError: none is named, it cannot be read, or a row lacks the column that it is reduced by.
    """
    it = suite(name)
    if place is None:
        raise UserError(
            f"--benchmark {name}: name its prompts with --prompts: {it.source}. Nothing is fetched, and none ships."
        )
    if place.startswith(HUB):
        return _demanded(name, _read(name, place), place)
    found = find_file(place, Path(), "--prompts")
    if it.files and found.is_dir():
        if missing := [file for file in it.files.values() if not (found / file).is_file()]:
            raise UserError(f"{found}: there is no {missing[0]} here, which {it.title} has; it is {it.source}.")
        rows = [
            {**(row if isinstance(row, dict) else {"caption": row}), CATEGORY: category}
            for category, file in it.files.items()
            for row in read_captions(found / file)
        ]
        return list(rows)
    if it.files:
        category = next((name for name, file in it.files.items() if file == found.name), found.stem)
        return [
            {CATEGORY: category, **(row if isinstance(row, dict) else {"caption": row})} for row in read_captions(found)
        ]
    if name == "dpg":
        return questioned(read_file(found), str(found))
    return _demanded(name, _read(name, place), place)


def questioned(rows: Sequence[Row], where: str) -> list[str | dict[str, Any]]:
    """DPG-Bench's table, a row a question, as prompts with their graphs under ``questions`` (``rewards.dpg``).

    Raises:
        UserError: it is another table.
    """
    prompts: dict[str, dict[str, Any]] = {}
    for row in rows:
        try:
            name, text, number, parents, question = (str(row.columns[column]).strip() for column in DPG)
            above = [int(parent) for parent in parents.split(",") if int(parent)]
            asked = {"id": int(number), "question": question, "parents": above}
        except (KeyError, ValueError):
            raise UserError(
                f"{row.where}: this is no row of dpg_bench.csv, which has {', '.join(DPG)}; DPG-Bench's folder of "
                "prompts has no questions."
            ) from None
        one = prompts.setdefault(name, {"id": name, "caption": text, "questions": []})
        one["caption"] = one["caption"] or text
        one["questions"].append(asked)
    if bare := next((name for name, one in prompts.items() if not one["caption"]), None):
        raise UserError(f"{where}: '{bare}' has no text.")
    return list(prompts.values())


def _read(name: str, place: str) -> list[str | dict[str, Any]]:
    if name != "pick-a-pic":
        return read_named(place, Path(), "--prompts")
    with warnings.catch_warnings():  # a row a pair, and many pairs of a caption
        warnings.filterwarnings("ignore", message=".* more than once ")
        pairs = read_named(place, Path(), "--prompts")
    return list(dict.fromkeys(row if isinstance(row, str) else row["caption"] for row in pairs))


def _demanded(name: str, captions: list[str | dict[str, Any]], place: str) -> list[str | dict[str, Any]]:
    """
    Raises:
        UserError: a row lacks the column that the benchmark is reduced by.
    """
    it = suite(name)
    for number, row in enumerate(captions, 1):
        if lacking := [column for column in it.columns if not isinstance(row, dict) or not row.get(column)]:
            raise UserError(
                f"{place}: prompt {number} has no '{lacking[0]}', by which {it.title} is reduced. The published file "
                f"is {it.source}."
            )
    return captions


def prompts_of(name: str, rows: Sequence[str | dict[str, Any]], config: PromptsConfig) -> list[Prompt]:
    """The prompts, with the magic and the negative prompt of ``config``."""
    return build(config.model_copy(update={"file": None, "captions": list(rows)}), "--prompts")


def told_of(name: str, prompts: int, samples: int | None = None) -> list[str]:
    """What sets these prompts apart from the published benchmark, a sentence each."""
    it = suite(name)
    found = []
    if prompts != it.prompts:
        found.append(
            f"{it.title} has {counted(it.prompts, 'prompt')}, and here are {prompts:,}: its figure is not comparable "
            "with published ones."
        )
    if samples is not None and samples < it.samples:
        found.append(
            f"{it.title} is drawn with {counted(it.samples, 'picture')} a prompt, and here are {samples}: the "
            "intervals are wider."
        )
    return found
