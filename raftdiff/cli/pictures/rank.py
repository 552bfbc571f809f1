"""``raftdiff rank``: pictures that one already has, scored, sorted, and the best of them copied."""

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from raftdiff.cli.either import tell
from raftdiff.cli.show import Bars
from raftdiff.cli.tools import reward_type
from raftdiff.diffusion.found.ranked import Ranked, Without, best, constant, rank
from raftdiff.diffusion.found.titles import retitled, titled, untitled
from raftdiff.diffusion.found.written import place_of, write
from raftdiff.diffusion.sampling.gathering import gathered
from raftdiff.diffusion.wording import Reading, limits, signs
from raftdiff.embedded import resolve
from raftdiff.errors import UserError, counted
from raftdiff.ranking import Bound, assigned
from raftdiff.recipes import registry
from raftdiff.recipes.checks import RELATIVE, weight_of
from raftdiff.recipes.config import options, plain
from raftdiff.recipes.needs import rewards_ready
from raftdiff.recipes.prompts import PromptsConfig, build, read_named
from raftdiff.records.disk import demand_place, vacant
from raftdiff.reports.words import duration
from raftdiff.scoring import demand_prompts
from raftdiff.selection.mixes import MIXES
from raftdiff.training.devices import find_device
from raftdiff.types import Reader

SHOWN = 10
"""Pictures in the printed table, and sentences on those that were left out."""

WITHOUT: Mapping[Without, str] = {
    "flat": "of one colour",
    "discarded": "discarded by a reward (NaN)",
    "vetoed": "vetoed",
}


def rank_pictures(args: argparse.Namespace) -> None:
    """Score all, print the best, and write tables, contact sheet and copies: all of it or, interrupted, nothing."""
    configs = rewards_of(args.reward)
    out = _vacant(args.out or Path(f"{args.folder.resolve().name}-ranked"), args.folder)
    given = [] if args.prompts is None else build(_asked(args.prompts), "--prompts")
    for sentence in rewards_ready(configs, resolve):
        print(sentence, file=sys.stderr)
    found, left = gathered(args.folder)
    pictures, strange = titled(found, given)
    if given and (other := retitled(pictures)):
        tell([f"--prompts: {other}"])
    device = str(find_device(args.device))
    rewards, bounds = assigned(configs, [config.build(device=device, resolve=resolve) for config in configs])
    known = list({prompt.id: prompt for _, prompt in pictures if not untitled(prompt)}.values())
    readings = [
        Reading(f"the reward '{config.name}'", reward, lambda prompt: prompt.caption)
        for config, (reward, _) in zip(configs, rewards, strict=True)
        if isinstance(reward, Reader)
    ]
    tell([*limits("captions", known, readings), *signs("captions", known)])
    demand_prompts([reward for reward, _ in rewards], known)
    _comparable(args.mix, bounds, [prompt.id for _, prompt in pictures])
    bars, began = Bars(), time.monotonic()
    try:
        ranked, damaged = rank(pictures, rewards, mix=MIXES[args.mix], bounds=bounds, report=bars.stage(0, "score"))
        spent = time.monotonic() - began
        chosen = best(ranked, args.top, args.per_prompt)
        left = [*left, *strange, *damaged]
        record = {config.name: plain(config) for config in configs}
        write(out, ranked, chosen, root=args.folder, rewards=record, left_out=left, mix=args.mix)
    finally:
        bars.close()
    for config in configs:
        if weight_of(config) and (value := constant(ranked, config.name)) is not None:
            tell([f"the reward '{config.name}' is {value:.4g} for every picture, and tells none from another"])
    for sentence in left[:SHOWN]:
        print(f"left out: {sentence}", file=sys.stderr)
    if len(left) > SHOWN:
        print(f"left out: {len(left) - SHOWN} more, named in ranking.json", file=sys.stderr)
    scored = sum(it.total == it.total for it in ranked)
    print(_table(ranked[: min(SHOWN, scored)], args.folder))
    pace = f"{duration(spent)}, {len(ranked) / max(spent, 1e-9):.0f} a second"
    print(f"\n{counted(len(ranked), 'picture')} in {pace}{_without(ranked)}")
    print(f"{out}: ranking.csv, ranking.json, sheet.png, and {counted(len(chosen), 'picture')} in best")


