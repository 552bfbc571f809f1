"""The data of the translation recipes: python -m raftdiff.embedded.translation.data --out configs/prompts

Sources with a reference, the most elegant right translation; preferences between two translations of one source; and
careless translations, as translate-lm learnt from, for the PTX loss. Preferences go by faithfulness first, then
fluency, then elegance.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from raftdiff.embedded.reviews.preferences import wrong_labels
from raftdiff.embedded.translation import world
from raftdiff.embedded.translation.careless import careless, misheard, spoken
from raftdiff.embedded.translation.world import Choice
from raftdiff.seeds import fold

Kind: TypeAlias = Literal["faithful", "fluent", "elegant"]
KINDS: tuple[Kind, ...] = ("faithful", "fluent", "elegant")
GAP = 0.2
"""Smallest difference in elegance that a preference goes by."""
SLIPS = {"faithful": 0.04, "fluent": 0.25, "elegant": 0.04}
"""Chance that a word does not agree, in pairs of a kind."""
PAIRS, CLEAN, NOISE = 6400, 600, 0.1
"""Pairs to train on, a share of them labelled wrongly; and pairs on held-out sources, every label right."""
TAUGHT: tuple[Kind, ...] = ("faithful", "fluent", "elegant", "fluent")
"""What decides the pairs to train on, in turn. Agreement, a match of two words, is the slowest to be learnt."""


def sources(seed: int = 0, *, apart: bool = False) -> Iterator[dict[str, str]]:
    """{"prompt", "reference"} without end; with ``apart`` of held-out sources."""
    generator = np.random.default_rng(fold(seed, "held out" if apart else "sources"))
    while True:
        prompt = world.source(world.draw(generator, apart=apart))
        yield {"prompt": prompt, "reference": world.references(prompt)[0]}


def written(seed: int = 1) -> Iterator[dict[str, str]]:
    """{"prompt", "response"} without end: careless translations of training sources."""
    generator = np.random.default_rng(fold(seed, "written"))
    while True:
        meant = world.draw(generator)
        yield {"prompt": world.source(meant), "response": careless(meant, generator)}


def preferences(
    count: int, seed: int = 0, *, kinds: Sequence[Kind] = KINDS, apart: bool = False, noise: float = 0.0
) -> Iterator[dict[str, Any]]:
    """``count`` pairs: {"id", "prompt", "chosen", "rejected", "truth", "kind"}, ``truth`` 0 where the label is wrong.

    ``kinds`` are what decides them, in turn; ``noise`` is the share of wrong labels; ``apart`` takes held-out sources.
    """
    wrong = wrong_labels(count, seed=seed, noise=noise)
    generator = np.random.default_rng(fold(seed, "held-out pairs" if apart else "pairs"))
    for place in range(count):
        kind = kinds[place % len(kinds)]
        prompt, better, worse = next(_pairs(kind, generator, apart=apart))
        chosen, rejected = (worse, better) if place in wrong else (better, worse)
        told = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "truth": int(place not in wrong)}
        yield {"id": f"{place:04d}", **told, "kind": kind}


def decided(prompt: str, one: str, other: str) -> tuple[Kind, bool] | None:
    """By what one of two translations is the better, and whether it is the first; None where they are alike."""
    measures: Mapping[Kind, tuple[float, float]] = {
        "faithful": (world.faithfulness(prompt, one), world.faithfulness(prompt, other)),
        "fluent": (world.fluent(one), world.fluent(other)),
        "elegant": (world.elegance(one), world.elegance(other)),
    }
    for kind, (first, second) in measures.items():
        if first != second:
            enough = kind != "elegant" or abs(first - second) >= GAP
            return (kind, first > second) if enough else None
    return None


def _pairs(kind: Kind, generator: np.random.Generator, *, apart: bool) -> Iterator[tuple[str, str, str]]:
    """Sources, each with a better and a worse translation that differ first in ``kind``."""
    while True:
        meant = world.draw(generator, apart=apart)
        first = misheard(meant, generator, scale=generator.random())
        second = misheard(meant, generator, scale=generator.random()) if kind == "faithful" else first
        prompt, texts = world.source(meant), []
        for one in (first, second):
            shares: dict[Choice, float] = dict.fromkeys(("register", "order", "pronoun"), generator.random())
            texts.append(spoken(one, generator, fine=shares, slips=SLIPS[kind]))
        found = decided(prompt, texts[0], texts[1])
        if found is not None and found[0] == kind:
            better, worse = texts if found[1] else texts[::-1]
            yield prompt, better, worse


def _distinct(rows: Iterable[dict[str, str]]) -> Iterator[dict[str, str]]:
    known: set[str] = set()
    for row in rows:
        if row["prompt"] not in known:
            known.add(row["prompt"])
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("configs/prompts"), help="default: %(default)s")
    out = parser.parse_args().out
    files: dict[str, Iterable[Mapping[str, Any]]] = {
        "train": islice(_distinct(sources()), 256),
        "held_out": islice(_distinct(sources(apart=True)), 64),
        "pairs": preferences(PAIRS, kinds=TAUGHT, noise=NOISE),
        "clean_pairs": preferences(CLEAN, apart=True),
        "ptx": islice(written(), 400),
    }
    for name, rows in files.items():
        lines = [json.dumps(row) + "\n" for row in rows]
        (out / f"translation_{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
