"""``raftdiff rewards train-aesthetic``: an aesthetic head from pictures that somebody rated."""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from raftdiff.cli.either import tell
from raftdiff.cli.show import Bars
from raftdiff.diffusion.found.rated import Outcome, Rated, Trained, doubts, embedded, train, write
from raftdiff.diffusion.sampling.gathering import rated
from raftdiff.embedded import resolve
from raftdiff.errors import UserError, command, counted
from raftdiff.measures.regression import Correlation
from raftdiff.recipes.config import options
from raftdiff.records.disk import demand_place
from raftdiff.reports.words import duration
from raftdiff.rewards.aesthetic import AestheticConfig, Origin
from raftdiff.training.devices import find_device

SHOWN = 10
"""Sentences on pictures that were left out."""
SUFFIX = ".safetensors"


def train_aesthetic(args: argparse.Namespace) -> None:
    """Embed, fit, look at what was held out, write: the head as a whole or, interrupted, nothing."""
    place = args.folder.resolve()
    out = _vacant(args.out or Path(f"{place.name if place.is_dir() else place.stem}-aesthetic{SUFFIX}"))
    config = _config(out, args.tower, args.overrides)
    found, left = rated(args.folder, args.column)
    _demand_tower(config)
    tower = config.open(str(find_device(args.device)), resolve)
    bars, began = Bars(), time.monotonic()
    try:
        pictures, damaged = embedded(found, tower, report=bars.stage(0, "embed"))
    finally:
        bars.close()
    spent = time.monotonic() - began
    trained = train(pictures, held_out=args.held_out, seed=args.seed)
    origin = Origin(config.model, config.weights(resolve), tower.mark)
    write(out, trained, pictures, origin, seed=args.seed, held_out=args.held_out)
    left = [*left, *damaged]
    for sentence in left[:SHOWN]:
        print(f"left out: {sentence}", file=sys.stderr)
    if len(left) > SHOWN:
        print(f"left out: {len(left) - SHOWN} more", file=sys.stderr)
    print(f"{_counts(pictures)}; {tower.name.rpartition('/')[-1]}, {duration(spent)}\n")
    print(_table(trained))
    tell(doubts(trained))
    print(_paste(out, config))


def _config(out: Path, tower: str | None, overrides: Sequence[str]) -> AestheticConfig:
    """The reward that the head is for.

    Raises:
        UserError: a key or a value is wrong, or says what an option says.
    """
    for word in overrides:
        if taken := re.match(r"(head|model)=", word):
            raise UserError(f"{word}: this is said by {'--out' if taken[1] == 'head' else '--tower'} here.")
    told = {"type": "aesthetic", "head": str(out), **({"model": tower} if tower else {})}
    return options(AestheticConfig, told, overrides, "the reward 'aesthetic'")


def _demand_tower(config: AestheticConfig) -> None:
    """
    Raises:
        UserError: the CLIP model is neither here nor to be had.
    """
    for need in config.tower_needs(resolve):
        if not need.fetched:
            raise UserError(f"--tower {config.model}: {need.sentence} 'scene-clip' ships, and needs no network.")
        print(f"--tower {config.model}: {need.sentence}", file=sys.stderr)


def _vacant(out: Path) -> Path:
    """
    Raises:
        UserError: there is something already, or it is no name for such a file.
        OSError: nothing can be written there.
    """
    if out.suffix != SUFFIX:
        raise UserError(f"--out {out}: a head is written as a {SUFFIX} file; name it {out.with_suffix(SUFFIX)}.")
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: there is something already, and nothing is overwritten; name another with --out.")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; make it first.")
    demand_place(out)
    return out


def _counts(pictures: Rated) -> str:
    given = np.array(pictures.given)
    several = len(given) - len(pictures.ratings)
    more = f" (equal pictures count once, with the mean of their ratings: {several} more)" if several else ""
    return (
        f"{counted(len(pictures.ratings), 'picture')} with {counted(len(given), 'rating')}{more}, "
        f"{given.min():g} to {given.max():g}, mean {given.mean():.3g}"
    )


def _table(trained: Trained) -> str:
    """The head beside a constant, on the pictures held out."""
    held = trained.head_outcome.error.n
    rows = [
        [f"{counted(held, 'picture')} held out", "Spearman", "Pearson", "mean absolute error"],
        ["this head", *_row(trained.head_outcome)],
        [f"always {trained.constant:.3g}, the median", *_row(trained.constant_outcome)],
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    low, high = trained.gain.ci95
    gain = f"{trained.gain.mean:+.2g} ({low:.2g} to {high:.2g})"
    return "\n".join(
        [
            *lines,
            f"Learnt from {counted(trained.learnt, 'other picture')}; error saved against the constant {gain}. "
            "In brackets 95% intervals.",
        ]
    )


def _row(outcome: Outcome) -> list[str]:
    low, high = outcome.error.ci95
    error = f"{outcome.error.mean:.3g} ({low:.3g} to {high:.3g})"
    return [_told(outcome.spearman), _told(outcome.pearson), error]


def _told(correlation: Correlation) -> str:
    if np.isnan(correlation.value):
        return "none"
    return f"{correlation.value:.2f} ({correlation.ci95[0]:.2f} to {correlation.ci95[1]:.2f})"


def _paste(out: Path, config: AestheticConfig) -> str:
    """The head in a recipe, and on the command line."""
    keys = {"type": "aesthetic", **config.model_dump(mode="json", exclude_defaults=True)}
    line = yaml.safe_dump(keys, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000).strip()
    return f"""
{out} is written. In a recipe, where it is best mixed with a reward that reads the caption:

ranker:
  rewards:
    - {line}

{command("rank", "some/folder", "--reward", line)}"""