def rewards_of(words: Sequence[str]) -> list[Any]:
    """The rewards to rank by.

    Raises:
        UserError: as ``named_rewards``, or none has a weight.
    """
    configs = named_rewards(words)
    if not any(map(weight_of, configs)):
        raise UserError(
            "--reward: every reward has the weight 0, or a role that does not rank, so nothing is better than anything "
            "else."
        )
    return configs


def named_rewards(words: Sequence[str]) -> list[Any]:
    """The rewards that ``--reward`` names: ``NAME`` or ``module:function``, by choice with ``:key=value,key=value``
    behind, or a mapping as in a recipe.

    Raises:
        UserError: one is not known, or wrong in a key or value; two have one name.
    """
    configs = [_reward(word) for word in words]
    names = [config.name for config in configs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--reward: two rewards are called '{twice}'; give one another name, such as name={twice}2.")
    return configs


def _comparable(mix: str, bounds: Mapping[str, Bound], ids: Sequence[str]) -> None:
    """
    Raises:
        UserError: the mix or a bound compares pictures of one prompt, and there is one of each.
    """
    medians = [name for name, bound in bounds.items() if bound.at_least == "median"]
    if (mix in RELATIVE or medians) and len(set(ids)) == len(ids):
        what = f"--mix {mix}" if mix in RELATIVE else f"--reward: at_least=median of '{medians[0]}'"
        raise UserError(
            f"{what}: it compares the pictures of a prompt, and there is one of each; leave it out, or name one "
            "prompt for all of them with --prompts."
        )


def _reward(word: str) -> Any:
    if word.lstrip().startswith("{"):
        try:
            told, overrides = yaml.safe_load(word), list[str]()
        except yaml.YAMLError as error:
            raise UserError(
                f"--reward {word}: this is no mapping as in a recipe: {' '.join(str(error).split())}"
            ) from None
        if not isinstance(told, dict) or not isinstance(told.get("type"), str):
            raise UserError(f"--reward {word}: a mapping names the reward as its 'type', such as {{type: clip}}.")
    else:
        parts = re.fullmatch(r"([^:=,]*(?::[^:=,]*)?)(?::([^:=,]+=.*))?", word, re.DOTALL)
        if parts is None:
            raise UserError(
                f"--reward {word}: write it as NAME:key=value,key=value, such as clip:model=scene-clip,weight=0.5, or "
                "as a mapping of a recipe: '{type: clip, model: scene-clip}'."
            )
        told = reward_type(parts[1])
        overrides = [part for part in re.split(r",(?=[^,=]+=)", parts[2] or "") if part]
    return options(registry.load("rewards", told["type"]), told, overrides, f"--reward {word}")


def _asked(file: str) -> PromptsConfig:
    return PromptsConfig(captions=read_named(file, Path(), "--prompts"))


def _vacant(out: Path, folder: Path) -> Path:
    """
    Raises:
        UserError: there is something in the folder, or it lies among the pictures.
        OSError: nothing can be written there.
    """
    if out.is_file() or (out.is_dir() and not vacant(out)):
        raise UserError(
            f"{out}: there is something already, and nothing is overwritten; name another folder with --out."
        )
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{out}: this lies in {folder}, whose pictures are ranked; name a folder elsewhere with --out.")
    demand_place(out)
    return out


def _without(ranked: Sequence[Ranked]) -> str:
    """How many have no total, and why; nothing where all have one."""
    whys = Counter(one.without for one in ranked if one.without)
    told = [f"{whys[why]} {words}" for why, words in WITHOUT.items() if whys[why]]
    return f"; {whys.total()} without a total: {', '.join(told)}" if told else ""


def _table(ranked: Sequence[Ranked], root: Path) -> str:
    """The first pictures with their totals and scores, right-aligned."""
    names = list(ranked[0].scores)
    totals = ["total"] if len(names) > 1 else []
    rows = [["", *totals, *names, "file"]]
    for place, one in enumerate(ranked, 1):
        told = [f"{value:.4g}" for value in (*([one.total] if totals else []), *one.scores.values())]
        rows.append([str(place), *told, place_of(one.found, root)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[-1] = 0  # the name stands at the left, and nothing behind it
    return "\n".join("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
